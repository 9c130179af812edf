"""The image processor in TensorFlow, for graphs that take images of any size: the bits that ViTImageProcessor gives.

Side by side with vit/pt/preprocessing.py and vit/flax/preprocessing.py; vit/image_processing/steps.py has the formulas.
"""

from __future__ import annotations

from math import pi

import tensorflow as tf
from PIL.Image import Resampling

from ..image_processing.steps import HAMMING, PRECISION, REACH, Axis, Steps


def preprocess(images: tf.Tensor, steps: Steps) -> tf.Tensor:
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
    pixels = tf.cast(tf.transpose(images[..., :channels], (0, 3, 1, 2)), tf.float32)  # (B, C, H, W)
    height, width = tf.unstack(tf.shape(images)[1:3])
    if axes := steps.axes(height, width, tf.minimum):
        rows, columns = axes
        pixels = resize(pixels, resize_matrix(columns, steps.resample))
        pixels = resize(tf.linalg.matrix_transpose(pixels), resize_matrix(rows, steps.resample))
        pixels = tf.linalg.matrix_transpose(pixels)
    if steps.factor is not None:
        pixels = tf.cast(tf.cast(pixels, tf.float64) * steps.factor, tf.float32)
    if steps.mean is not None:
        mean, std = (tf.reshape(tf.constant(each, tf.float32), (-1, 1, 1)) for each in (steps.mean, steps.std))
        pixels = divide(pixels - mean, std)
    return tf.ensure_shape(pixels, (None, *steps.shape(channels)))


def resize_matrix(axis: Axis, resample: Resampling) -> tf.Tensor:
    """The weights of the pixels along an axis in each that is made of them: (axis.count, axis.old) float32, computed in
    float64, of which they keep every bit."""
    points = tf.cast(tf.range(axis.old), tf.float64)
    rows = tf.range(axis.count) + axis.start
    there = ((rows >= 0) & (rows < axis.new))[:, None]
    scale = divide(tf.cast(axis.old, tf.float64), tf.cast(axis.new, tf.float64))
    if resample == Resampling.NEAREST:
        steps = tf.where(tf.range(axis.new) == 0, scale * 0.5, scale)
        places = tf.floor(tf.cumsum(steps))
        near = tf.gather(places, tf.clip_by_value(rows, 0, axis.new - 1))[:, None] == points
        return tf.cast(there & near, tf.float32)
    width = tf.maximum(scale, 1)
    centres = ((tf.cast(rows, tf.float64) + 0.5) * scale)[:, None]
    first, last = (trunc(centres + reach * width + 0.5) for reach in (-REACH[resample], REACH[resample]))
    weights = FILTERS[resample]((points - centres + 0.5) * (1 / width))
    weights = tf.where((points >= first) & (points < last), weights, 0)
    weights = weights / tf.reduce_sum(weights, 1, keepdims=True)
    weights = tf.floor(tf.abs(weights) * PRECISION + 0.5) * tf.sign(weights) / PRECISION
    return tf.cast(tf.where(there, weights, 0), tf.float32)


def resize(pixels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """The product along the last axis, rounded, halves up, and clipped to 0..255: (..., old) -> (..., new).

    In float32, which is quick everywhere and does not hold a pixel times a weight: half of the bits of the weights are
    summed at a time, and what the first half leaves behind the point is added to the second.
    """
    most = tf.round(weights * 2**10) / 2**10
    whole, rest = (tf.matmul(pixels, part, transpose_b=True) for part in (most, weights - most))
    below = tf.floor(whole + 0.5)
    return tf.clip_by_value(below + tf.floor(whole + 0.5 - below + rest), 0, 255)


def divide(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """x / y, which TensorFlow's graphs make x * (1 / y) of where y is a constant."""
    return tf.math.divide_no_nan(x, y)


def trunc(x: tf.Tensor) -> tf.Tensor:
    return tf.floor(tf.abs(x)) * tf.sign(x)


# === Pillow's filters, of distances in widths ===


def box(t: tf.Tensor) -> tf.Tensor:
    return tf.cast((t > -0.5) & (t <= 0.5), t.dtype)


def bilinear(t: tf.Tensor) -> tf.Tensor:
    return tf.maximum(1 - tf.abs(t), 0)


def hamming(t: tf.Tensor) -> tf.Tensor:
    a, b = HAMMING
    return tf.where(tf.abs(t) < 1, sinc(t) * (a + b * tf.cos(tf.abs(t) * pi)), 0)


def bicubic(t: tf.Tensor) -> tf.Tensor:
    """Keys (1981) with a = -0.5."""
    t = tf.abs(t)
    far = tf.where(t < 2, (((t - 5) * t + 8) * t - 4) * -0.5, 0)
    return tf.where(t < 1, (1.5 * t - 2.5) * t * t + 1, far)


def lanczos(t: tf.Tensor) -> tf.Tensor:
    return tf.where((t >= -3) & (t < 3), sinc(t) * sinc(t / 3), 0)


def sinc(t: tf.Tensor) -> tf.Tensor:
    t = t * pi
    return tf.where(t == 0, 1, tf.sin(t) / tf.where(t == 0, 1, t))


FILTERS = {
    Resampling.BOX: box,
    Resampling.BILINEAR: bilinear,
    Resampling.HAMMING: hamming,
    Resampling.BICUBIC: bicubic,
    Resampling.LANCZOS: lanczos,
}
