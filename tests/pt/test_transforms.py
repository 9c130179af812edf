"""What torch.func, autograd's Jacobian and torch.export do with the models of every family, on a CPU."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jacfwd, jacrev, vmap

from vit import families

from ..equivalence import tiny_config
from ..tiny import HEADS

FAMILIES = pytest.mark.parametrize("model_type", families.CONFIGS)


def random_model(model_type: str, head: str | None = None, **overrides: Any) -> Any:
    torch.manual_seed(0)
    model = families.model_class("pt", model_type, head)(tiny_config(model_type, **overrides)).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.2
    return model


def has(model: Any, argument: str) -> bool:
    return argument in inspect.signature(model.forward).parameters


def inputs_of(model: Any, batch: int, height: int, width: int) -> dict[str, Tensor]:
    pixel_values = torch.randn(batch, 3, height, width)
    noise = {"noise": torch.rand(batch, (height // 4) * (width // 4))} if has(model, "noise") else {}
    return {"pixel_values": pixel_values, **noise}


JACOBIANS: dict[str, Any] = {
    "jacrev": lambda f, x: jacrev(f)(x),
    "jacfwd": lambda f, x: jacfwd(f)(x),
    "autograd": lambda f, x: torch.autograd.functional.jacobian(f, x, vectorize=True),
    "autograd, forward": lambda f, x: torch.autograd.functional.jacobian(f, x, vectorize=True, strategy="forward-mode"),
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@FAMILIES
def test_vectorised_jacobians_are_those_of_one_row_after_another(model_type: str, attention: str):
    model = random_model(model_type, attn_implementation=attention)
    inputs = inputs_of(model, 1, 16, 16)
    pixel_values = inputs.pop("pixel_values")

    def f(pixels: Tensor) -> Tensor:
        return model(pixels, **inputs).last_hidden_state[0, 1, :5]

    expected = torch.autograd.functional.jacobian(f, pixel_values)
    for name, jacobian in JACOBIANS.items():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*torch.jit.script.*")
            warnings.filterwarnings("error", ".*performance drop.*")
            found = jacobian(f, pixel_values)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@FAMILIES
def test_vmap_gives_the_gradients_of_each_image(model_type: str):
    model = random_model(model_type)
    inputs = inputs_of(model, 3, 16, 16)
    names = list(inputs)
    parameters = {name: each.detach() for name, each in model.named_parameters() if each.requires_grad}

    def loss(parameters: Any, *tensors: Tensor) -> Tensor:
        batch = {name: tensor[None] for name, tensor in zip(names, tensors, strict=True)}
        return functional_call(model, parameters, (), batch).last_hidden_state.square().mean()

    found = vmap(grad(loss), (None, *[0] * len(names)))(parameters, *inputs.values())
    for i in range(3):
        expected = grad(loss)(parameters, *(each[i] for each in inputs.values()))
        for name in parameters:
            torch.testing.assert_close(found[name][i], expected[name], atol=1e-5, rtol=1e-4)


EXPORTED = [
    *((model_type, head, {}) for model_type, head in HEADS),
    ("dinov2", None, {"interpolate_offset": 0.1}),
]


@pytest.mark.parametrize(("model_type", "head", "overrides"), EXPORTED)
def test_an_export_from_the_configured_size_takes_every_size(model_type: str, head: str | None, overrides: Any):
    model = random_model(model_type, head, **overrides)
    options = {"interpolate_pos_encoding": True} if has(model, "interpolate_pos_encoding") else {}
    inputs, auto = inputs_of(model, 2, 16, 16), torch.export.Dim.AUTO
    shapes = {"pixel_values": {0: auto, 2: auto, 3: auto}, **dict.fromkeys(options)}
    shapes |= {"noise": {0: auto, 1: auto}} if "noise" in inputs else {}
    exported = torch.export.export(model, (), {**inputs, **options}, dynamic_shapes=shapes).module()
    for size in ((16, 16), (24, 32), (20, 16)):
        inputs = inputs_of(model, 3, *size)
        for name, value in exported(**inputs, **options).items():
            expected = model(**inputs, **options)[name]
            torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-4)
