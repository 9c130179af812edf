"""Dropout that follows the configuration, and stochastic depth; the same in all three frameworks."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from ..config import PreTrainedConfig


class Dropout(keras.layers.Dropout):
    """Dropout of the rate that a key of the configuration has now, until `rate` is assigned."""

    def __init__(self, config: PreTrainedConfig, key: str, **kwargs: Any) -> None:
        self.assigned: float | None = None
        self.config, self.key = config, key
        super().__init__(getattr(config, key), **kwargs)
        self.assigned = None

    @property
    def rate(self) -> float:
        return getattr(self.config, self.key) if self.assigned is None else self.assigned

    @rate.setter
    def rate(self, value: float) -> None:
        self.assigned = value

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        if training and self.rate > 0 and not hasattr(self, "seed_generator"):  # Keras makes none for a rate of 0
            with tf.init_scope():
                self._tracker.unlock()
                self.seed_generator = keras.random.SeedGenerator(self.seed)
        return super().call(inputs, training=training)


class DropPath(keras.layers.Dropout):
    """Stochastic depth: in training drops all that a branch adds to an image (Huang et al. 2016)."""

    def __init__(self, rate: float, **kwargs: Any) -> None:
        super().__init__(rate, noise_shape=(None, 1, 1), **kwargs)  # of a branch (B, T, D)


def recomputed(layer: keras.layers.Layer) -> Any:
    """`layer` in training, computed again in the backward pass instead of keeping its activations."""
    dropouts = [each for each in layer._flatten_layers() if isinstance(each, keras.layers.Dropout)]
    drawn = [each for each in dropouts if each.rate > 0 for _ in range(2 if isinstance(each, DropPath) else 1)]
    seeds = [dropout.seed_generator for dropout in drawn]  # as often as the layer draws from each
    start = [(seed.state, ops.copy(seed.state)) for seed in seeds]

    def call(
        hidden_states: tf.Tensor, output_attentions: bool = False, bias: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, ...]:
        def compute(hidden_states: tf.Tensor, *bias: tf.Tensor) -> tuple[tf.Tensor, ...]:
            with keras.StatelessScope(start):  # both times from the same seeds, so that both drop the same
                return layer(
                    hidden_states, output_attentions=output_attentions, bias=bias[0] if bias else None, training=True
                )

        outputs = keras.remat(compute)(hidden_states, *([] if bias is None else [bias]))
        for seed in seeds:
            seed.next()
        return outputs

    return call
