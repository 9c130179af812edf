"""What ViTImageProcessor does to an image, as steps that a graph can hold; free of frameworks.

vit/pt/preprocessing.py, vit/tf/preprocessing.py and vit/flax/preprocessing.py compute them, for exported models whose
clients send photographs. Pillow resizes 8-bit images along rows and then along columns, each of which is a product with
a matrix whose sizes may be open (Pillow's Resample.c). In it, of `old` pixels and `new` ones,

- scale = old / new, width = max(scale, 1), and pixel i has its centre at c = (i + 0.5) * scale;
- the pixels j with trunc(c - reach * width + 0.5) <= j < trunc(c + reach * width + 0.5) count, each by
  filter((j - c + 0.5) / width), the others by 0;
- the weights of a row are divided by their sum, and rounded to multiples of 1 / PRECISION, halves away from 0;
- a sum of pixels is rounded, halves up, and clipped to 0..255, after each of the two products.

NEAREST takes the pixel at trunc of scale / 2 + scale + scale + ..., added in that order.

Pillow 13 goes along columns first where an image loses rows, and more than twice as many as columns, which graphs do
not: one in five of the values at most then is a grey level off, and one in some thousands by up to 4.

A crop takes some of the rows of the matrix; those of pixels that are not there are 0. So the sizes of what comes out
are known where those of what comes in are open.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Self

from PIL.Image import Resampling

from ..errors import ConfigError, InputError
from . import options as opts
from .processor import ViTImageProcessor

REACH = {
    Resampling.BOX: 0.5,
    Resampling.BILINEAR: 1.0,
    Resampling.HAMMING: 1.0,
    Resampling.BICUBIC: 2.0,
    Resampling.LANCZOS: 3.0,
}
"""Pixels from its centre to where a filter ends."""
PRECISION = 2.0**22
"""Pillow's weights are multiples of 1 / PRECISION."""
HAMMING = (0.5400000214576721, 0.46000000834465027)
"""The numbers of the Hamming window, 0.54 and 0.46, as Pillow has them: float32."""


class Axis(NamedTuple):
    """Where the pixels along an axis come from; each may be open, an int or whatever a framework has in its place.

    Attributes:
        old: how many there are.
        new: how many the resize makes of them.
        start: which of these is the first that is kept; below 0 where zeros come before them.
        count: how many are kept.
    """

    old: Any
    new: Any
    start: Any
    count: Any


class Steps(NamedTuple):
    """The options of an image processor, checked, with None for each step that is off.

    Attributes:
        size: (height, width) to resize to, or the length of the shorter edge.
        resample: the filter.
        crop: (height, width) of the middle that is kept.
        factor: to multiply by.
        mean: to subtract, one number for each channel or for all.
        std: to divide by, likewise.
        colours: how many channels the normalisation takes; None for any number.
    """

    size: tuple[int, int] | int | None
    resample: Resampling
    crop: tuple[int, int] | None
    factor: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    colours: int | None

    @classmethod
    def of(cls, processor: ViTImageProcessor) -> Self:
        """The steps of a processor; those of a Fast one are those of its NumPy namesake.

        Raises:
            ConfigError: a longest edge, with which a graph cannot tell the size of what comes out, or another filter.
        """
        options = opts.check({name: getattr(processor, name) for name in opts.OPTIONS})
        size, crop = options["size"], options["crop_size"]
        if options["do_resize"] and "longest_edge" in size:
            raise ConfigError(
                f"size is {size}; in a graph it can be a height and a width, or the shortest edge, not the longest."
            )
        if options["do_resize"] and options["resample"] not in (*REACH, Resampling.NEAREST):
            known = ", ".join(filter.name.lower() for filter in (Resampling.NEAREST, *REACH))
            raise ConfigError(f"resample is {options['resample'].name.lower()}; in a graph it can be {known}.")
        constants = [options[name] if options["do_normalize"] else None for name in ("image_mean", "image_std")]
        mean, std = (tuple(each) if isinstance(each, list) else None if each is None else (each,) for each in constants)
        square = size.get("shortest_edge") or (size["height"], size["width"])
        return cls(
            square if options["do_resize"] else None,
            options["resample"],
            (crop["height"], crop["width"]) if options["do_center_crop"] else None,
            options["rescale_factor"] if options["do_rescale"] else None,
            mean,
            std,
            next((len(each) for each in constants if isinstance(each, list)), None),
        )

    def channels(self, found: int) -> int:
        """How many of an image's channels go in, the first ones: not its alpha where the normalisation takes colours.

        One channel stands for three where it takes three: what is subtracted from it makes them.

        Args:
            found: how many there are.

        Raises:
            InputError: as many do not go with the normalisation, or one of them is alpha and would be resized.
        """
        kept = found - 1 if self.colours == 3 and found in (2, 4) else found
        if self.colours not in (None, kept) and (self.colours, kept) != (3, 1):
            raise InputError(f"The images have {found} channel(s); expected {self.colours}, as many as image_mean has.")
        if kept in (2, 4) and self.size is not None and self.resample != Resampling.NEAREST:
            raise InputError(
                f"The images have {kept} channels, of which Pillow takes the last one for alpha and multiplies the "
                "others by it; no graph here does that. Export without the image processor."
            )
        return kept

    def axes(self, height: Any, width: Any, minimum: Callable[[Any, Any], Any] = min) -> tuple[Axis, Axis] | None:
        """(rows, columns) of the resize and the crop of an image, None where there is neither.

        Args:
            height: in pixels, of the image; it may be open, and then what `//` and `minimum` give is.
            width: likewise.
            minimum: of two such lengths.
        """
        if self.size is None and self.crop is None:
            return None
        new: tuple[Any, Any] = (height, width)
        if isinstance(self.size, tuple):
            new = self.size
        elif self.size is not None:
            shorter = minimum(height, width)
            new = (self.size * height // shorter, self.size * width // shorter)
        kept = self.crop or new
        rows, columns = (
            Axis(old, length, (length - count) // 2 if self.crop else 0, count)
            for old, length, count in zip((height, width), new, kept, strict=True)
        )
        return rows, columns

    def shape(self, channels: int) -> tuple[int, int | None, int | None]:
        """(channels, height, width) of what comes out of images of so many channels, None where that is open."""
        channels = self.colours or self.channels(channels)
        height, width = self.crop or (self.size if isinstance(self.size, tuple) else (None, None))
        return channels, height, width
