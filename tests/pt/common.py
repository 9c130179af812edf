"""Inputs and comparisons of the tests of the PyTorch models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from vit import ViTForImageClassification, ViTForMaskedImageModeling, ViTModel

MODELS = [ViTModel, ViTForImageClassification, ViTForMaskedImageModeling]
LABELS = torch.tensor([0, 1, 4])
Load = Callable[..., Any]


def images(batch: int = 3, height: int = 12, width: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def masks(batch: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(batch, 12, generator=torch.Generator().manual_seed(seed)) > 0.5


def inputs_of(cls: type) -> dict[str, Tensor]:
    """Inputs with which a model computes a loss (a base model its outputs)."""
    extra = {"classifier": {"labels": LABELS}, "decoder": {"bool_masked_pos": masks()}}
    return {"pixel_values": images(), **extra.get(cls.head, {})}


def assert_close(actual: Any, expected: Any, atol: float = 1e-5) -> None:
    """The same structure, keys and dtypes, and numbers within `atol`."""
    leaves, spec = _pytree.tree_flatten(actual)
    expected_leaves, expected_spec = _pytree.tree_flatten(expected)
    assert spec == expected_spec
    for a, b in zip(leaves, expected_leaves, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in module.named_parameters()}
