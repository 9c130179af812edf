"""From what a model is called to a model that is served: a checkpoint in any framework, or an export in its runtime."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from .. import hub, pipeline
from ..checkpoint import head_of, parts_of
from ..errors import CheckpointError, InputError, shown
from ..exporting import formats
from ..image_processing import ViTImageProcessor
from ..inference import Forward, device_name
from ..loading import open_checkpoint
from ..outputs import ModelOutput
from ..pipeline import CALLS, CLASSIFICATION
from .models import Model, Task

FILES = ("config.json", "preprocessor_config.json", "*.safetensors", "*.index.json", "*.bin", "*.h5", "*.msgpack",
         "*.ckpt", "*.pt", "*.pth")  # fmt: skip
"""What tells whether a checkpoint has changed."""

CPU, ACCELERATOR = 16, 64
"""Images of a batch, where nobody says how many: with fewer a queue takes longer, with more an image waits longer."""


def load(
    name: str,
    source: str | os.PathLike[str],
    framework: str | None = None,
    max_batch_size: int | None = None,
    version: int = 1,
    **options: Any,
) -> Model:
    """Load a model, compiled and warmed up.

    Args:
        name: in routes.
        source: a checkpoint folder, the name of a model on the hub, or what `vit export` wrote.
        framework: "pt", "tf" or "flax"; None for the first that is installed. An export has its own runtime.
        max_batch_size: images of a batch; chosen for the device when None.
        version: of the model.
        **options: of the loading: dtype, device, revision, ...

    Raises:
        CheckpointError: no checkpoint there, or a broken one.
        InputError: an impossible argument, or an export that takes something else than `pixel_values`.
        ImportError: a framework or runtime that is not installed.
    """
    if formats.is_export(source):
        model = _export(name, Path(source), max_batch_size, version)
    else:
        given = {key: value for key, value in options.items() if value is not None}
        model = _checkpoint(name, source, framework, max_batch_size, version, given)
    model.warm()
    return model


def _checkpoint(
    name: str, source: str | os.PathLike[str], framework: str | None, most: int | None, version: int,
    options: dict[str, Any],
) -> Model:  # fmt: skip
    hub_options, options = hub.split_options(options)
    folder = hub.resolve(source, **hub_options)
    processor = ViTImageProcessor.from_pretrained(folder)
    if framework and "device" in options:
        options["device"] = device_name(options["device"], framework)
    forward = Forward(folder, framework, **_parts(folder), **options)
    shape = pipeline.shape_of_images(processor, forward.config)
    model = Model(name, version, forward.framework, forward.config, processor, shape)
    most = most or (CPU if forward.device_type == "cpu" else ACCELERATOR)
    sizes = None if forward.framework == "pt" else _sizes(most)
    share = _cores() if (forward.framework, forward.device_type) == ("pt", "cpu") else None
    base = forward
    if forward.head is not None:
        model.tasks["classify"] = Task(model, "classify", most, forward, sizes, share)
        base = Forward(getattr(forward.model, forward.config.base_model_prefix))
    model.tasks["embed"] = Task(model, "embed", most, base, sizes, share)
    looks = Task(model, "attention", 1, lambda batch: forward(batch, output_attentions=True), sizes and (1,), share)
    model.tasks["attention"] = looks
    return model


@cache  # a thread that begins after a part was given away is told of that part, as if it were all
def _cores() -> Callable[[bool], None]:
    """What gives the thread that calls it all of PyTorch's threads, or its part where several compute at a time.

    Of threads that wait for each other at the end of every operation, more than there are cores cost a tenth.
    """
    import torch

    every = torch.get_num_threads()
    return lambda alone: torch.set_num_threads(every if alone else max(1, every // CALLS))


def _sizes(most: int) -> tuple[int, ...]:
    """The sizes of batches to compile for: few, and none more than half padding."""
    return tuple(sorted({most, *(1 << i for i in range(most.bit_length()))}))


def _parts(folder: Path) -> dict[str, Any]:
    """The arguments of `Forward` that give all that a checkpoint can do: its labels, or else its vectors."""
    opened = open_checkpoint(folder)
    if head_of(opened, CLASSIFICATION) and not opened.config.gives_numbers:
        return pipeline.parts_for(folder, "classify", "cls")
    has_pooler = parts_of(opened).get("add_pooling_layer", False)
    return pipeline.parts_for(folder, "embed", "pooler" if has_pooler else "cls")


def _export(name: str, path: Path, most: int | None, version: int) -> Model:
    artifact = formats.load(path)
    about = artifact.metadata
    taken = about["inputs"].get("pixel_values")
    if taken is None:
        raise InputError(f"{shown(path)} takes {', '.join(about['inputs'])}; to serve it, export it without --images.")
    labels = about.get("labels", [])
    config = SimpleNamespace(
        id2label=dict(enumerate(labels)), num_labels=len(labels), problem_type=about.get("problem_type"),
        gives_numbers=False, hidden_size=0,
    )  # fmt: skip
    model = Model(name, version, artifact.format, config, artifact.processor, tuple(taken["shape"][1:]))
    model.pool = about.get("pool", model.pool)
    model.vector = tuple(about["outputs"].get("embedding", {"shape": [None, 0]})["shape"][1:])
    most = most or CPU

    def run(batch: np.ndarray) -> ModelOutput:
        return ModelOutput(artifact({"pixel_values": batch}))

    sizes = _sizes(most) if artifact.format == "stablehlo" else None  # which compiles for each size
    model.tasks[about["task"]] = Task(model, about["task"], most, run, sizes)
    return model


def fingerprint(source: str | os.PathLike[str], hub_options: Mapping[str, Any]) -> object:
    """What changes when a checkpoint or an export does: its files, when they were written and how large they are.

    Raises:
        CheckpointError: it is not there.
    """
    path = Path(os.path.expanduser(source))
    if formats.is_export(path):
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
    else:
        path = hub.resolve(source, **{key: value for key, value in hub_options.items() if value is not None})
        files = sorted({file for pattern in FILES for file in path.glob(pattern)})
    try:
        states = [(file.name, file.stat()) for file in files]
    except OSError as error:
        raise CheckpointError(f"{shown(path)} cannot be read: {error.strerror}.") from None
    return str(path), [(name, state.st_mtime_ns, state.st_size, state.st_ino) for name, state in states]
