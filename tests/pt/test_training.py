"""The PyTorch models train as PyTorch modules do; that their gradients are right, tests/test_equivalence.py shows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vit import InputError

from .common import LABELS, MODELS, Load, assert_close, gradients, images, inputs_of


def test_overfits_a_small_batch_in_a_trainer_style_loop(load: Load) -> None:
    model = load().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = {"pixel_values": images(), "labels": LABELS}
    losses = []
    for _ in range(30):
        loss = model(**batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.05 < losses[0]
    assert torch.equal(model.eval()(**batch).logits.argmax(-1), LABELS)


@pytest.mark.parametrize("cls", MODELS[1:])
def test_every_parameter_gets_a_gradient(load: Load, cls: type) -> None:
    model = load(cls)
    model(**inputs_of(cls)).loss.backward()
    for name, gradient in gradients(model).items():
        assert gradient is not None, name
        if "key.bias" not in name:  # softmax does not see what all keys share
            assert gradient.abs().max() > 1e-7, name


def test_frozen_backbone_trains_the_head_alone(load: Load) -> None:
    model = load()
    model.vit.requires_grad_(False)
    model(images(), labels=LABELS).loss.backward()
    assert {name for name, gradient in gradients(model).items() if gradient is not None} == {
        "classifier.weight",
        "classifier.bias",
    }


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("place", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_is_on_in_training_and_off_in_evaluation(load: Load, attn_implementation: str, place: str) -> None:
    model = load(attn_implementation=attn_implementation, **{place: 0.4})
    without = load(attn_implementation=attn_implementation)(images())
    assert_close(model(images()), without, atol=0)
    model.train()
    torch.manual_seed(0)
    first, second = model(images()).logits, model(images()).logits
    torch.manual_seed(0)
    again = model(images()).logits
    assert torch.equal(first, again)
    assert (first - second).abs().max() > 0.01
    model(images(), labels=LABELS).loss.backward()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())
    assert_close(model.eval()(images()), without, atol=0)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_recomputes_each_layer_and_keeps_the_gradients(load: Load, dropout: float) -> None:
    model = load(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout).train()
    calls: list[str] = []
    for layer in model.vit.encoder.layer:
        layer.register_forward_pre_hook(lambda *_: calls.append("layer"))

    def step() -> tuple[Any, int]:
        calls.clear()
        model.zero_grad()
        torch.manual_seed(0)
        output = model(images(), labels=LABELS, output_hidden_states=True, output_attentions=True)
        output.loss.backward()
        return (output, gradients(model)), len(calls)

    expected, count = step()
    assert count == 2
    model.gradient_checkpointing_enable()
    actual, count = step()
    assert count == 4
    assert_close(actual, expected, atol=1e-6)
    model.gradient_checkpointing_disable()
    assert step()[1] == 2
    model.gradient_checkpointing_enable()
    calls.clear()
    model.eval()(images(), labels=LABELS).loss.backward()
    assert len(calls) == 2  # evaluation keeps its activations


def test_gradient_checkpointing_keeps_fewer_activations(load: Load) -> None:
    model = load().train()

    def kept() -> int:
        sizes: list[int] = []
        parameters = {parameter.data_ptr() for parameter in model.parameters()}

        def pack(value: Tensor) -> Tensor:
            if value.data_ptr() not in parameters:
                sizes.append(value.numel())
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            model(images(), labels=LABELS)
        return sum(sizes)

    everything = kept()
    model.gradient_checkpointing_enable()
    assert kept() < everything / 4


def test_autocast_computes_in_bfloat16_and_trains_in_float32(load: Load) -> None:
    model = load()
    expected = model(images(), labels=LABELS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(images(), labels=LABELS)
    assert outputs.logits.dtype is torch.bfloat16
    assert outputs.loss.dtype is torch.float32
    assert_close(outputs.logits.float(), expected.logits, atol=0.1)
    outputs.loss.backward()
    actual = copy.deepcopy(gradients(model))
    model.zero_grad()
    expected.loss.backward()
    for name, gradient in gradients(model).items():
        assert actual[name].dtype is torch.float32
        assert_close(actual[name], gradient, atol=0.05)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_functional_gradients_of_each_image_average_to_those_of_the_batch(load: Load) -> None:
    model = load()
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], pixel_values: Tensor, labels: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (pixel_values,), {"labels": labels}).loss

    def loss_of_one(parameters: dict[str, Tensor], pixel_values: Tensor, label: Tensor) -> Tensor:
        return loss(parameters, pixel_values[None], label[None])

    of_each = torch.func.vmap(torch.func.grad(loss_of_one), (None, 0, 0))(parameters, images(), LABELS)
    of_batch = torch.func.grad(loss)(parameters, images(), LABELS)
    model(images(), labels=LABELS).loss.backward()
    assert_close({name: gradient.mean(0) for name, gradient in of_each.items()}, gradients(model))
    assert_close(of_batch, gradients(model), atol=1e-6)


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [
        ("single_label_classification", torch.tensor([3, 0, 2])),
        ("multi_label_classification", torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 1], [1, 1, 0, 1, 0]])),
        ("regression", torch.tensor([[0.5, -1, 0, 2, 1], [1, 0, 0, 0, 3], [0, 1.5, 2, 0, 0]])),
    ],
)
def test_loss_is_that_of_the_problem_type(load: Load, problem_type: str, labels: Tensor) -> None:
    outputs = load(problem_type=problem_type)(images(), labels=labels)
    logits = outputs.logits.detach().double()
    log_odds = nn.functional.logsigmoid
    expected = {
        "single_label_classification": lambda: -logits.log_softmax(-1)[torch.arange(3), labels].mean(),
        "multi_label_classification": lambda: -torch.where(labels == 1, log_odds(logits), log_odds(-logits)).mean(),
        "regression": lambda: ((logits - labels) ** 2).mean(),
    }[problem_type]()
    assert_close(outputs.loss.detach().double(), expected, atol=1e-6)


def test_label_of_minus_100_is_left_out_of_the_loss(model: Any) -> None:
    expected = model(images()[:2], labels=LABELS[:2]).loss
    assert_close(model(images(), labels=torch.tensor([0, 1, -100])).loss, expected)


@pytest.mark.parametrize("label", [5, -1])
def test_label_out_of_range_is_named(model: Any, label: int) -> None:
    with pytest.raises(InputError, match=rf"labels holds {label}; expected 0 to 4 \(num_labels is 5\)"):
        model(images(), labels=torch.tensor([0, label, 1]))
