"""What may be passed as `images`, read into one form: a Pillow image of 8 bits a channel, or an array (H, W, C)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError
from .batch import is_array, to_array

FIRST, LAST = "channels_first", "channels_last"

_KEPT_MODES = {1: ("L",), 2: ("LA",), 3: ("RGB",), 4: ("RGBA", "CMYK")}
"""Number of channels the model takes -> Pillow modes that are passed on as they are."""


class Frame(NamedTuple):
    """One image of a batch.

    Attributes:
        name: which one it is, for errors.
        pixels: a Pillow image, or an array (height, width, channels) of any dtype.
        grey: whether its one channel stands for red, green and blue.
    """

    name: str
    pixels: Image.Image | np.ndarray
    grey: bool = False


def frames(
    images: Any, *, channels: int | None, do_convert_rgb: bool | None, input_data_format: str | None
) -> Iterator[Frame]:
    """Read every image of a batch, one at a time.

    Args:
        images: a Pillow image, path, NumPy array or tensor of any framework, a list of them (nested ones are
            flattened), or one 4-D array.
        channels: how many the normalisation takes; None for any number.
        do_convert_rgb: True makes every Pillow image RGB; False keeps the channels it has; None makes RGB of what has
            not `channels` channels already.
        input_data_format: "channels_first" or "channels_last"; inferred from each array's shape when None.

    Raises:
        InputError: an image that cannot be read; its index is named.
    """
    if input_data_format is not None and input_data_format not in (FIRST, LAST):
        raise InputError(f"input_data_format is {input_data_format!r}; expected {FIRST!r}, {LAST!r} or None.")
    found = _flatten(images)
    if not found:
        raise InputError("The batch of images is empty; expected at least one image.")
    for index, image in enumerate(found):
        name = f"Image {index}" if len(found) > 1 or isinstance(images, list | tuple) else "The image"
        if isinstance(image, str | os.PathLike):
            name += f" ({os.fspath(image)})"
            image = _open(image, name)
        if isinstance(image, Image.Image):
            yield _from_pillow(image, name, channels, do_convert_rgb)
        elif is_array(image):
            yield _from_array(to_array(image), name, channels, do_convert_rgb, input_data_format)
        else:
            raise InputError(
                f"{name} is a {type(image).__name__}; expected a Pillow image, a path, a NumPy array, or a torch, "
                "TensorFlow or JAX tensor."
            )


def _flatten(images: Any) -> Sequence[Any]:
    if isinstance(images, list | tuple):
        return [image for entry in images for image in _flatten(entry)]
    if is_array(images) and len(images.shape) == 4:
        return list(to_array(images))  # one way from the framework for the whole batch; views of it
    return [images]


def _open(path: str | os.PathLike[str], name: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise InputError(f"{name} does not exist; expected the path of an image file.") from None
    except UnidentifiedImageError:
        raise InputError(f"{name} is not an image file that Pillow can read.") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large: {error} Raise PIL.Image.MAX_IMAGE_PIXELS if you trust it.") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow's readers raise on broken data
        raise InputError(f"{name} cannot be read: {error}.") from None


def _from_pillow(image: Image.Image, name: str, channels: int | None, do_convert_rgb: bool | None) -> Frame:
    _check_area(image.height, image.width, name)
    try:
        image.load()  # Image.open reads the header alone
        if image.mode == "1":
            image = image.convert("L")
        elif image.mode.startswith("I;16"):
            # Pillow's own conversion clips at 255, which turns a 16-bit photograph white.
            image = Image.fromarray(_eight_bits(np.asarray(image)))
        elif image.mode in ("I", "F"):
            return _from_array(np.asarray(image), name, channels, do_convert_rgb, LAST)
        elif image.mode in ("P", "PA"):
            transparent = image.mode == "PA" or "transparency" in image.info
            image = image.convert("RGBA" if transparent and channels == 4 else "RGB")
        if do_convert_rgb is False or (do_convert_rgb is None and image.mode in _KEPT_MODES.get(channels or 3, ())):
            return Frame(name, image)
        if image.mode == "L":
            return Frame(name, image, grey=True)  # one channel to resize rather than three equal ones
        return Frame(name, image if image.mode == "RGB" else image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(f"{name} cannot be read: {error}.") from None


def _from_array(
    array: np.ndarray, name: str, channels: int | None, do_convert_rgb: bool | None, input_data_format: str | None
) -> Frame:
    if array.dtype.kind not in "buif":
        raise InputError(f"{name} has the dtype {array.dtype}; expected integers or floats.")
    if array.ndim not in (2, 3):
        raise InputError(f"{name} has the shape {array.shape}; expected (height, width), with channels first or last.")
    flat = array.ndim == 2
    if flat:
        array = array[..., None]
    elif (input_data_format or _infer_format(array.shape, name, channels)) == FIRST:
        array = array.transpose(1, 2, 0)
    height, width, found = array.shape
    _check_area(height, width, name)
    if found == 0:
        raise InputError(f"{name} has no channels: its shape is {array.shape}.")
    if array.dtype.kind == "f" and not np.isfinite(array.min() + array.max()):
        raise InputError(f"{name} has values that are NaN or infinite; expected numbers.")
    if do_convert_rgb is not False and found != channels:
        if channels == 3 and found in (2, 4):  # without its alpha
            array, found = array[..., : found - 1], found - 1
        if found == 1 and (channels == 3 or (flat and channels is None)):
            return Frame(name, array, grey=True)
    return Frame(name, array)


def _infer_format(shape: tuple[int, ...], name: str, channels: int | None) -> str:
    for counts in ((1, 3), (2, 4), (channels,)):
        first, last = shape[0] in counts, shape[2] in counts
        if first and last:
            raise InputError(
                f"{name} has the ambiguous shape {shape}: its first and its last axis could both be channels. Pass "
                f"input_data_format={FIRST!r} or {LAST!r}."
            )
        if first or last:
            return FIRST if first else LAST
    raise InputError(
        f"{name} has the shape {shape}, in which no axis is of 1 to 4 channels. Expected (height, width), (height, "
        "width, channels) or (channels, height, width); pass input_data_format for another number of channels."
    )


def _check_area(height: int, width: int, name: str) -> None:
    if height == 0 or width == 0:
        raise InputError(f"{name} has no pixels: it is {height} x {width} (height x width).")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and height * width > 2 * limit:  # where Pillow's own warning becomes its error
        raise InputError(
            f"{name} is {height} x {width}, over Pillow's limit of {2 * limit} pixels. Raise PIL.Image.MAX_IMAGE_PIXELS "
            "if you trust it."
        )


def to_bytes(array: np.ndarray, name: str) -> tuple[np.ndarray, bool]:
    """An array as the uint8 that Pillow resizes, and whether it was in 0..1 and is to be divided by 255 afterwards.

    Whole numbers in 0..255 are taken as they are, others in 0..1 times 255 and truncated, as transformers does. It
    refuses the rest; here uint16 and int32 above 255 are full 16-bit range, and other floats in 0..255 are rounded.

    Raises:
        InputError: values out of these ranges.
    """
    if array.dtype == np.uint8:
        return array, False
    low, high = array.min(), array.max()
    if array.dtype.kind in "bui":
        whole = True
    else:  # the first row tells photographs apart without a pass over all of it
        whole = all(np.allclose(part, np.trunc(part)) for part in (array[:1], array))
    if whole and low >= 0 and high <= 255:
        return array.astype(np.uint8), False
    if array.dtype in (np.uint16, np.int32) and low >= 0 and high <= 65535:
        return _eight_bits(array), False
    if not whole and low >= 0 and high <= 1:
        return (array.astype(np.float64) * 255).astype(np.float32).astype(np.uint8), True
    if not whole and low >= 0 and high <= 255:
        return np.rint(array).astype(np.uint8), False
    raise InputError(
        f"{name} has values from {low} to {high}; expected 0 to 255, or 0 to 1 as floats. If it is normalised already, "
        "pass do_resize=False, do_rescale=False and do_normalize=False."
    )


def _eight_bits(array: np.ndarray) -> np.ndarray:
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 becomes 255; rounded
