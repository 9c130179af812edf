"""Augmentation with Pillow and NumPy: a function of an image and a generator, so that a seed tells what it draws.

Photographs are 8-bit Pillow images; what comes after the image processor is an array (channels, height, width).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Batch = dict[str, np.ndarray]
RATIO = (3 / 4, 4 / 3)
"""Of the sides of a random crop (Szegedy et al. 2015, Section 6)."""


def random_crop_box(width: int, height: int, scale: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random part of an image.

    Args:
        width: of the image, as `height` in pixels.
        height: of the image.
        scale: the least part of the area.
        rng: draws it.
    """
    for _ in range(10):
        area = width * height * rng.uniform(scale, 1)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    side_w, side_h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    left, top = (width - side_w) // 2, (height - side_h) // 2
    return left, top, left + side_w, top + side_h


# === RandAugment (Cubuk et al. 2020) ===

Operation = Callable[[Image.Image, float, float], Image.Image]
"""(image, strength in 0..1, sign) -> image."""


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda image, strength, sign: kind(image).enhance(1 + sign * 0.9 * strength)


def _affine(place: int, most: float, of_side: int | None = None) -> Operation:
    """A shear, or a shift by a part of a side (0 for the width), in the coefficient `place` of an affine map."""

    def apply(image: Image.Image, strength: float, sign: float) -> Image.Image:
        matrix = [1.0, 0, 0, 0, 1.0, 0]
        matrix[place] += sign * most * strength * (1 if of_side is None else image.size[of_side])
        return image.transform(image.size, Image.Transform.AFFINE, tuple(matrix), Image.Resampling.BILINEAR)

    return apply


def _coloured(change: Callable[[Image.Image, float], Image.Image]) -> Operation:
    """A change of colours, of which Pillow knows none beside an alpha channel, that leaves it as it is."""

    def apply(image: Image.Image, strength: float, sign: float) -> Image.Image:
        if image.mode != "RGBA":
            return change(image, strength)
        changed = change(image.convert("RGB"), strength)
        changed.putalpha(image.getchannel("A"))
        return changed

    return apply


OPERATIONS: Mapping[str, Operation] = {
    "identity": lambda image, strength, sign: image,
    "autocontrast": _coloured(lambda image, strength: ImageOps.autocontrast(image)),
    "equalize": _coloured(lambda image, strength: ImageOps.equalize(image)),
    "rotate": lambda image, strength, sign: image.rotate(sign * 30 * strength, Image.Resampling.BILINEAR),
    "solarize": _coloured(lambda image, strength: ImageOps.solarize(image, round(255 * (1 - strength)) + 1)),
    "posterize": _coloured(lambda image, strength: ImageOps.posterize(image, 8 - round(4 * strength))),
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "shear_x": _affine(1, 0.3),
    "shear_y": _affine(3, 0.3),
    "shift_x": _affine(2, 0.45, 0),
    "shift_y": _affine(5, 0.45, 1),
}
"""Name -> the operation, of the strengths that the paper's implementation has."""


def randaugment(image: Image.Image, count: int, magnitude: float, rng: np.random.Generator) -> Image.Image:
    """Apply `count` operations, drawn by lot, of a magnitude of 0 to 10."""
    names = list(OPERATIONS)
    for _ in range(count):
        operation, sign = OPERATIONS[names[rng.integers(len(names))]], rng.choice([-1.0, 1.0])
        image = operation(image, min(magnitude, 10) / 10, float(sign))
    return image


# === After the image processor ===


def erase(pixel_values: np.ndarray, rng: np.random.Generator) -> None:
    """Put noise of mean 0 and variance 1 in the place of a random rectangle (Zhong et al. 2020), in place.

    Args:
        pixel_values: (channels, height, width), normalised.
        rng: draws it.
    """
    channels, height, width = pixel_values.shape
    for _ in range(10):
        area, ratio = height * width * rng.uniform(0.02, 1 / 3), math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < h < height and 0 < w < width:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            pixel_values[:, top : top + h, left : left + w] = rng.standard_normal((channels, h, w))
            return


def mix(batch: Batch, mixup: float, cutmix: float, rng: np.random.Generator) -> Batch:
    """Mix each image of a batch, and its targets, with that half a batch further.

    So the processes that have every n-th image of a batch have the partners, too.

    Args:
        batch: pixel_values (batch, channels, height, width) and targets (batch, num_labels).
        mixup: alpha of mixup (Zhang et al. 2018); 0 for none.
        cutmix: alpha of CutMix (Yun et al. 2019); 0 for none. Where both are given each takes half of the batches.
        rng: draws it.
    """
    if not (mixup or cutmix):
        return batch
    cuts = bool(cutmix) and (not mixup or rng.random() < 0.5)
    alpha = cutmix if cuts else mixup
    part = rng.beta(alpha, alpha)
    pixel_values, half = batch["pixel_values"], len(batch["pixel_values"]) // 2
    others = np.roll(pixel_values, half, axis=0)
    if cuts:
        height, width = pixel_values.shape[2:]
        h, w = (round(side * math.sqrt(1 - part)) for side in (height, width))
        top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
        mixed = pixel_values.copy()
        mixed[:, :, top : top + h, left : left + w] = others[:, :, top : top + h, left : left + w]
        part = 1 - h * w / (height * width)
    else:
        mixed = pixel_values * np.asarray(part, pixel_values.dtype) + others * np.asarray(1 - part, pixel_values.dtype)
    targets = batch["targets"]
    targets = (part * targets + (1 - part) * np.roll(targets, half, axis=0)).astype(targets.dtype)
    return {**batch, "pixel_values": mixed, "targets": targets}
