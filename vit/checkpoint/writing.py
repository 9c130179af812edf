"""A checkpoint folder, written one tensor at a time beside the old files, which stay whole until the new ones are."""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from ..config import PreTrainedConfig
from ..errors import CheckpointError, quoted
from ..files import CONFIG, INDEX, STALE_WEIGHTS, WEIGHTS
from ..folders import replace_files, write_text, writing
from ..weights import Shape
from .copying import blocks, in_order
from .reading import CODES


def write(
    folder: str | os.PathLike[str],
    config: PreTrainedConfig,
    tensors: Mapping[str, tuple[Shape, np.dtype]],
    read: Callable[[str], np.ndarray],
    max_shard_size: int | str = "5GB",
) -> None:
    """Write a checkpoint folder, one tensor at a time.

    Args:
        folder: made if needed; other files in it stay.
        config: becomes config.json.
        tensors: {canonical name: (canonical shape, dtype)}.
        read: gives the array of a name; called once for each, in the order they are written.
        max_shard_size: bytes of a weight file, an int or a number with KB, MB or GB; more go to several shards.

    Raises:
        CheckpointError: a path that is no folder, or an unreadable `max_shard_size`.
    """
    with replace_files(folder, STALE_WEIGHTS) as staging:
        write_files(staging, config, tensors, read, max_shard_size, taken=Path(folder))


def write_files(
    folder: Path,
    config: PreTrainedConfig,
    tensors: Mapping[str, tuple[Shape, np.dtype]],
    read: Callable[[str], np.ndarray],
    max_shard_size: int | str = "5GB",
    taken: Path | None = None,
    threads: int = 1,
) -> list[str]:
    """Write the files of a checkpoint into a folder where nothing reads yet; the arguments are those of `write`.

    Args:
        taken: the folder that the files go to in the end: shards get names that are free there.
        threads: so many tensors at a time, by threads, which call `read`.

    Returns:
        The names of the weight files and their index.
    """
    shards = _shard(tensors, parse_size(max_shard_size))
    names = [WEIGHTS] if len(shards) == 1 else _shard_names(taken or folder, len(shards))
    for file, shard in zip(names, shards, strict=True):
        write_safetensors(folder / file, {name: tensors[name] for name in shard}, read, threads)
    if len(shards) > 1:
        weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        total = sum(_num_bytes(*tensors[name]) for name in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")
        names.append(INDEX)
    write_text(folder / CONFIG, config.to_json())
    return names


def _shard_names(folder: Path, shards: int) -> list[str]:
    # Names that are free: the shards of a checkpoint that is overwritten stay until the new index, in one step, takes
    # the old one's place. At no moment does an index name shards of two checkpoints.
    prefixes = (f"model-{again}-" if again else "model-" for again in count())
    names = ([f"{prefix}{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)] for prefix in prefixes)
    return next(free for free in names if not any((folder / name).exists() for name in free))


def parse_size(size: int | str) -> int:
    """Bytes of a size such as 5000000, "500MB" or "5GB"."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?)B?\s*", str(size), re.IGNORECASE)
    factor = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[match[2].upper()] if match else 0
    bytes_ = int(float(match[1]) * factor) if match else 0
    if bytes_ < 1:
        raise CheckpointError(
            f"max_shard_size is {quoted(size)}; expected a number of bytes, or a size such as '500MB' or '5GB'."
        )
    return bytes_


def _num_bytes(shape: Shape, dtype: np.dtype) -> int:
    return int(np.prod(shape)) * dtype.itemsize


def _shard(tensors: Mapping[str, tuple[Shape, np.dtype]], most: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, (shape, dtype) in tensors.items():
        num_bytes = _num_bytes(shape, dtype)
        if shards[-1] and size + num_bytes > most:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += num_bytes
    return shards


def write_safetensors(
    path: Path,
    tensors: Mapping[str, tuple[Shape, np.dtype]],
    read: Callable[[str], np.ndarray],
    threads: int = 1,
) -> None:
    """Write one safetensors file, `threads` tensors at a time; the arguments are those of `write_files`."""
    # The safetensors library writes from a dict of all tensors, which would be a second copy of a model whose layout
    # differs. The format: the header's length in 8 bytes, the header in JSON padded to 8, the tensors' bytes.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    names = sorted(tensors, key=lambda name: (-tensors[name][1].itemsize, name))  # keeps every tensor aligned
    for name in names:
        shape, dtype = tensors[name]
        begin, end = end, end + _num_bytes(shape, dtype)
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write_tensor(name: str) -> None:
        shape, dtype = tensors[name]
        array = np.asarray(read(name))
        if array.shape != shape:
            raise CheckpointError(f"{name} has the shape {array.shape}; expected {shape}.")
        with open(path, "r+b") as file:
            file.seek(8 + len(text) + header[name]["data_offsets"][0])
            array = np.atleast_1d(array)
            for rows in blocks(array):
                file.write(in_order(array[rows], dtype).reshape(-1).view(np.uint8).data)

    with writing(path), ThreadPoolExecutor(threads) as pool:
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        deque((pool.map if threads > 1 else map)(write_tensor, names), 0)  # raises what they raise
