"""This project's Flax models as orbax saves their state: a folder of chunked arrays, read and written by tensorstore.

`nnx.state(model)` and `nnx.to_pure_dict(nnx.state(model))` are both read; the second is written, since every orbax
restores it. A config.json inside the folder keeps what shapes do not tell.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vit import budgets, checkpoint
from vit.config import PreTrainedConfig
from vit.errors import CheckpointError, MissingFrameworkError, install_line, shown
from vit.weights import LAYOUTS

from .containers import BFLOAT16, Read, Specs, Store, Stored, _damaged, summary
from .rules import Format, patterns
from .transformers import of_families, with_base, without_base

_LAYOUT = LAYOUTS["flax"]
MARKS = ("manifest.ocdbt", "_METADATA")
_VALUE = ".value"  # an nnx.State holds Variables, whose array is their value


def _rename(names: Iterable[str]) -> dict[str, str]:
    plain = {name: name.removesuffix(_VALUE) for name in names}
    based = with_base(".")(plain.values())
    return {name: based[value] for name, value in plain.items()}


ORBAX = of_families(
    Format(
        name="orbax",
        what="orbax checkpoints of this project's Flax models (nnx)",
        kinds=("orbax",),
        table=patterns("."),
        leaves={"weight": _LAYOUT.kernel, "norm.weight": _LAYOUT.norm_scale},
        in_out=True,
        conv="matrix",
        config={"hidden_act": "gelu", "layer_norm_eps": 1e-12},
        rename=_rename,
        stored_name=without_base("."),
        ignored=((r"\.rngs?\.|\.(count|key)$", "state of a random generator"),),
    ),
    ".",
)


def _tensorstore() -> Any:
    try:
        import tensorstore
    except ModuleNotFoundError:
        raise MissingFrameworkError(
            f"orbax checkpoints are read by tensorstore. Install it with: {install_line('flax')}"
        ) from None
    return tensorstore


def find(path: Path) -> Path | None:
    """The folder of an orbax checkpoint at `path`, or the only one just below it, such as "default"."""
    if path.is_dir():
        below = [child for child in sorted(path.iterdir()) if child.is_dir() and (child / MARKS[0]).is_file()]
        if (path / MARKS[0]).is_file():
            return path
        if len(below) == 1:
            return below[0]
        if below:
            raise CheckpointError(
                f"{shown(path)} holds several checkpoints ({summary(b.name for b in below)}); name one."
            )
    return None


def read_orbax(folder: Path) -> Store:
    """An orbax folder (OCDBT with zarr arrays)."""
    ts = _tensorstore()
    folder = folder.absolute()
    store = Store(folder, "orbax")
    try:
        kvstore = ts.KvStore.open(_base(folder)).result()
        for key in kvstore.list().result():
            name, _, leaf = key.decode().rpartition("/")
            if leaf in (".zarray", "zarr.json"):
                if len(store.tensors) >= budgets.TENSORS:
                    raise CheckpointError(f"{shown(folder)} holds more than {budgets.TENSORS:,} tensors.")
                store.tensors[name] = _array(ts, folder, name, "zarr" if leaf == ".zarray" else "zarr3")
    except CheckpointError:
        raise
    except Exception as error:  # tensorstore's own; a ValueError, mostly
        raise _damaged(folder, "orbax", str(error).splitlines()[0][:200]) from None
    return store.check(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))


def _base(folder: Path) -> dict[str, Any]:
    # A driver and its path: in a URL, which "base" may also be, %2F in a folder's name would be a slash.
    return {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}


def _spec(folder: Path, name: str, driver: str = "zarr") -> dict[str, Any]:
    return {"driver": driver, "kvstore": {**_base(folder), "path": f"{name}/"}}


def _array(ts: Any, folder: Path, name: str, driver: str) -> Stored:
    array = ts.open(_spec(folder, name, driver), open=True, read=True).result()
    dtype = BFLOAT16 if array.dtype.name == "bfloat16" else np.dtype(array.dtype.numpy_dtype)
    pieces = math.prod(
        -(-size // max(1, chunk)) for size, chunk in zip(array.shape, array.chunk_layout.read_chunk.shape, strict=True)
    )
    if pieces > budgets.CHUNKS or math.prod(array.chunk_layout.read_chunk.shape) * dtype.itemsize > budgets.allowance(
        0
    ):
        raise ValueError(f"{shown(name)} lies in {pieces:,} pieces")

    def load(rows: slice | None) -> np.ndarray:
        try:
            return np.asarray((array if rows is None else array[rows]).read().result())
        except ValueError as error:
            raise OSError(str(error).splitlines()[0][:200]) from None

    return Stored(tuple(array.shape), dtype, load)


def write_orbax(folder: Path, config: PreTrainedConfig, tensors: Specs, read: Read) -> None:
    """An orbax folder of the pure dict of a model's state, with config.json in it."""
    ts = _tensorstore()
    folder = folder.absolute()
    folder.mkdir()
    tree = {}
    for name, (shape, dtype) in tensors.items():
        spec = {
            **_spec(folder, name), "create": True,
            "metadata": {"shape": list(shape), "chunks": [max(1, size) for size in shape],
                         "zarr_format": 2, "dimension_separator": ".",
                         "dtype": "bfloat16" if dtype == BFLOAT16 else np.dtype(dtype).str,
                         "compressor": {"id": "zstd", "level": 1}},
        }  # fmt: skip
        array = checkpoint.in_order(read(name), dtype)
        try:
            ts.open(spec).result().write(array).result()
        except ValueError as error:  # tensorstore's own error for everything
            raise OSError(str(error).rpartition(": ")[2].partition(" [")[0]) from None
        path = name.split(".")
        value = {"value_type": "np.ndarray", "skip_deserialize": False, "write_shape": list(shape)}
        keys = [{"key": part, "key_type": 2} for part in path]  # 2: a key of a dict
        tree[str(tuple(path))] = {"key_metadata": keys, "value_metadata": value}
    described = {"tree_metadata": tree, "use_zarr3": False, "store_array_data_equal_to_fill_value": True}
    (folder / "_METADATA").write_text(json.dumps(described))
    handler = "orbax.checkpoint._src.handlers.standard_checkpoint_handler.StandardCheckpointHandler"
    now = time.time_ns()
    written = {"item_handlers": handler, "metrics": {}, "performance_metrics": {}, "init_timestamp_nsecs": now,
               "commit_timestamp_nsecs": now, "custom_metadata": {}}  # fmt: skip
    (folder / "_CHECKPOINT_METADATA").write_text(json.dumps(written))
    (folder / checkpoint.CONFIG).write_text(config.to_json(), encoding="utf-8")
