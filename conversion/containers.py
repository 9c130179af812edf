"""The kinds of files that checkpoints come in: each opened without its data, read and written one tensor at a time.

A reader gives a `Store`: names, shapes, dtypes, and how to get one tensor. A writer takes {name: (shape, dtype)} and a
function that gives one array. What names mean is `rules.py`'s; nothing here knows of Vision Transformers.
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import IO, Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from vit import budgets
from vit.archives import Member, mapped, members
from vit.checkpoint import in_order, read_header, read_json, write_safetensors
from vit.errors import CheckpointError, MissingFrameworkError, install_line, quoted, shown
from vit.files import other_kind
from vit.folders import Find
from vit.torchfile import Special, TorchFile
from vit.weights import Shape

Specs = Mapping[str, tuple[Shape, np.dtype]]
Read = Callable[[str], np.ndarray]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Stored(NamedTuple):
    """A tensor of a file.

    Args:
        shape: its shape.
        dtype: its dtype.
        load: how to get it, or some of its rows.
        again: how to get it by other means than `load`, for the comparison; None where a library is what reads it.
        cost: bytes that reading it takes, where it is more than it has.
    """

    shape: Shape
    dtype: np.dtype
    load: Callable[[slice | None], np.ndarray]
    again: Callable[[], np.ndarray] | None = None
    cost: int = 0


@dataclass
class Store:
    """An opened file: its tensors by name, and what else it holds (name -> why it is left out)."""

    path: Path
    kind: str
    tensors: dict[str, Stored] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] | None = None  # what a .keras file says about its model

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """A tensor, or the `rows` of it along its first axis."""
        shape, dtype, load, *_ = self.tensors[name]
        part = shape if rows is None else (rows.stop - rows.start, *shape[1:])
        return self._loaded(name, part, dtype, partial(load, rows))

    def read_again(self, name: str) -> np.ndarray:
        """A tensor by other means than `read`, where there are: what a comparison takes for right."""
        tensor = self.tensors[name]
        return self._loaded(name, tensor.shape, tensor.dtype, tensor.again or partial(tensor.load, None))

    def _loaded(self, name: str, shape: Shape, dtype: np.dtype, load: Callable[[], np.ndarray]) -> np.ndarray:
        place = f"{shown(self.path)}: {shown(name)}"
        try:
            array = load()
        except Exception as error:  # every container's library has its own
            raise CheckpointError(f"{place} cannot be read ({shown(error)}); download it again.") from None
        if array.shape != shape or array.dtype != dtype:
            raise CheckpointError(f"{place} was changed while it was being read.")
        return array

    def check(self, size: int) -> Store:
        """This store, after comparing what it announces with the `size` of its files (`vit.budgets`)."""
        where = shown(self.path)
        if len(self.tensors) + len(self.others) > budgets.TENSORS:
            raise CheckpointError(f"{where} holds more than {budgets.TENSORS:,} tensors and values.")
        for name, tensor in self.tensors.items():
            check_name(self.path, name)
            if len(tensor.shape) > budgets.AXES:
                raise CheckpointError(f"{where}: {shown(name)} has {len(tensor.shape)} axes; expected a parameter.")
            if not tensor.dtype.isnative:
                self.tensors[name] = _native(tensor)
        total = sum(max(t.cost, math.prod(t.shape) * t.dtype.itemsize) for t in self.tensors.values())
        budgets.check_total(self.path, total, size)
        return self


def _native(tensor: Stored) -> Stored:
    """A tensor whose bytes are swapped, in this machine's order."""
    dtype, load, again = tensor.dtype.newbyteorder("="), tensor.load, tensor.again
    return tensor._replace(
        dtype=dtype,
        load=lambda rows: load(rows).astype(dtype),
        again=None if again is None else lambda: again().astype(dtype),
    )


def check_name(path: Path, name: str) -> str:
    """A tensor's name, if it is of a length that names have."""
    if len(name) > budgets.NAME:
        raise CheckpointError(f"{shown(path)} holds a name of more than {budgets.NAME:,} characters: {shown(name)}.")
    return name


def summary(names: Iterable[str], most: int = 8) -> str:
    """The first `most` names, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + rest


def _damaged(path: Path, what: str, error: object) -> CheckpointError:
    return CheckpointError(f"{shown(path)} is no whole {what} file ({shown(error)}); download or write it again.")


@contextmanager
def parsing(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a damaged file makes of its parser into one error; those that already say it well pass."""
    try:
        yield
    except (CheckpointError, ImportError):
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{shown(path)} does not exist.") from None
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise _damaged(path, what, reason) from None


def _raw(path: Path, offset: int, dtype: np.dtype, shape: Shape) -> Stored:
    """A tensor whose bytes lie together in a file, at `offset`."""

    def load(rows: slice | None) -> np.ndarray:
        if rows is None:
            return mapped(path, offset, dtype, shape)
        begin = rows.start * math.prod(shape[1:]) * dtype.itemsize
        return mapped(path, offset + begin, dtype, (rows.stop - rows.start, *shape[1:]))

    return Stored(shape, dtype, load)


def _rows(get: Callable[[], Any]) -> Callable[[slice | None], np.ndarray]:
    """The loader of a tensor that comes whole."""
    return lambda rows: np.asarray(get()) if rows is None else np.asarray(get()[rows])


# === safetensors ===


def read_safetensors(path: Path) -> Store:
    """A .safetensors file."""
    budgets.open_file(path).close()

    def again(name: str) -> np.ndarray:
        from safetensors import safe_open

        with safe_open(path, framework="np") as file:
            return file.get_tensor(name)

    return Store(path, "safetensors", {
        name: _raw(path, t.offset, t.dtype, t.shape)._replace(again=partial(again, name))
        for name, t in read_header(path, ("relative_position_index",)).items()
    })  # fmt: skip


# === NumPy .npz ===

_PARSING = Lock()
"""Held while a header is evaluated: Python 3.11 counts the depth of its parsers in one place for all threads."""
_NPY_HEADER = 10_000  # what NumPy itself reads of a header, at most


def read_npz(path: Path) -> Store:
    """An .npz file; object arrays, which are pickles, are refused."""
    store = Store(path, "npz")
    with parsing(path, ".npz"):
        places = members(path)
        with budgets.open_file(path) as file, zipfile.ZipFile(file) as archive:
            for full_name, place in places.items():
                name = check_name(path, full_name.removesuffix(".npy"))
                with archive.open(full_name) as member:
                    header, shape, fortran, dtype = _npy_header(member)
                if dtype.hasobject:
                    raise CheckpointError(
                        f"{shown(path)}: {shown(name)} is a pickled object; only arrays of numbers are read."
                    )
                if dtype.kind == "V" and dtype.itemsize == 2:  # what NumPy makes of bfloat16
                    dtype = BFLOAT16
                expected = len(header) + math.prod(shape) * dtype.itemsize
                if place.size != expected:
                    raise CheckpointError(
                        f"{shown(path)}: {shown(name)} holds {place.size} bytes; its header says {shown(expected, 30)}."
                    )
                if name in store.tensors:
                    raise CheckpointError(f"{shown(path)}: two arrays have the name {shown(name)}.")
                store.tensors[name] = _npz_member(path, full_name, place, header, dtype, shape, fortran)
    return store


def _npy_header(member: IO[bytes]) -> tuple[bytes, Shape, bool, np.dtype]:
    """The bytes of an array's header, and the shape, order and dtype that it tells."""
    lib = np.lib.format
    magic = member.read(8)
    version = lib.read_magic(io.BytesIO(magic))
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"an array is of the version {version}")
    width = 2 if version == (1, 0) else 4
    length = member.read(width)
    if int.from_bytes(length, "little") > _NPY_HEADER:
        raise ValueError(f"the header of an array has {int.from_bytes(length, 'little'):,} bytes")
    rest = length + member.read(int.from_bytes(length, "little"))
    read = lib.read_array_header_1_0 if version == (1, 0) else lib.read_array_header_2_0
    shape, fortran, dtype = read(io.BytesIO(rest))
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError("an array has no shape")
    return magic + rest, shape, fortran, dtype


def _npz_member(
    path: Path, name: str, place: Member, header: bytes, dtype: np.dtype, shape: Shape, fortran: bool
) -> Stored:
    def again() -> np.ndarray:
        with zipfile.ZipFile(path) as archive, archive.open(name) as member:
            with _PARSING:
                _npy_header(member)
            return np.frombuffer(member.read(), dtype).reshape(shape, order="F" if fortran else "C")

    if place.offset is None or fortran or not shape:
        return Stored(shape, dtype, _rows(again), again)
    # Stored as it is: read where it lies. The checksum is that of the whole member, its header first.
    inner, crc = _raw(path, place.offset + len(header), dtype, shape), zlib.crc32(header)
    checked: list[bool] = []

    def load_raw(rows: slice | None) -> np.ndarray:
        array = inner.load(rows)
        if rows is None and not checked:
            if zlib.crc32(array.reshape(-1).view(np.uint8).data, crc) != place.crc:
                raise EOFError("its checksum is another: the file is damaged")
            checked.append(True)
        return array

    return Stored(shape, dtype, load_raw, again)


def write_npz(path: Path, tensors: Specs, read: Read) -> None:
    """An .npz file, uncompressed as `numpy.savez` writes it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name in tensors:
            array = _checked(name, tensors, read)
            if array.dtype == BFLOAT16:
                array = array.view("V2")
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _checked(name: str, tensors: Specs, read: Read) -> np.ndarray:
    shape, dtype = tensors[name]
    array = in_order(read(name), dtype)
    if array.shape != shape:
        raise CheckpointError(f"{name} has the shape {array.shape}; expected {shape}.")
    return array


# === PyTorch pickles ===


def read_torch(path: Path) -> Store:
    """A .pth, .pt or .bin file, of which nothing is unpickled; nested dicts give names with slashes."""
    with parsing(path, "PyTorch"):
        file = TorchFile(path)
    store = Store(path, "torch")
    store.others = {name: f"a value of the training ({shown(kind)}), no tensor" for name, kind in file.others.items()}
    for name, tensor in file.tensors.items():
        if isinstance(tensor, Special):
            raise CheckpointError(
                f"{shown(path)}: {shown(name)} is {tensor.what}; expected a dense tensor (none that is sparse or "
                "quantised)."
            )
        with parsing(path, "PyTorch"):
            cost = file.check(tensor)
        store.tensors[name] = Stored(
            tensor.shape, tensor.dtype, partial(file.read, tensor), partial(file.read_again, tensor), cost
        )
    return store


def write_torch(path: Path, tensors: Specs, read: Read) -> None:
    """A .pth or .bin state dict; its data come from a file beside it, so that one tensor at a time is in memory."""
    try:
        import torch
    except ModuleNotFoundError:
        raise MissingFrameworkError(
            f"Writing {shown(path.name)} needs PyTorch. Name the target .safetensors, or install it with: "
            f"{install_line('pt')}"
        ) from None
    beside = path.with_name(path.name + ".data")
    write_safetensors(beside, tensors, read)
    state = {}
    for name, t in read_header(beside).items():
        bits = np.memmap(beside, f"i{t.dtype.itemsize}", "c", t.offset, t.shape or (1,)).reshape(t.shape)
        state[name] = torch.from_numpy(bits).view(getattr(torch, t.dtype.name))
    torch.save({name: state[name] for name in tensors}, path)
    beside.unlink()


# === HDF5 ===


def _h5py() -> Any:
    try:
        import h5py
    except ModuleNotFoundError:
        raise MissingFrameworkError(
            f"HDF5 files (.h5, .keras) are read and written by h5py. Install it with: {install_line('convert')}"
        ) from None
    return h5py


def read_h5(path: Path, file: Any = None, kind: str = "h5") -> Store:
    """An HDF5 file (or one inside another, `file`): its datasets of numbers, each under one name, none elsewhere."""
    h5py = _h5py()
    store = Store(path, kind)
    seen: set[int] = set()
    chunks = 0
    with parsing(path, "HDF5"):
        budgets.open_file(path).close()
        size = path.stat().st_size
        root = h5py.File(file or path, "r")

    def refuse(name: str, why: str) -> CheckpointError:
        return CheckpointError(f"{shown(path)}: {shown(name)} {why}; only data in the file are read.")

    def visit(group: Any, prefix: str, depth: int) -> None:
        nonlocal chunks
        if depth > budgets.DEPTH:
            raise refuse(prefix, f"lies deeper than {budgets.DEPTH} groups")
        for key in group:
            name = check_name(path, prefix + key)
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise refuse(name, "is a link out of its place")
            item = group[key]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:  # also how groups come to hold themselves, or grow without end
                raise refuse(name, "is a second name of the same data")
            seen.add(address)
            if len(seen) > budgets.TENSORS:
                raise CheckpointError(f"{shown(path)} holds more than {budgets.TENSORS:,} groups and datasets.")
            if isinstance(item, h5py.Group):
                visit(item, name + "/", depth + 1)
            elif not isinstance(item, h5py.Dataset) or not _is_numbers(item):
                store.others[name] = "no array of numbers"
            elif item.external or item.is_virtual:
                raise refuse(name, "lies in another file")
            elif item.nbytes and not item.id.get_storage_size():
                raise refuse(name, "has no data")
            else:
                if item.chunks:
                    chunks += math.prod(
                        -(-length // chunk) for length, chunk in zip(item.shape, item.chunks, strict=True)
                    )
                    budgets.check_total(path, math.prod(item.chunks) * item.dtype.itemsize, size)
                if chunks > budgets.CHUNKS:
                    raise CheckpointError(f"{shown(path)} holds its data in more than {budgets.CHUNKS:,} pieces.")
                dtype = BFLOAT16 if item.dtype.kind == "V" else item.dtype
                store.tensors[name] = Stored(item.shape, dtype, _h5_loader(item, dtype))

    with parsing(path, "HDF5"):
        visit(root, "", 0)
    return store


def _is_numbers(dataset: Any) -> bool:
    dtype = dataset.dtype
    plain = dtype.fields is None and dtype.subdtype is None and not dtype.hasobject and dataset.shape is not None
    return plain and (dtype.kind in "fiubc" or (dtype.kind == "V" and dtype.itemsize == 2))


def _h5_loader(dataset: Any, dtype: np.dtype) -> Callable[[slice | None], np.ndarray]:
    return lambda rows: np.asarray(dataset[() if rows is None else rows]).view(dtype)


@contextmanager
def writing_h5(path: Path) -> Iterator[Any]:
    """A new HDF5 file. Its errors come as OSError at the end: HDF5 itself cannot close a file on a full disk."""
    sink = _Sink(path)
    with sink, _h5py().File(sink, "w") as file:
        yield file
    if sink.error is not None:
        raise sink.error


class _Sink(io.FileIO):
    """A file that keeps its first error for later, and lets what follows pass."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if self.error is None:
            try:
                done = 0
                while done < size:
                    done += super().write(memoryview(data).cast("B")[done:])
            except OSError as error:
                self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size) if self.error is None else size or 0
        except OSError as error:
            self.error = error
            return size or 0


def write_h5_dataset(group: Any, name: str, array: np.ndarray) -> None:
    """One array in an HDF5 group."""
    group.create_dataset(name, data=array.view("V2") if array.dtype == BFLOAT16 else array)


class Window(io.RawIOBase):
    """A member of an uncompressed zip file as a file of its own."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self.file, self.offset, self.size, self.position = open(path, "rb"), offset, size, 0  # noqa: SIM115

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        self.position = base + offset
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: Any) -> int:
        self.file.seek(self.offset + self.position)
        length = max(0, min(len(buffer), self.size - self.position))
        count = self.file.readinto(memoryview(buffer)[:length])
        self.position += count
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


# === Flax msgpack ===
# Maps whose leaves are extension 1: an array of shape, dtype name and bytes, little-endian (flax.serialization).

_NDARRAY = 1
_CHUNK = 2**30  # flax splits arrays above


class _Msgpack:
    """A reader of the parts of msgpack that checkpoints use, which passes over the data of tensors."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size
        self.count = self.depth = 0

    def take(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise EOFError("it ends in the middle of a value")
        return self.file.read(count)

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "big")

    def value(self) -> Any:
        """The next value; an array of numbers as a `_Leaf`, other extensions as None."""
        self.count += 1
        if self.count > 20 * budgets.TENSORS:
            raise ValueError(f"it holds more than {20 * budgets.TENSORS:,} values")
        tag = self.take(1)[0]
        if tag < 0x80:
            return tag
        if tag < 0x90 or tag in (0xDE, 0xDF):
            return self.pairs(tag & 0x0F if tag < 0x90 else self.number(2 if tag == 0xDE else 4))
        if tag < 0xA0 or tag in (0xDC, 0xDD):
            return self.items(tag & 0x0F if tag < 0xA0 else self.number(2 if tag == 0xDC else 4))
        if tag < 0xC0 or 0xD9 <= tag <= 0xDB:
            return self.take(tag & 0x1F if tag < 0xC0 else self.number(1 << tag - 0xD9)).decode()
        if 0xC4 <= tag <= 0xC6:
            return self.take(self.number(1 << tag - 0xC4))
        if 0xC7 <= tag <= 0xC9 or 0xD4 <= tag <= 0xD8:
            length = self.number(1 << tag - 0xC7) if tag <= 0xC9 else 1 << tag - 0xD4
            return self.extension(length)
        if 0xCC <= tag <= 0xCF:
            return self.number(1 << tag - 0xCC)
        if 0xD0 <= tag <= 0xD3:
            return int.from_bytes(self.take(1 << tag - 0xD0), "big", signed=True)
        if tag in (0xCA, 0xCB):
            return struct.unpack(">f" if tag == 0xCA else ">d", self.take(4 if tag == 0xCA else 8))[0]
        if tag >= 0xE0:
            return tag - 0x100
        return {0xC0: None, 0xC2: False, 0xC3: True}[tag]

    @contextmanager
    def deeper(self) -> Iterator[None]:
        self.depth += 1
        if self.depth > budgets.DEPTH:
            raise ValueError(f"its values lie deeper than {budgets.DEPTH} in each other")
        yield
        self.depth -= 1

    def items(self, count: int) -> list[Any]:
        with self.deeper():
            return [self.value() for _ in range(count)]

    def pairs(self, count: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        with self.deeper():
            for _ in range(count):
                key = self.value()
                if not isinstance(key, str):
                    raise ValueError("a map has keys that are no names")
                if key in values:
                    raise ValueError(f"two values fight for the name {shown(key)}")
                values[key] = self.value()
        return values

    def extension(self, length: int) -> Any:
        code, begin = self.number(1), self.file.tell()
        if length > self.size - begin:
            raise EOFError(f"it has {self.size} bytes and needs {begin + length}")
        if code != _NDARRAY:
            self.file.seek(begin + length)
            return None
        if self.take(1)[0] != 0x93:
            raise ValueError("an array has no shape, dtype and data")
        shape, name, tag = self.value(), self.value(), self.take(1)[0]
        size = self.number(1 << tag - 0xC4) if 0xC4 <= tag <= 0xC6 else -1
        offset = self.file.tell()
        if not _is_shape(shape) or not isinstance(name, str) or name not in _NUMBERS:
            raise ValueError(f"an array has the shape {quoted(shape, 60)} and dtype {quoted(name, 60)}")
        dtype = BFLOAT16 if name in ("bfloat16", "V2") else np.dtype(name)
        if offset + size != begin + length or size != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"an array of {size} bytes says it has the shape {quoted(shape, 60)} and dtype {name}")
        self.file.seek(begin + length)
        return _Leaf(offset, dtype, tuple(shape))


_NUMBERS = ("float16", "float32", "float64", "bfloat16", "V2", "int8", "int16", "int32", "int64", "uint8", "uint16",
            "uint32", "uint64", "bool", "complex64", "complex128")  # fmt: skip


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= budgets.AXES
        and all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in value)
    )


class _Leaf(NamedTuple):
    offset: int
    dtype: np.dtype
    shape: Shape


def read_msgpack(path: Path) -> Store:
    """A .msgpack file of flax.serialization; nested dicts give names with slashes."""
    store = Store(path, "msgpack")

    def visit(values: Mapping[str, Any], prefix: str) -> None:
        for key, value in values.items():
            name = check_name(path, f"{prefix}{key}")
            if name in store.tensors or name in store.others:
                raise ValueError(f"two values fight for the name {shown(name)}")
            if isinstance(value, _Leaf):
                store.tensors[name] = _raw(path, *value)
            elif isinstance(value, dict) and "__msgpack_chunked_array__" in value:
                store.tensors[name] = _chunked(path, value)
            elif isinstance(value, dict):
                visit(value, name + "/")
            else:
                store.others[name] = f"a value of the training ({type(value).__name__}), no tensor"

    with parsing(path, "Flax msgpack"), budgets.open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = _Msgpack(file, size).value()
        if file.tell() != size:
            raise EOFError(f"it has {size} bytes and needs {file.tell()}")
        if not isinstance(content, dict):
            raise ValueError("it holds no dict")
        visit(content, "")
    return store


def _chunked(path: Path, value: Mapping[str, Any]) -> Stored:
    """An array that flax split: its pieces and its shape, in dicts that count from "0"."""
    pieces, sizes = ([value[key][str(i)] for i in range(len(value[key]))] for key in ("chunks", "shape"))
    if not pieces or not all(isinstance(piece, _Leaf) for piece in pieces) or not _is_shape(sizes):
        raise ValueError("an array in pieces has none, or no shape")
    dtype, count = pieces[0].dtype, sum(math.prod(piece.shape) for piece in pieces)
    if any(piece.dtype != dtype for piece in pieces) or count != math.prod(sizes):
        raise ValueError(f"the pieces of an array, {count} numbers, are not those of the shape {sizes}")
    return Stored(tuple(sizes), dtype, _joined([_raw(path, *piece) for piece in pieces], tuple(sizes)))


def _joined(parts: list[Stored], shape: Shape) -> Callable[[slice | None], np.ndarray]:
    return _rows(lambda: np.concatenate([part.load(None).reshape(-1) for part in parts]).reshape(shape))


def write_msgpack(path: Path, tensors: Specs, read: Read) -> None:
    """A .msgpack file as flax.serialization writes it."""
    tree: dict[str, Any] = {}
    for name in tensors:
        node = tree
        *parents, leaf = name.split("/")
        for part in parents:
            node = node.setdefault(part, {})
        node[leaf] = name

    def text(value: str) -> bytes:
        data = value.encode()
        return (bytes([0xA0 | len(data)]) if len(data) < 32 else b"\xd9" + bytes([len(data)])) + data

    def integer(value: int) -> bytes:
        return bytes([value]) if value < 128 else b"\xce" + value.to_bytes(4, "big")

    def mapping(count: int) -> bytes:
        return bytes([0x80 | count]) if count < 16 else b"\xde" + count.to_bytes(2, "big")

    def array(file: BinaryIO, values: np.ndarray) -> None:
        head = b"\x93" + bytes([0x90 | values.ndim]) + b"".join(map(integer, values.shape)) + text(values.dtype.name)
        head += b"\xc6" + values.nbytes.to_bytes(4, "big")
        file.write(b"\xc9" + (len(head) + values.nbytes).to_bytes(4, "big") + bytes([_NDARRAY]) + head)
        file.write(values.reshape(-1).view(np.uint8).data)

    def visit(file: BinaryIO, node: dict[str, Any]) -> None:
        file.write(mapping(len(node)))
        for key in sorted(node):
            file.write(text(key))
            if isinstance(node[key], dict):
                visit(file, node[key])
                continue
            values = _checked(node[key], tensors, read)
            if values.nbytes <= _CHUNK:
                array(file, values)
                continue
            step = _CHUNK // values.itemsize
            chunks = [values.reshape(-1)[i : i + step] for i in range(0, values.size, step)]
            file.write(mapping(3) + text("__msgpack_chunked_array__") + b"\xc3" + text("shape") + mapping(values.ndim))
            file.write(b"".join(text(str(i)) + integer(size) for i, size in enumerate(values.shape)))
            file.write(text("chunks") + mapping(len(chunks)))
            for i, chunk in enumerate(chunks):
                file.write(text(str(i)))
                array(file, chunk)

    with open(path, "wb") as file:
        visit(file, tree)


# === Finding out ===


def kind_of(path: Path) -> str:
    """The container that a file is, from its first bytes: never from its name.

    Raises:
        CheckpointError: none that checkpoints come in.
    """
    with budgets.open_file(path) as file:
        head = file.read(16)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "h5"
    if head.startswith(b"PK"):
        with parsing(path, "zip (.npz, .pth, .keras)"), zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if "model.weights.h5" in names:
            return "keras"
        return "torch" if any(name.endswith("/data.pkl") for name in names) else "npz"
    if len(head) > 8 and head[8:9] == b"{":
        return "safetensors"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05" and head[1:]:
        return "torch"
    key = (
        {0xDE: head[3:4], 0xDF: head[5:6]}.get(head[0], head[1:2] if 0x81 <= head[0] <= 0x8F else b"") if head else b""
    )
    if key and (0xA0 <= key[0] <= 0xBF or key[0] == 0xD9):  # a map whose first key is a string
        return "msgpack"
    is_export = path.suffix in (".onnx", ".tflite", ".stablehlo")
    what = " By its name it is an export: 'vit serve' and vit.exporting.load run it." if is_export else " Is it whole?"
    raise CheckpointError(
        f"{shown(path)} is no checkpoint that is known: it is neither safetensors, .npz, a PyTorch file, HDF5, "
        f".keras nor Flax msgpack.{other_kind(path, 'a safetensors') or what}"
    )


KINDS: dict[str, Callable[[Path], Store]] = {
    "safetensors": read_safetensors,
    "npz": read_npz,
    "torch": read_torch,
    "h5": read_h5,
    "msgpack": read_msgpack,
}
"""Container -> its reader; formats add those that only they use."""


def read_file(path: Path) -> Store:
    """Open a file of any kind, and compare what it announces with its size."""
    try:
        return KINDS[kind_of(path)](path).check(path.stat().st_size)
    except FileNotFoundError:
        raise CheckpointError(f"{shown(path)} does not exist.") from None
    except OSError as error:
        raise CheckpointError(f"{shown(path)} cannot be read: {error.strerror or error}.") from None


def read_shards(index: Path, find: Find) -> Store:
    """The files that an index names, as one; `find` tells where they lie."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map of tensor names to files; write or download it again.")
    merged: Store | None = None
    for file in sorted(set(weight_map.values())):
        if file != Path(file).name:
            raise CheckpointError(f"{index} names the shard {quoted(file)}; expected a file name in the same folder.")
        path = find(file) if file else None
        if path is None:
            raise CheckpointError(
                f"{index.parent} lacks the shard {shown(file)} that {index.name} names; copy it there."
            )
        shard = read_file(path)
        merged = merged or Store(index, shard.kind)
        if twice := sorted(merged.tensors.keys() & shard.tensors.keys()):
            raise CheckpointError(f"{index}: two shards hold {summary(twice)}; keep one of each.")
        merged.tensors |= shard.tensors
        merged.others |= shard.others
    if merged is None:
        raise CheckpointError(f"{index} names no shard; write or download it again.")
    # transformers' index of .h5 files names the model before each name, its shards do not.
    held = {
        *merged.tensors,
        *(name for name in weight_map if merged.kind == "h5" and name.partition("/")[2] in merged.tensors),
    }
    if lost := sorted(weight_map.keys() - held):
        raise CheckpointError(f"{index} names tensors that its shards do not hold: {summary(lost)}.")
    return merged


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """A JSON file."""
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
