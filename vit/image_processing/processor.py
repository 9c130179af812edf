"""ViTImageProcessor: photographs to `pixel_values` with NumPy and Pillow, to the bit what transformers computes."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from .. import hub
from ..checkpoint import read_json, replace_files
from ..config import ViTConfig
from ..errors import InputError
from . import options as opts
from .batch import BatchFeature, check_tensor_type, to_array, to_tensor
from .inputs import FIRST, LAST, Frame, frames, to_bytes


class ViTImageProcessor:
    """Resize, centre crop, rescale, normalise: what a checkpoint's preprocessor_config.json says.

    Each option can be changed for one call: `processor(image, size=384)`.

    Args:
        do_resize: whether to resize to `size`.
        size: (height, width) as one int, a pair or {"height": ..., "width": ...}; or {"shortest_edge": ...}, which
            keeps the aspect ratio, with or without "longest_edge", which bounds the other edge.
        resample: the filter: a `PIL.Image.Resampling`, its number or its name.
        do_center_crop: whether to cut `crop_size` out of the middle; smaller images are padded with zeros.
        crop_size: (height, width), as `size`.
        do_rescale: whether to multiply by `rescale_factor`.
        rescale_factor: 1/255 brings 8 bits to 0..1.
        do_normalize: whether to subtract `image_mean` and divide by `image_std`.
        image_mean: one number for each channel, or one for all.
        image_std: as `image_mean`.
        do_convert_rgb: True makes every Pillow image RGB; False keeps its channels; None makes RGB of an image that
            does not have as many channels as `image_mean`.

    Raises:
        ConfigError: an unknown option, or an impossible value.
    """

    family = "ViT"
    model_input_names = ("pixel_values",)

    do_resize: bool
    size: dict[str, int]
    resample: Image.Resampling
    do_center_crop: bool
    crop_size: dict[str, int]
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: list[float] | float
    image_std: list[float] | float
    do_convert_rgb: bool | None

    def __init__(self, **options: Any) -> None:
        for name, value in opts.check({**opts.DEFAULTS[self.family], **options}).items():
            setattr(self, name, value)
        self.extra: dict[str, Any] = {}  # keys of the file that are no options, for the round trip
        self.config: ViTConfig | None = None  # of the checkpoint it was read from, for its labels

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:
        """`preprocess`, by another name."""
        return self.preprocess(images, **kwargs)

    def preprocess(
        self,
        images: Any,
        *,
        return_tensors: str | None = None,
        data_format: str = FIRST,
        input_data_format: str | None = None,
        **overrides: Any,
    ) -> BatchFeature:
        """Make `pixel_values` of one image or a batch.

        Args:
            images: a Pillow image of any mode, a path, a NumPy array, a torch, TensorFlow or JAX tensor, (H, W, C),
                (C, H, W) or (H, W), integers in 0..255 or floats in 0..1 or 0..255; a list of any of these, of any
                sizes; or one 4-D array. The EXIF orientation of a path is applied.
            return_tensors: None for a list of arrays, or "np", "pt", "tf" or "jax".
            data_format: "channels_first" or "channels_last", of the result.
            input_data_format: the same of the arrays passed; inferred from each shape when None.
            **overrides: options for this call.

        Returns:
            A dict with attribute access: `pixel_values`, (batch, channels, height, width) float32. Where neither
            `do_rescale` nor `do_normalize` asks for floats it is uint8, and floats passed with `do_rescale=False`
            keep their dtype, as in transformers.

        Raises:
            InputError: an image that cannot be used; its index is named.
            ConfigError: an unknown option, or an impossible value.
            MissingFrameworkError: the framework of `return_tensors` is not installed.
        """
        options, tensors = self._start(return_tensors, data_format, overrides)
        results: list[tuple[np.ndarray, np.ndarray | None, str]] = []
        warned = False
        for frame in self._frames(images, options, input_data_format):
            pixels, unit = _resize_and_crop(frame, options)
            if options["do_rescale"] and not warned and (unit or _looks_scaled(pixels)):
                _warn_scaled(frame.name)
                warned = True
            channels = 3 if frame.grey else pixels.shape[2]
            _check_channels(channels, options, frame.name)
            table = None
            if pixels.dtype == np.uint8:
                table = _table(channels, unit, *_arithmetic(options))
            else:
                pixels = _compute(pixels, unit, *_arithmetic(options))
            results.append((np.broadcast_to(pixels, (*pixels.shape[:2], channels)), table, frame.name))
        return BatchFeature(pixel_values=_gather(results, data_format, tensors))

    def _start(
        self, return_tensors: str | None, data_format: str, overrides: Mapping[str, Any]
    ) -> tuple[dict[str, Any], str | None]:
        check_tensor_type(return_tensors)
        if data_format not in (FIRST, LAST):
            raise InputError(f"data_format is {data_format!r}; expected {FIRST!r} or {LAST!r}.")
        given = {name: value for name, value in overrides.items() if value is not None}
        return opts.check({**{name: getattr(self, name) for name in opts.OPTIONS}, **given}), return_tensors

    @staticmethod
    def _frames(images: Any, options: Mapping[str, Any], input_data_format: str | None) -> Any:
        means = [options[name] for name in ("image_mean", "image_std") if isinstance(options[name], list)]
        return frames(
            images,
            channels=len(means[0]) if options["do_normalize"] and means else None,
            do_convert_rgb=options["do_convert_rgb"],
            input_data_format=input_data_format,
        )

    # === Results ===

    def post_process_image_classification(
        self, outputs: Any, top_k: int = 5, config: ViTConfig | None = None
    ) -> list[list[dict[str, Any]]]:
        """The most probable labels of each image, best first.

        Args:
            outputs: what a model with a classification head returned, in any framework, or its logits,
                (batch, num_labels).
            top_k: how many labels; all of them when there are fewer.
            config: names the labels and tells softmax from sigmoid (`problem_type`
                "multi_label_classification"); that of the checkpoint this processor was read from when None.

        Returns:
            For each image [{"label": ..., "score": ...}, ...]; the scores are probabilities.

        Raises:
            InputError: no logits, logits that are NaN, or a `top_k` below 1.
        """
        if not isinstance(top_k, int | np.integer) or isinstance(top_k, bool) or top_k < 1:
            raise InputError(f"top_k is {top_k!r}; expected an int of at least 1.")
        config = config or self.config
        value = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", outputs)
        if isinstance(value, tuple | list) and value:
            value = value[0]  # what return_dict=False gives
        logits = np.zeros(0) if value is None else to_array(value)
        if logits.ndim != 2 or logits.dtype.kind != "f":
            found = "no logits" if value is None else f"logits of shape {logits.shape} and dtype {logits.dtype}"
            raise InputError(f"The outputs hold {found}; expected floats of shape (batch, num_labels).")
        if not np.isfinite(logits).all():
            bad = int(np.argmin(np.isfinite(logits).all(axis=1)))
            raise InputError(f"The logits of image {bad} have values that are NaN or infinite.")
        if config is not None and config.num_labels != logits.shape[1]:
            raise InputError(f"The outputs have {logits.shape[1]} logits but the config names {config.num_labels} labels.")
        logits = logits.astype(np.float64)
        if config is not None and config.problem_type == "multi_label_classification":
            scores = 0.5 * (1 + np.tanh(0.5 * logits))  # the sigmoid, which cannot overflow so
        else:
            scores = np.exp(logits - logits.max(axis=1, keepdims=True))
            scores /= scores.sum(axis=1, keepdims=True)
        names = config.id2label if config is not None and config.id2label else {}
        best = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        return [
            [{"label": names.get(int(j), f"LABEL_{j}"), "score": float(row[j])} for j in order]
            for row, order in zip(scores, best, strict=True)
        ]

    # === The file ===

    @classmethod
    def from_pretrained(cls, name_or_folder: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Read the preprocessor_config.json of a checkpoint, whichever of the ViT, DeiT or BEiT processors wrote it.

        Args:
            name_or_folder: a checkpoint folder, or the name of a model on the hub.
            **kwargs: `revision`, `token`, `cache_dir` and `local_files_only` of the hub; anything else overrides an
                option.

        Raises:
            CheckpointError: no such file, no JSON, or the file of another kind of processor.
            ConfigError: impossible values; the file is named.
        """
        hub_options, overrides = hub.split_options(kwargs)
        folder = Path(hub.resolve(name_or_folder, config_only=True, **hub_options))
        options, extra = opts.read(folder)
        processor = cls(**{**options, **overrides})
        processor.extra = extra
        if (folder / "config.json").is_file() and read_json(folder / "config.json").get("model_type") == "vit":
            processor.config = ViTConfig.from_pretrained(folder)
        return processor

    def to_dict(self) -> dict[str, Any]:
        """The keys and values of preprocessor_config.json."""
        options = opts.check({name: getattr(self, name) for name in opts.OPTIONS})
        options["resample"] = int(options["resample"])
        # transformers' ViTImageProcessor never crops, its DeiTImageProcessor does and is otherwise the same.
        family = "DeiT" if self.family == "ViT" and options["do_center_crop"] else self.family
        extra = {key: value for key, value in self.extra.items() if key != "feature_extractor_type"}
        return {**extra, **options, "image_processor_type": f"{family}ImageProcessor{self._suffix}"}

    _suffix = ""

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write preprocessor_config.json into `folder`, which is made if needed; transformers reads it too."""
        with replace_files(folder) as staging:
            (staging / opts.FILE).write_text(json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in opts.OPTIONS)})"


class DeiTImageProcessor(ViTImageProcessor):
    """ViTImageProcessor with DeiT's defaults: 256 bicubic, centre crop 224, ImageNet mean and std."""

    family = "DeiT"


class BeitImageProcessor(ViTImageProcessor):
    """ViTImageProcessor with transformers' BEiT defaults: 256 bicubic, centre crop 224, mean and std 0.5."""

    family = "Beit"


class ViTFeatureExtractor(ViTImageProcessor):
    """The old name of ViTImageProcessor; it warns and works."""

    def __init__(self, **options: Any) -> None:
        warnings.warn("ViTFeatureExtractor is the old name; use ViTImageProcessor.", FutureWarning, stacklevel=2)
        super().__init__(**options)


# === The computation ===


def _resize_and_crop(frame: Frame, options: Mapping[str, Any]) -> tuple[np.ndarray, bool]:
    """(pixels (height, width, channels), whether they were in 0..1 and are now in 0..255)."""
    pixels, unit = frame.pixels, False
    if options["do_resize"]:
        if isinstance(pixels, np.ndarray):
            pixels, unit = to_bytes(pixels, frame.name)
            if pixels.shape[2] > 4:  # Pillow has no image of so many channels
                bands = [_resize(Image.fromarray(pixels[..., i]), options, frame.name) for i in range(pixels.shape[2])]
                pixels = np.stack([np.asarray(band) for band in bands], axis=-1)
            else:
                pixels = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        if isinstance(pixels, Image.Image):
            pixels = _resize(pixels, options, frame.name)
    height, width = pixels.shape[:2] if isinstance(pixels, np.ndarray) else pixels.size[::-1]
    if options["do_center_crop"]:
        new_height, new_width = options["crop_size"]["height"], options["crop_size"]["width"]
        top, left = (height - new_height) // 2, (width - new_width) // 2  # negative where it pads
        if isinstance(pixels, Image.Image):
            pixels = pixels.crop((left, top, left + new_width, top + new_height))
        else:
            cut = pixels[max(top, 0) : max(top, 0) + new_height, max(left, 0) : max(left, 0) + new_width]
            if top < 0 or left < 0:
                padded = np.zeros((new_height, new_width, cut.shape[2]), cut.dtype)
                top, left = max(-top, 0), max(-left, 0)
                padded[top : top + cut.shape[0], left : left + cut.shape[1]] = cut
                cut = padded
            pixels = cut
    array = np.asarray(pixels)
    return (array if array.ndim == 3 else array[..., None]), unit


def _resize(image: Image.Image, options: Mapping[str, Any], name: str) -> Image.Image:
    height, width = resized_size(image.height, image.width, options["size"], name)
    return image.resize((width, height), options["resample"])


def resized_size(height: int, width: int, size: Mapping[str, int], name: str) -> tuple[int, int]:
    """`output_size`, refusing what no machine should be asked to hold."""
    height, width = opts.output_size(height, width, size)
    limit = Image.MAX_IMAGE_PIXELS
    if height < 1 or width < 1 or (limit is not None and height * width > limit):
        raise InputError(
            f"{name} would become {height} x {width} (height x width) with size={dict(size)}; expected at least one "
            f"pixel each way and at most Pillow's limit of {limit} (PIL.Image.MAX_IMAGE_PIXELS)."
        )
    return height, width


def _arithmetic(options: Mapping[str, Any]) -> tuple[float | None, tuple[float, ...] | float | None, Any]:
    def hashable(value: list[float] | float) -> tuple[float, ...] | float:
        return tuple(value) if isinstance(value, list) else value

    return (
        options["rescale_factor"] if options["do_rescale"] else None,
        hashable(options["image_mean"]) if options["do_normalize"] else None,
        hashable(options["image_std"]) if options["do_normalize"] else None,
    )


def _compute(values: np.ndarray, unit: bool, factor: float | None, mean: Any, std: Any) -> np.ndarray:
    """Rescale and normalise (..., channels), rounding where transformers rounds."""
    if unit:
        values = (values.astype(np.float64) * (1 / 255)).astype(np.float32)
    if factor is not None:
        values = (values.astype(np.float64) * factor).astype(np.float32)
    if mean is not None:
        if values.dtype.kind != "f":
            values = values.astype(np.float32)
        values = (values - np.array(mean, values.dtype)) / np.array(std, values.dtype)
    return values


@lru_cache(maxsize=32)
def _table(channels: int, unit: bool, factor: float | None, mean: Any, std: Any) -> np.ndarray | None:
    """What each of the 256 values of each channel becomes, (channels, 256): the arithmetic done once, not per pixel."""
    if not unit and factor is None and mean is None:
        return None
    values = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None], (256, channels))
    return np.ascontiguousarray(_compute(values, unit, factor, mean, std).T)


def _gather(
    results: list[tuple[np.ndarray, np.ndarray | None, str]], data_format: str, return_tensors: str | None
) -> Any:
    """The batch of results, each looked up in its table while it is written to its place."""
    (first, first_table, _), shapes = results[0], {pixels.shape for pixels, _, _ in results}
    if len(shapes) > 1 and return_tensors is not None:
        name, shape = next((name, pixels.shape) for pixels, _, name in results if pixels.shape != first.shape)
        raise InputError(
            f"{name} came out as {shape[0]} x {shape[1]} with {shape[2]} channels but the first image as {first.shape[0]} x "
            f"{first.shape[1]} with {first.shape[2]}; expected one shape in a batch. Give size a height and width, or "
            "do_center_crop=True, or return_tensors=None."
        )
    if len(shapes) > 1:
        return [_gather([result], data_format, "np")[0] for result in results]
    dtypes = [pixels.dtype if table is None else table.dtype for pixels, table, _ in results]
    height, width, channels = first.shape
    shape = (channels, height, width) if data_format == FIRST else (height, width, channels)
    batch = np.empty((len(results), *shape), np.result_type(*dtypes))
    for (pixels, table, _), out in zip(results, batch, strict=True):
        planes = out if data_format == FIRST else out.transpose(2, 0, 1)
        if table is None:
            planes[...] = pixels.transpose(2, 0, 1)
            continue
        for i, plane in enumerate(planes):
            if plane.flags.c_contiguous and plane.dtype == table.dtype:
                table[i].take(pixels[..., i], out=plane, mode="clip")  # "clip" spares a check and a copy
            else:
                plane[...] = table[i].take(pixels[..., i])
    return list(batch) if return_tensors is None else to_tensor(batch, return_tensors)


# === Checks ===


def _check_channels(channels: int, options: Mapping[str, Any], name: str) -> None:
    for option in ("image_mean", "image_std") if options["do_normalize"] else ():
        value = options[option]
        if isinstance(value, list) and len(value) != channels:
            raise InputError(f"{name} has {channels} channels; expected {len(value)}, as many as {option} has.")


def _looks_scaled(pixels: np.ndarray) -> bool:
    return pixels.dtype != np.uint8 and bool(pixels.min() >= 0 and pixels.max() <= 1)


def _warn_scaled(name: str) -> None:
    warnings.warn(
        f"{name} has values between 0 and 1, as if it was rescaled already, and do_rescale multiplies it once more. Pass "
        "do_rescale=False if it is.",
        UserWarning,
        stacklevel=4,
    )
