"""ViTImageProcessor: photographs to `pixel_values` with NumPy and Pillow, to the bit what transformers computes."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, Self

import numpy as np
from PIL import Image

from .. import hub
from ..budgets import give_up, image_bytes, one_image, output_pixels
from ..config import PreTrainedConfig, read_config
from ..errors import ConfigError, InputError, MissingCheckpointError, quoted, shown
from ..families import CONFIGS
from ..files import read_json
from ..folders import at_one_moment, read_current, replace_files, write_text
from ..keywords import file_keywords
from . import options as opts
from .batch import BatchFeature, check_tensor_type, is_torch, to_array, to_tensor
from .inputs import FIRST, LAST, Frame, Reader, flatten, to_bytes


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
    is_fast = False
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
        given = {name: value for name, value in options.items() if name not in opts.NO_EFFECT and value is not None}
        for name, value in opts.check({**opts.defaults(self.family, self.is_fast), **given}, self.family).items():
            setattr(self, name, value)
        self.extra: dict[str, Any] = {}  # keys of the file that are no options, for the round trip
        self.config: PreTrainedConfig | None = None  # of the checkpoint it was read from, for its labels

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
        threads: int | None = None,
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
            threads: at most so many; as many as there are CPUs, but one in a child process, when None.
            **overrides: options for this call.

        Returns:
            A dict with attribute access: `pixel_values`, (batch, channels, height, width) float32. Where neither
            `do_rescale` nor `do_normalize` asks for floats it is uint8, and floats passed with `do_rescale=False`
            keep their dtype, as in transformers.

        Raises:
            InputError: an image that cannot be used; its index is named. Fewer than one thread.
            ConfigError: an unknown option, or an impossible value.
            MissingFrameworkError: the framework of `return_tensors` is not installed.
        """
        options = self._options(overrides, return_tensors, data_format, input_data_format)
        threads = number_of_threads(threads, _cpus)
        reader = make_reader(options, input_data_format)
        sources = flatten(images)
        each = threads // len(sources)  # what is left for one image
        arithmetic = _arithmetic(options)
        batch = Batch(len(sources), partial(_empty, data_format))

        def process(i: int) -> Frame:
            with one_image():
                frame = reader.read(*sources[i])
                resized = _resize_and_crop(frame, options, each)
                shape = (resized.channels, *resized.pixels.shape[:2])
                _write(resized, batch.place(i, shape, _dtype(resized, arithmetic)), arithmetic)
                return frame.without_pixels()

        frames = spread(process, range(len(sources)), threads)
        return batch.finish(frames, options, return_tensors, data_format)

    def _options(
        self, overrides: Mapping[str, Any], return_tensors: str | None, data_format: str, input_data_format: str | None
    ) -> dict[str, Any]:
        check_tensor_type(return_tensors)
        if data_format not in (FIRST, LAST):
            raise InputError(f"data_format is {quoted(data_format)}; expected {FIRST!r} or {LAST!r}.")
        if input_data_format not in (None, FIRST, LAST):
            raise InputError(f"input_data_format is {quoted(input_data_format)}; expected {FIRST!r}, {LAST!r} or None.")
        given = {name: value for name, value in overrides.items() if value is not None}
        return opts.check({**self._own(), **given}, self.family)

    def _own(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in opts.DEFAULTS[self.family]}

    # === Results ===

    def post_process_image_classification(
        self, outputs: Any, top_k: int = 5, config: PreTrainedConfig | None = None
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
            InputError: no logits, logits that are NaN or those of a regression, or a `top_k` below 1.
        """
        if not isinstance(top_k, int | np.integer) or isinstance(top_k, bool) or top_k < 1:
            raise InputError(f"top_k is {quoted(top_k)}; expected an int of at least 1.")
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
            raise InputError(
                f"The outputs have {logits.shape[1]} logits but the config has {config.num_labels} labels."
            )
        if config is not None and config.gives_numbers:
            raise InputError("The config is that of a regression, whose logits are numbers and make no probabilities.")
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
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Read the preprocessor_config.json of a checkpoint, whichever of the families' processors wrote it.

        Args:
            pretrained_model_name_or_path: a checkpoint folder, such a file, or the name of a model on the hub.
            **kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder` and `force_download` of the hub;
                anything else overrides an option.

        Raises:
            CheckpointError: no such file, no JSON, or the file of another kind of processor.
            ConfigError: impossible values; the file is named.
        """
        hub_options, overrides = hub.split_options(kwargs)
        path, values = read_file(pretrained_model_name_or_path, **hub_options)
        config = read_beside(path)
        family = opts.FAMILIES.get(config.get("model_type", ""), cls.family)  # where the file has no type
        processor = cls._from(values, path, family, overrides)
        if config.get("model_type") in CONFIGS:
            processor.config = read_config(path.parent)
        return processor

    @classmethod
    def from_dict(cls, image_processor_dict: Mapping[str, Any], **overrides: Any) -> Any:
        """A processor of the keys and values of a preprocessor_config.json; keys that are no options are kept.

        Args:
            image_processor_dict: as `to_dict` gives it.
            **overrides: options. `return_unused_kwargs=True` gives those that are none back: (processor, rest).

        Raises:
            CheckpointError: of another kind of processor.
            ConfigError: impossible values.
        """
        if not isinstance(image_processor_dict, Mapping):
            raise ConfigError(f"The dict is a {type(image_processor_dict).__name__}; expected keys and values.")
        unused: dict[str, Any] = {}
        if overrides.pop("return_unused_kwargs", False):
            unused = {name: value for name, value in overrides.items() if name not in opts.DEFAULTS[cls.family]}
            overrides = {name: value for name, value in overrides.items() if name not in unused}
            return cls._from(image_processor_dict, "The dict", cls.family, overrides), unused
        return cls._from(image_processor_dict, "The dict", cls.family, overrides)

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> Self:
        """Read a file that `to_json_file` wrote, of whatever name.

        Raises:
            CheckpointError: no such file, no JSON, or of another kind of processor.
            ConfigError: impossible values; the file is named.
        """
        return cls._from(read_json(Path(json_file)), json_file, cls.family, {})

    @classmethod
    def _from(cls, values: Mapping[str, Any], where: Any, family: str, overrides: Mapping[str, Any]) -> Self:
        options, extra = opts.parse(values, where, family, cls.family, cls.is_fast)
        processor = cls(**{**options, **overrides})
        processor.extra = extra
        return processor

    def to_dict(self) -> dict[str, Any]:
        """The keys and values of preprocessor_config.json."""
        options = opts.check(self._own(), self.family)
        options["resample"] = int(options["resample"])
        family = self.family
        if family == "ViT" and options["do_center_crop"]:
            # transformers' ViTImageProcessor never crops, its DeiTImageProcessor does and is otherwise the same; a
            # shortest edge its BitImageProcessor alone knows.
            edge = options["size"].keys() == {"shortest_edge"} and options["do_convert_rgb"]
            family = "Bit" if edge else "DeiT"
        kind = f"{family}ImageProcessor{'Fast' if self.is_fast else ''}"
        return {**self.extra, **options, "image_processor_type": kind}

    def to_json_string(self) -> str:
        """`to_dict` as JSON, indented and sorted."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Write `to_json_string` to a file."""
        path = Path(json_file_path)
        with replace_files(path.parent) as staging:
            write_text(staging / path.name, self.to_json_string())

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **hub_options: Any
    ) -> list[str]:
        """Write preprocessor_config.json into a folder, which is made if needed; transformers reads it too.

        Args:
            save_directory: the folder.
            push_to_hub: whether to upload it as well, as `push_to_hub` does, to `repo_id` or the folder's name.
            **hub_options: those of `push_to_hub`.

        Returns:
            The path of the file that was written.

        Raises:
            CheckpointError: it cannot be written or uploaded.
        """
        folder, hub_options = Path(save_directory), file_keywords(hub_options)
        with replace_files(folder) as staging:
            write_text(staging / opts.FILE, self.to_json_string())
        if push_to_hub:
            self.push_to_hub(**{"repo_id": folder.resolve().name, **hub_options})
        return [os.path.join(save_directory, opts.FILE)]

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload preprocessor_config.json to a model on the hub, which is made if needed.

        Args:
            repo_id: the name of the model, "user/model".
            **options: `commit_message`, `commit_description`, `private`, `token`, `revision` and `create_pr`.

        Returns:
            The address of the commit.

        Raises:
            CheckpointError: it cannot be uploaded; the reason is named.
            InputError: an option that nobody knows, or that cannot be honoured.
        """
        options = file_keywords(options, "push_to_hub")
        return hub.push({opts.FILE: self.to_json_string().encode()}, repo_id, **options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._own().items())})"


class OldName:
    """First base of the classes with their old names, which warn and work."""

    def __init__(self, **options: Any) -> None:
        name = type(self).__name__
        new = name.replace("FeatureExtractor", "ImageProcessor")
        warnings.warn(f"{name} is the old name; use {new}.", FutureWarning, stacklevel=2)
        super().__init__(**options)


class ViTFeatureExtractor(OldName, ViTImageProcessor):
    """The old name of ViTImageProcessor; it warns and works."""


def read_file(name_or_folder: str | os.PathLike[str], **hub_options: Any) -> tuple[Path, dict[str, Any]]:
    """(the preprocessor_config.json of a checkpoint, or the file itself that was named; what it holds).

    Raises:
        CheckpointError: there is none, or no JSON.
    """
    path = Path(os.path.expanduser(os.fspath(name_or_folder)))
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        is_file = False
    if not is_file:
        path = hub.resolve(name_or_folder, config_only=True, **hub_options) / opts.FILE
    try:
        values = read_current(path, read_json)
    except MissingCheckpointError:
        raise MissingCheckpointError(
            f"{shown(name_or_folder)} has no {path.name}, which says how images become pixel_values. Save there the "
            "image processor that the model was trained with, such as that of the checkpoint it was made from: "
            "vit.ViTImageProcessor.from_pretrained(CHECKPOINT).save_pretrained(FOLDER)."
        ) from None
    inner = values.get("image_processor")  # where one file describes several processors
    return path, inner if isinstance(inner, dict) else values


def read_beside(path: Path) -> dict[str, Any]:
    """What the config.json in the same folder holds, or nothing where there is none.

    Raises:
        CheckpointError: no JSON.
    """
    values = at_one_moment(path.parent, lambda find: read_json(config) if (config := find("config.json")) else {})
    return values if isinstance(values.get("model_type"), str) else {}


# === The computation ===


class Resized(NamedTuple):
    """An image on its way.

    Attributes:
        pixels: (height, width, channels), resized and cropped; one channel where grey ones become three. A torch tensor
            is (channels, height, width).
        channels: how many it is to have.
        unit: whether its 0..255 stand for 0..1.
    """

    pixels: Any
    channels: int
    unit: bool = False


class Batch:
    """Where the images of a batch go as soon as they are resized, while their pixels are still in the cache.

    One array or tensor, as long as they have one shape and dtype.

    Args:
        count: how many images.
        empty: makes memory of a shape, (batch, channels, height, width), and a kind: the dtype and whatever else.
    """

    def __init__(self, count: int, empty: Callable[..., Any]) -> None:
        self._places: list[Any] = [None] * count
        self._empty = empty
        self._lock = Lock()
        self._first: tuple[Any, ...] = ()  # shape and kind of the image that was ready first, which the whole has
        self._whole: Any = None
        self._uniform = True

    def place(self, i: int, shape: tuple[int, ...], *kind: Any) -> Any:
        """Memory for the values of image i, (channels, height, width)."""
        with self._lock:
            if self._whole is None:
                self._first, self._whole = (shape, *kind), self._empty((len(self._places), *shape), *kind)
        if (shape, *kind) == self._first:
            self._places[i] = self._whole[i]
        else:
            self._places[i], self._uniform = self._empty((1, *shape), *kind)[0], False
        return self._places[i]

    def finish(
        self, frames: Sequence[Frame], options: Mapping[str, Any], return_tensors: str | None, data_format: str
    ) -> BatchFeature:
        """The result, when every image is in its place; `frames` are what was read."""
        if options["do_rescale"]:
            _warn_of_ranges(frames, options["rescale_factor"])
        _check_shapes(frames, [tuple(place.shape) for place in self._places], ragged=return_tensors is None)
        if return_tensors is None:
            return BatchFeature(pixel_values=[_to_format(place, data_format) for place in self._places])
        values = _to_format(self._whole if self._uniform else _stack(self._places), data_format)
        done = return_tensors == "pt" and is_torch(values)
        return BatchFeature(pixel_values=values if done else to_tensor(to_array(values), return_tensors))


def _to_format(values: Any, data_format: str) -> Any:
    """A view of (..., channels, height, width) in that format."""
    return values if data_format == FIRST else values.swapaxes(-3, -2).swapaxes(-2, -1)


def _stack(values: Sequence[Any]) -> Any:
    """One array or tensor of several; the dtypes are promoted."""
    if not is_torch(values[0]):
        return np.stack(values)
    import torch

    return torch.stack([value.to(values[0].device) for value in values])


def spread(compute: Callable[[Any], Any], items: Iterable[Any], threads: int) -> list[Any]:
    """`compute` of each item, by so many threads: Pillow, NumPy and torch leave the interpreter while they compute.

    The calling thread is one of them. Of several errors that of the first item is raised.
    """
    items = list(items)
    left = iter(range(len(items)))
    results: list[Any] = [None] * len(items)
    errors: dict[int, BaseException] = {}

    def work() -> None:
        for i in left:
            try:
                results[i] = compute(items[i])
            except BaseException as error:
                errors[i] = error
                deque(left, maxlen=0)  # nobody starts another
                if not isinstance(error, Exception):  # Ctrl-C
                    give_up()

    helpers = [_pool().submit(work) for _ in range(min(threads, len(items)) - 1)]
    try:
        work()
        for helper in helpers:
            if not helper.cancel():  # one that waits for its turn behind another batch has nothing left to do
                helper.result()
    except KeyboardInterrupt:
        give_up()
        raise
    if errors:
        first = errors[min(errors)]
        errors.clear()  # an error that holds what holds it, and so the image, would wait for the garbage collector
        try:
            raise first
        finally:
            del first
    return results


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads that outlive the batch: to start one takes as long as to resize a photograph of 640 x 480 with torch."""
    return ThreadPoolExecutor(_cpus())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a fork has none of its parent's threads


def number_of_threads(given: int | None, default: Callable[[], int]) -> int:
    """`threads` as given, or its default."""
    if given is None:
        return default()
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise InputError(f"threads is {quoted(given)}; expected an int of at least 1, or None.")
    return given


def _cpus() -> int:
    # A child process is a worker of somebody's data loader, which has one for each CPU already.
    return available_cpus() if multiprocessing.parent_process() is None else 1


def available_cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_reader(options: Mapping[str, Any], input_data_format: str | None, keep_torch: bool = False) -> Reader:
    """The way to read images that go with these options."""
    counts = [len(options[name]) for name in ("image_mean", "image_std") if isinstance(options[name], list)]
    channels = counts[0] if options["do_normalize"] and counts else None
    return Reader(channels, options["do_convert_rgb"], input_data_format, keep_torch, options["do_rescale"])


def _resize_and_crop(frame: Frame, options: Mapping[str, Any], threads: int) -> Resized:
    pixels, unit = frame.pixels, False
    if options["do_resize"]:
        if isinstance(pixels, np.ndarray):
            pixels, unit = to_bytes(frame)
        found = pixels.shape[:2] if isinstance(pixels, np.ndarray) else pixels.size[::-1]
        channels = pixels.shape[2] if isinstance(pixels, np.ndarray) else 4
        size = resized_size(frame.name, found[0], found[1], channels, min(channels, 4), options)
        if isinstance(pixels, Image.Image) or pixels.shape[2] <= 4:
            pixels = _resize(pixels, size, options["resample"], threads)
        else:  # Pillow has no image of so many channels
            bands = [pixels[..., i : i + 1] for i in range(pixels.shape[2])]
            pixels = np.stack(
                [np.asarray(_resize(band, size, options["resample"], threads)) for band in bands], axis=-1
            )
    elif options["do_rescale"] and isinstance(pixels, np.ndarray) and pixels.dtype == np.uint16:
        pixels, unit = to_bytes(frame)
    if options["do_center_crop"]:
        check_crop(frame.name, pixels.shape[2] if isinstance(pixels, np.ndarray) else 4, options)
        pixels = _center_crop(pixels, options["crop_size"]["height"], options["crop_size"]["width"])
    pixels = np.asarray(pixels)
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    channels = 3 if frame.grey else pixels.shape[2]
    check_channels(frame.name, channels, options)
    return Resized(pixels, channels, unit)


_STRIP = 2**20
"""Bytes of a large array that are made a Pillow image at a time, so that they stay in the cache."""


def _resize(
    pixels: Image.Image | np.ndarray, size: tuple[int, int], resample: Image.Resampling, threads: int
) -> Image.Image:
    """Resize a Pillow image, or uint8 (height, width, channels) of at most 4 channels, by Pillow.

    Pillow resizes along rows first, rounds to 8 bits, and then along columns: rows in strips are the same, without a
    copy of a large array, and by several threads. Not with alpha, which is multiplied in and out around both steps, nor
    where Pillow 13 takes the columns first, as it does where more than twice as many rows as columns go.
    """
    height, width, channels = (
        pixels.shape if isinstance(pixels, np.ndarray) else (pixels.height, pixels.width, len(pixels.getbands()))
    )

    def rows(top: int, bottom: int) -> Image.Image:
        if isinstance(pixels, np.ndarray):
            return Image.fromarray(pixels[top:bottom, :, 0] if channels == 1 else pixels[top:bottom])
        return pixels.crop((0, top, width, bottom)) if bottom - top < height else pixels

    num_bytes = height * width * channels
    threads = min(threads, num_bytes // (_STRIP // 4))  # each has to have enough to do
    strips = max(threads, num_bytes // _STRIP) if threads > 1 or isinstance(pixels, np.ndarray) else 1
    columns_first = height - size[0] > max(0, 2 * (width - size[1]))
    if strips < 2 or channels not in (1, 3) or resample == Image.Resampling.NEAREST or columns_first:
        return rows(0, height).resize(size[::-1], resample)
    tops = range(0, height, math.ceil(height / strips))
    bottoms = [*tops[1:], height]
    resized = spread(
        lambda ends: rows(*ends).resize((size[1], ends[1] - ends[0]), resample),
        zip(tops, bottoms, strict=True),
        threads,
    )
    middle = Image.new(resized[0].mode, (size[1], height), None)
    for top, strip in zip(tops, resized, strict=True):
        middle.paste(strip, (0, top))
    return middle.resize(size[::-1], resample)


def resized_size(
    name: str, height: int, width: int, channels: int, num_bytes: int, options: Mapping[str, Any]
) -> tuple[int, int]:
    """`output_size`, refusing what no machine should be asked to hold, here or on the way there.

    Args:
        name: which image it is, for errors.
        height: in pixels, of the image.
        width: likewise.
        channels: how many will be resized.
        num_bytes: what a pixel takes between the two passes of the resize.
        options: checked ones.

    Raises:
        InputError: too large, or empty.
    """
    new_height, new_width = opts.output_size(height, width, options["size"])
    limit = output_pixels(channels)
    if new_height < 1 or new_width < 1 or new_height * new_width > limit:
        raise InputError(
            f"{name}, {height} x {width} (height x width), would become {new_height} x {new_width} with size="
            f"{dict(options['size'])}; expected at least one pixel each way and at most {limit:,.0f} pixels. Raise "
            "PIL.Image.MAX_IMAGE_PIXELS for more."
        )
    # Rows are resized first, into (height, new width), with a table of weights for each edge.
    middle = height * new_width * num_bytes + _WEIGHTS * (height + width)
    if options["resample"] != Image.Resampling.NEAREST and middle > max(image_bytes(), height * width * num_bytes):
        raise InputError(
            f"{name}, {height} x {width} (height x width), takes {middle:,} bytes on its way to {new_height} x "
            f"{new_width}; expected at most {image_bytes():,.0f}. Cut it into pieces first, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS if you trust it."
        )
    return new_height, new_width


_WEIGHTS = 48
"""Bytes of a pixel of an edge in the table of weights of a resize: lanczos has the most, six of float64."""


def _center_crop(pixels: Image.Image | np.ndarray, height: int, width: int) -> Image.Image | np.ndarray:
    found_height, found_width = pixels.shape[:2] if isinstance(pixels, np.ndarray) else pixels.size[::-1]
    top, left = (found_height - height) // 2, (found_width - width) // 2  # negative where zeros are added
    if isinstance(pixels, Image.Image):
        return pixels.crop((left, top, left + width, top + height))
    cut = pixels[max(top, 0) : max(top, 0) + height, max(left, 0) : max(left, 0) + width]
    if cut.shape[:2] == (height, width):
        return cut
    padded = np.zeros((height, width, cut.shape[2]), cut.dtype)
    top, left = max(-top, 0), max(-left, 0)
    padded[top : top + cut.shape[0], left : left + cut.shape[1]] = cut
    return padded


Arithmetic = tuple[float | None, tuple[float, ...] | float | None, tuple[float, ...] | float | None]
"""(rescale_factor, image_mean, image_std), None where that step is off; hashable."""


def _arithmetic(options: Mapping[str, Any]) -> Arithmetic:
    factor = options["rescale_factor"] if options["do_rescale"] else None
    if not options["do_normalize"]:
        return factor, None, None
    mean, std = (
        tuple(options[name]) if isinstance(options[name], list) else options[name]
        for name in ("image_mean", "image_std")
    )
    return factor, mean, std


def _compute(values: np.ndarray, unit: bool, arithmetic: Arithmetic) -> np.ndarray:
    """Rescale and normalise (..., channels), rounding where transformers rounds."""
    factor, mean, std = arithmetic
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
def _table(channels: int, unit: bool, arithmetic: Arithmetic) -> np.ndarray:
    """What each of the 256 values of each channel becomes, (channels, 256): the arithmetic done once, not per pixel."""
    values = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None], (256, channels))
    return np.ascontiguousarray(_compute(values, unit, arithmetic).T)


def _empty(data_format: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory for (batch, channels, height, width), contiguous in that format."""
    batch, channels, height, width = shape
    if data_format == FIRST:
        return np.empty(shape, dtype)
    return np.empty((batch, height, width, channels), dtype).transpose(0, 3, 1, 2)


def _dtype(resized: Resized, arithmetic: Arithmetic) -> np.dtype:
    if resized.pixels.dtype == np.uint8:
        return _table(resized.channels, resized.unit, arithmetic).dtype
    sample = resized.pixels[:0, :0, :1].repeat(resized.channels, axis=2)
    return _compute(sample, resized.unit, arithmetic).dtype


def _write(resized: Resized, out: np.ndarray, arithmetic: Arithmetic) -> None:
    """Put the values of an image into its place, (channels, height, width)."""
    pixels, channels, unit = resized
    if pixels.dtype != np.uint8:
        out[...] = _compute(pixels, unit, arithmetic).transpose(2, 0, 1)
        return
    for i, (plane, table) in enumerate(zip(out, _table(channels, unit, arithmetic), strict=True)):
        values = pixels[..., i % pixels.shape[2]]
        if plane.flags.c_contiguous:
            table.take(values, out=plane, mode="clip")  # "clip" spares a check and a copy
        else:
            plane[...] = table.take(values)


# === Checks ===


def check_crop(name: str, channels: int, options: Mapping[str, Any]) -> None:
    """Refuse a crop that is larger than an image may become, which it is where there are many channels."""
    height, width = options["crop_size"]["height"], options["crop_size"]["width"]
    if height * width > (limit := output_pixels(channels)):
        raise InputError(
            f"{name} has {channels} channels and would be cropped or padded to {height} x {width}; expected at most "
            f"{limit:,.0f} pixels. Raise PIL.Image.MAX_IMAGE_PIXELS for more."
        )


def check_channels(name: str, channels: int, options: Mapping[str, Any]) -> None:
    """Refuse an image whose channels the normalisation does not fit."""
    for option in ("image_mean", "image_std") if options["do_normalize"] else ():
        value = options[option]
        if isinstance(value, list) and len(value) != channels:
            raise InputError(f"{name} has {channels} channel(s); expected {len(value)}, as many as {option} has.")


def _check_shapes(frames: Sequence[Frame], shapes: list[tuple[int, ...]], ragged: bool) -> None:
    """Refuse shapes (channels, height, width) that differ where a batch has to be made."""
    odd = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
    if odd is not None and (not ragged or shapes[odd][0] != shapes[0][0]):
        (channels, height, width), (first_channels, first_height, first_width) = shapes[odd], shapes[0]
        raise InputError(
            f"{frames[odd].name} came out {height} x {width} with {channels} channels, the first image {first_height} "
            f"x {first_width} with {first_channels}; expected one shape in a batch. For the size, give a height and a "
            "width or do_center_crop=True, or return_tensors=None for a list; for the channels, do_convert_rgb=True."
        )


def _warn_of_ranges(frames: Sequence[Frame], factor: float) -> None:
    """Say so where values that are in 0..1 already were rescaled, or such as no pixels have."""
    first = next((frame.name for frame in frames if frame.looks_scaled), None)
    if first is not None:
        warnings.warn(
            f"{first} has values between 0 and 1, as if it was rescaled already, and do_rescale rescales it once more. "
            "Pass do_rescale=False if it is.",
            UserWarning,
            stacklevel=5,
        )
    odd = next((frame for frame in frames if frame.low < 0 or frame.high > max(255, 1 / factor)), None)
    if odd is not None:
        warnings.warn(
            f"{odd.name} has values from {odd.low:g} to {odd.high:g}, which do_rescale takes for pixels of 0 to 255. "
            "Pass do_rescale=False if they are none, and do_normalize=False if it is normalised already.",
            UserWarning,
            stacklevel=5,
        )
