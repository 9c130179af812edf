"""`export`: a checkpoint into a file or folder of another runtime, loaded there and compared before it appears."""

from __future__ import annotations

import base64
import hashlib
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import hub
from ..checkpoint import Checkpoint
from ..config import PreTrainedConfig
from ..errors import CheckpointError, InputError, quoted, shown
from ..files import CONFIG, IMAGES
from ..folders import files
from ..image_processing import ViTImageProcessor
from ..image_processing.inputs import Reader
from ..image_processing.options import FILE as PREPROCESSOR
from ..inference import Forward
from ..loading import open_checkpoint
from ..outputs import ModelOutput
from ..pipeline import POOLS, check_task, parts_for, shape_of_images, vector_shape
from .formats import FORMATS, Artifact, Job, format_of, load, module_of, reason

TOLERANCES = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 6e-2}
"""dtype of an export -> the largest difference from the float32 model, as a share of the largest value, or of 1."""
IMAGE_TOLERANCE = 1e-2
"""The same where the image processor is in the graph: a grey level may be rounded otherwise."""
AGREEMENT = 0.9
"""The share of the calibration images that int8 has to label as the model does, or give a vector near the model's."""
COSINE = 0.95
"""How near that is."""
CALIBRATION = 128
"""Images that int8 is calibrated with, at most."""
COMPARED = 32
"""Of these the most that are compared."""
BATCH = 8
"""Images a call in the comparison, but for the last; each size is compiled anew by some runtimes."""
SECONDS = 0.5
"""How long the speed of each is measured."""
SAYS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "labels": lambda about: about.get("labels"),
    "problem_type": lambda about: about.get("problem_type"),
    "preprocessing": lambda about: repr(ViTImageProcessor.from_dict(about["preprocessing"])),
}
"""What clients take from the metadata, and no numbers tell: it may be of the checkpoint as it was once."""
DIGITS = Path(__file__).parents[1] / "demo"


@dataclass(frozen=True)
class Report:
    """What `export` wrote, and how it compares with its model.

    Attributes:
        path: the file or folder.
        format: a key of `FORMATS`.
        size: bytes.
        difference: the largest difference of any output from the model's; None where nothing was compared.
        largest: the largest value of these outputs.
        tolerance: the share of `largest`, or of 1 if that is more, which the difference may be; None for int8.
        agreement: the share of the images whose most probable label is the model's, or whose vector of int8 is near
            it, by `COSINE`; None of other vectors.
        images: how many were compared.
        seconds: that an image takes in the export's runtime.
        source_seconds: and in the model's framework, in the same run.
        changed: what an export says otherwise than its checkpoint does now, of `SAYS`.
        metadata: what the export says about itself.
    """

    path: Path
    format: str
    size: int
    metadata: Mapping[str, Any]
    difference: float | None = None
    largest: float = 0.0
    tolerance: float | None = None
    agreement: float | None = None
    images: int = 0
    seconds: float | None = None
    source_seconds: float | None = None
    changed: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the export is the same function as its model, as nearly as its numbers allow."""
        if self.changed:
            return False
        if self.difference is None or not np.isfinite(self.difference):
            return self.difference is None
        if self.tolerance is None:
            return self.agreement is None or self.agreement >= AGREEMENT
        return self.difference <= self.tolerance * max(1.0, self.largest)

    def to_dict(self) -> dict[str, Any]:
        """What --json prints."""
        return {**asdict(self), "path": str(self.path), "metadata": dict(self.metadata), "passed": self.passed}


def export(
    model: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    to: str | None = None,
    task: str = "classify",
    pool: str = "cls",
    images: bool = False,
    dtype: str | None = None,
    int8: str | os.PathLike[str] | None = None,
    verify: bool = True,
    force: bool = False,
    progress: Callable[[str], None] | None = None,
    **hub_options: Any,
) -> Report:
    """Export a checkpoint to a format of `FORMATS`; the target appears when it is whole and compared.

    It takes batches of any size. Its outputs are float32, whatever its dtype: `logits`, `probabilities` and `labels`
    (the index of the most probable one, whose name is in the metadata) of the task "classify", `embedding` of "embed".

    Args:
        model: a checkpoint folder, or the name of a model on the hub.
        target: a file name, or a folder for the formats that are one.
        to: a key of `FORMATS`; None where the ending of the target tells it.
        task: "classify" or "embed".
        pool: what the embedding is: "cls", "mean" (of the patch tokens), "pooler" or "patches" (all patch tokens).
        images: put the image processor into the graph, which then takes images.
        dtype: of the weights: float32, float16 or bfloat16; None for the checkpoint's, or float32.
        int8: a folder of images of the kind to come, with which the linear layers are quantised.
        verify: run the export and compare it with the model before it appears.
        force: replace a target that exists.
        progress: told what is being done.
        **hub_options: `revision`, `token`, `cache_dir`, ... of the hub.

    Returns:
        What was written, and how it compares.

    Raises:
        InputError: an unknown format, one that has no such dtype, a target of another format, no calibration images, or
            an operator that the format lacks.
        CheckpointError: no checkpoint, one without what the task needs, a target that exists or cannot be written, or
            an export that differs from its model; the target is as it was.
        ImportError: what the format needs is not installed; the line that installs it is named.
    """
    from conversion.target import publish, staging, sync

    tell = progress or (lambda step: None)
    target, name = Path(target), format_of(target, to)
    check_task(task, pool)
    _check_hub_options(hub_options)
    _check_target(target, name, force)
    _check_choices(name, images, dtype, int8)
    calibration = [] if int8 is None else calibration_images(int8)
    module = module_of(name, to_write=True)
    tell("Loading")
    job = _job(model, name, task, pool, images, dtype, hub_options, calibration)
    with staging(target) as folder:
        staged = folder / target.name
        tell(f"Writing {name}")
        try:
            module.write(job, staged)
        except (ValueError, ImportError, OSError):
            raise
        except Exception as error:  # each library has its own
            family = job.config.model_type
            raise InputError(f"A model of the family {family} cannot be exported to {name}: {reason(error)}") from error
        artifact = load(staged, name)
        report = Report(target, name, _size(staged), artifact.metadata)
        if verify:
            tell("Comparing")
            report = _compared(report, artifact, job, calibration[:: -(-len(calibration) // COMPARED) or 1])
            if not report.passed:
                raise CheckpointError(
                    f"{shown(target)} would not be the same function: {verdict(report)}. Nothing was written; pass "
                    "verify=False (--no-verify) to have it all the same."
                )
        del artifact
        sync(staged)
        publish(staged, target, FORMATS[name].own)
    return report


def verify(
    model: str | os.PathLike[str],
    artifact: str | os.PathLike[str],
    images: Iterable[Any] | None = None,
    **hub_options: Any,
) -> Report:
    """Compare an export with a checkpoint, as `export` does.

    Args:
        model: the checkpoint that it was made of.
        artifact: the export.
        images: what is compared, beside random images and the bundled scans.
        **hub_options: of the hub.

    Returns:
        How it compares; `passed` says whether they are the same function.

    Raises:
        CheckpointError: no checkpoint or export there, a damaged one, or one of another shape.
        InputError: an image that cannot be used.
        ImportError: the export's runtime, or the framework that it is native to, is not installed.
    """
    _check_hub_options(hub_options)
    path = Path(artifact)
    loaded = load(path)
    found = loaded.metadata
    given = {key: found[key] for key in ("task", "images", "dtype")}
    job = _job(model, loaded.format, pool=found.get("pool", "cls"), hub_options=hub_options, **given)
    for kind in ("inputs", "outputs"):
        ours, theirs = (
            {name: each["shape"] for name, each in values.items()} for values in (getattr(job, kind), found[kind])
        )
        if ours != theirs:
            raise CheckpointError(
                f"{shown(path)} has the {kind} {quoted(theirs)}, and the model has {quoted(ours)}: it was made of "
                "another checkpoint."
            )
    changed = tuple(name for name, says in SAYS.items() if says(found) != says(job.metadata()))
    report = Report(path, loaded.format, _size(path), found, changed=changed)
    return _compared(report, loaded, replace(job, int8=found["int8"]), list(images or ()))


def verdict(report: Report) -> str:
    """The comparison in words."""
    same = "a vector near the model's" if report.metadata.get("task") == "embed" else "the same label"
    agree = "" if report.agreement is None else f", and {report.agreement:.1%} of the images have {same}"
    limit = (
        "" if report.tolerance is None else f"; the tolerance is {report.tolerance:g} of that, or {report.tolerance:g}"
    )
    changed = f"; the {' and the '.join(report.changed)} are others than the checkpoint's" if report.changed else ""
    return (
        f"the largest difference is {report.difference:.1e} where values reach {report.largest:.3g}{agree}{limit}"
        f"{changed}"
    )


# === What is asked for ===


def _check_hub_options(options: Mapping[str, Any]) -> None:
    _, others = hub.split_options(dict(options))
    if others:
        raise InputError(f"export and verify have no argument {quoted(next(iter(others)))}.")


def _check_target(target: Path, name: str, force: bool) -> None:
    """Refuse a target before anything is read.

    Raises:
        CheckpointError: it exists, or is something else than an export of this format.
    """
    format, where = FORMATS[name], shown(target)
    if target.is_symlink():
        raise CheckpointError(f"{where} is a symbolic link, which is not followed; name the place it leads to.")
    if not target.exists() or (target.is_dir() and not format.ending and not any(target.iterdir())):
        return
    if target.is_dir() if format.ending else not target.is_dir():
        found, wanted = ("folder", "file") if target.is_dir() else ("file", "folder")
        raise CheckpointError(f"{where} is a {found}; an export to {name} is a {wanted}.")
    if not force:
        raise CheckpointError(f"{where} exists; name another target, or pass force=True (--force) to replace it.")
    if format.ending and not target.is_file():
        raise CheckpointError(f"{where} is no file that could be replaced; name another target.")
    if not format.ending and not any(target.glob(format.mark)):
        raise CheckpointError(f"{where} is a folder of something else than an export to {name}; it is not replaced.")


def _check_choices(name: str, images: bool, dtype: str | None, int8: Any) -> None:
    """Refuse what a format does not have.

    Raises:
        InputError: it is asked for.
    """
    format = FORMATS[name]
    if dtype is not None and dtype not in format.dtypes:
        raise InputError(f"dtype is {quoted(dtype)}; the format {name} has {', '.join(format.dtypes)}.")
    if int8 is not None and not format.int8:
        able = ", ".join(key for key, each in FORMATS.items() if each.int8)
        raise InputError(f"The format {name} has no int8 here; those that have are {able}.")
    if int8 is not None and dtype not in (None, "float32"):
        raise InputError(f"dtype is {quoted(dtype)}, and int8 is asked for, too; what is not int8 stays float32.")
    if images and not format.images:
        able = ", ".join(key for key, each in FORMATS.items() if each.images)
        raise InputError(
            f"The format {name} cannot hold the image processor, which computes in float64; those that can are {able}."
        )


def calibration_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Images of a folder, searched to the bottom, at most `CALIBRATION` and evenly taken.

    Raises:
        InputError: no such folder, or no images in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{shown(folder)} {found}; expected a folder of images to calibrate int8 with.")
    inside = (
        path for path in sorted(folder.rglob("*")) if not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )
    paths = [path for path in inside if path.name.lower().endswith(IMAGES) and path.is_file()]
    if not paths:
        raise InputError(
            f"{shown(folder)} has no images to calibrate int8 with; expected files that end in {', '.join(IMAGES)}."
        )
    return paths[:: -(-len(paths) // CALIBRATION)]


def _job(
    model: str | os.PathLike[str],
    name: str,
    task: str,
    pool: str,
    images: bool,
    dtype: str | None,
    hub_options: Mapping[str, Any],
    calibration: Sequence[Path] = (),
) -> Job:
    format = FORMATS[name]
    if not isinstance(model, str | os.PathLike):
        raise InputError(f"model is a {type(model).__qualname__}; expected a checkpoint folder or a name on the hub.")
    folder = hub.resolve(model, **hub_options)
    parts = parts_for(folder, task, pool)
    opened = open_checkpoint(folder)
    processor = ViTImageProcessor.from_pretrained(folder)
    image = shape_of_images(processor, opened.config)
    stored = "float32" if calibration else opened.dtype.name
    return Job(
        folder=folder,
        format=name,
        config=opened.config,
        processor=processor,
        image=image,
        task=task,
        pool=pool,
        parts=parts,
        dtype=dtype or (stored if stored in format.dtypes else "float32"),
        images=images,
        int8=bool(calibration),
        calibration=lambda: (
            _uint8(path, image[0])[None] if images else _pixels(processor, path, image) for path in calibration
        ),
        inputs={each: _input(each, image) for each in (format.images if images else format.inputs)},
        outputs=_outputs(opened.config, task, pool, image, name),
        source={"name": _name(model), "sha256": _digests(opened)},
    )


def _input(name: str, image: Sequence[int]) -> dict[str, Any]:
    kinds: dict[str, dict[str, Any]] = {
        "pixel_values": {"shape": [None, *image], "dtype": "float32"},
        "image_uint8": {"shape": [None, None, None, image[0]], "dtype": "uint8"},  # (batch, height, width, channels)
        "image_bytes": {"shape": [None], "dtype": "bytes"},
        "string_input": {"shape": [None], "dtype": "bytes"},  # the same as web-safe base64
    }
    return kinds[name]


def _outputs(config: PreTrainedConfig, task: str, pool: str, image: Sequence[int], name: str) -> dict[str, Any]:
    if task == "embed":
        return {"embedding": {"shape": [None, *vector_shape(config, pool, image)], "dtype": "float32"}}
    scores = {"shape": [None, config.num_labels], "dtype": "float32"}
    labels = "int32" if FORMATS[name].framework == "flax" else "int64"  # JAX has 64 bits switched off
    labels = "bytes" if name == "saved-model" else labels  # which has their names
    return {"logits": scores, "probabilities": scores, "labels": {"shape": [None], "dtype": labels}}


def _name(model: str | os.PathLike[str]) -> str:
    """What a checkpoint is called, without where it lies on this machine."""
    path = Path(model).expanduser()
    return path.absolute().name if path.exists() else str(model)


def _digests(opened: Checkpoint) -> dict[str, str]:
    """{file: SHA-256} of what a model is made of."""
    used = {each.file for each in opened.tensors.values()}
    if opened.folder.is_dir():
        used |= {path for path in files(opened.folder) if path.name in (CONFIG, PREPROCESSOR)}
    digests = {}
    for path in sorted(used):
        with open(path, "rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _size(path: Path) -> int:
    return sum(each.stat().st_size for each in (path.rglob("*") if path.is_dir() else (path,)) if each.is_file())


# === The comparison ===


def _pixels(processor: ViTImageProcessor, image: Any, shape: Sequence[int]) -> np.ndarray:
    """`pixel_values` of an image, which have to be of that (channels, height, width)."""
    found = processor(image, return_tensors="np").pixel_values
    if found.shape != (1, *shape):
        raise InputError(f"{shown(image)} came out of the image processor as {found.shape}; expected {(1, *shape)}.")
    return found


def _compared(report: Report, artifact: Artifact, job: Job, images: Sequence[Any]) -> Report:
    """The report with what the export computes beside its model, in float32, of the same images."""
    forward = Forward(job.folder, FORMATS[job.format].framework, **{**job.parts, "dtype": "float32"})
    difference, largest, agree, count = 0.0, 0.0, 0, 0
    for inputs, pixel_values in _cases(artifact, job, images):
        found, expected = artifact(inputs), _expected(job, forward(pixel_values))
        for name, values in expected.items():
            if found[name].shape != values.shape:
                raise CheckpointError(f"{name} came out as {found[name].shape}; expected {values.shape}.")
            if values.dtype.kind == "f":
                difference = max(difference, float(np.nan_to_num(np.abs(found[name] - values), nan=np.inf).max()))
                largest = max(largest, float(np.abs(values).max()))
        if job.task == "classify":
            agree += int((found["labels"] == _labels(expected["labels"], found["labels"], artifact)).sum())
        elif job.int8:
            agree += int((_cosines(found["embedding"], expected["embedding"]) >= COSINE).sum())
        count += len(pixel_values)
    if not count:
        raise InputError(
            "There is no image to compare an export by: int8 is compared by images of the kind to come. Give some "
            "(--images), or leave the comparison out."
        )
    seconds, source_seconds = _speed(artifact, job, forward)
    return replace(
        report,
        difference=difference,
        largest=largest,
        tolerance=None if job.int8 else max(TOLERANCES[job.dtype], IMAGE_TOLERANCE if job.images else 0.0),
        agreement=agree / count if job.task == "classify" or job.int8 else None,
        images=count,
        seconds=seconds,
        source_seconds=source_seconds,
    )


def _cases(artifact: Artifact, job: Job, images: Sequence[Any]) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """(inputs of an export, `pixel_values` of its model) for each of its kinds of inputs, in batches of any size."""
    scans = sorted(DIGITS.glob("*.png"))[: 2 * BATCH]
    kinds = artifact.metadata["inputs"]
    real: list[tuple[Any, np.ndarray]] = []
    for path in scans:
        with suppress(InputError):  # of a model that takes no such images
            real.append((path, _pixels(job.processor, path, job.image)))
    given = [(image, _pixels(job.processor, image, job.image)) for image in images]
    if "pixel_values" in kinds:
        if not job.int8:  # whose scales are those of real images
            noise = np.random.default_rng(0).standard_normal((3, *job.image), np.float32)
            yield {"pixel_values": noise}, noise
        stacked = [pixel_values for _, pixel_values in (given if job.int8 else [*real, *given])]
        for first in range(0, len(stacked), BATCH):
            batch = np.concatenate(stacked[first : first + BATCH])
            yield {"pixel_values": batch}, batch
    for image, pixel_values in [*real, *given]:
        if "image_uint8" in kinds:
            yield {"image_uint8": _uint8(image, job.image[0])[None]}, pixel_values
        if "image_bytes" in kinds and isinstance(image, Path):
            file = image.read_bytes()
            yield {"image_bytes": np.array([file], object)}, pixel_values
            yield {"string_input": np.array([base64.urlsafe_b64encode(file).rstrip(b"=")], object)}, pixel_values


def _uint8(image: Any, channels: int) -> np.ndarray:
    """(height, width, channels) of an image, as the image processor reads it."""
    pixels = Reader(channels, channels == 3, None).read("The image", image).pixels
    array = np.asarray(pixels.convert("RGB") if channels == 3 else pixels)
    return array if array.ndim == 3 else array[:, :, None]


def _expected(job: Job, outputs: ModelOutput) -> dict[str, np.ndarray]:
    """What an export is to give, of the outputs of its model."""
    if job.task == "embed":
        return {"embedding": POOLS[job.pool](outputs, job.config.prefix_tokens)}
    logits = outputs.logits.astype(np.float64)
    if job.config.problem_type == "multi_label_classification":
        probabilities = 0.5 * (1 + np.tanh(0.5 * logits))
    else:
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
    return {"logits": logits, "probabilities": probabilities, "labels": logits.argmax(axis=1)}


def _labels(indices: np.ndarray, found: np.ndarray, artifact: Artifact) -> np.ndarray:
    """Labels as an export gives them: by index, or by name where a format has strings."""
    if found.dtype.kind in "iu":
        return indices
    return np.array([artifact.metadata["labels"][i].encode() for i in indices], object)


def _cosines(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """(batch,): of the angles between the vectors of each image, all patches' being one."""
    one, other = (each.reshape(len(each), -1).astype(np.float64) for each in (found, expected))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return (one * other).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)


def _speed(artifact: Artifact, job: Job, forward: Forward) -> tuple[float, float]:
    """Seconds that an image takes, here and in the model's framework: medians of turns that alternate."""
    if "pixel_values" in artifact.metadata["inputs"]:
        batch = BATCH
        pixel_values = np.random.default_rng(0).standard_normal((batch, *job.image), np.float32)
        calls = (lambda: artifact({"pixel_values": pixel_values}), lambda: forward(pixel_values))
    else:
        path, batch = min(DIGITS.glob("*.png")), 1
        array = _uint8(path, job.image[0])[None]
        calls = (
            lambda: artifact({"image_uint8": array}),
            lambda: forward(job.processor(array, return_tensors="np", input_data_format="channels_last").pixel_values),
        )
    times: tuple[list[float], ...] = ([], [])
    for call in calls:
        call()
    while len(times[0]) < 3 or (sum(map(sum, times)) < 2 * SECONDS and len(times[0]) < 50):
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    here, there = (statistics.median(taken) / batch for taken in times)
    return here, there
