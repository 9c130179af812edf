"""LayerNorm in Keras 3."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from ..config import PreTrainedConfig


class LayerNorm(keras.layers.LayerNormalization):
    """The layer of Keras over the last axis, in fewer passes over the tokens."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        at_least_float32 = keras.backend.result_type(inputs.dtype, "float32")
        x, gamma, beta = (ops.cast(tensor, at_least_float32) for tensor in (inputs, self.gamma, self.beta))
        x = x - ops.mean(x, axis=-1, keepdims=True)
        x = x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + self.epsilon)
        return ops.cast(x * gamma + beta, self.compute_dtype)


def layer_norm(config: PreTrainedConfig, name: str, **options: Any) -> LayerNorm:
    """A LayerNorm with the epsilon of the configuration."""
    return LayerNorm(epsilon=config.layer_norm_eps, name=name, **options)
