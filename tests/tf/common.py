"""Inputs and comparisons of the tests of the TensorFlow models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vit import TFViTForImageClassification, TFViTForMaskedImageModeling, TFViTModel

MODELS = [TFViTModel, TFViTForImageClassification, TFViTForMaskedImageModeling]
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


def assert_close(actual: Any, expected: Any, atol: float = 1e-5) -> None:
    """The same structure and keys, and numbers within `atol`."""
    keras.tree.assert_same_structure(actual, expected)
    for a, b in zip(keras.tree.flatten(actual), keras.tree.flatten(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=0, atol=atol)


def values_of(model: Any) -> list[np.ndarray]:
    return [variable.numpy() for variable in model.weights]


def gradients(model: Any, inputs: dict[str, Any], **options: Any) -> tuple[tf.Tensor, list[tf.Tensor]]:
    with tf.GradientTape() as tape:
        loss = model(**inputs, **options).loss
    return loss, tape.gradient(loss, model.trainable_variables)
