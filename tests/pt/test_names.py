"""What users of timm and transformers ask of a PyTorch model by name, and its effect, in every family."""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from itertools import chain
from typing import Any

import pytest
import torch

from vit import ConfigError, InputError, families

from ..tiny import HEADS, tiny_family

CLASSES = pytest.mark.parametrize(("model_type", "head"), HEADS)
CLASSIFIERS = [(model_type, head) for model_type, head in HEADS if head in ("classifier", "teacher")]


def model_of(model_type: str, head: str | None, **overrides: Any) -> Any:
    torch.manual_seed(0)
    return families.model_class("pt", model_type, head)(tiny_family(model_type, **overrides)).eval()


def pixels(model: Any) -> dict[str, torch.Tensor]:
    shape = (2, 3, 16, 12)
    fixed = model.config.fixed_inputs(shape)
    return {"pixel_values": torch.randn(shape), **{name: torch.from_numpy(each) for name, each in fixed.items()}}


# === Groups of layers ===


def groups(names: list[str], matcher: dict[str, Any]) -> dict[str, int]:
    """Name of a parameter -> number of its group, as timm's optimisers make it of a `group_matcher`."""
    patterns = []
    for ordinal, spec in enumerate(matcher.values()):
        several = spec if isinstance(spec, list | tuple) else [(spec, None)]
        patterns += [(re.compile(pattern), (ordinal,), suffix) for pattern, suffix in several]

    def group(name: str) -> tuple[float, ...]:
        for pattern, prefix, suffix in patterns:
            if found := pattern.match(name):
                return tuple(map(float, chain.from_iterable(filter(None, (prefix, found.groups(), suffix)))))
        return (float("inf"),)

    by_group = defaultdict(list)
    for name in names:
        by_group[group(name)].append(name)
    numbered, number = {}, -1
    for key in sorted(by_group):
        if number < 0 or key[-1] != 99999:  # which stands for the group before
            number += 1
        numbered |= dict.fromkeys(by_group[key], number)
    return numbered


@CLASSES
def test_layer_decay_sees_the_embeddings_each_layer_and_the_head(model_type: str, head: str | None):
    model = model_of(model_type, head)
    layers, base = model.config.num_hidden_layers, model.base_model_prefix
    found = groups([name for name, _ in model.named_parameters()], model.group_matcher())
    for name, number in found.items():
        own = name.removeprefix(f"{base}.")
        layer = re.match(r"(?:\w+\.)?layer\.(\d+)\.", own)
        if own.startswith(("embeddings.", "encoder.relative_position_bias.")):
            expected = 0
        elif layer:
            expected = 1 + int(layer[1])
        elif re.match(r"(layer)?norm\.", own):
            expected = layers
        else:
            expected = layers + 1
        assert number == expected, name
    assert {0, 1, layers} <= set(found.values())


@CLASSES
def test_weight_decay_leaves_tokens_positions_and_tables_out(model_type: str, head: str | None):
    model = model_of(model_type, head)
    names = {name for name, _ in model.named_parameters()}
    found = model.no_weight_decay()
    assert found <= names
    expected = {
        name for name in names if re.search(r"(_token|_tokens|position_embeddings|pos_embed|bias_table)$", name)
    }
    assert found == expected
    assert any(name.endswith("cls_token") for name in found)


# === timm ===


@CLASSES
def test_features_and_head_make_the_whole(model_type: str, head: str | None):
    model = model_of(model_type, head)
    if "noise" in (inputs := pixels(model)):
        torch.manual_seed(1)  # it draws its noise
        features = model.forward_features(inputs["pixel_values"])
        torch.manual_seed(1)
        assert features.equal(model.base_model(inputs["pixel_values"]).last_hidden_state)
        return
    features = model.forward_features(inputs["pixel_values"])
    assert features.equal(model.base_model(inputs["pixel_values"]).last_hidden_state)
    assert features.shape[2] == model.num_features
    if head in ("classifier", "teacher"):
        assert model.forward_head(features).equal(model(**inputs).logits)
        before = model.forward_head(features, pre_logits=True)
        assert before.shape == (2, model.config.classifier_size)
        if head == "classifier":
            assert model.get_classifier()(before).equal(model(**inputs).logits)
    else:
        assert model.forward_head(features).shape[0] == 2


@pytest.mark.parametrize(("model_type", "head"), CLASSIFIERS)
def test_a_classifier_of_another_number_of_labels_is_fresh_trains_and_is_saved(model_type, head, tmp_path):
    model = model_of(model_type, head)
    inputs = pixels(model)
    assert model.num_classes == 5
    old = copy.deepcopy(model.base_model.state_dict())
    model.reset_classifier(7)
    assert model.num_classes == model.config.num_labels == model.base_model.config.num_labels == len(
        model.config.id2label) == 7  # fmt: skip
    assert model(**inputs).logits.shape == (2, 7)
    model(**inputs).logits.sum().backward()
    assert all(value.equal(old[name]) for name, value in model.base_model.state_dict().items())
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again(**inputs).logits.equal(model(**inputs).logits)
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert model(**inputs).logits.shape == (2, model.config.classifier_size)
    with pytest.raises(InputError, match="global_pool is 'avg'"):
        model.reset_classifier(3, global_pool="avg")


@pytest.mark.parametrize(("model_type", "head"), [each for each in HEADS if each not in CLASSIFIERS])
def test_a_model_without_a_classifier_says_so(model_type: str, head: str | None):
    model = model_of(model_type, head)
    assert model.num_classes == 0
    for ask in (model.get_classifier, lambda: model.reset_classifier(3)):
        with pytest.raises(ConfigError, match=f"{type(model).__name__} has no classifier"):
            ask()


# === transformers ===


@CLASSES
def test_recomputed_layers_get_gradients_behind_frozen_embeddings(model_type: str, head: str | None):
    model = model_of(model_type, head).train()
    inputs = pixels(model)
    model.base_model.embeddings.requires_grad_(False)
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: seen.append(output))
    for enabled in (True, False):
        (model.enable_input_require_grads if enabled else model.disable_input_require_grads)()
        model(**inputs)
        assert seen[-1].requires_grad is enabled
    model.enable_input_require_grads()
    copy.deepcopy(model)(**inputs)
    model.set_grad_checkpointing()
    assert model.is_gradient_checkpointing
    model.set_grad_checkpointing(False)
    assert not model.is_gradient_checkpointing


@CLASSES
def test_sizes_are_counted(model_type: str, head: str | None):
    model = model_of(model_type, head)
    inputs = pixels(model)
    assert model.get_memory_footprint() == 4 * model.num_parameters(exclude_embeddings=True)
    stacks = model.config.attention_stacks(head)
    assert model.estimate_tokens(inputs) == 2 * stacks[0][2]
    assert model.floating_point_ops(inputs) > 2 * 3 * model.num_parameters()
    assert model(**model.dummy_inputs)[0] is not None
    assert not model.can_generate()
    assert model.framework == "pt"
    assert (model.get_output_embeddings() is None) is (head != "lm_head")


def test_all_parameters_can_be_drawn_anew():
    model = model_of("vit", "classifier")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.data.fill_(3.0)
    model.init_weights()
    for name, value in model.state_dict().items():
        assert not (value == 3).any(), name
        assert (value.std() - before[name].std()).abs() < 0.01 or value.numel() < 200, name
    model.tie_weights()
    model.set_input_embeddings(copy.deepcopy(model.get_input_embeddings()))
