"""The options of an image processor: their defaults, what they may be, and the file they live in."""

from __future__ import annotations

import difflib
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..checkpoint import read_json
from ..errors import CheckpointError, ConfigError

FILE = "preprocessor_config.json"

STANDARD = (0.5, 0.5, 0.5)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_VIT: dict[str, Any] = {
    "do_resize": True,
    "size": 224,
    "resample": Image.Resampling.BILINEAR,
    "do_center_crop": False,
    "crop_size": 224,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": STANDARD,
    "image_std": STANDARD,
    "do_convert_rgb": None,
}
_CROPPED: dict[str, Any] = {**_VIT, "size": 256, "resample": Image.Resampling.BICUBIC, "do_center_crop": True}
# Every published DeiT checkpoint uses the ImageNet mean and std; transformers' class starts from 0.5 instead.
DEFAULTS = {
    "ViT": _VIT,
    "DeiT": {**_CROPPED, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD},
    "Beit": _CROPPED,
}
"""Model family -> {option: default}; the family is the first part of the published class names."""

OPTIONS = tuple(_VIT)
_TYPE = re.compile(r"(ViT|DeiT|Beit)(ImageProcessor|ImageProcessorFast|ImageProcessorPil|FeatureExtractor)")
_FILTERS = {filter.name.lower(): filter for filter in Image.Resampling}


def check(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options in one form: sizes as dicts, mean and std as lists of floats or one float, resample as the enum.

    Raises:
        ConfigError: an unknown option (the nearest known one is named), or an impossible value.
    """
    for name in options:
        if name not in OPTIONS:
            near = difflib.get_close_matches(name, OPTIONS, n=1)
            raise ConfigError(f"Unknown option {name!r}" + (f"; did you mean {near[0]!r}?" if near else "."))
    values = dict(options)
    for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        _expect(name, values[name], isinstance(values[name], bool), "true or false")
    convert = values["do_convert_rgb"]
    _expect("do_convert_rgb", convert, convert is None or isinstance(convert, bool), "true, false or null")
    values["size"] = _size("size", values["size"])
    values["crop_size"] = _size("crop_size", values["crop_size"])
    if "height" not in values["crop_size"]:
        raise ConfigError(f"crop_size is {options['crop_size']!r}; expected a height and a width, or one int for both.")
    values["resample"] = _filter(values["resample"])
    factor = values["rescale_factor"]
    _expect("rescale_factor", factor, _is_number(factor) and factor > 0, "a finite number above 0")
    for name in ("image_mean", "image_std"):
        value = values[name]
        if isinstance(value, np.ndarray):
            value = value.tolist()
        numbers = list(value) if isinstance(value, list | tuple) else [value]
        valid = bool(numbers) and all(_is_number(number) for number in numbers)
        _expect(name, value, valid, "a number, or one for each channel")
        if name == "image_std":
            _expect(name, value, all(number > 0 for number in numbers), "numbers above 0")
        values[name] = [float(number) for number in numbers] if isinstance(value, list | tuple) else float(value)
    mean, std = values["image_mean"], values["image_std"]
    if isinstance(mean, list) and isinstance(std, list) and len(mean) != len(std):
        raise ConfigError(f"image_mean has {len(mean)} channels but image_std has {len(std)}; expected as many.")
    return values


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `folder`/preprocessor_config.json says.

    Returns:
        (the options with the defaults of the file's type, the other keys).

    Raises:
        CheckpointError: no such file, no JSON, or the file of another kind of processor.
        ConfigError: impossible values; the file is named.
    """
    path = folder / FILE
    values = read_json(path)
    values = {key: value for key, value in values.items() if value is not None}
    old_kind = values.pop("feature_extractor_type", "ViTImageProcessor")
    kind = values.pop("image_processor_type", old_kind)
    match = _TYPE.fullmatch(str(kind))
    if not match:
        raise CheckpointError(
            f"{path} is of type {kind!r}; expected ViT, DeiT or Beit and then ImageProcessor, ImageProcessorFast or "
            "FeatureExtractor."
        )
    if values.get("default_to_square") is False and _is_length(values.get("size")):
        values["size"] = {"shortest_edge": values["size"]}
    if "crop_pct" in values:
        warnings.warn(
            f"{path} has crop_pct {values['crop_pct']}, which no ViT, DeiT or BEiT processor applies, here or in "
            "transformers. To evaluate as timm does, pass size={'shortest_edge': round(size / crop_pct)}, "
            "do_center_crop=True and crop_size=size.",
            stacklevel=3,
        )
    options = {name: values.pop(name, default) for name, default in DEFAULTS[match[1]].items()}
    try:
        return check(options), values
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def output_size(height: int, width: int, size: Mapping[str, int]) -> tuple[int, int]:
    """(height, width) after the resize of an image of that height and width; `size` is a dict that `check` returned."""
    if "height" in size:
        return size["height"], size["width"]
    short, longest = size["shortest_edge"], size.get("longest_edge")
    if longest is None:
        return (int(short * height / width), short) if width <= height else (short, int(short * width / height))
    exact: float = short
    if max(height, width) / min(height, width) * short > longest:
        exact = longest * min(height, width) / max(height, width)
        short = round(exact)
    if min(height, width) == short:
        return height, width
    return (int(exact * height / width), short) if width < height else (short, int(exact * width / height))


def _size(name: str, value: Any) -> dict[str, int]:
    expected = (
        "a positive int, a (height, width) pair of them, {'height': ..., 'width': ...} or {'shortest_edge': ...} with "
        "or without 'longest_edge'"
    )
    size = value
    if _is_length(size):
        size = (size, size)
    if isinstance(size, tuple | list) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    keys = ({"height", "width"}, {"shortest_edge"}, {"shortest_edge", "longest_edge"})
    valid = isinstance(size, Mapping) and set(size) in keys and all(_is_length(length) for length in size.values())
    _expect(name, value, valid, expected)
    size = {key: int(length) for key, length in size.items()}
    if size.get("longest_edge", math.inf) < size.get("shortest_edge", 0):
        raise ConfigError(f"{name} is {value!r}; expected a longest_edge of at least the shortest_edge.")
    limit = Image.MAX_IMAGE_PIXELS
    area = size["height"] * size["width"] if "height" in size else size["shortest_edge"] ** 2
    if limit is not None and area > limit:
        raise ConfigError(f"{name} is {value!r}, over Pillow's limit of {limit} pixels (PIL.Image.MAX_IMAGE_PIXELS).")
    return size


def _filter(value: Any) -> Image.Resampling:
    if isinstance(value, str) and value.lower() in _FILTERS:
        return _FILTERS[value.lower()]
    try:
        if isinstance(value, bool):
            raise ValueError
        return Image.Resampling(value)
    except ValueError:
        names = ", ".join(f"{filter.value} ({filter.name.lower()})" for filter in sorted(Image.Resampling))
        raise ConfigError(f"resample is {value!r}; expected one of {names}.") from None


def _expect(name: str, value: Any, valid: bool, expected: str) -> None:
    if not valid:
        raise ConfigError(f"{name} is {value!r}; expected {expected}.")


def _is_length(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)
