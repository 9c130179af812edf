"""verify: one checkpoint in every installed framework, on the same images, compared layer by layer."""

from __future__ import annotations

import itertools
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import vit
from vit import checkpoint, folders, hub
from vit.config import PreTrainedConfig, to_pair
from vit.errors import (
    FRAMEWORKS,
    CheckpointError,
    InputError,
    MissingFrameworkError,
    install_line,
    installed_frameworks,
    quoted,
)
from vit.inference import device_name

from .engine import convert, open_source
from .rules import Source
from .target import PREPROCESSOR

PREFIXES = {"pt": "", "tf": "TF", "flax": "Flax"}
DTYPES = ("float32", "float64")
TOLERANCE = 1e-5


class Stage(NamedTuple):
    """One point of the computation, in all frameworks.

    Args:
        name: such as "layer 3".
        shape: of the array there.
        largest: its largest absolute value in any framework.
        differences: pair of frameworks, such as "pt-tf" -> the largest absolute difference.
    """

    name: str
    shape: tuple[int, ...]
    largest: float
    differences: dict[str, float]

    def worst(self) -> float:
        """The largest difference of any pair; NaN where one is."""
        return float(np.max([*self.differences.values()]))


@dataclass
class Verification:
    """What `verify` found; `passed` is the verdict.

    Args:
        name: the checkpoint, as it was given.
        architecture: the published class.
        config: the configuration.
        versions: framework -> its version, in the order they ran.
        images: what ran: file names, or "random image 0" and so on.
        dtype: of parameters and computation.
        tolerance: a stage passes when its largest difference is at most this times its largest value, or 1.
        stages: in the order of the computation.
        answers: image -> label of each framework, for a classifier.
        seconds: framework -> loading and two forward passes.
    """

    name: str
    architecture: str
    config: PreTrainedConfig
    images: list[str]
    dtype: str
    tolerance: float
    versions: dict[str, str] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    answers: dict[str, dict[str, str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def within(self, stage: Stage) -> bool:
        """Whether a stage passes. A NaN does not, nor do infinities, whichever framework's they are."""
        return math.isfinite(stage.worst()) and stage.worst() <= self.tolerance * max(1.0, stage.largest)

    @property
    def passed(self) -> bool:
        """Whether every stage passes and every image has one answer."""
        return all(map(self.within, self.stages)) and all(len(set(a.values())) == 1 for a in self.answers.values())

    @property
    def worst(self) -> Stage:
        """The stage with the largest difference for its tolerance."""
        return max(self.stages, key=lambda stage: (not self.within(stage), stage.worst() / max(1.0, stage.largest)))

    def to_dict(self) -> dict[str, Any]:
        """The findings for JSON."""
        return {
            "checkpoint": self.name, "architecture": self.architecture, "config": self.config.to_dict(),
            "frameworks": self.versions, "images": self.images, "dtype": self.dtype, "tolerance": self.tolerance,
            "stages": [{**stage._asdict(), "shape": list(stage.shape), "within_tolerance": self.within(stage)}
                       for stage in self.stages],
            "answers": self.answers, "seconds": self.seconds, "passed": self.passed,
        }  # fmt: skip


def verify(
    name_or_path: str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]] | np.ndarray | None = None,
    *,
    frameworks: Iterable[str] | None = None,
    tolerance: float = TOLERANCE,
    dtype: str = "float32",
    source_format: str = "auto",
    progress: Callable[[str], None] | None = None,
    device: str | None = None,
    **options: Any,
) -> Verification:
    """Load a checkpoint in every framework, run the same images, and compare every layer.

    Args:
        name_or_path: a checkpoint folder, the name of a model on the hub, or a file of any format that `convert` reads.
        images: image files, prepared as the checkpoint says; or pixel_values (batch, channels, height, width); None
            for two images of random numbers.
        frameworks: of "pt", "tf", "flax"; all that are installed when None.
        tolerance: the largest difference that passes, as a share of the largest value (of 1 where values are smaller).
        dtype: "float32" or "float64", of parameters and computation.
        source_format: of a foreign file.
        progress: told what happens next.
        device: such as "cpu" or "gpu:1"; the framework's own when None.
        **options: of `convert`, for a foreign file; revision, token, cache_dir and so on, for a model on the hub.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        InputError: unknown arguments, or images that cannot be read.
        MissingFrameworkError: fewer than two frameworks to compare.
    """
    installed = installed_frameworks()
    chosen = [each for each in FRAMEWORKS if each in set(installed if frameworks is None else frameworks)]
    if unknown := set(frameworks or ()) - FRAMEWORKS.keys():
        raise InputError(f"Unknown framework {quoted(sorted(unknown)[0])}; expected some of {', '.join(FRAMEWORKS)}.")
    if frameworks is not None and len(chosen) < 2 <= len(installed):
        raise InputError(
            f"verify compares frameworks with each other; asked for {', '.join(chosen) or 'none'}. Name two or more of "
            f"{', '.join(installed)}, or none for all."
        )
    if len(chosen) < 2 or set(chosen) - set(installed):
        raise MissingFrameworkError(
            f"verify compares frameworks with each other; asked for {', '.join(chosen) or 'none'}, installed: "
            f"{', '.join(installed) or 'none'}. Install the others with: {install_line('all')}"
        )
    if dtype not in DTYPES:
        raise InputError(f"dtype is {quoted(dtype)}; expected one of {', '.join(DTYPES)}.")
    tell = progress or (lambda step: None)
    hub_options, options = hub.split_options(options)
    with tempfile.TemporaryDirectory(prefix="vit-verify-") as temporary:
        folder = _canonical(Path(name_or_path), hub_options, source_format, options, Path(temporary), tell)
        source = open_source(folder, "hf" if folders.find(folder, checkpoint.WEIGHTS) else "auto")
        pixel_values, names = _pixels(images, source.config, folder)
        result = Verification(os.fspath(name_or_path), source.architecture, source.config, names, dtype, tolerance)
        computed: dict[str, dict[str, np.ndarray]] = {}
        for framework in chosen:
            tell(f"Running {FRAMEWORKS[framework][1]}")
            begin = time.perf_counter()
            computed[framework] = _run(framework, folder, source, pixel_values, dtype, device)
            result.seconds[framework] = time.perf_counter() - begin
            result.versions[framework] = __import__(FRAMEWORKS[framework][0]).__version__
    result.stages = [_stage(name, {f: values[name] for f, values in computed.items()}) for name in computed[chosen[0]]]
    if "ForImageClassification" in source.architecture:
        labels = source.config.id2label or {}
        for i, image in enumerate(names):
            result.answers[image] = {
                framework: labels[int(values["logits"][i].argmax())] for framework, values in computed.items()
            }
    return result


def _canonical(
    path: Path, hub_options: dict[str, Any], source_format: str, options: dict[str, Any], temporary: Path,
    tell: Callable[[str], None],
) -> Path:  # fmt: skip
    """A folder that every framework loads: the checkpoint's own, or a converted one."""
    if not path.exists():
        return hub.resolve(path.as_posix(), **hub_options)
    if path.is_dir() and source_format == "auto" and not options and folders.at_one_moment(path, _is_canonical):
        return path
    tell("Converting")
    return convert(path, temporary / "canonical", source_format, **options).target


def _is_canonical(find: folders.Find) -> bool:
    weights = (checkpoint.WEIGHTS, checkpoint.INDEX, checkpoint.TORCH_WEIGHTS)
    config = find(checkpoint.CONFIG)
    return config is not None and any(map(find, weights)) and "model_type" in checkpoint.read_json(config)


def _pixels(images: Any, config: PreTrainedConfig, folder: Path) -> tuple[np.ndarray, list[str]]:
    """pixel_values (batch, channels, height, width) float32, and what they are called."""
    height, width = to_pair(config.image_size)
    if images is None:
        rng = np.random.default_rng(0)
        return rng.standard_normal((2, config.num_channels, height, width), np.float32), [
            "random image 0",
            "random image 1",
        ]
    if isinstance(images, np.ndarray):
        return images.astype(np.float32), [f"image {i}" for i in range(len(images))]
    if not images:
        raise InputError("There are no images to run; give at least one, or leave the argument out.")
    files = [Path(image) for image in images]
    if lost := [str(file) for file in files if not file.is_file()]:
        raise InputError(f"{lost[0]} is no image file.")
    from vit.image_processing import ViTImageProcessor

    if folders.find(folder, PREPROCESSOR):
        processor = ViTImageProcessor.from_pretrained(folder)
    else:
        processor = ViTImageProcessor(size={"height": height, "width": width})
    pixel_values = processor([os.fspath(file) for file in files], return_tensors="np")["pixel_values"]
    return np.asarray(pixel_values, np.float32), [file.name for file in files]


def _run(
    framework: str, folder: Path, source: Source, pixel_values: np.ndarray, dtype: str, device: str | None
) -> dict[str, np.ndarray]:
    """Every stage of the computation in one framework: by itself, and the outputs with fused attention."""
    options: dict[str, Any] = {"device": None if device is None else device_name(device, framework)}
    if source.head is None:
        options |= {**source.config.seeing_all, **checkpoint.parts_of(checkpoint.Checkpoint(folder))}
    context: Any = nullcontext()
    if framework == "flax":
        import jax

        if dtype == "float64":
            context = jax.enable_x64(True)
    pixel_values = pixel_values.astype(dtype)
    with context:
        model = getattr(vit, PREFIXES[framework] + source.architecture).from_pretrained(folder, dtype=dtype, **options)
        detailed = _call(framework, model, pixel_values, output_hidden_states=True, output_attentions=True)
        fused = _call(framework, model, pixel_values)
    stages = {}
    for i, hidden_states in enumerate(detailed.pop("hidden_states")):
        if i:
            stages[f"layer {i - 1} attention"] = detailed["attentions"][i - 1]
        stages[f"layer {i - 1}" if i else "embeddings"] = hidden_states
    detailed.pop("attentions")
    for name, value in detailed.items():
        stages[name] = value
        if model.config.attn_implementation == "sdpa":
            stages[f"{name} (sdpa)"] = fused[name]
    return stages


def _call(framework: str, model: Any, pixel_values: np.ndarray, **options: Any) -> dict[str, Any]:
    inputs = {"pixel_values": pixel_values, **model.config.fixed_inputs(pixel_values.shape)}
    if framework == "pt":
        import torch

        with torch.no_grad():
            tensors = {name: torch.from_numpy(array).to(model.device) for name, array in inputs.items()}
            outputs = model.eval()(**tensors, **options)
    else:
        outputs = model(**inputs, **options)
    return {
        name: [_array(each) for each in value] if isinstance(value, tuple) else _array(value)
        for name, value in outputs.items()
    }


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.cpu() if hasattr(value, "cpu") else value, np.float64)


def _stage(name: str, values: dict[str, np.ndarray]) -> Stage:
    shapes = {value.shape for value in values.values()}
    if len(shapes) > 1:
        raise CheckpointError(f"{name} has the shapes {shapes} in different frameworks.")
    differences = {
        f"{a}-{b}": float(np.abs(values[a] - values[b]).max(initial=0)) for a, b in itertools.combinations(values, 2)
    }
    largest = max(float(np.abs(value).max(initial=0)) for value in values.values())
    return Stage(name, shapes.pop(), largest, differences)
