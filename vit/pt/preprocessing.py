"""The image processor in PyTorch, for graphs that take images of any size: the bits that ViTImageProcessor gives.

Side by side with vit/tf/preprocessing.py and vit/flax/preprocessing.py; vit/image_processing/steps.py has the formulas.
"""

from __future__ import annotations

from math import pi
from typing import Any

import torch
from PIL.Image import Resampling
from torch import Tensor

from ..image_processing.steps import HAMMING, PRECISION, REACH, Axis, Steps


def preprocess(images: Tensor, steps: Steps) -> Tensor:
    """Resize, crop, rescale and normalise a batch of images of one size.

    Args:
        images: (batch, height, width, channels) uint8; grey ones become RGB and alpha goes, where the steps want three
            channels.
        steps: those of the image processor.

    Returns:
        pixel_values, (batch, channels, height, width) float32.

    Raises:
        InputError: another number of channels than the steps take.
    """
    channels = steps.channels(images.shape[3])
    pixels = images[..., :channels].permute(0, 3, 1, 2).contiguous().float()  # (B, C, H, W)
    if axes := steps.axes(images.shape[1], images.shape[2], torch.sym_min):
        rows, columns = axes
        pixels = resize(pixels, resize_matrix(columns, steps.resample, pixels.device))
        pixels = resize(pixels.mT, resize_matrix(rows, steps.resample, pixels.device)).mT
    if steps.factor is not None:
        pixels = (pixels.double() * steps.factor).float()
    if steps.mean is not None:
        mean, std = (pixels.new_tensor(each).reshape(-1, 1, 1) for each in (steps.mean, steps.std))
        pixels = (pixels - mean) / std
    return pixels


def resize_matrix(axis: Axis, resample: Resampling, device: torch.device) -> Tensor:
    """The weights of the pixels along an axis in each that is made of them: (axis.count, axis.old) float32, computed in
    float64, of which they keep every bit."""
    options: Any = {"dtype": torch.float64, "device": device}
    points = torch.arange(axis.old, **options)
    rows = torch.arange(axis.count, **options) + axis.start
    there = ((rows >= 0) & (rows < axis.new))[:, None]
    scale = torch.ones((), **options) * axis.old / axis.new
    if resample == Resampling.NEAREST:
        places = torch.where(torch.arange(axis.new, device=device) == 0, scale * 0.5, scale).cumsum(0).floor()
        return (there & (places[rows.clamp(0, axis.new - 1).long()][:, None] == points)).float()
    width = scale.clamp(min=1)
    centres = ((rows + 0.5) * scale)[:, None]
    # Not trunc, which OpenVINO has not: they differ below 0, where there are no points.
    first, last = ((centres + reach * width + 0.5).floor() for reach in (-REACH[resample], REACH[resample]))
    weights = FILTERS[resample]((points - centres + 0.5) * (1 / width))
    weights = torch.where((points >= first) & (points < last), weights, 0)
    weights = weights / weights.sum(1, keepdim=True)
    weights = (weights.abs() * PRECISION + 0.5).floor() * weights.sign() / PRECISION
    return torch.where(there, weights, 0).float()


def resize(pixels: Tensor, weights: Tensor) -> Tensor:
    """The product along the last axis, rounded, halves up, and clipped to 0..255: (..., old) -> (..., new).

    In float32, which is quick everywhere and does not hold a pixel times a weight: half of the bits of the weights are
    summed at a time, and what the first half leaves behind the point is added to the second.
    """
    most = (weights * 2**10).round() / 2**10
    whole, rest = (pixels @ part.T for part in (most, weights - most))
    below = (whole + 0.5).floor()
    return (below + (whole + 0.5 - below + rest).floor()).clamp(0, 255)


# === Pillow's filters, of distances in widths ===


def box(t: Tensor) -> Tensor:
    return ((t > -0.5) & (t <= 0.5)).to(t.dtype)


def bilinear(t: Tensor) -> Tensor:
    return (1 - t.abs()).clamp(min=0)


def hamming(t: Tensor) -> Tensor:
    a, b = HAMMING
    return torch.where(t.abs() < 1, sinc(t) * (a + b * (t.abs() * pi).cos()), 0)


def bicubic(t: Tensor) -> Tensor:
    """Keys (1981) with a = -0.5."""
    t = t.abs()
    far = torch.where(t < 2, (((t - 5) * t + 8) * t - 4) * -0.5, 0)
    return torch.where(t < 1, (1.5 * t - 2.5) * t * t + 1, far)


def lanczos(t: Tensor) -> Tensor:
    return torch.where((t >= -3) & (t < 3), sinc(t) * sinc(t / 3), 0)


def sinc(t: Tensor) -> Tensor:
    t = t * pi
    return torch.where(t == 0, 1, t.sin() / torch.where(t == 0, 1, t))


FILTERS = {
    Resampling.BOX: box,
    Resampling.BILINEAR: bilinear,
    Resampling.HAMMING: hamming,
    Resampling.BICUBIC: bicubic,
    Resampling.LANCZOS: lanczos,
}
