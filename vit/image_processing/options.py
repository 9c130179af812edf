"""The options of an image processor: their defaults, what they may be, and the file they live in."""

from __future__ import annotations

import difflib
import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from ..budgets import output_pixels
from ..errors import CheckpointError, ConfigError, quoted, shown

FILE = "preprocessor_config.json"

STANDARD = (0.5, 0.5, 0.5)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

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
_IMAGENET = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
_CLIP = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}
# Every published DeiT checkpoint uses the ImageNet mean and std; transformers' class starts from 0.5 instead.
DEFAULTS = {
    "ViT": _VIT,
    "DeiT": {**_CROPPED, **_IMAGENET},
    "Beit": {**_CROPPED, "do_reduce_labels": False},
    "Bit": {**_CROPPED, "size": {"shortest_edge": 224}, "do_convert_rgb": True, **_CLIP},
    "DINOv3ViT": {**_VIT, **_IMAGENET},
}
"""Model family -> {option: default}; the family is the first part of the published class names."""
FAST_DEFAULTS = {"Beit": {"size": 224, "do_center_crop": False}}
"""Where the published Fast classes start from something else."""
FAMILIES = {"vit": "ViT", "vit_mae": "ViT", "vit_msn": "ViT", "deit": "DeiT", "beit": "Beit", "dinov2": "Bit",
            "dinov2_with_registers": "Bit", "dinov3_vit": "DINOv3ViT"}  # fmt: skip
"""model_type of a config.json -> the family of its processor, where preprocessor_config.json has no type."""

OPTIONS = tuple(_VIT)
NO_EFFECT = ("image_processor_type", "feature_extractor_type", "processor_class", "_processor_class", "use_fast",
             "disable_grouping", "default_to_square")  # fmt: skip
"""Names that transformers' processors take beside options, and that change nothing here."""
_TYPE = re.compile(rf"({'|'.join(DEFAULTS)})(ImageProcessor|ImageProcessorFast|ImageProcessorPil|FeatureExtractor)")
_FILTERS = {filter.name.lower(): filter for filter in Image.Resampling}


def defaults(family: str, fast: bool) -> dict[str, Any]:
    """{option: default} of a class."""
    return {**DEFAULTS[family], **(FAST_DEFAULTS.get(family, {}) if fast else {})}


def check(options: Mapping[str, Any], family: str = "ViT") -> dict[str, Any]:
    """The options in one form: sizes as dicts, mean and std as lists of floats or one float, resample as the enum.

    Raises:
        ConfigError: an unknown option (the nearest known one is named), or an impossible value.
    """
    known = DEFAULTS[family]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            raise ConfigError(f"Unknown option {quoted(name)}" + (f"; did you mean {near[0]!r}?" if near else "."))
    values = dict(options)
    for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_reduce_labels"):
        if name in known:
            _expect(name, values[name], isinstance(values[name], bool), "true or false")
    convert = values["do_convert_rgb"]
    _expect("do_convert_rgb", convert, convert is None or isinstance(convert, bool), "true, false or null")
    # An int is the shortest edge where the published class says so.
    edge = family == "Bit" and _is_length(values["size"])
    limit = output_pixels()
    values["size"] = _size("size", {"shortest_edge": values["size"]} if edge else values["size"], limit)
    values["crop_size"] = _size("crop_size", values["crop_size"], limit)
    if "height" not in values["crop_size"]:
        raise ConfigError(
            f"crop_size is {quoted(options['crop_size'])}; expected a height and a width, or one int for both."
        )
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


def family_of(values: Mapping[str, Any], where: Any) -> tuple[str | None, bool]:
    """(the family that preprocessor_config.json names, None where it names none; whether the type is a Fast one).

    Raises:
        CheckpointError: another kind of processor.
    """
    kind = values.get("image_processor_type")
    kind = values.get("feature_extractor_type") if kind is None else kind
    if kind is None:
        return None, False
    if not (match := _TYPE.fullmatch(kind) if isinstance(kind, str) else None):
        raise CheckpointError(
            f"{shown(where)} is of type {quoted(kind)}; expected {', '.join(DEFAULTS)} and then ImageProcessor, "
            "ImageProcessorFast or FeatureExtractor."
        )
    return match[1], match[2].endswith("Fast")


def parse(
    values: Mapping[str, Any], where: Any, untyped: str, family: str, fast: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a preprocessor_config.json says.

    Args:
        values: its keys and values.
        where: what errors call it.
        untyped: the family whose defaults hold where it has no type.
        family: whose options are asked for.
        fast: whether the defaults are those of the Fast class.

    Returns:
        (the options of `family`, with the defaults of the file's type; the other keys).

    Raises:
        CheckpointError: the file of another kind of processor.
        ConfigError: impossible values; the file is named.
    """
    found = family_of(values, where)[0] or untyped
    values = {key: value for key, value in values.items() if value is not None}
    for name in ("image_processor_type", "feature_extractor_type"):
        values.pop(name, None)
    if values.get("default_to_square") is False and _is_length(values.get("size")):
        values["size"] = {"shortest_edge": values["size"]}
    if "reduce_labels" in values and "Beit" in (found, family):
        values.setdefault("do_reduce_labels", values.pop("reduce_labels"))
    if "crop_pct" in values:
        warnings.warn(
            f"{shown(where)} has crop_pct {quoted(values['crop_pct'])}, which no ViT, DeiT or BEiT processor applies, "
            "here or in transformers. To evaluate as timm does, pass size={'shortest_edge': round(size / crop_pct)}, "
            "do_center_crop=True and crop_size=size.",
            stacklevel=4,
        )
    options = {name: values.pop(name, default) for name, default in defaults(found, fast).items()}
    try:
        if values.get("do_pad"):
            raise ConfigError("do_pad is true; no processor of these models pads. Set size or crop_size.")
        options = check(options, found)
    except ConfigError as error:
        raise ConfigError(f"{shown(where)}: {error}") from None
    taken = {**{name: default for name, default in defaults(family, fast).items() if name not in options}, **options}
    return {name: taken[name] for name in DEFAULTS[family]}, values


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


def _size(name: str, value: Any, limit: float) -> dict[str, int]:
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
        raise ConfigError(f"{name} is {quoted(value)}; expected a longest_edge of at least the shortest_edge.")
    area = size["height"] * size["width"] if "height" in size else size["shortest_edge"] ** 2
    if area > limit:
        raise ConfigError(
            f"{name} is {quoted(value)}, over the limit of {limit:,.0f} pixels; raise PIL.Image.MAX_IMAGE_PIXELS for "
            "more."
        )
    return size


def _filter(value: Any) -> Image.Resampling:
    if isinstance(value, str) and value.lower() in _FILTERS:
        return _FILTERS[value.lower()]
    try:
        if isinstance(value, bool):
            raise ValueError
        return Image.Resampling(value)
    except (ValueError, TypeError):
        names = ", ".join(f"{filter.value} ({filter.name.lower()})" for filter in sorted(Image.Resampling))
        raise ConfigError(f"resample is {quoted(value)}; expected one of {names}.") from None


def _expect(name: str, value: Any, valid: bool, expected: str) -> None:
    if not valid:
        raise ConfigError(f"{name} is {quoted(value)}; expected {expected}.")


def _is_length(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) > 0


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float | np.number) or isinstance(value, bool | np.complexfloating):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float holds
        return False
