"""The losses of the heads in Keras 3; the same functions, in the same order, in all three frameworks."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

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
    labels: tf.Tensor,
    logits: tf.Tensor,
    config: PreTrainedConfig,
    *,
    class_weights: Any = None,
    label_smoothing: float = 0.0,
    sample_weight: tf.Tensor | None = None,
) -> tf.Tensor:
    """The mean loss of a batch, by `config.problem_type`.

    Args:
        labels: (batch,) classes, of which -100 are left out; or (batch, num_labels) targets.
        logits: (batch, num_labels).
        config: its problem_type selects the loss; unset, one label means regression, integer labels mean
            single_label_classification, others multi_label_classification.
        class_weights: (num_labels,) factors; the mean of single labels is then a weighted one.
        label_smoothing: share of each target that is spread over all classes, or with several labels over yes and no.
        sample_weight: (batch,) factors of the images' losses, by which the mean does not divide, as that of `fit`.

    Returns:
        Cross-entropy, binary cross-entropy or mean squared error, a scalar of at least float32. In a graph, where no
        error can be raised, a label out of range makes it NaN.
    """
    check_arrays(labels=labels, sample_weight=sample_weight)
    check_class_weights(class_weights)
    labels = ops.convert_to_tensor(labels)
    integers = not keras.backend.is_float_dtype(labels.dtype)
    problem_type = resolve_problem_type(config, integers)
    check_labels_shape(problem_type, labels.shape, logits.shape)
    logits = ops.cast(logits, keras.backend.result_type(logits.dtype, "float32"))
    if class_weights is not None:
        class_weights = ops.convert_to_tensor(class_weights, logits.dtype)
    if sample_weight is not None:
        sample_weight = ops.cast(ops.convert_to_tensor(sample_weight), logits.dtype)
    shapes = [None if each is None else tuple(each.shape) for each in (class_weights, sample_weight)]
    check_loss_options(problem_type, tuple(logits.shape), label_smoothing, *shapes)
    if problem_type == "single_label_classification":
        return cross_entropy(logits, labels, class_weights, label_smoothing, sample_weight)
    labels = ops.reshape(ops.cast(labels, logits.dtype), ops.shape(logits))
    if problem_type == "multi_label_classification":
        labels = labels * (1 - label_smoothing) + label_smoothing / 2
        losses = ops.softplus(logits) - logits * labels
        losses = losses if class_weights is None else losses * class_weights
    else:
        losses = (logits - labels) ** 2
    return ops.mean(losses if sample_weight is None else losses * ops.reshape(sample_weight, (-1, 1)))


def cross_entropy(
    logits: tf.Tensor,
    labels: tf.Tensor,
    class_weights: tf.Tensor | None = None,
    label_smoothing: float = 0.0,
    sample_weight: tf.Tensor | None = None,
) -> tf.Tensor:
    """The mean over the labels, (n,) integers, that are not -100; `logits` are (n, classes)."""
    if not tf.is_symbolic_tensor(labels):
        check_label_values(ops.convert_to_numpy(labels), logits.shape[-1])
    labels = ops.cast(labels, "int64")
    in_range = ops.logical_and(labels >= 0, labels < logits.shape[-1])
    index = ops.cast(ops.where(in_range, labels, 0), "int32")
    counted = ops.cast(ops.not_equal(labels, IGNORED_LABEL), logits.dtype)
    log_probs = ops.log_softmax(logits)
    if class_weights is not None:
        log_probs, counted = log_probs * class_weights, counted * ops.take(class_weights, index)
    losses = -ops.take_along_axis(log_probs, index[:, None], axis=1)[:, 0]
    if label_smoothing:
        losses = (1 - label_smoothing) * losses - label_smoothing * ops.mean(log_probs, axis=-1)
    losses = ops.where(ops.equal(labels, IGNORED_LABEL), 0.0, ops.where(in_range, losses, float("nan")))
    losses = losses if sample_weight is None else losses * ops.reshape(sample_weight, (-1,))
    return ops.sum(losses) / ops.sum(counted)


def visual_token_loss(logits: tf.Tensor, labels: tf.Tensor, bool_masked_pos: tf.Tensor | None) -> tf.Tensor:
    """The mean cross-entropy of the visual tokens of masked patches (Bao et al. 2022, Equation 2).

    Args:
        logits: (batch, patches, vocab_size).
        labels: (masked patches,) integers, image after image; -100 for one that is left out.
        bool_masked_pos: (batch, patches).

    Returns:
        A scalar of at least float32. In a graph, where no error can be raised, a label out of range and another number
        of labels than of masked patches make it NaN.
    """
    check_arrays(labels=labels)
    labels = ops.cast(ops.convert_to_tensor(labels), "int64")
    masked: Any = None if bool_masked_pos is None else ops.reshape(ops.cast(bool_masked_pos, "bool"), (-1,))
    seen = masked is not None and not tf.is_symbolic_tensor(masked)
    check_visual_tokens(labels.shape, int(ops.sum(ops.cast(masked, "int32"))) if seen else None, masked is not None)
    counts, num_labels = ops.cumsum(ops.cast(masked, "int32")), ops.shape(labels)[0]
    place = ops.where(masked, ops.minimum(counts, num_labels), 0)  # of a patch among the masked ones, from 1
    spread = ops.take(ops.pad(labels, (1, 0), constant_values=IGNORED_LABEL), place)
    logits = ops.cast(logits, keras.backend.result_type(logits.dtype, "float32"))
    loss = cross_entropy(ops.reshape(logits, (-1, logits.shape[-1])), spread)
    return ops.where(ops.equal(counts[-1], num_labels), loss, float("nan"))


def reconstruction_loss(
    config: PreTrainedConfig,
    pixel_values: tf.Tensor,
    reconstruction: tf.Tensor,
    bool_masked_pos: tf.Tensor,
    grid: tuple[int, int],
) -> tf.Tensor:
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
    dtype = keras.backend.result_type(reconstruction.dtype, "float32")
    mask = ops.reshape(ops.cast(ops.cast(bool_masked_pos, "bool"), dtype), (-1, *grid))  # (B, rows, columns)
    mask = ops.repeat(ops.repeat(mask, height, axis=1), width, axis=2)[:, None]  # (B, 1, height, width)
    pixel_values = ops.cast(pixel_values[:, :, : grid[0] * height, : grid[1] * width], dtype)
    difference = ops.abs(pixel_values - ops.cast(reconstruction, dtype))
    return ops.sum(difference * mask) / (ops.sum(mask) + 1e-5) / config.num_channels


def masked_patch_loss(config: ViTMAEConfig, pixel_values: tf.Tensor, logits: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """The mean squared difference over the masked patches (He et al. 2022, Section 3).

    Args:
        config: its patch_size, and norm_pix_loss for a target of mean 0 and variance 1 in each patch.
        pixel_values: (batch, channels, height, width).
        logits: (batch, patches, numbers of a patch).
        mask: (batch, patches), 1 for a masked one.

    Returns:
        A scalar of at least float32.
    """
    dtype = keras.backend.result_type(logits.dtype, "float32")
    target = ops.cast(patchify(config, pixel_values), dtype)
    if config.norm_pix_loss:
        target = target - ops.mean(target, axis=-1, keepdims=True)
        variance = ops.sum(target**2, axis=-1, keepdims=True) / (target.shape[-1] - 1)  # unbiased
        target = target / (variance + 1e-6) ** 0.5
    difference = ops.mean((ops.cast(logits, dtype) - target) ** 2, axis=-1)  # (B, N)
    mask = ops.cast(mask, dtype)
    return ops.sum(difference * mask) / ops.sum(mask)


def patchify(config: PreTrainedConfig, pixel_values: tf.Tensor) -> tf.Tensor:
    """(B, C, height, width) -> (B, N, height * width of a patch * C)."""
    height, width = to_pair(config.patch_size)
    _, channels, rows, columns = pixel_values.shape
    rows, columns = rows // height, columns // width
    pixels = pixel_values[:, :, : rows * height, : columns * width]
    pixels = ops.reshape(pixels, (-1, channels, rows, height, columns, width))
    return ops.reshape(ops.transpose(pixels, (0, 2, 4, 3, 5, 1)), (-1, rows * columns, height * width * channels))


def unpatchify(config: PreTrainedConfig, patches: tf.Tensor, image_size: tuple[int, int] | None = None) -> tf.Tensor:
    """The inverse of `patchify`, for images of `image_size`, or of `config.image_size` if that is None."""
    (rows, columns), (height, width) = check_patches(config, patches.shape, image_size), to_pair(config.patch_size)
    pixels = ops.reshape(patches, (-1, rows, columns, height, width, config.num_channels))
    return ops.reshape(
        ops.transpose(pixels, (0, 5, 1, 3, 2, 4)), (-1, config.num_channels, rows * height, columns * width)
    )
