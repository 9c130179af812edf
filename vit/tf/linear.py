"""Linear layers and activations in Keras 3."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from ..config import PreTrainedConfig


def gelu(x: tf.Tensor) -> tf.Tensor:
    """The exact gelu; that of Keras rounds a constant to float32."""
    return 0.5 * x * (1.0 + ops.erf(x * 0.5**0.5))


def gelu_new(x: tf.Tensor) -> tf.Tensor:
    """The tanh approximation of gelu; that of Keras rounds a constant to float32."""
    return 0.5 * x * (1.0 + ops.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x * x * x)))


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_new": gelu_new,
    "gelu_pytorch_tanh": gelu_new,
    "quick_gelu": lambda x: x * ops.sigmoid(1.702 * x),
    "relu": ops.relu,
    "selu": ops.selu,
    "silu": ops.silu,
    "tanh": ops.tanh,
}


def initializer(config: PreTrainedConfig) -> keras.initializers.Initializer:
    """The truncated normal of fresh kernels and tokens, cut at two standard deviations."""
    return keras.initializers.TruncatedNormal(stddev=config.initializer_range)


def dense(config: PreTrainedConfig, units: int, name: str, **options: Any) -> keras.layers.Dense:
    """A dense layer with the initial values of the published ones."""
    return keras.layers.Dense(units, kernel_initializer=initializer(config), name=name, **options)


def linear(layer: keras.layers.Dense, x: tf.Tensor, activation: str | None = None) -> tf.Tensor:
    """`ACTIVATIONS[activation](layer(x))`, or layer(x) without one: (B, T, D) -> (B, T, layer.units).

    As a product of matrices, which TensorFlow fuses with the bias and the activation where no reshape stands between.
    """
    flat = layer(ops.reshape(x, (-1, x.shape[-1])))  # (B * T, units)
    flat = flat if activation is None else ACTIVATIONS[activation](flat)
    return ops.reshape(flat, (-1, x.shape[1], layer.units))
