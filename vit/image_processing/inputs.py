"""What may be passed as `images`, read into one form: a Pillow image of 8 bits a channel, or an array (H, W, C)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..errors import InputError
from .batch import dense, is_array, is_torch, to_array
from .sources import label_of, load, naming, open_image

FIRST, LAST = "channels_first", "channels_last"

_KEPT_MODES = {None: ("L", "RGB"), 1: ("L",), 2: ("LA",), 3: ("RGB",), 4: ("RGBA", "CMYK")}
"""Number of channels the normalisation takes (None: any) -> Pillow modes that are passed on as they are."""

_TORCH_DTYPES = {f"torch.{name}" for name in ("uint8", "int8", "int16", "int32", "int64", "bool", "float16", "bfloat16",
                 "float32", "float64", "complex64", "complex128")}  # fmt: skip
"""What torch computes with: it can do next to nothing with larger unsigned integers and smaller floats."""


class Frame(NamedTuple):
    """One image of a batch.

    Attributes:
        name: which one it is, for errors.
        pixels: a Pillow image of mode L, LA, RGB or another of 8 bits a channel, or an array or torch tensor
            (height, width, channels) of any real dtype.
        grey: whether its one channel stands for red, green and blue.
        low: the smallest value of an array that is not uint8.
        high: the largest.
    """

    name: str
    pixels: Any
    grey: bool = False
    low: float = 0
    high: float = 255

    @property
    def looks_scaled(self) -> bool:
        """Whether every value is in 0..1, as if it had been divided by 255 already."""
        return self.low >= 0 and self.high <= 1

    def without_pixels(self) -> Frame:
        """What is left when their memory is not needed any more; 16 bits have become 8."""
        wide = isinstance(self.pixels, np.ndarray) and self.pixels.dtype == np.uint16
        return self._replace(pixels=None, high=min(self.high, 255) if wide else self.high)


class Reader(NamedTuple):
    """How to read images.

    Attributes:
        channels: how many the normalisation takes; None for any number.
        do_convert_rgb: True makes every Pillow image RGB; False keeps the channels it has; None makes RGB of what has
            not `channels` channels already.
        input_data_format: "channels_first" or "channels_last" of arrays; inferred from each shape when None.
        keep_torch: leave torch tensors what and where they are.
        rescales: whether 255 is to be white, and so 1 of Pillow images of floats in 0..1.
    """

    channels: int | None
    do_convert_rgb: bool | None
    input_data_format: str | None
    keep_torch: bool = False
    rescales: bool = False

    def read(self, name: str, image: Any) -> Frame:
        """Read one image.

        Args:
            name: which one it is, for errors.
            image: a Pillow image, what `open_image` opens, a NumPy array or a tensor of any framework.

        Raises:
            InputError: it cannot be read.
        """
        if isinstance(image, Image.Image):
            load(image, name)
            return self._from_pillow(name, image)
        if (label := label_of(image)) is not None:
            name += f" ({label})" if label else ""
            return self._from_pillow(name, open_image(image, name))
        if is_array(image):
            keep = self.keep_torch and is_torch(image) and str(image.dtype) in _TORCH_DTYPES
            return self._from_array(name, dense(image, name).detach() if keep else to_array(image, name))
        raise InputError(
            f"{name} is a {type(image).__name__}; expected a Pillow image, a path, a URL, the bytes of a file, a "
            "binary file object, a NumPy array, or a tensor of PyTorch, TensorFlow or JAX."
        )

    def _from_pillow(self, name: str, image: Image.Image) -> Frame:
        _check_area(name, image.height, image.width)
        if image.mode == "RGB":
            return Frame(name, image)
        with naming(name):
            if image.mode == "F":
                frame = self._from_array(name, np.asarray(image))
                if not (self.rescales if frame.looks_scaled else self.do_convert_rgb):
                    return frame
                image = Image.fromarray(to_bytes(frame)[0][..., 0])
            elif image.mode == "1":
                image = image.convert("L")
            elif image.mode == "I" or image.mode.startswith("I;16"):
                # Pillow's own conversion clips at 255, which turns a 16-bit photograph white.
                image = Image.fromarray(_sixteen_to_eight(name, np.asarray(image)))
            elif image.mode in ("P", "PA"):
                transparent = image.mode == "PA" or "transparency" in image.info
                image = image.convert("RGBA" if transparent and self.channels == 4 else "RGB")
            kept = image.mode in _KEPT_MODES.get(self.channels, ())
            if self.do_convert_rgb is False or (self.do_convert_rgb is None and kept):
                return Frame(name, np.asarray(image) if image.mode == "LAB" else image)  # Pillow holds a and b signed
            if image.mode == "L":
                return Frame(name, image, grey=True)  # one channel to resize rather than three equal ones
            return Frame(name, image if image.mode == "RGB" else image.convert("RGB"))  # a palette's is so by now

    def _from_array(self, name: str, array: Any) -> Frame:
        kind = array.dtype.kind if isinstance(array, np.ndarray) else "c" if array.is_complex() else "f"
        if kind not in "buif":
            raise InputError(f"{name} has the dtype {array.dtype}; expected integers or floats.")
        shape = tuple(array.shape)
        if array.ndim not in (2, 3):
            raise InputError(f"{name} has the shape {shape}; expected (height, width), with channels first or last.")
        if array.ndim == 2:
            array = array[..., None]
        elif (self.input_data_format or _infer_format(name, shape, self.channels)) == FIRST:
            array = array.transpose(1, 2, 0) if isinstance(array, np.ndarray) else array.permute(1, 2, 0)
        height, width, found = array.shape
        _check_area(name, height, width)
        if found == 0:
            raise InputError(f"{name} has no channels: its shape is {shape}.")
        low, high = (0.0, 255.0) if "uint8" in str(array.dtype) else (float(array.min()), float(array.max()))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise InputError(f"{name} has values that are NaN or infinite; expected numbers.")
        grey = False
        if self.do_convert_rgb is not False and found != self.channels:
            if self.channels == 3 and found in (2, 4):  # without its alpha
                array, found = array[..., : found - 1], found - 1
            grey = found == 1 and self.channels == 3
        return Frame(name, array, grey, low, high)


def flatten(images: Any) -> Sequence[tuple[str, Any]]:
    """(name, image) of each image of a batch: one image, a list of them (of lists), or one 4-D array or tensor.

    Raises:
        InputError: there is none.
    """
    try:
        found = list(_flatten(images))
    except RecursionError:
        raise InputError("The batch of images is of lists in lists without end; expected a list of images.") from None
    pillow = [image for image in found if isinstance(image, Image.Image)]
    if len({id(image) for image in pillow}) < len(pillow):  # two threads must not decode one file
        for image in pillow:
            with suppress(InputError):  # the reader names a broken one
                load(image, "")
    if not found:
        raise InputError("The batch of images is empty; expected at least one image.")
    if len(found) == 1 and not isinstance(images, list | tuple):
        return [("The image", found[0])]
    return [(f"Image {i} of the batch", image) for i, image in enumerate(found)]


def _flatten(images: Any) -> Iterable[Any]:
    if isinstance(images, list | tuple):
        return [image for entry in images for image in _flatten(entry)]
    if is_array(images) and _rank(images) == 4:
        # Out of the framework once, not image by image.
        return dense(images, "The batch") if is_torch(images) else to_array(images, "The batch")
    return [images]


def _rank(array: Any) -> int | None:
    try:
        return len(array.shape)
    except Exception:  # nested and symbolic tensors have no shape; the reader names them
        return None


def _infer_format(name: str, shape: tuple[int, ...], channels: int | None) -> str:
    for counts in ((1, 3), (2, 4), (channels,)):
        first, last = shape[0] in counts, shape[2] in counts
        if first and last:
            raise InputError(
                f"{name} has the ambiguous shape {shape}: its first and its last axis could both be the channels. Pass "
                f"input_data_format={FIRST!r} or {LAST!r}."
            )
        if first or last:
            return FIRST if first else LAST
    raise InputError(
        f"{name} has the shape {shape}, in which no axis is of 1 to 4 channels; expected (height, width), (height, "
        "width, channels) or (channels, height, width). Pass input_data_format for another number of channels."
    )


def _check_area(name: str, height: int, width: int) -> None:
    if height == 0 or width == 0:
        raise InputError(f"{name} has no pixels: it is {height} x {width} (height x width).")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and height * width > 2 * limit:  # where Pillow's warning about a file becomes its error
        raise InputError(
            f"{name} is {height} x {width}, over Pillow's limit of {2 * limit} pixels. Raise "
            "PIL.Image.MAX_IMAGE_PIXELS if you trust it."
        )


def to_bytes(frame: Frame) -> tuple[np.ndarray, bool]:
    """An array as the uint8 that Pillow resizes, and whether it was in 0..1 and is to be divided by 255 afterwards.

    Whole numbers in 0..255 are taken as they are, others in 0..1 times 255 and truncated, as transformers does. It
    refuses the rest; here uint16 above 255 has white at 65535, and other floats in 0..255 are truncated.

    Raises:
        InputError: values out of these ranges.
    """
    array, low, high = frame.pixels, frame.low, frame.high
    if array.dtype == np.uint8:
        return array, False
    # The first row tells a photograph in floats apart without a pass over all of it.
    whole = array.dtype.kind != "f" or all(np.allclose(part, np.trunc(part)) for part in (array[:1], array))
    if whole and low >= 0 and high <= 255:
        return array.astype(np.uint8), False
    if array.dtype == np.uint16:
        return _sixteen_to_eight(frame.name, array), False
    if not whole and low >= 0 and high <= 1:
        return (array.astype(np.float64) * 255).astype(np.float32).astype(np.uint8), True
    if not whole and low >= 0 and high <= 255:
        return array.astype(np.uint8), False
    raise InputError(
        f"{frame.name} has values from {low:g} to {high:g}; expected 0 to 255, or 0 to 1 as floats. If it is "
        "normalised already, pass do_resize=False, do_rescale=False and do_normalize=False."
    )


def _sixteen_to_eight(name: str, array: np.ndarray) -> np.ndarray:
    """uint8 of integers whose white is 65535, or 255 where none is above it, as transformers reads them."""
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 65535:
        raise InputError(f"{name} has values from {low} to {high}; expected 0 to 65535.")
    if high <= 255:
        return array.astype(np.uint8)
    narrow = np.empty(array.shape, np.uint8)
    rows = max(1, 2**20 // max(1, array[:1].size))
    for top in range(0, len(array), rows):  # in 32 bits, a few rows at a time
        narrow[top : top + rows] = (array[top : top + rows].astype(np.uint32) + 128) // 257
    return narrow
