"""A checkpoint folder, opened without its data and checked, then read one tensor at a time."""

from __future__ import annotations

import json
import math
import mmap
import os
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from .. import budgets, torchfile
from ..config import PreTrainedConfig, config_in
from ..errors import CheckpointError, NoStateDictError, quoted, shown, summary
from ..files import CONFIG, INDEX, TORCH_INDEX, TORCH_WEIGHTS, WEIGHTS, other_kind, read_json
from ..folders import Find, at_one_moment
from ..torchfile import Special, TorchFile
from ..weights import Shape

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
_INT64 = np.dtype(np.int64)


def dtype_of(dtype: Any) -> np.dtype:
    """The NumPy dtype of a name or of any framework's dtype.

    Raises:
        CheckpointError: not one that parameters can have.
    """
    name = (dtype if isinstance(dtype, str) else str(getattr(dtype, "name", dtype))).removeprefix("torch.")
    for known in DTYPES.values():
        if name == known.name or dtype is known.type:
            return known
    with suppress(TypeError, ValueError, SyntaxError):  # NumPy parses some strings
        if dtype is not None and (found := np.dtype(dtype)) in CODES:  # jax.numpy.float32 and the like
            return found
    expected = ", ".join(known.name for known in DTYPES.values())
    raise CheckpointError(f"dtype is {quoted(name)}; expected one of {expected}.")


class Tensor(NamedTuple):
    """Where a stored tensor lies: its file, the byte at which it begins, its dtype and shape."""

    file: Path
    offset: int
    dtype: np.dtype
    shape: Shape


def read_header(path: Path, buffers: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Args:
        path: the file.
        buffers: how the names end of tensors that may be int64.

    Raises:
        CheckpointError: the file is truncated, or not what its name says.
    """
    from safetensors import SafetensorError, safe_open

    try:
        budgets.open_file(path).close()  # a pipe would be waited for
        with safe_open(path, framework="np"), open(path, "rb") as file:  # safe_open checks the header and the size
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError) as error:
        reason = (
            f"{shown(path)} is not a whole safetensors file ({shown(error)}); write or download it again."
            f"{'' if isinstance(error, OSError) else other_kind(path, 'a safetensors')}"
        )
        raise CheckpointError(reason) from None
    header.pop("__metadata__", None)
    tensors = {}
    for name, info in header.items():
        dtype = _INT64 if info["dtype"] == "I64" and name.endswith(buffers) else DTYPES.get(info["dtype"])
        if dtype is None:
            raise CheckpointError(f"{path}: {name} has the dtype {info['dtype']}; expected one of {', '.join(DTYPES)}.")
        offset = 8 + length + info["data_offsets"][0]
        tensors[name] = Tensor(path, offset, dtype, tuple(info["shape"]))
    return tensors


class Checkpoint:
    """An open checkpoint folder: its configuration, and its tensors, read one at a time.

    Args:
        folder: holds config.json and safetensors files, or pytorch_model.bin files, of which nothing is unpickled.
        config: its configuration, where there is no config.json.

    Attributes:
        said: how it is read, where not as it is.

    Raises:
        CheckpointError: a file is missing, truncated, or not what its name says.
        ConfigError: impossible values in config.json.
    """

    said: str | None = None

    def __init__(self, folder: str | os.PathLike[str], config: PreTrainedConfig | None = None) -> None:
        self.folder = Path(folder)
        at_one_moment(self.folder, lambda find: self._open(find, config))

    def _open(self, find: Find, given: PreTrainedConfig | None) -> None:
        found = find(CONFIG)
        self.config = given if given and not found else config_in(found or self.folder / CONFIG)
        self.tensors: dict[str, Tensor] = {}
        self.pages: dict[Path, mmap.mmap] = {}  # safetensors file -> what is mapped of it
        self.buffers: dict[str, Tensor] = {}  # integers beside the parameters: `config.buffers`
        self.pickled: dict[str, Callable[[], np.ndarray]] = {}  # name -> how to read it, of pytorch_model.bin
        safetensors, pickles = (WEIGHTS, INDEX, self._map_safetensors), (TORCH_WEIGHTS, TORCH_INDEX, self._read_torch)
        for name, index, read in (safetensors, pickles):
            if (path := find(name)) is not None:
                read(path)
            elif (path := find(index)) is not None:
                self._read_shards(path, find, read)
            else:
                continue
            for stored in [each for each, tensor in self.tensors.items() if tensor.dtype == _INT64]:
                self.buffers[stored] = self.tensors.pop(stored)
            return
        raise CheckpointError(
            f"{self.folder} has no {WEIGHTS}, {INDEX} or {TORCH_WEIGHTS}: there are no weights to load."
        )

    def _read_shards(self, index: Path, find: Find, read: Callable[[Path], None]) -> None:
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise CheckpointError(f"{index} has no weight_map of tensor names to files; write or download it again.")
        for file in sorted(set(weight_map.values())):
            if file != Path(file).name:
                raise CheckpointError(
                    f"{index} names the shard {quoted(file)}; expected a file name in the same folder."
                )
            path = find(file) if file else None
            if path is None:
                raise CheckpointError(
                    f"{self.folder} lacks the shard {shown(file)} that {index.name} names; copy it there."
                )
            read(path)
        found = {name: tensor.file.name for name, tensor in self.tensors.items()}
        if lost := sorted(name for name, file in weight_map.items() if found.get(name) != file):
            raise CheckpointError(f"{index} names tensors that are not in the shards it gives: {summary(lost)}.")

    def _map_safetensors(self, path: Path) -> None:
        self.tensors.update(read_header(path, self.config.buffers))
        with budgets.open_file(path) as file:
            # The file that was opened stays the one that is read, whatever takes its place.
            self.pages[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def _read_torch(self, path: Path) -> None:
        try:
            file = TorchFile(path)
            odd = [f"{name}, an object of {what}" for name, what in file.others.items() if "." in what]
            if odd and not any("/" in name for name in file.tensors):  # beside the tensors: no wrapper of a state dict
                raise CheckpointError(summary(odd))
        except Exception as error:  # zip archives and pickles each raise their own
            raise CheckpointError(
                f"{shown(path)} is damaged or holds more than tensors ({shown(error)}), and nothing else is "
                "unpickled. Download it again, or save its state dict as model.safetensors."
                f"{other_kind(path, 'a zip', 'a PyTorch')}"
            ) from None
        if not file.is_state_dict:
            raise NoStateDictError(f"{shown(path)} holds something else than a state dict of names and dense tensors.")
        sizes = 0
        for name, tensor in file.tensors.items():
            assert not isinstance(tensor, Special)
            try:
                is_buffer = tensor.dtype == _INT64 and name.endswith(self.config.buffers)
                self.tensors[name] = Tensor(path, 0, _INT64 if is_buffer else dtype_of(tensor.dtype), tensor.shape)
                sizes += file.check(tensor)
            except ValueError as error:
                raise CheckpointError(f"{shown(path)}: {shown(name)}: {error}") from None
            self.pickled[name] = partial(_read_stored, file, tensor)
        budgets.check_total(path, sizes, path.stat().st_size)

    def read(self, name: str) -> np.ndarray:
        """A stored tensor, mapped to its file until it is changed: in memory only while it is used."""
        file, offset, dtype, shape = self.tensors[name] if name in self.tensors else self.buffers[name]
        if name in self.pickled:
            try:
                array = self.pickled[name]()
                return array if array.flags.writeable else array.copy()
            except (EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
                raise CheckpointError(f"{shown(file)}: {shown(name)} cannot be read: {shown(error)}.") from None
        if 0 in shape:
            return np.empty(shape, dtype)
        pages, count = self.pages[file], math.prod(shape)
        if pages.size() < offset + count * dtype.itemsize:
            raise CheckpointError(f"{file} ends before {name}: it was changed while it was being read.")
        return np.frombuffer(pages, dtype, count, offset).reshape(shape)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the stored parameters; the widest, where they differ."""
        dtypes = (tensor.dtype for tensor in self.tensors.values())
        return max(dtypes, key=lambda dtype: (dtype.itemsize, dtype.str), default=DTYPES["F32"])


def _read_stored(file: TorchFile, tensor: torchfile.Tensor) -> np.ndarray:
    """A tensor of a PyTorch file, mapped until it is changed where it lies there as it is."""
    offset = file.place(tensor)
    if offset is None or 0 in tensor.shape:
        return file.read(tensor)
    return np.asarray(np.memmap(file.path, tensor.dtype, mode="c", offset=offset, shape=tensor.shape or (1,))).reshape(
        tensor.shape
    )
