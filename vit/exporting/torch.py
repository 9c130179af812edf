"""PyTorch's own program, a .pt2 file: run without this package, compiled, or lowered further."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..budgets import JSON
from ..errors import CheckpointError, shown
from .formats import NAME, Artifact, Job, parse


def write(job: Job, path: Path) -> None:
    """Write what `torch.export.export` makes of the model."""
    import torch

    from ..pt.export import exported

    text = json.dumps(job.metadata(torch=torch.__version__))
    torch.export.save(exported(job), path, extra_files={NAME: text})


def load(path: Path) -> Artifact:
    """Load it with `torch.export.load`, on the CPU; a file in which anything is pickled but tensors is refused."""
    metadata = _checked(path)
    import torch

    program = torch.export.load(path).module()

    @torch.inference_mode()
    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = program(
            **{name: torch.from_numpy(np.require(array, requirements=["C", "W"])) for name, array in inputs.items()}
        )
        return {name: value.numpy() for name, value in found.items()}

    return Artifact("torch", path, metadata, run)


def _checked(path: Path) -> dict[str, Any]:
    """The metadata of a file that PyTorch unpickles nothing of but tensors.

    Raises:
        CheckpointError: another file, or one that holds more.
    """
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2]: name for name in archive.namelist()}
            for inner, name in names.items():
                if inner.endswith("_config.json"):  # of weights and constants, which says how each is stored
                    entries = json.loads(archive.read(name))["config"].values()
                    if any(each["use_pickle"] for each in entries):
                        raise CheckpointError(f"{shown(path)} holds pickled objects; nothing of it was loaded.")
                elif inner.startswith(("data/weights/", "data/constants/")) and inner.endswith(".pt"):
                    raise CheckpointError(f"{shown(path)} holds pickled weights; nothing of it was loaded.")
                elif inner.startswith("data/aotinductor/"):
                    raise CheckpointError(f"{shown(path)} holds machine code; nothing of it was loaded.")
                elif inner.startswith("data/sample_inputs/"):
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
            extra = next((name for inner, name in names.items() if inner == f"extra/{NAME}"), None)
            if extra is not None and archive.getinfo(extra).file_size > JSON:
                raise CheckpointError(f"{shown(path)} says more about itself than {JSON:,} bytes hold.")
            text = None if extra is None else archive.read(extra)
    except (zipfile.BadZipFile, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{shown(path)} is no exported program of PyTorch: {shown(error)}.") from None
    return parse(text, path)
