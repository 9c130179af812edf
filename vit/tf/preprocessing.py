"""The image processor in TensorFlow, for graphs that take images of any size: the bits that ViTImageProcessor gives.

Side by side with vit/pt/preprocessing.py and vit/flax/preprocessing.py; vit/image_processing/steps.py has the formulas.
Here alone graphs decode files, too.
"""

from __future__ import annotations

from math import pi
from typing import Any

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


# === Files ===

HEAD = 2**18
"""Bytes of a file in which its EXIF data begins, if it has any: before the pixels, in segments of at most 64 KiB."""


def decode(image_bytes: tf.Tensor, channels: int) -> tf.Tensor:
    """The pixels of a JPEG, PNG, GIF or BMP file, turned as its EXIF orientation says; of a GIF the first image.

    Args:
        image_bytes: a scalar, the bytes of the file.
        channels: 1, for which the file has to be grey, or 3, whose alpha goes.

    Returns:
        (height, width, channels) uint8.
    """
    pixels = tf.cond(
        tf.io.is_jpeg(image_bytes),
        lambda: tf.io.decode_jpeg(image_bytes, dct_method="INTEGER_ACCURATE"),  # as Pillow has it
        lambda: tf.io.decode_image(image_bytes, expand_animations=False),
    )
    found = tf.shape(pixels)[2]
    if channels == 1:
        message = "The image has colours or alpha; expected a grey one."
        with tf.control_dependencies([tf.debugging.assert_equal(found, 1, message)]):
            return turn(tf.ensure_shape(pixels, (None, None, 1)), orientation(image_bytes))
    pixels = tf.gather(pixels, tf.where(found < 3, [0, 0, 0], [0, 1, 2]), axis=2)
    return turn(tf.ensure_shape(pixels, (None, None, 3)), orientation(image_bytes))


def turn(pixels: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """(height, width, channels) as it is to be looked at, whose rows and columns EXIF says are another's."""

    def when(values: list[int], change: Any, pixels: tf.Tensor) -> tf.Tensor:
        return tf.cond(tf.reduce_any(orientation == values), lambda: change(pixels), lambda: pixels)

    pixels = when([5, 6, 7, 8], lambda each: tf.transpose(each, (1, 0, 2)), pixels)
    pixels = when([2, 3, 6, 7], lambda each: tf.reverse(each, [1]), pixels)
    return when([3, 4, 7, 8], lambda each: tf.reverse(each, [0]), pixels)


def orientation(image_bytes: tf.Tensor) -> tf.Tensor:
    """The EXIF orientation of a JPEG or PNG file, 1 (as it is) where it has none: a scalar int32.

    EXIF is a small TIFF file: its byte order, where its table is, and in that 12 bytes each of tag, type, count, value.
    """
    head = tf.cast(tf.io.decode_raw(tf.strings.substr(image_bytes, 0, HEAD), tf.uint8), tf.int32)
    begin = tf.reduce_min(
        [first(head, mark + order) + len(mark) for mark in (b"Exif\0\0", b"eXIf") for order in (b"II*\0", b"MM\0*")]
    )

    def read() -> tf.Tensor:
        tiff = head[begin:]
        weights = tf.where(tiff[0] == ord("I"), [1, 256], [256, 1])  # of two bytes

        def number(at: Any) -> tf.Tensor:
            return tf.reduce_sum(tiff[at : at + 2] * weights)

        # Tables begin within the first 64 KiB, so that two of the four bytes that say where are 0.
        table = number(tf.where(tiff[0] == ord("I"), 4, 6)) + 2
        count = tf.maximum(tf.minimum(number(table - 2), (tf.size(tiff) - table) // 12), 0)
        entries = tf.reshape(tiff[table : table + 12 * count], (-1, 12))
        tags, values = (tf.reduce_sum(entries[:, at : at + 2] * weights, 1) for at in (0, 8))
        found = tf.boolean_mask(values, tags == 0x0112)
        return tf.concat([found, [1]], 0)[0]

    return tf.cond(begin < tf.size(head), read, lambda: 1)


def first(head: tf.Tensor, pattern: bytes) -> tf.Tensor:
    """Where in some bytes others begin for the first time, or a place behind them all."""
    count = tf.maximum(tf.size(head) - len(pattern), 0)
    same = tf.reduce_all([head[i : i + count] == byte for i, byte in enumerate(pattern)], 0)
    return tf.reduce_min(tf.concat([tf.cast(tf.where(same)[:, 0], tf.int32), [tf.size(head)]], 0))
