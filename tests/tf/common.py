"""Models and comparisons of the tests of the TensorFlow models."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vit import TFViTForImageClassification, TFViTForMaskedImageModeling, TFViTModel

MODELS = [TFViTModel, TFViTForImageClassification, TFViTForMaskedImageModeling]


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
