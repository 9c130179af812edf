"""The losses of the heads in JAX; the same functions, in the same order, in all three frameworks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..config import PreTrainedConfig, to_pair
from ..inputs import (
    IGNORED_LABEL,
    check_label_values,
    check_labels_shape,
    check_visual_tokens,
    resolve_problem_type,
)


def classification_loss(config: PreTrainedConfig, logits: Array, labels: Array) -> Array:
    """The mean loss of a batch, by `config.problem_type`.

    Args:
        config: its problem_type selects the loss; unset, one label means regression, integer labels mean
            single_label_classification, others multi_label_classification.
        logits: (batch, num_labels).
        labels: (batch,) classes, of which -100 are left out; or (batch, num_labels) targets.

    Returns:
        Cross-entropy, binary cross-entropy or mean squared error, a scalar of at least float32. Under `jax.jit`, where
        no error can be raised, a label out of range makes it NaN.
    """
    labels = jnp.asarray(labels)
    integers = not jnp.issubdtype(labels.dtype, jnp.floating)
    problem_type = resolve_problem_type(config, integers)
    check_labels_shape(problem_type, labels.shape, logits.shape)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if problem_type == "single_label_classification":
        return cross_entropy(logits, labels)
    labels = labels.astype(logits.dtype).reshape(logits.shape)
    if problem_type == "multi_label_classification":
        return (jax.nn.softplus(logits) - logits * labels).mean()
    return ((logits - labels) ** 2).mean()


def cross_entropy(logits: Array, labels: Array) -> Array:
    """The mean over the labels, (n,) integers, that are not -100; `logits` are (n, classes)."""
    if not isinstance(labels, jax.core.Tracer):
        check_label_values(np.asarray(labels), logits.shape[-1])
    counted = labels != IGNORED_LABEL
    in_range = (labels >= 0) & (labels < logits.shape[-1])
    index = jnp.where(in_range, labels, 0).astype(jnp.int32)
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), index[:, None], axis=1)[:, 0]
    log_probs = jnp.where(in_range, log_probs, jnp.nan)
    return -jnp.where(counted, log_probs, 0).sum() / counted.sum()


def visual_token_loss(logits: Array, labels: Array, bool_masked_pos: Array | None) -> Array:
    """The mean cross-entropy of the visual tokens of masked patches (Bao et al. 2022, Equation 2).

    Args:
        logits: (batch, patches, vocab_size).
        labels: (masked patches,) integers, image after image; -100 for one that is left out.
        bool_masked_pos: (batch, patches).

    Returns:
        A scalar of at least float32. Under `jax.jit`, where no error can be raised, a label out of range and another
        number of labels than of masked patches make it NaN.
    """
    labels = jnp.asarray(labels)
    masked: Any = None if bool_masked_pos is None else jnp.asarray(bool_masked_pos, bool).reshape(-1)
    seen = masked is not None and not isinstance(masked, jax.core.Tracer)
    check_visual_tokens(labels.shape, int(masked.sum()) if seen else None, masked is not None)
    place = masked * masked.cumsum()  # of a patch among the masked ones, from 1; 0 for the others
    spread = jnp.pad(labels, (1, 0), constant_values=IGNORED_LABEL)[place]
    logits = logits.reshape(-1, logits.shape[-1]).astype(jnp.promote_types(logits.dtype, jnp.float32))
    return jnp.where(masked.sum() == labels.shape[0], cross_entropy(logits, spread), jnp.nan)


def reconstruction_loss(
    config: PreTrainedConfig, pixel_values: Array, reconstruction: Array, bool_masked_pos: Array, grid: tuple[int, int]
) -> Array:
    """The mean absolute difference over the pixels of masked patches (Xie et al. 2022, Section 3.4).

    Args:
        config: its patch_size and num_channels.
        pixel_values: (batch, channels, height, width).
        reconstruction: (batch, channels, rows and columns of whole patches, in pixels).
        bool_masked_pos: (batch, patches).
        grid: (rows, columns) of patches.

    Returns:
        A scalar of at least float32.
    """
    height, width = to_pair(config.patch_size)
    dtype = jnp.promote_types(reconstruction.dtype, jnp.float32)
    mask = jnp.asarray(bool_masked_pos, bool).astype(dtype).reshape(-1, *grid)  # (B, rows, columns)
    mask = mask.repeat(height, axis=1).repeat(width, axis=2)[:, None]  # (B, 1, height, width)
    pixel_values = jnp.asarray(pixel_values)[:, :, : mask.shape[2], : mask.shape[3]].astype(dtype)
    difference = jnp.abs(pixel_values - reconstruction.astype(dtype))
    return (difference * mask).sum() / (mask.sum() + 1e-5) / config.num_channels
