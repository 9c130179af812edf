"""Attention without its projections. TensorFlow has no fused one: both implementations are these operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from ..config import config_from_dict
from ..families.beit import BeitConfig, relative_position_index
from ..posemb import linear_matrix


def attend(
    query: tf.Tensor,
    key: tf.Tensor,
    value: tf.Tensor,
    dropout: Callable[[tf.Tensor], tf.Tensor],
    bias: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Scaled dot-product attention (Vaswani et al. 2017, Section 3.2.1).

    Args:
        query, key, value: (B, T, H, D / H).
        dropout: of the attention probabilities.
        bias: (1 or B, H, T, T), added to the scores.

    Returns:
        (B, T, H, D / H), and the attention probabilities (B, H, T, T).
    """
    scores = ops.einsum("bqhd,bkhd->bhqk", query * query.shape[-1] ** -0.5, key)  # (B, H, T, T)
    scores = scores if bias is None else scores + bias
    at_least_float32 = keras.backend.result_type(scores.dtype, "float32")
    attentions = ops.cast(ops.softmax(ops.cast(scores, at_least_float32)), scores.dtype)
    return ops.einsum("bhqk,bkhd->bqhd", dropout(attentions), value), attentions


class RelativePositionBias(keras.layers.Layer):
    """Biases of the scores of a head, by the distance of a key from its query (Bao et al. 2022, Section 2.2)."""

    def __init__(self, config: BeitConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.relative_position_bias_table_initializer = keras.initializers.Zeros()

    def build(self, input_shape: Any = None) -> None:
        self.relative_position_bias_table = self.add_weight(
            self.config.table_shape, self.relative_position_bias_table_initializer, name="relative_position_bias_table"
        )

    def call(self, grid: tuple[int, int]) -> tf.Tensor:
        index = relative_position_index(grid)
        table = ops.reshape(self.interpolated_table(grid), (-1, self.config.num_attention_heads))  # a dense gradient
        rows = ops.take(table, index.reshape(-1), axis=0)  # whole rows, which is quicker than columns
        return ops.reshape(ops.transpose(rows), (1, -1, *index.shape))  # (1, H, T, T)

    def interpolated_table(self, grid: tuple[int, int]) -> tf.Tensor:
        """The table for a grid of (rows, columns) patches: (distances, H)."""
        table = ops.convert_to_tensor(self.relative_position_bias_table)
        if grid == self.config.grid_size:
            return table
        dtype = keras.backend.result_type(table.dtype, "float32")
        old, new = ([2 * length - 1 for length in each] for each in (self.config.grid_size, grid))
        rows, columns = (ops.convert_to_tensor(linear_matrix(*pair), dtype) for pair in zip(old, new, strict=True))
        patches = ops.einsum("hr,rcd->hcd", rows, ops.reshape(ops.cast(table[:-3], dtype), (*old, -1)))
        patches = ops.reshape(ops.einsum("wc,hcd->hwd", columns, patches), (-1, table.shape[1]))
        return ops.concatenate([ops.cast(patches, table.dtype), table[-3:]])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "config": self.config.to_dict()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return cls(**{**config, "config": config_from_dict(config["config"])})
