"""What transformers' common suites check of a model, of every class of every family in every framework.

`peers.py` names their tests. Each test here says which of them it covers, and the last one sees that none is forgotten.
"""

from __future__ import annotations

import inspect
import json
import re
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vit
from vit import CheckpointError, checkpoint, families
from vit.config import keys_of

from . import peers
from .equivalence import RUN, Case, named
from .tiny import HEADS, tiny_checkpoint, tiny_family

FRAMEWORKS = tuple(families.PREFIXES)
CLASSES = pytest.mark.parametrize(("model_type", "head"), HEADS)
EVERYWHERE = pytest.mark.parametrize("framework", FRAMEWORKS)
CLASSIFIERS = [(each, head) for each, head in HEADS
               if families.config_class(each).heads[head].name.endswith("ForImageClassification")]  # fmt: skip
LOSSES: dict[str, str | None] = dict.fromkeys(families.CONFIGS)
LOSSES |= {each: head for each, head in reversed(HEADS) if head and head != "teacher"}
"""One class of each family that computes a loss, its classifier where it has one; a base model where none does."""
COVERED: set[str] = set()


def covers(*names: str) -> Callable[[Any], Any]:
    """Say which of the peers' tests a test covers."""
    COVERED.update(names)
    return lambda test: test


# === How a framework is asked ===


@pytest.fixture(scope="module", autouse=True)
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Models are kept for this module alone."""
    stored.place = tmp_path_factory.mktemp("models")  # type: ignore[attr-defined]
    yield
    for kept in (stored, load):
        kept.cache_clear()


@cache
def stored(model_type: str, head: str | None) -> Path:
    """A checkpoint of a class, every parameter random."""
    folder = stored.place / f"{model_type}-{head}"  # type: ignore[attr-defined]
    tiny_checkpoint(folder, model_type, head)
    return folder


@cache
def load(framework: str, model_type: str, head: str | None) -> Any:
    """Its model; whoever changes it changes it back."""
    return families.model_class(framework, model_type, head).from_pretrained(stored(model_type, head))


def inputs_of(config: Any, head: str | None, batch: int = 2) -> dict[str, np.ndarray]:
    """Inputs with which a class computes what it can, its loss if it has one."""
    rng = np.random.default_rng(0)
    shape = (batch, 3, *vit.config.to_pair(config.image_size))
    inputs = {"pixel_values": rng.standard_normal(shape, dtype=np.float32), **config.fixed_inputs(shape)}
    kind = config.heads[head]
    if kind.name.endswith("ForMaskedImageModeling"):
        inputs["bool_masked_pos"] = mask = np.arange(batch * config.num_patches).reshape(batch, -1) % 2 == 0
        if kind.output == "logits":  # visual tokens
            inputs["labels"] = rng.integers(0, config.vocab_size, int(mask.sum()))
    elif kind.name.endswith("ForImageClassification"):
        inputs["labels"] = np.arange(batch) % config.num_labels
    return inputs


def tensor(framework: str, value: Any) -> Any:
    if framework == "pt":
        import torch

        return torch.from_numpy(value) if isinstance(value, np.ndarray) else value
    if framework == "tf":
        import tensorflow as tf

        return tf.constant(value) if isinstance(value, np.ndarray) else value
    return value


def call(framework: str, model: Any, inputs: dict[str, Any], **options: Any) -> Any:
    """What a call gives, without gradients."""
    inputs = {name: tensor(framework, value) for name, value in inputs.items()}
    if framework == "pt":
        import torch

        with torch.no_grad():
            return model(**inputs, **options)
    return model(**inputs, **options)


def arrays(output: Any) -> dict[str, np.ndarray]:
    """The values of an output as NumPy arrays, tuples spread out."""
    return {name: np.asarray(value) for name, value in named(output).items()}


def same(actual: Any, expected: Any, atol: float = 0.0) -> None:
    actual, expected = arrays(actual), arrays(expected)
    assert list(actual) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, atol=atol, rtol=0, err_msg=name)


def fresh(framework: str, model_type: str, head: str | None, **overrides: Any) -> Any:
    """A model that no checkpoint was read for."""
    config = tiny_family(model_type, **overrides)
    cls = families.model_class(framework, model_type, head)
    if framework != "flax":
        return cls(config)
    from flax import nnx

    return cls(config, rngs=nnx.Rngs(0))


def weights(model: Any, folder: Path) -> dict[str, np.ndarray]:
    """Every parameter of a model by its canonical name."""
    model.save_pretrained(folder)
    opened = checkpoint.Checkpoint(folder)
    return {name: opened.read(name) for name in opened.tensors}


# === Calls and outputs ===


@covers("test_forward_signature", "test_model_main_input_name")
@CLASSES
@EVERYWHERE
def test_the_first_argument_is_the_main_input(framework: str, model_type: str, head: str | None):
    cls = families.model_class(framework, model_type, head)
    method = {"pt": "forward", "tf": "call", "flax": "__call__"}[framework]
    names = list(inspect.signature(getattr(cls, method)).parameters)
    assert names[1] == cls.main_input_name == "pixel_values"
    assert {"output_hidden_states", "output_attentions", "return_dict"} <= set(names)


@covers(
    "test_model_outputs_equivalence", "test_hidden_states_output", "test_attention_outputs", "test_model",
    "test_for_image_classification", "test_for_masked_image_modeling",
)  # fmt: skip
@CLASSES
@EVERYWHERE
def test_outputs_are_the_same_by_name_by_place_by_argument_and_by_configuration(
    framework: str, model_type: str, head: str | None
):
    model = load(framework, model_type, head)
    config = model.config
    inputs = inputs_of(config, head)
    plain = call(framework, model, inputs)
    everything = call(framework, model, inputs, output_hidden_states=True, output_attentions=True)
    assert list(everything) == [*plain, "hidden_states", "attentions"]  # attentions are the last
    same({name: everything[name] for name in plain}, plain, 1e-5)
    assert len(everything.hidden_states) == config.num_hidden_layers + 1
    tokens = everything.hidden_states[0].shape[1]
    assert all(tuple(each.shape) == (2, tokens, config.hidden_size) for each in everything.hidden_states)
    assert len(everything.attentions) == config.num_hidden_layers
    assert all(tuple(each.shape) == (2, config.num_attention_heads, tokens, tokens) for each in everything.attentions)
    for each in everything.attentions:
        np.testing.assert_allclose(np.asarray(each).sum(-1), 1, atol=1e-5)

    by_place = call(framework, model, inputs, return_dict=False)
    assert isinstance(by_place, tuple)
    same(dict(zip(plain, by_place, strict=True)), plain)
    try:
        config.output_hidden_states = config.output_attentions = True
        same(call(framework, model, inputs), everything)
    finally:
        config.output_hidden_states = config.output_attentions = False
    kind = config.heads[head]
    assert kind.output in plain
    if kind.name.endswith(("ForImageClassification", "WithTeacher")):
        assert tuple(plain.logits.shape) == (2, config.num_labels)


@covers("test_determinism", "test_batching_equivalence")
@CLASSES
@EVERYWHERE
def test_a_call_repeats_itself_and_no_image_sees_another(framework: str, model_type: str, head: str | None):
    model = load(framework, model_type, head)
    inputs = inputs_of(model.config, head, 3)
    inputs.pop("labels", None)
    first, again = (call(framework, model, inputs) for _ in range(2))
    same(again, first)
    alone = call(framework, model, {name: value[:1] for name, value in inputs.items()})
    batched = {name: value[:1] for name, value in arrays(first).items() if value.ndim}
    same({name: value for name, value in arrays(alone).items() if value.ndim}, batched, 1e-5)


@covers("test_problem_types", "test_loss_computation")
@pytest.mark.parametrize(("model_type", "head"), CLASSIFIERS)
@EVERYWHERE
def test_each_problem_type_has_its_loss(framework: str, model_type: str, head: str | None, tmp_path: Path):
    pixels = inputs_of(tiny_family(model_type), head)["pixel_values"]
    for problem_type, num_labels, labels in (
        ("multi_label_classification", 3, np.array([[1, 0, 1], [0, 1, 0]], np.float32)),
        ("single_label_classification", 3, np.array([2, 0])),
        ("regression", 1, np.array([0.5, -1], np.float32)),
    ):
        folder = tmp_path / problem_type
        tiny_checkpoint(folder, model_type, head, num_labels=num_labels, problem_type=problem_type)
        model = families.model_class(framework, model_type, head).from_pretrained(folder)
        output = call(framework, model, {"pixel_values": pixels, "labels": labels})
        logits = np.asarray(output.logits, np.float64)
        if problem_type == "regression":
            expected = ((logits[:, 0] - labels) ** 2).mean()
        elif problem_type == "single_label_classification":
            expected = (np.log(np.exp(logits).sum(1)) - logits[[0, 1], labels]).mean()
        else:
            expected = (np.log1p(np.exp(logits)) - labels * logits).mean()
        assert float(output.loss) == pytest.approx(expected, abs=1e-5)


# === Attention ===


@covers(
    "test_eager_matches_sdpa_inference", "test_sdpa_can_dispatch_non_composite_models",
    "test_can_set_attention_dynamically", "test_config_attn_implementation_setter",
)  # fmt: skip
@CLASSES
@EVERYWHERE
def test_attention_is_the_same_either_way_and_can_be_changed(framework: str, model_type: str, head: str | None):
    model = load(framework, model_type, head)
    inputs = inputs_of(model.config, head)
    assert model.config.attn_implementation == "sdpa"
    sdpa = call(framework, model, inputs)
    try:
        model.set_attn_implementation("eager")
        assert model.config.attn_implementation == "eager"
        eager = call(framework, model, inputs)
    finally:
        model.set_attn_implementation("sdpa")
    same(eager, sdpa, 1e-5)
    with pytest.raises(vit.ConfigError, match="one of 'sdpa', 'eager'"):
        model.set_attn_implementation("flash_attention_2")


# === Checkpoints ===


@covers("test_save_load", "test_can_use_safetensors", "test_from_pretrained_save_pretrained", "test_save_load_config")
@CLASSES
@EVERYWHERE
def test_what_is_saved_is_loaded_twice_and_computes_the_same(
    framework: str, model_type: str, head: str | None, tmp_path: Path
):
    model = load(framework, model_type, head)
    inputs = inputs_of(model.config, head)
    model.save_pretrained(tmp_path / "first")
    assert {path.name for path in (tmp_path / "first").iterdir()} == {"config.json", "model.safetensors"}
    again, info = type(model).from_pretrained(tmp_path / "first", output_loading_info=True)
    assert not any(info.values()), info
    again.save_pretrained(tmp_path / "second")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    same(call(framework, again, inputs), call(framework, model, inputs))


@covers(
    "test_save_load_from_base", "test_save_load_to_base", "test_save_load_from_base_pt", "test_save_load_to_base_pt",
    "test_save_load_fast_init_from_base", "test_save_load_fast_init_to_base", "test_correct_missing_keys",
)  # fmt: skip
@pytest.mark.parametrize(("model_type", "head"), [each for each in HEADS if each[1]])
@EVERYWHERE
def test_a_head_takes_a_base_and_a_base_what_is_below_a_head(
    framework: str, model_type: str, head: str, tmp_path: Path
):
    model = load(framework, model_type, head)
    model.base_model.save_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        headed, info = type(model).from_pretrained(tmp_path / "base", output_loading_info=True)
    assert info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    whole, grown = weights(model, tmp_path / "whole"), weights(headed, tmp_path / "grown")
    assert whole.keys() == grown.keys()
    prefix = f"{model.base_model_prefix}."
    shared = [name for name in whole if name.startswith(prefix)]
    assert set(whole) - set(shared) <= set(info["missing_keys"])
    for name in shared:
        np.testing.assert_array_equal(grown[name], whole[name])
    base = families.model_class(framework, model_type).from_pretrained(tmp_path / "whole", add_pooling_layer=False) \
        if "add_pooling_layer" in model.config.heads[None].parts else \
        families.model_class(framework, model_type).from_pretrained(tmp_path / "whole")  # fmt: skip
    for name, value in weights(base, tmp_path / "below").items():
        np.testing.assert_array_equal(value, whole[prefix + name])


@covers(
    "test_load_with_mismatched_shapes", "test_can_load_ignoring_mismatched_shapes",
    "test_mismatched_shapes_have_properly_initialized_weights",
    "test_matched_shapes_have_loaded_weights_when_some_mismatched_shapes_exist",
)  # fmt: skip
@pytest.mark.parametrize(("model_type", "head"), CLASSIFIERS)
@EVERYWHERE
def test_what_has_another_shape_is_refused_or_starts_fresh(framework: str, model_type: str, head: str, tmp_path: Path):
    cls = families.model_class(framework, model_type, head)
    folder = stored(model_type, head)
    with pytest.raises(CheckpointError, match="shape"):
        cls.from_pretrained(folder, num_channels=4)
    with pytest.warns(UserWarning, match="projection"):
        changed = cls.from_pretrained(folder, num_channels=4, ignore_mismatched_sizes=True)
    with pytest.warns(UserWarning, match="classifier"):  # another number of labels is asked for by saying it
        relabelled = cls.from_pretrained(folder, num_labels=42)
    old = weights(load(framework, model_type, head), tmp_path / "old")
    for i, (model, odd) in enumerate(((changed, "projection.weight"), (relabelled, "classifier"))):
        new = weights(model, tmp_path / str(i))
        for name, value in old.items():
            if odd in name:
                assert value.shape != new[name].shape
                assert abs(float(new[name].mean())) < 0.1
            elif "projection.bias" not in name:
                np.testing.assert_array_equal(new[name], value, err_msg=name)


@covers(
    "test_save_load_in_bf16", "test_save_load_in_fp16", "test_save_load_bf16_to_base_pt", "test_to_bf16",
    "test_to_fp16", "test_to_fp32", "test_inference_fp16", "test_bc_torch_dtype",
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("model_type", families.CONFIGS)
@EVERYWHERE
def test_half_precision_is_loaded_saved_and_computed_in(framework: str, model_type: str, dtype: str, tmp_path: Path):
    head = LOSSES[model_type]
    cls = families.model_class(framework, model_type, head)
    model = cls.from_pretrained(stored(model_type, head), dtype=dtype)
    saved = weights(model, tmp_path)
    assert {value.dtype.name for value in saved.values()} == {dtype}
    again = cls.from_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == dtype
    inputs = inputs_of(model.config, head)
    inputs.pop("labels", None)
    output = call(framework, again, inputs)
    main = model.config.heads[head].output
    expected = np.asarray(call(framework, load(framework, model_type, head), inputs)[main], np.float32)
    value = output[main].float().numpy() if framework == "pt" else np.asarray(output[main]).astype(np.float32)
    np.testing.assert_allclose(value, expected, atol=0.5)
    back = cls.from_pretrained(tmp_path, torch_dtype="float32")  # by its older name
    assert {value.dtype.name for value in weights(back, tmp_path / "back").values()} == {"float32"}


# === Fresh models and their parts ===


@covers("test_initialization", "test_can_init_all_missing_weights")
@CLASSES
@EVERYWHERE
def test_a_fresh_model_starts_as_its_configuration_says(
    framework: str, model_type: str, head: str | None, tmp_path: Path
):
    model = fresh(framework, model_type, head, initializer_range=0.02)
    fixed = model.config
    for name, value in weights(model, tmp_path).items():
        assert np.isfinite(value).all(), name
        start = fixed.initial_value(name)
        if start is None:
            assert np.abs(value).max() <= 0.04 + 1e-6, name
            assert value.size < 64 or 0.01 < value.std() < 0.03, name
        elif isinstance(start, int | float):
            assert (value == np.float32(start)).all(), name


@covers(
    "test_model_get_set_embeddings", "test_model_common_attributes", "test_model_base_model_prefix",
    "test_model_is_small", "test_num_layers_is_small",
)  # fmt: skip
@CLASSES
@EVERYWHERE
def test_parts_have_the_known_names(framework: str, model_type: str, head: str | None):
    model = load(framework, model_type, head)
    assert model.get_input_embeddings() is model.base_model.embeddings.patch_embeddings
    assert model.get_output_embeddings() is getattr(model, "lm_head", None)
    assert (model.base_model is model) == (head is None)
    if head:
        assert getattr(model, model.base_model_prefix) is model.base_model
    assert 0 < model.num_parameters(only_trainable=True) <= model.num_parameters() < 100_000
    assert model.config.num_hidden_layers == 2


# === Training ===


def quietly(framework: str, model_type: str, change: Any = None) -> tuple[Any, Any]:
    """Outputs and gradients of one class of a family; nothing is dropped."""
    head = LOSSES[model_type]
    folder = stored(model_type, head)
    case = Case(head, {"model_type": model_type})
    inputs = inputs_of(checkpoint.Checkpoint(folder).config, head)
    return RUN[framework](folder, case, inputs, change=change, **STILL[model_type])


STILL = {
    model_type: {key: 0.0 for key in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate")
                 if key in keys_of(families.config_class(model_type))}
    for model_type in families.CONFIGS
}  # fmt: skip
"""Of each family the rates at which something is dropped in training."""


@covers(
    "test_training", "test_training_gradient_checkpointing", "test_training_gradient_checkpointing_use_reentrant_false",
    "test_gradient_checkpointing_enable_disable", "test_peft_gradient_checkpointing_enable_disable",
    "test_gradient_checkpointing",
)  # fmt: skip
@pytest.mark.parametrize("model_type", families.CONFIGS)
@EVERYWHERE
def test_every_parameter_is_trained_and_recomputing_changes_nothing(framework: str, model_type: str):
    seen = []

    def recompute(model: Any) -> None:
        seen.append(model.is_gradient_checkpointing)
        model.gradient_checkpointing_enable()
        seen.append(model.is_gradient_checkpointing)
        model.gradient_checkpointing_disable()
        seen.append(model.is_gradient_checkpointing)
        model.gradient_checkpointing_enable()

    output, gradients = quietly(framework, model_type)
    again, recomputed = quietly(framework, model_type, recompute)
    assert seen == [False, True, False]
    main = "loss" if LOSSES[model_type] else "last_hidden_state"
    np.testing.assert_allclose(again[main], output[main], atol=1e-6)
    assert gradients.keys() == recomputed.keys()
    for name, value in gradients.items():
        np.testing.assert_allclose(recomputed[name], value, atol=1e-5, err_msg=name)
    config = tiny_family(model_type)
    names = config.parameter_shapes(head=LOSSES[model_type], **config.heads[LOSSES[model_type]].parts)
    unused = {name for name in names if name not in gradients or not np.any(gradients[name])}
    # What stands fixed, what only a mask uses, and keys' biases, which change no attention.
    assert all(re.search(r"position_embeddings|decoder_pos_embed|mask_token|key\.bias", name) for name in unused), (
        unused
    )


@covers("test_training_gradient_checkpointing_use_reentrant", "test_retain_grad_hidden_states_attentions")
@CLASSES
def test_pytorch_keeps_gradients_of_what_it_gives_and_recomputes_either_way(model_type: str, head: str | None):
    import torch

    model = families.model_class("pt", model_type, head).from_pretrained(
        stored(model_type, head), attn_implementation="eager", **STILL[model_type]
    )
    inputs = {name: torch.from_numpy(value) for name, value in inputs_of(model.config, head).items()}
    output = model.train()(**inputs, output_hidden_states=True, output_attentions=True)
    kept = [output.hidden_states[0], output.attentions[0]]
    for value in kept:
        value.retain_grad()
    output[0].square().sum().backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in kept)
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    model(**inputs)[0].square().sum().backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)


@covers("test_enable_input_require_grads")
@CLASSES
def test_pytorch_makes_what_the_embeddings_give_require_gradients_and_stops(model_type: str, head: str | None):
    import torch

    model = load("pt", model_type, head)
    inputs = {name: torch.from_numpy(value) for name, value in inputs_of(model.config, head).items()}
    seen: list[bool] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda *args: seen.append(args[2].requires_grad))
    frozen = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        model.enable_input_require_grads()
        hook.remove()
        hook = model.get_input_embeddings().register_forward_hook(lambda *args: seen.append(args[2].requires_grad))
        model(**inputs)
        model.disable_input_require_grads()
        model(**inputs)
    finally:
        hook.remove()
        for parameter in frozen:
            parameter.requires_grad_(True)
    assert seen == [True, False]


# === PyTorch ===


@covers(
    "test_can_be_initialized_on_meta", "test_all_tensors_are_parameter_or_buffer",
    "test_cannot_load_with_meta_device_context_manager",
)  # fmt: skip
@CLASSES
def test_pytorch_builds_a_model_without_memory_and_fills_it(model_type: str, head: str | None):
    import torch

    whole = load("pt", model_type, head)
    with torch.device("meta"):
        model = type(whole)(whole.config)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    assert {value.device.type for value in tensors.values()} == {"meta"}
    model.to_empty(device="cpu").load_state_dict(whole.state_dict())
    inputs = inputs_of(whole.config, head)
    same(call("pt", model.eval(), inputs), call("pt", whole, inputs))
    with torch.device("meta"):  # weights are read all the same
        loaded = type(whole).from_pretrained(stored(model_type, head))
    assert {value.device.type for value in loaded.parameters()} == {"cpu"}


@covers("test_feed_forward_chunking")
def test_chunks_are_taken_and_change_nothing(tmp_path: Path):
    tiny_checkpoint(tmp_path, "vit", "classifier")
    model = vit.ViTForImageClassification.from_pretrained(tmp_path, chunk_size_feed_forward=1)
    inputs = inputs_of(model.config, "classifier")
    same(call("pt", model, inputs), call("pt", vit.ViTForImageClassification.from_pretrained(tmp_path), inputs))


# === TensorFlow ===


@covers(
    "test_keyword_and_dict_args", "test_numpy_arrays_inputs", "test_int64_inputs", "test_graph_mode", "test_xla_mode"
)
@CLASSES
def test_keras_takes_inputs_in_any_form_in_a_graph_and_in_xla(model_type: str, head: str | None):
    import tensorflow as tf

    model = load("tf", model_type, head)
    inputs = inputs_of(model.config, head)
    expected = call("tf", model, inputs)
    same(model(inputs), expected)
    pixels = inputs["pixel_values"]
    same(
        model(tf.constant(pixels), **{name: value for name, value in inputs.items() if name != "pixel_values"}),
        expected,
    )
    graph = tf.function(lambda values: model(values))
    same(graph({name: tf.constant(value) for name, value in inputs.items()}), expected, 1e-5)
    if "labels" in inputs and "bool_masked_pos" in inputs:
        return  # how many patches are masked is known when it is run, which XLA cannot compile
    xla = tf.function(lambda values: model(values), jit_compile=True)
    same(xla({name: tf.constant(value) for name, value in inputs.items()}), expected, 1e-4)


@covers(
    "test_compile_tf_model", "test_keras_save_load", "test_keras_fit", "test_train_pipeline_custom_model",
    "test_xla_fit",
)  # fmt: skip
@pytest.mark.parametrize("model_type", families.CONFIGS)
def test_keras_builds_on_a_model_fits_and_saves_what_was_built(model_type: str, tmp_path: Path):
    import keras

    head = LOSSES[model_type]
    base = families.model_class("tf", model_type).from_pretrained(
        stored(model_type, None), **families.config_class(model_type).seeing_all
    )
    shape = inputs_of(base.config, None)["pixel_values"].shape[1:]
    pixels = keras.Input(shape, name="pixel_values")
    tokens = base(pixels).last_hidden_state
    model = keras.Model(pixels, keras.layers.Dense(2, activation="softmax")(tokens[:, 0]))
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    values, labels = inputs_of(base.config, None, 4)["pixel_values"], np.array([0, 1, 0, 1])
    history = model.fit(values, labels, epochs=1, verbose=0).history
    assert np.isfinite(history["loss"][0])
    model.save(tmp_path / "model.keras")
    np.testing.assert_allclose(keras.saving.load_model(tmp_path / "model.keras")(values), model(values), atol=1e-6)

    own = families.model_class("tf", model_type, head).from_pretrained(stored(model_type, head), **STILL[model_type])
    inputs = inputs_of(own.config, head, 4)
    if own.config.heads[head].name.endswith("ForImageClassification"):
        own.compile(optimizer=keras.optimizers.SGD(0.0))
        split = {name: value for name, value in inputs.items() if name != "labels"}
        losses = [own.fit(inputs, batch_size=4, verbose=0).history["loss"][0],
                  own.fit(split, inputs["labels"], batch_size=4, verbose=0).history["loss"][0]]  # fmt: skip
        assert losses[0] == pytest.approx(losses[1], abs=1e-6)
        if model_type == "vit":  # compiling takes long
            own.compile(optimizer="sgd", jit_compile=True)
            assert np.isfinite(own.fit(inputs, batch_size=4, verbose=0).history["loss"][0])


@covers(
    "test_saved_model_creation",
    "test_saved_model_creation_extended",
    "test_prepare_serving_output",
    "test_mixed_precision",
)
@pytest.mark.parametrize("model_type", families.CONFIGS)
def test_keras_serves_a_saved_model_and_computes_in_mixed_precision(model_type: str, tmp_path: Path):
    import keras
    import tensorflow as tf

    head = LOSSES[model_type]
    model = families.model_class("tf", model_type, head).from_pretrained(
        stored(model_type, head), **families.config_class(model_type).seeing_all
    )
    inputs = inputs_of(model.config, head)
    model.export(str(tmp_path), verbose=False)
    exported = tf.saved_model.load(str(tmp_path))
    served = exported.serve(tf.constant(inputs["pixel_values"]))
    main = model.config.heads[head].output
    expected = model(inputs["pixel_values"])[main]
    assert served[main].shape == expected.shape
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        mixed = families.model_class("tf", model_type, head)(model.config)
        assert mixed(inputs["pixel_values"])[main].dtype in ("float16", "float32")
        assert {variable.dtype for variable in mixed.trainable_variables} == {"float32"}
    finally:
        keras.mixed_precision.set_dtype_policy("float32")


# === Flax ===


@covers("test_jit_compilation")
@pytest.mark.parametrize("model_type", families.CONFIGS)
def test_flax_gives_the_same_compiled_and_not(model_type: str):
    import jax

    head = LOSSES[model_type]
    model = load("flax", model_type, head)
    inputs = inputs_of(model.config, head)
    compiled = jax.jit(lambda values: model(**values))(inputs)
    same(compiled, call("flax", model, inputs), 1e-5)


# === Image processors ===


PROCESSORS = sorted(
    name for name in dir(vit) if name.endswith(("ImageProcessor", "ImageProcessorFast")) and "Auto" not in name
)
OPTIONS = {"size": {"height": 18, "width": 20}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7],
           "do_center_crop": False}  # fmt: skip
PROCESSOR = pytest.mark.parametrize("name", PROCESSORS)


def pictures(kind: str, channels: int = 3) -> list[Any]:
    """Two images of different sizes."""
    rng = np.random.default_rng(0)
    values = [rng.integers(0, 256, (*size, channels), dtype=np.uint8) for size in ((31, 45), (60, 33))]
    if kind == "pil":
        return [Image.fromarray(value) for value in values]
    if kind == "torch":
        import torch

        return [torch.from_numpy(value).permute(2, 0, 1) for value in values]
    return values


def options_of(name: str) -> dict[str, Any]:
    """Those of OPTIONS that a processor has."""
    return {key: value for key, value in OPTIONS.items() if hasattr(getattr(vit, name)(), key)}


@covers("test_call_pil", "test_call_numpy", "test_call_pytorch")
@pytest.mark.parametrize("kind", ["pil", "numpy", "torch"])
@PROCESSOR
def test_processors_take_one_image_or_several_of_any_kind(name: str, kind: str):
    processor = getattr(vit, name)(**options_of(name))
    images = pictures(kind)
    assert tuple(processor(images[0], return_tensors="pt").pixel_values.shape) == (1, 3, 18, 20)
    batch = processor(images, return_tensors="pt").pixel_values
    assert tuple(batch.shape) == (2, 3, 18, 20)
    np.testing.assert_array_equal(batch[:1], processor(images[:1], return_tensors="pt").pixel_values)


@covers("test_call_numpy_4_channels")
@PROCESSOR
def test_processors_take_four_channels(name: str):
    processor = getattr(vit, name)(**options_of(name))
    batch = processor(
        pictures("numpy", 4), return_tensors="np", input_data_format="channels_last", do_convert_rgb=False,
        image_mean=[0.0] * 4, image_std=[1.0] * 4,
    )  # fmt: skip
    assert batch.pixel_values.shape == (2, 4, 18, 20)


@covers(
    "test_image_processor_to_json_string", "test_image_processor_to_json_file", "test_is_fast",
    "test_image_processor_from_and_save_pretrained", "test_image_processor_save_load_with_autoimageprocessor",
    "test_image_processor_properties", "test_init_without_params", "test_image_processor_from_dict_with_kwargs",
)  # fmt: skip
@PROCESSOR
def test_processors_are_written_and_read_by_every_way(name: str, tmp_path: Path):
    cls = getattr(vit, name)
    assert cls().to_dict()
    processor = cls(**options_of(name))
    assert processor.is_fast == name.endswith("Fast")
    for key, value in options_of(name).items():
        assert list(getattr(processor, key)) == list(value) if key != "do_center_crop" else not processor.do_center_crop
        assert json.loads(processor.to_json_string())[key] == value
    processor.to_json_file(tmp_path / "processor.json")
    (saved,) = processor.save_pretrained(tmp_path / "folder")
    json.loads(Path(saved).read_text())
    for again in (
        cls.from_json_file(tmp_path / "processor.json"),
        cls.from_pretrained(tmp_path / "folder"),
        cls.from_dict(processor.to_dict()),
        vit.AutoImageProcessor.from_pretrained(tmp_path / "folder", use_fast=processor.is_fast),
    ):
        assert type(again) is cls
        assert again.to_dict() == processor.to_dict()
    changed = cls.from_dict(processor.to_dict(), size={"height": 6, "width": 8})
    assert changed.size == {"height": 6, "width": 8}


@covers("test_save_load_fast_slow", "test_save_load_fast_slow_auto", "test_slow_fast_equivalence_batched")
@pytest.mark.parametrize("name", [each for each in PROCESSORS if f"{each}Fast" in PROCESSORS])
def test_each_form_of_a_processor_reads_the_other_and_computes_nearly_the_same(name: str, tmp_path: Path):
    slow, fast = (getattr(vit, each)(**options_of(each)) for each in (name, f"{name}Fast"))
    slow.save_pretrained(tmp_path / "slow")
    fast.save_pretrained(tmp_path / "fast")
    pairs = (
        (type(fast).from_pretrained(tmp_path / "slow"), fast),
        (type(slow).from_pretrained(tmp_path / "fast"), slow),
        (vit.AutoImageProcessor.from_pretrained(tmp_path / "slow", use_fast=True), fast),
        (vit.AutoImageProcessor.from_pretrained(tmp_path / "fast", use_fast=False), slow),
    )
    images = pictures("pil")
    for found, expected in pairs:
        assert type(found) is type(expected)
        np.testing.assert_array_equal(
            found(images, return_tensors="np").pixel_values, expected(images, return_tensors="np").pixel_values
        )
    a, b = (each(images, return_tensors="np").pixel_values for each in (slow, fast))
    assert np.abs(a - b).max() < 0.1
    assert np.abs(a - b).mean() < 5e-3


@covers("test_cast_dtype_device")
@PROCESSOR
def test_batches_are_cast_and_moved(name: str):
    import torch

    batch = getattr(vit, name)(**options_of(name))(pictures("torch"), return_tensors="pt")
    assert batch.pixel_values.dtype is torch.float32
    batch["input_ids"] = torch.tensor([[1, 2], [3, 4]])
    assert batch.to(torch.float16).pixel_values.dtype is torch.float16
    assert batch.to("cpu", torch.bfloat16).pixel_values.dtype is torch.bfloat16
    assert batch.input_ids.dtype is torch.int64
    with pytest.raises(TypeError):
        batch.to(torch.bfloat16, "cpu")


@covers("test_override_instance_attributes_does_not_affect_other_instances")
@PROCESSOR
def test_a_processor_shares_nothing_with_another(name: str):
    cls = getattr(vit, name)
    first, second = cls(), cls()
    before = second.to_dict()
    first.size = {"height": 4, "width": 4}
    first.image_mean = [0.1, 0.2, 0.3]
    assert second.to_dict() == before
    assert cls().to_dict() == before


# === Configurations ===


@covers(
    "create_and_test_config_common_properties", "create_and_test_config_to_json_string",
    "create_and_test_config_to_json_file", "create_and_test_config_from_and_save_pretrained",
    "create_and_test_config_from_and_save_pretrained_subfolder", "create_and_test_config_with_num_labels",
    "check_config_can_be_init_without_params", "test_config",
)  # fmt: skip
@pytest.mark.parametrize("model_type", families.CONFIGS)
def test_configurations_are_written_and_read_by_every_way(model_type: str, tmp_path: Path):
    cls = families.config_class(model_type)
    assert cls().model_type == model_type
    config = tiny_family(model_type, num_labels=5)
    for key in ("hidden_size", "num_attention_heads", "num_hidden_layers"):
        assert getattr(config, key) == json.loads(config.to_json_string())[key]
    assert len(config.id2label) == len(config.label2id) == 5
    config.to_json_file(tmp_path / "config.json")
    config.save_pretrained(tmp_path / "folder")
    config.save_pretrained(tmp_path / "above" / "below")
    for again in (
        cls.from_json_file(tmp_path / "config.json"),
        cls.from_pretrained(tmp_path / "folder"),
        cls.from_pretrained(tmp_path / "above", subfolder="below"),
        cls.from_dict(config.to_dict()),
        vit.AutoConfig.from_pretrained(tmp_path / "folder"),
    ):
        assert again == config
    assert len(cls.from_pretrained(tmp_path / "folder", num_labels=3).id2label) == 3


# === Nothing is forgotten ===


def test_every_test_of_the_peers_is_covered_or_does_not_apply():
    elsewhere, excused = set(peers.ELSEWHERE), set(peers.NOT_APPLICABLE)
    assert COVERED | elsewhere | excused == peers.PEERS
    assert not COVERED & elsewhere
    assert not COVERED & excused
    assert not elsewhere & excused
    assert all(len(reason) > 10 for reason in peers.NOT_APPLICABLE.values())


@pytest.mark.parametrize("name", peers.ELSEWHERE)
def test_what_is_covered_elsewhere_is_there(name: str):
    path, _, test = peers.ELSEWHERE[name].partition("::")
    found = Path(__file__).parents[1] / path
    assert found.exists()
    assert not test or f"def {test}(" in found.read_text()
