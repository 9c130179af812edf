"""Dropout that follows the configuration; the same in all three frameworks."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

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
