"""Attention without its weights. TensorFlow has no fused one: both implementations are these operations."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf
from keras import ops


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
