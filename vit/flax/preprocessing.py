"""The image processor in JAX, for graphs that take images of any size: the grey levels of ViTImageProcessor.

Side by side with vit/pt/preprocessing.py and vit/tf/preprocessing.py; vit/image_processing/steps.py has the formulas.
"""

from __future__ import annotations

from math import pi

import jax
import jax.numpy as jnp
from jax import Array
from PIL.Image import Resampling

from ..image_processing.steps import HAMMING, PRECISION, REACH, Axis, Steps


def preprocess(images: Array, steps: Steps) -> Array:
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
    pixels = images[..., :channels].transpose(0, 3, 1, 2).astype(jnp.float32)  # (B, C, H, W)
    if axes := steps.axes(images.shape[1], images.shape[2], jax.core.min_dim):
        rows, columns = axes
        pixels = resize(pixels, resize_matrix(columns, steps.resample))
        pixels = resize(pixels.swapaxes(2, 3), resize_matrix(rows, steps.resample)).swapaxes(2, 3)
    if steps.factor is not None:
        pixels = pixels * steps.factor
    if steps.mean is not None:
        mean, std = (jnp.asarray(each, jnp.float32).reshape(-1, 1, 1) for each in (steps.mean, steps.std))
        pixels = (pixels - mean) / std
    return pixels


def resize_matrix(axis: Axis, resample: Resampling) -> Array:
    """The weights of the pixels along an axis in each that is made of them: (axis.count, axis.old) float32, computed in
    float64, of which they keep every bit."""
    with jax.enable_x64(True):
        points = jnp.arange(axis.old, dtype=jnp.float64)
        rows = jnp.arange(axis.count, dtype=jnp.float64) + axis.start
        there = ((rows >= 0) & (rows < axis.new))[:, None]
        scale = jnp.asarray(axis.old, jnp.float64) / jnp.asarray(axis.new, jnp.float64)
        if resample == Resampling.NEAREST:
            steps = jnp.where(jnp.arange(axis.new) == 0, scale * 0.5, scale)
            _, places = jax.lax.scan(lambda sum, step: (sum + step,) * 2, jnp.zeros((), jnp.float64), steps)
            places = jnp.trunc(places)[rows.clip(0, axis.new - 1).astype(jnp.int32)]
            return (there & (places[:, None] == points)).astype(jnp.float32)
        width = scale.clip(1)
        centres = ((rows + 0.5) * scale)[:, None]
        first, last = (jnp.trunc(centres + reach * width + 0.5) for reach in (-REACH[resample], REACH[resample]))
        weights = FILTERS[resample]((points - centres + 0.5) * (1 / width))
        weights = jnp.where((points >= first) & (points < last), weights, 0)
        weights = weights / weights.sum(1, keepdims=True)
        weights = jnp.floor(jnp.abs(weights) * PRECISION + 0.5) * jnp.sign(weights) / PRECISION
        return jnp.where(there, weights, 0).astype(jnp.float32)


def resize(pixels: Array, weights: Array) -> Array:
    """The product along the last axis, rounded, halves up, and clipped to 0..255: (..., old) -> (..., new).

    In float32, which is quick everywhere and does not hold a pixel times a weight: half of the bits of the weights are
    summed at a time, and what the first half leaves behind the point is added to the second.
    """
    most = jnp.round(weights * 2**10) / 2**10
    whole, rest = (jnp.matmul(pixels, part.T, precision=jax.lax.Precision.HIGHEST) for part in (most, weights - most))
    below = jnp.floor(whole + 0.5)
    return (below + jnp.floor(whole + 0.5 - below + rest)).clip(0, 255)


# === Pillow's filters, of distances in widths ===


def box(t: Array) -> Array:
    return ((t > -0.5) & (t <= 0.5)).astype(t.dtype)


def bilinear(t: Array) -> Array:
    return (1 - jnp.abs(t)).clip(0)


def hamming(t: Array) -> Array:
    a, b = HAMMING
    return jnp.where(jnp.abs(t) < 1, sinc(t) * (a + b * jnp.cos(jnp.abs(t) * pi)), 0)


def bicubic(t: Array) -> Array:
    """Keys (1981) with a = -0.5."""
    t = jnp.abs(t)
    far = jnp.where(t < 2, (((t - 5) * t + 8) * t - 4) * -0.5, 0)
    return jnp.where(t < 1, (1.5 * t - 2.5) * t * t + 1, far)


def lanczos(t: Array) -> Array:
    return jnp.where((t >= -3) & (t < 3), sinc(t) * sinc(t / 3), 0)


def sinc(t: Array) -> Array:
    t = t * pi
    return jnp.where(t == 0, 1, jnp.sin(t) / jnp.where(t == 0, 1, t))


FILTERS = {
    Resampling.BOX: box,
    Resampling.BILINEAR: bilinear,
    Resampling.HAMMING: hamming,
    Resampling.BICUBIC: bicubic,
    Resampling.LANCZOS: lanczos,
}
