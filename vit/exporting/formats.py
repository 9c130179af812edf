"""The formats of exports, what a format's file is asked to write, and what it gives back to run."""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..config import PreTrainedConfig
from ..errors import CheckpointError, InputError, MissingFrameworkError, install_line, missing_framework, quoted, shown
from ..image_processing import ViTImageProcessor
from ..inference import Forward

NAME = "trivit"
"""Under which an export keeps what is known about it: JSON, as `Job.metadata` gives it."""


@dataclass(frozen=True, slots=True)
class Format:
    """A row of `FORMATS`.

    Attributes:
        what: what it is, for people.
        module: its file beside this one.
        ending: of the file's name; None for a folder.
        mark: a pattern of a file in such a folder, by which it is known.
        own: a pattern of the paths in such a folder that belong to an export.
        framework: "pt", "tf" or "flax": whose model it is made of.
        extra: of the package, that installs what writes and runs it.
        modules: what has to be there to write it; the last of them runs it.
        dtypes: of the weights.
        int8: whether it can be quantised with calibration images.
        inputs: what it takes.
        images: what it takes when the image processor is in the graph; nothing where it cannot be.
    """

    what: str
    module: str
    ending: str | None
    framework: str
    extra: str
    modules: tuple[str, ...]
    dtypes: tuple[str, ...]
    int8: bool = False
    inputs: tuple[str, ...] = ("pixel_values",)
    images: tuple[str, ...] = ()
    mark: str = ""
    own: str = ""


FORMATS = {
    "onnx": Format(
        "ONNX", "onnx", ".onnx", "pt", "onnx", ("onnx", "onnxscript", "onnxruntime"), ("float32", "float16"),
        int8=True, images=("image_uint8",),
    ),
    "openvino": Format(
        "OpenVINO IR", "openvino", None, "pt", "openvino", ("onnx", "onnxscript", "nncf", "openvino"),
        ("float32", "float16"), int8=True, images=("image_uint8",), mark="model.xml", own=r"model\.(xml|bin)",
    ),
    "torch": Format(
        "torch.export", "torch", ".pt2", "pt", "pt", ("torch",), ("float32", "bfloat16", "float16"),
        images=("image_uint8",),
    ),
    "stablehlo": Format(
        "StableHLO", "stablehlo", ".stablehlo", "flax", "flax", ("flax", "jax"), ("float32", "bfloat16", "float16"),
        images=("image_uint8",),
    ),
    "saved-model": Format(
        "SavedModel of TensorFlow", "saved_model", None, "tf", "tf", ("tensorflow",),
        ("float32", "bfloat16", "float16"), images=("image_bytes", "string_input", "image_uint8", "pixel_values"),
        mark="1/saved_model.pb", own=r"1/.*",
    ),
    "litert": Format(
        "LiteRT (TensorFlow Lite)", "litert", ".tflite", "tf", "litert", ("tensorflow", "ai_edge_litert"),
        ("float32", "float16"), int8=True,
    ),
}  # fmt: skip
"""Name -> format."""


@dataclass(frozen=True)
class Job:
    """What is to be exported.

    Attributes:
        folder: of the checkpoint.
        format: a key of `FORMATS`.
        config: its configuration.
        processor: its image processor.
        image: (channels, height, width) of `pixel_values`.
        task: "classify" or "embed".
        pool: what the embedding is, a key of `POOLS`.
        parts: the arguments of `Forward` that give the model with what the task needs.
        dtype: of the weights, by name.
        images: whether the image processor goes into the graph.
        int8: whether linear layers are quantised.
        calibration: images for that, each a batch of one for the first of the inputs, from the beginning at each call.
        inputs: name -> {"shape": sizes, None where it is open, "dtype": name}.
        outputs: the same.
        source: {"name", "sha256": {file: digest}} of the checkpoint.
    """

    folder: Path
    format: str
    config: PreTrainedConfig
    processor: ViTImageProcessor
    image: tuple[int, ...]
    task: str
    pool: str
    parts: Mapping[str, Any]
    dtype: str
    images: bool
    int8: bool
    calibration: Callable[[], Iterator[np.ndarray]]
    inputs: Mapping[str, dict[str, Any]]
    outputs: Mapping[str, dict[str, Any]]
    source: Mapping[str, Any]

    def model(self, framework: str, **options: Any) -> Any:
        """The model, in evaluation mode; options are those of `from_pretrained`."""
        return Forward(self.folder, framework, **{**self.parts, "dtype": self.dtype, **options}).model

    def metadata(self, **more: Any) -> dict[str, Any]:
        """What an export says about itself, to be kept in it.

        Args:
            **more: what its format alone knows, such as an opset.
        """
        from .. import __version__

        config = self.config
        classify = self.task == "classify"
        return {
            NAME: __version__,
            "format": self.format,
            **more,
            "model_type": config.model_type,
            "task": self.task,
            **({"problem_type": config.problem_type or "single_label_classification"} if classify else {}),
            **({} if classify else {"pool": self.pool}),
            "dtype": self.dtype,
            "int8": self.int8,
            "images": self.images,
            "inputs": dict(self.inputs),
            "outputs": dict(self.outputs),
            **({"labels": list(config.id2label.values())} if classify else {}),
            "preprocessing": self.processor.to_dict(),
            "source": dict(self.source),
        }


@dataclass(frozen=True)
class Artifact:
    """An export, loaded in its own runtime: {input: array} -> {output: array}. Threads may call one at the same time.

    Attributes:
        format: a key of `FORMATS`.
        path: where it lies.
        metadata: what it says about itself, see `Job.metadata`.
    """

    format: str
    path: Path
    metadata: Mapping[str, Any]
    run: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a batch.

        Args:
            inputs: by the names in `metadata["inputs"]`; one of them, where there are several.

        Raises:
            InputError: other names, or an array that does not fit.
        """
        expected = self.metadata["inputs"]
        for name, array in inputs.items():
            if name not in expected:
                raise InputError(f"{shown(self.path)} has no input {quoted(name)}; expected {', '.join(expected)}.")
            shape, dtype = expected[name]["shape"], expected[name]["dtype"]
            fits = len(shape) == array.ndim and all(
                size in (None, given) for size, given in zip(shape, array.shape, strict=True)
            )
            if not fits or (dtype != "bytes" and array.dtype != dtype):
                wanted = ", ".join("any" if size is None else str(size) for size in shape)
                raise InputError(f"{name} is {array.dtype} of the shape {array.shape}; expected {dtype} of ({wanted}).")
        found = self.run(inputs)
        return {name: found[name] for name in self.metadata["outputs"]}

    @property
    def processor(self) -> ViTImageProcessor:
        """The image processor that gives its `pixel_values`."""
        return ViTImageProcessor.from_dict(self.metadata["preprocessing"])


def format_of(path: str | os.PathLike[str], name: str | None = None) -> str:
    """The name of the format that a file or folder has, by its ending or what lies in it.

    Args:
        path: of an export, or of what is to become one.
        name: what the caller says that it is; the ending must not say otherwise.

    Raises:
        InputError: an unknown format, a name of another one, or no way to tell.
    """
    path, known = Path(path), ", ".join(FORMATS)
    if name is not None and name not in FORMATS:
        raise InputError(f"The format is {quoted(name)}; expected one of {known}.")
    by_ending = next((key for key, each in FORMATS.items() if each.ending and path.name.endswith(each.ending)), None)
    if name is None:
        folder = path.is_dir()
        by_mark = [key for key, each in FORMATS.items() if folder and each.mark and any(path.glob(each.mark))]
        if found := next(iter(by_mark), by_ending):
            return found
        endings = ", ".join(f"{each.ending} ({key})" for key, each in FORMATS.items() if each.ending)
        raise InputError(
            f"{shown(path)} does not tell the format; expected a name that ends in {endings}, or --to with one of "
            f"{known}."
        )
    ending = FORMATS[name].ending
    if ending and not path.name.endswith(ending):
        raise InputError(f"{shown(path)} is to be a file of the format {name}; end its name in {ending}.")
    if not ending and by_ending:
        raise InputError(f"{shown(path)} has the ending of the format {by_ending}; an export to {name} is a folder.")
    return name


def is_export(path: str | os.PathLike[str]) -> bool:
    """Whether a file or folder is, by its name or what lies in it, of a format of exports."""
    try:
        format_of(path)
    except InputError:
        return False
    return True


def module_of(name: str, to_write: bool = False) -> Any:
    """The file of a format, whose libraries are there.

    Args:
        name: a key of `FORMATS`.
        to_write: whether all of them are needed, its framework among them, and not its runtime alone.

    Raises:
        MissingFrameworkError: one is not; the line that installs it is named.
    """
    format = FORMATS[name]
    for module in format.modules if to_write else format.modules[-1:]:
        if find_spec(module.partition(".")[0]) is None:
            raise MissingFrameworkError(
                f"An export to {name} needs {module}. Install it with: {install_line(format.extra)}"
            )
    if to_write and find_spec({"pt": "torch", "tf": "tensorflow", "flax": "flax"}[format.framework]) is None:
        raise missing_framework(f"An export to {name}", format.framework)
    return importlib.import_module(f"{__package__}.{format.module}")


def load(path: str | os.PathLike[str], format: str | None = None) -> Artifact:
    """Load an export in its own runtime; no framework is imported for it but where that is the runtime.

    Args:
        path: the file or folder.
        format: a key of `FORMATS`; None to tell by the path.

    Raises:
        CheckpointError: none there, a damaged one, or one that was not written here.
        InputError: an unknown format.
        MissingFrameworkError: its runtime is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{shown(path)} does not exist; expected what 'vit export' wrote.")
    name = format_of(path, format)
    inside = path.resolve()
    if path.is_dir() and any(not each.resolve().is_relative_to(inside) for each in path.rglob("*")):
        raise CheckpointError(f"{shown(path)} has a link that leads out of it; nothing of it was loaded.")
    module = module_of(name)
    try:
        return module.load(path)
    except (CheckpointError, InputError, MissingFrameworkError):
        raise
    except Exception as error:  # each runtime has its own
        raise CheckpointError(f"{shown(path)} cannot be loaded as {name}: {reason(error)}") from error


def parse(text: str | bytes | None, path: Path) -> dict[str, Any]:
    """The metadata that an export keeps, from the JSON that it is kept as.

    Raises:
        CheckpointError: there is none, or it is no such thing.
    """
    try:
        found = json.loads(text or "null")
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(is_right(found.get(key)) for key, is_right in KEYS.items()):
        raise CheckpointError(f"{shown(path)} does not say what it is; expected what 'vit export' wrote.")
    return found


def _are_arrays(value: Any) -> bool:
    """Whether it is {name: {"shape": sizes, None where it is open, "dtype": name}}."""
    return isinstance(value, dict) and all(
        isinstance(each, dict)
        and isinstance(each.get("dtype"), str)
        and isinstance(each.get("shape"), list)
        and all(size is None or (type(size) is int and size > 0) for size in each["shape"])
        for each in value.values()
    )


def _are_labels(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(each, str) for each in value))


KEYS: dict[str, Callable[[Any], bool]] = {
    NAME: lambda value: isinstance(value, str),
    "inputs": _are_arrays,
    "outputs": _are_arrays,
    "task": lambda value: value in ("classify", "embed"),
    "preprocessing": lambda value: isinstance(value, dict),
    "labels": _are_labels,
}
"""What an export has to say about itself, and whether it does."""


def reason(error: BaseException) -> str:
    """What went wrong in a library: the line of its first error that names an operator, or else the first line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = next((line for line in lines if "aten" in line), next(iter(lines), ""))
    return f"{type(error).__name__}: {shown(line)}" if line else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what libraries log of other packages, of their progress and of their own future off the terminal."""
    earlier = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.disable(earlier)
