"""inspect: what a checkpoint is, and whether it is whole, without a framework (PyTorch's own pickles need PyTorch)."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vit import folders
from vit.config import PreTrainedConfig, to_pair
from vit.errors import CheckpointError, shown

from .engine import open_source


@dataclass
class Inspection:
    """What `inspect` found.

    Args:
        path: the checkpoint.
        size: bytes of its files.
        whole: whether everything that it announces is there and reads well.
        problem: why not.
        format: a name of `FORMATS`.
        architecture: the published class.
        variant: such as "B/16 at 224"; "custom" for sizes that no published model has.
        config: the configuration.
        parameters: numbers in the tensors that are used.
        dtypes: dtype -> parameters of it.
        tensors: tensors of the file that are used.
        said: what shapes do not tell, and where it was taken from.
        ignored: tensors that a conversion would leave out -> why.
    """

    path: Path
    size: int
    whole: bool = True
    problem: str = ""
    format: str = ""
    architecture: str = ""
    variant: str = ""
    config: PreTrainedConfig | None = None
    parameters: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    tensors: int = 0
    said: list[str] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The findings for JSON."""
        config = None if self.config is None else self.config.to_dict()
        return {**vars(self), "path": str(self.path), "config": config}


def inspect(path: str | os.PathLike[str], source_format: str = "auto", **options: Any) -> Inspection:
    """What a checkpoint of any format is.

    Args:
        path: a file or folder.
        source_format: a name of `FORMATS`; "auto" finds it.
        **options: keys of `PreTrainedConfig` that shapes do not tell.

    Raises:
        CheckpointError: there is nothing at `path`, or it is no checkpoint at all. One that is merely damaged or of
            another family is reported, with `whole` false and the `problem`.
    """
    path = Path(path)
    if not os.path.exists(path):
        raise CheckpointError(f"{shown(path)} does not exist; expected a checkpoint's file or folder.")
    files = [path] if not path.is_dir() else folders.files(path)
    found = Inspection(path, sum(file.stat().st_size for file in files))
    try:
        source = open_source(path, source_format, **options)
        found.format, found.architecture, found.config = source.format.name, source.architecture, source.config
        found.variant, found.said, found.ignored = variant(source.config), source.said, source.ignored
        dtypes: Counter[str] = Counter()
        for name, shape in source.shapes.items():
            dtypes[source.dtype(name).name] += math.prod(shape)
        found.dtypes, found.parameters = dict(dtypes), dtypes.total()
        stored = {place.stored for place in source.places.values()}
        found.tensors = len(stored)
        for name in stored:  # what has a checksum has it compared
            source.store.read(name)
    except CheckpointError as error:
        found.whole, found.problem = False, str(error)
    return found


def variant(config: PreTrainedConfig) -> str:
    """The published size of a configuration with its patch and image size, such as "B/16 at 224"."""
    sizes = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)
    known = (name for name, each in config.variants.items() if each == sizes)
    name = next((name for name in known if config.variant(f"{name}/1").gated_mlp == config.gated_mlp), "custom")
    patch, image = ("x".join(map(str, dict.fromkeys(to_pair(s)))) for s in (config.patch_size, config.image_size))
    return f"{name}/{patch} at {image}"
