"""Inputs of the tests of the TensorFlow and the Flax models: NumPy arrays, which both take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

LABELS = np.array([0, 1, 4, 2])
Load = Callable[..., Any]


def images(batch: int = 4, height: int = 12, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, height, width), dtype=np.float32)


def masks(batch: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((batch, 12)) > 0.5


def inputs_of(cls: type) -> dict[str, np.ndarray]:
    """Inputs with which a model computes a loss (a base model its outputs)."""
    extra = {"classifier": {"labels": LABELS}, "decoder": {"bool_masked_pos": masks()}}
    return {"pixel_values": images(), **extra.get(cls.head, {})}
