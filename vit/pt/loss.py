"""The losses of the heads in PyTorch; the same functions, in the same order, in all three frameworks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import PreTrainedConfig, to_pair
from ..errors import InputError
from ..families.mae import ViTMAEConfig
from ..inputs import (
    IGNORED_LABEL,
    check_class_weights,
    check_label_values,
    check_labels_shape,
    check_loss_options,
    check_patches,
    check_tensors,
    check_visual_tokens,
    resolve_problem_type,
)


def classification_loss(
    labels: Tensor,
    logits: Tensor,
    config: PreTrainedConfig,
    *,
    class_weights: Any = None,
    label_smoothing: float = 0.0,
    sample_weight: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """The mean loss of a batch, by `config.problem_type`.

    Args:
        labels: (batch,) classes, of which -100 are left out; or (batch, num_labels) targets.
        logits: (batch, num_labels).
        config: its problem_type selects the loss; unset, one label means regression, integer labels mean
            single_label_classification, others multi_label_classification.
        class_weights: (num_labels,) factors; the mean of single labels is then a weighted one.
        label_smoothing: share of each target that is spread over all classes, or with several labels over yes and no.
        sample_weight: (batch,) factors of the images' losses, by which the mean does not divide (as Keras).
        num_items_in_batch: number of labels of all batches whose gradients are added up; divides instead of this one's.

    Returns:
        Cross-entropy, binary cross-entropy or mean squared error, a scalar of at least float32.
    """
    check_tensors(Tensor, logits.device, labels=labels, sample_weight=sample_weight)
    if isinstance(class_weights, list | tuple | np.ndarray):
        check_class_weights(class_weights)
    else:
        check_tensors(Tensor, logits.device, class_weights=class_weights)
    integers = not labels.is_floating_point()
    problem_type = resolve_problem_type(config, integers)
    check_labels_shape(problem_type, labels.shape, logits.shape)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if class_weights is not None:
        class_weights = torch.as_tensor(class_weights, dtype=logits.dtype, device=logits.device)
    check_loss_options(problem_type, logits.shape, label_smoothing, _shape(class_weights), _shape(sample_weight))
    if problem_type == "single_label_classification":
        if not integers:
            raise InputError(f"labels is {labels.dtype}; expected integer classes for {problem_type}.")
        return cross_entropy(logits, labels, class_weights, label_smoothing, sample_weight, num_items_in_batch)
    labels = labels.to(logits.dtype).reshape(logits.shape)
    if problem_type == "multi_label_classification":
        labels = labels * (1 - label_smoothing) + label_smoothing / 2
        losses = F.binary_cross_entropy_with_logits(logits, labels, class_weights, reduction="none")
    else:
        losses = F.mse_loss(logits, labels, reduction="none")
    if sample_weight is not None:
        losses = losses * sample_weight.to(losses.dtype).reshape(-1, 1)
    return losses.mean() if num_items_in_batch is None else losses.sum() / num_items_in_batch


def _shape(array: Tensor | None) -> tuple[int, ...] | None:
    return None if array is None else tuple(array.shape)


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    sample_weight: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """The mean over the labels, (n,) integers, that are not -100; `logits` are (n, classes)."""
    labels = labels.long()
    plain = sample_weight is None and num_items_in_batch is None
    reduction, options = (
        "mean" if plain else "none",
        {"ignore_index": IGNORED_LABEL, "label_smoothing": label_smoothing},
    )
    try:
        losses = F.cross_entropy(logits, labels, class_weights, reduction=reduction, **options)  # type: ignore[arg-type]
    except IndexError:  # of a CPU; elsewhere a look at the labels would wait for the device
        check_label_values(labels.numpy(), logits.shape[-1])
        raise
    if plain:
        return losses
    if sample_weight is not None:
        losses = losses * sample_weight.to(losses.dtype).reshape(-1)
    if num_items_in_batch is not None:
        return losses.sum() / num_items_in_batch
    counted = labels != IGNORED_LABEL
    total = counted.sum() if class_weights is None else (class_weights[labels * counted] * counted).sum()
    return losses.sum() / total


def visual_token_loss(
    logits: Tensor,
    labels: Tensor,
    bool_masked_pos: Tensor | None,
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """The mean cross-entropy of the visual tokens of masked patches (Bao et al. 2022, Equation 2).

    Args:
        logits: (batch, patches, vocab_size).
        labels: (masked patches,) integers, image after image; -100 for one that is left out.
        bool_masked_pos: (batch, patches).
        num_items_in_batch: number of labels of all batches whose gradients are added up; divides instead of this one's.

    Returns:
        A scalar of at least float32.
    """
    check_tensors(Tensor, logits.device, labels=labels)
    masked: Any = None if bool_masked_pos is None else bool_masked_pos.bool().flatten()
    seen = masked is not None and not torch.compiler.is_compiling()
    check_visual_tokens(labels.shape, int(masked.sum()) if seen else None, masked is not None)
    place = masked * masked.cumsum(0)  # of a patch among the masked ones, from 1; 0 for the others
    labels = F.pad(labels.long(), (1, 0), value=IGNORED_LABEL)[place.clamp(max=labels.shape[0])]
    logits = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(logits, labels, num_items_in_batch=num_items_in_batch)


def reconstruction_loss(
    config: PreTrainedConfig,
    pixel_values: Tensor,
    reconstruction: Tensor,
    bool_masked_pos: Tensor,
    grid: tuple[int, int],
) -> Tensor:
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
    dtype = torch.promote_types(reconstruction.dtype, torch.float32)
    mask = bool_masked_pos.bool().to(dtype).unflatten(1, grid)  # (B, rows, columns)
    mask = mask.repeat_interleave(height, dim=1).repeat_interleave(width, dim=2)[:, None]  # (B, 1, height, width)
    pixel_values = pixel_values[:, :, : mask.shape[2], : mask.shape[3]].to(dtype)
    difference = (pixel_values - reconstruction.to(dtype)).abs()
    return (difference * mask).sum() / (mask.sum() + 1e-5) / config.num_channels


def masked_patch_loss(config: ViTMAEConfig, pixel_values: Tensor, logits: Tensor, mask: Tensor) -> Tensor:
    """The mean squared difference over the masked patches (He et al. 2022, Section 3).

    Args:
        config: its patch_size, and norm_pix_loss for a target of mean 0 and variance 1 in each patch.
        pixel_values: (batch, channels, height, width).
        logits: (batch, patches, numbers of a patch).
        mask: (batch, patches), 1 for a masked one.

    Returns:
        A scalar of at least float32.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    target = patchify(config, pixel_values).to(dtype)
    if config.norm_pix_loss:
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)  # unbiased
        target = (target - mean) / (variance + 1e-6) ** 0.5
    difference = ((logits.to(dtype) - target) ** 2).mean(-1)  # (B, N)
    return (difference * mask).sum() / mask.sum()


def patchify(config: PreTrainedConfig, pixel_values: Tensor) -> Tensor:
    """(B, C, height, width) -> (B, N, height * width of a patch * C)."""
    height, width = to_pair(config.patch_size)
    rows, columns = pixel_values.shape[2] // height, pixel_values.shape[3] // width
    pixels = pixel_values[:, :, : rows * height, : columns * width]
    pixels = pixels.unflatten(3, (columns, width)).unflatten(2, (rows, height))
    return pixels.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(config: PreTrainedConfig, patches: Tensor, image_size: tuple[int, int] | None = None) -> Tensor:
    """The inverse of `patchify`, for images of `image_size`, or of `config.image_size` if that is None."""
    rows, columns = check_patches(config, patches.shape, image_size)
    pixels = patches.unflatten(2, (*to_pair(config.patch_size), -1)).unflatten(1, (rows, columns))
    return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
