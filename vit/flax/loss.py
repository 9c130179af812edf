"""The losses of the heads in JAX; the same functions, in the same order, in all three frameworks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..config import PreTrainedConfig, to_pair
from ..families.mae import ViTMAEConfig
from ..inputs import (
    IGNORED_LABEL,
    check_arrays,
    check_class_weights,
    check_label_values,
    check_labels_shape,
    check_loss_options,
    check_patches,
    check_visual_tokens,
    resolve_problem_type,
)


def classification_loss(
    labels: Array,
    logits: Array,
    config: PreTrainedConfig,
    *,
    class_weights: Any = None,
    label_smoothing: float = 0.0,
    sample_weight: Array | None = None,
) -> Array:
    """The mean loss of a batch, by `config.problem_type`.

    Args:
        labels: (batch,) classes, of which -100 are left out; or (batch, num_labels) targets.
        logits: (batch, num_labels).
        config: its problem_type selects the loss; unset, one label means regression, integer labels mean
            single_label_classification, others multi_label_classification.
        class_weights: (num_labels,) factors; the mean of single labels is then a weighted one.
        label_smoothing: share of each target that is spread over all classes, or with several labels over yes and no.
        sample_weight: (batch,) factors of the images' losses, by which the mean does not divide (as Keras).

    Returns:
        Cross-entropy, binary cross-entropy or mean squared error, a scalar of at least float32. Under `jax.jit`, where
        no error can be raised, a label out of range makes it NaN.
    """
    check_arrays(labels=labels, sample_weight=sample_weight)
    check_class_weights(class_weights)
    labels = jnp.asarray(labels)
    integers = not jnp.issubdtype(labels.dtype, jnp.floating)
    problem_type = resolve_problem_type(config, integers)
    check_labels_shape(problem_type, labels.shape, logits.shape)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    class_weights, sample_weight = (
        None if each is None else jnp.asarray(each, logits.dtype) for each in (class_weights, sample_weight)
    )
    shapes = [None if each is None else each.shape for each in (class_weights, sample_weight)]
    check_loss_options(problem_type, logits.shape, label_smoothing, *shapes)
    if problem_type == "single_label_classification":
        return cross_entropy(logits, labels, class_weights, label_smoothing, sample_weight)
    labels = labels.astype(logits.dtype).reshape(logits.shape)
    if problem_type == "multi_label_classification":
        labels = labels * (1 - label_smoothing) + label_smoothing / 2
        losses = jax.nn.softplus(logits) - logits * labels
        losses = losses if class_weights is None else losses * class_weights
    else:
        losses = (logits - labels) ** 2
    return (losses if sample_weight is None else losses * sample_weight.reshape(-1, 1)).mean()


def cross_entropy(
    logits: Array,
    labels: Array,
    class_weights: Array | None = None,
    label_smoothing: float = 0.0,
    sample_weight: Array | None = None,
) -> Array:
    """The mean over the labels, (n,) integers, that are not -100; `logits` are (n, classes)."""
    if not isinstance(labels, jax.core.Tracer):
        check_label_values(np.asarray(labels), logits.shape[-1])
    in_range = (labels >= 0) & (labels < logits.shape[-1])
    index = jnp.where(in_range, labels, 0).astype(jnp.int32)
    counted = (labels != IGNORED_LABEL).astype(logits.dtype)
    log_probs = jax.nn.log_softmax(logits)
    if class_weights is not None:
        log_probs, counted = log_probs * class_weights, counted * class_weights[index]
    losses = -jnp.take_along_axis(log_probs, index[:, None], axis=1)[:, 0]
    if label_smoothing:
        losses = (1 - label_smoothing) * losses - label_smoothing * log_probs.mean(-1)
    losses = jnp.where(labels == IGNORED_LABEL, 0, jnp.where(in_range, losses, jnp.nan))
    losses = losses if sample_weight is None else losses * sample_weight.reshape(-1)
    return losses.sum() / counted.sum()


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
    check_arrays(labels=labels)
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


def masked_patch_loss(config: ViTMAEConfig, pixel_values: Array, logits: Array, mask: Array) -> Array:
    """The mean squared difference over the masked patches (He et al. 2022, Section 3).

    Args:
        config: its patch_size, and norm_pix_loss for a target of mean 0 and variance 1 in each patch.
        pixel_values: (batch, channels, height, width).
        logits: (batch, patches, numbers of a patch).
        mask: (batch, patches), 1 for a masked one.

    Returns:
        A scalar of at least float32.
    """
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    target = patchify(config, jnp.asarray(pixel_values)).astype(dtype)
    if config.norm_pix_loss:
        mean, variance = target.mean(-1, keepdims=True), target.var(-1, keepdims=True, ddof=1)  # unbiased
        target = (target - mean) / (variance + 1e-6) ** 0.5
    difference = ((logits.astype(dtype) - target) ** 2).mean(-1)  # (B, N)
    return (difference * mask).sum() / mask.sum()


def patchify(config: PreTrainedConfig, pixel_values: Array) -> Array:
    """(B, C, height, width) -> (B, N, height * width of a patch * C)."""
    height, width = to_pair(config.patch_size)
    batch, channels, rows, columns = pixel_values.shape
    rows, columns = rows // height, columns // width
    pixels = pixel_values[:, :, : rows * height, : columns * width]
    # One axis at a time, because a mesh with explicit axes knows no other reshape of a sharded array.
    pixels = pixels.reshape(batch, channels, rows, height, columns * width)
    pixels = pixels.reshape(batch, channels, rows, height, columns, width).transpose(0, 2, 4, 3, 5, 1)
    return pixels.reshape(batch, rows, columns, height * width * channels).reshape(batch, rows * columns, -1)


def unpatchify(config: PreTrainedConfig, patches: Array, image_size: tuple[int, int] | None = None) -> Array:
    """The inverse of `patchify`, for images of `image_size`, or of `config.image_size` if that is None."""
    (rows, columns), (height, width) = check_patches(config, patches.shape, image_size), to_pair(config.patch_size)
    pixels = patches.reshape(-1, rows, columns, height, width, config.num_channels).transpose(0, 5, 1, 3, 2, 4)
    return pixels.reshape(-1, config.num_channels, rows * height, columns * width)
