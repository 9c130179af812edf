"""The kinds of files that checkpoints come in: each opened without its data, read and written one tensor at a time.

A reader gives a `Store`: names, shapes, dtypes, and how to get one tensor. A writer takes {name: (shape, dtype)} and a
function that gives one array. What names mean is `rules.py`'s; nothing here knows of Vision Transformers.
"""

from __future__ import annotations

import io
import json
import math
import mmap
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from vit.checkpoint import in_order, read_header, read_json, write_safetensors
from vit.errors import CheckpointError, MissingFrameworkError
from vit.weights import Shape

Specs = Mapping[str, tuple[Shape, np.dtype]]
Read = Callable[[str], np.ndarray]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Stored(NamedTuple):
    """A tensor of a file: its shape and dtype, and how to get it, or some of its rows."""

    shape: Shape
    dtype: np.dtype
    load: Callable[[slice | None], np.ndarray]


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
        shape, dtype, load = self.tensors[name]
        try:
            array = load(rows)
        except Exception as error:  # every container's library has its own
            raise CheckpointError(f"{self.path}: {name} cannot be read ({error}); download it again.") from None
        expected = shape if rows is None else (rows.stop - rows.start, *shape[1:])
        if array.shape != expected or array.dtype != dtype:
            raise CheckpointError(f"{self.path}: {name} was changed while it was being read.")
        return array


def summary(names: Iterable[str], most: int = 8) -> str:
    """The first `most` names, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _damaged(path: Path, what: str, error: object) -> CheckpointError:
    return CheckpointError(f"{path} is no whole {what} file ({error}); download or write it again.")


@contextmanager
def parsing(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a damaged file makes of its parser into one error; those that already say it well pass."""
    try:
        yield
    except (CheckpointError, ImportError):
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise _damaged(path, what, reason) from None


def _raw(path: Path, offset: int, dtype: np.dtype, shape: Shape) -> Stored:
    """A tensor whose bytes lie together in a file, at `offset`."""

    def load(rows: slice | None) -> np.ndarray:
        begin, count = 0, math.prod(shape)
        if rows is not None:
            row = math.prod(shape[1:])
            begin, count = rows.start * row, (rows.stop - rows.start) * row
        part = shape if rows is None else (rows.stop - rows.start, *shape[1:])
        if not count:
            return np.empty(part, dtype)
        first = offset + begin * dtype.itemsize
        page = first // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        length = first - page + count * dtype.itemsize
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size < page + length:
                raise EOFError("the file ends before it")
            # Mapped: the pages are the file's, and leave with the array.
            pages = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=page)
        return np.frombuffer(pages, dtype, count, first - page).reshape(part)

    return Stored(shape, dtype, load)


def _rows(get: Callable[[], Any]) -> Callable[[slice | None], np.ndarray]:
    """The loader of a tensor that comes whole."""
    return lambda rows: np.asarray(get()) if rows is None else np.asarray(get()[rows])


# === safetensors ===


def read_safetensors(path: Path) -> Store:
    """A .safetensors file."""
    tensors = {name: _raw(path, t.offset, t.dtype, t.shape) for name, t in read_header(path).items()}
    return Store(path, "safetensors", tensors)


# === NumPy .npz ===


def read_npz(path: Path) -> Store:
    """An .npz file; object arrays, which are pickles, are refused."""
    store, lib = Store(path, "npz"), np.lib.format
    with parsing(path, ".npz"), zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            with archive.open(info) as member:
                first = lib.read_magic(member) == (1, 0)
                shape, fortran, dtype = (lib.read_array_header_1_0 if first else lib.read_array_header_2_0)(member)
                begin = member.tell()
            name = info.filename.removesuffix(".npy")
            if dtype.hasobject:
                raise CheckpointError(f"{path}: {name} is a pickled object; only arrays of numbers are read.")
            if dtype.kind == "V" and dtype.itemsize == 2:  # what NumPy makes of bfloat16
                dtype = BFLOAT16
            expected = begin + math.prod(shape) * dtype.itemsize
            if info.file_size != expected:
                raise CheckpointError(f"{path}: {name} holds {info.file_size} bytes; its header says {expected}.")
            store.tensors[name] = _npz_member(path, info, begin, dtype, shape, fortran)
    return store


def _npz_member(path: Path, info: zipfile.ZipInfo, begin: int, dtype: np.dtype, shape: Shape, fortran: bool) -> Stored:
    if info.compress_type != zipfile.ZIP_STORED or fortran or not shape:

        def load() -> np.ndarray:
            with np.load(path, allow_pickle=False) as arrays:
                return arrays[info.filename.removesuffix(".npy")].view(dtype)

        return Stored(shape, dtype, _rows(load))
    # Stored as it is: read where it lies. The checksum is that of the whole member, its header first.
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        name_length, extra_length = struct.unpack("<26xHH", file.read(30))
        offset = info.header_offset + 30 + name_length + extra_length
        file.seek(offset)
        header_crc = zlib.crc32(file.read(begin))

    inner = _raw(path, offset + begin, dtype, shape)
    checked: list[bool] = []

    def load_raw(rows: slice | None) -> np.ndarray:
        array = inner.load(rows)
        if rows is None and not checked:
            if zlib.crc32(array.reshape(-1).view(np.uint8).data, header_crc) != info.CRC:
                raise EOFError("its checksum is another: the file is damaged")
            checked.append(True)
        return array

    return Stored(shape, dtype, load_raw)


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
    """A .pth, .pt or .bin file, unpickled restricted to tensors; nested dicts give names with slashes."""
    try:
        import argparse

        import torch
    except ModuleNotFoundError:
        raise MissingFrameworkError(
            f"{path} is a PyTorch pickle, which only PyTorch reads safely. Install it: pip install 'trivit[pt]'"
        ) from None
    zipped = zipfile.is_zipfile(path)
    try:
        # Training checkpoints hold their command line's Namespace, which holds values and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            # On the meta device PyTorch reads names and shapes alone, and says where each storage lies.
            content = torch.load(path, map_location="meta" if zipped else "cpu", weights_only=True)
            flat = dict(_flatten(content))
            if zipped and any(_offset(value) is None for value in flat.values() if isinstance(value, torch.Tensor)):
                flat = dict(_flatten(torch.load(path, map_location="cpu", weights_only=True, mmap=True)))
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"{found[1]}, which is no tensor" if found else "more than tensors, or is damaged"
        raise CheckpointError(
            f"{path} holds {what}; nothing but tensors is unpickled. Save its state dict alone, or as safetensors."
        ) from None
    except Exception as error:  # zip, pickle and torch each raise their own
        raise _damaged(path, "PyTorch", str(error).splitlines()[0] if str(error) else type(error).__name__) from None
    store = Store(path, "torch")
    for name, value in flat.items():
        if not isinstance(value, torch.Tensor):
            store.others[name] = f"a value of the training ({type(value).__name__}), no tensor"
        elif value.layout is not torch.strided or value.is_quantized:
            raise CheckpointError(f"{path}: {name} is sparse or quantised; expected a dense tensor.")
        else:
            store.tensors[name] = _torch_tensor(path, value.detach())
    return store


def _flatten(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flatten(value, f"{prefix}{key}/")
    else:
        yield prefix.removesuffix("/"), content


def _offset(value: Any) -> int | None:
    """The byte of the file at which a tensor on the meta device begins; None where this PyTorch does not say."""
    begin = getattr(value.untyped_storage(), "_checkpoint_offset", None)
    return None if begin is None else begin + value.storage_offset() * value.element_size()


def _torch_tensor(path: Path, value: Any) -> Stored:
    import torch

    name = str(value.dtype).removeprefix("torch.")
    dtype = BFLOAT16 if name == "bfloat16" else np.dtype(name)
    shape, offset = tuple(value.shape), _offset(value)
    if value.device.type == "meta" and offset is not None:
        if value.is_contiguous():
            return _raw(path, offset, dtype, shape)
        # A transposed or sliced view: the span of its storage, seen through its strides.
        span = 1 + sum((size - 1) * stride for size, stride in zip(shape, value.stride(), strict=True))
        whole, strides = _raw(path, offset, dtype, (span,)), [stride * dtype.itemsize for stride in value.stride()]
        return Stored(shape, dtype, _rows(lambda: np.lib.stride_tricks.as_strided(whole.load(None), shape, strides)))

    def load() -> np.ndarray:
        bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
        return value.contiguous().reshape(-1).view(bits).numpy().view(dtype).reshape(shape)

    return Stored(shape, dtype, _rows(load))


def write_torch(path: Path, tensors: Specs, read: Read) -> None:
    """A .pth or .bin state dict; its data come from a file beside it, so that one tensor at a time is in memory."""
    try:
        import torch
    except ModuleNotFoundError:
        raise MissingFrameworkError(
            f"Writing {path.name} needs PyTorch: pip install 'trivit[pt]'. Or name the target .safetensors."
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
            "HDF5 files (.h5, .keras) are read and written by h5py. Install it: pip install 'trivit[convert]'"
        ) from None
    return h5py


def read_h5(path: Path, file: Any = None, kind: str = "h5") -> Store:
    """An HDF5 file (or one inside another, `file`), without links to other files."""
    h5py = _h5py()
    store = Store(path, kind)
    with parsing(path, "HDF5"):
        root = h5py.File(file or path, "r")

    def visit(group: Any, prefix: str) -> None:
        for key in group:
            name = prefix + key
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise CheckpointError(f"{path}: {name} is a link out of its place; only data in the file are read.")
            item = group[key]
            if isinstance(item, h5py.Group):
                visit(item, name + "/")
            elif item.external or item.is_virtual:
                raise CheckpointError(f"{path}: {name} lies in another file; only data in the file are read.")
            elif item.dtype.kind not in "fVbiu" or item.dtype.hasobject:
                store.others[name] = f"a value of the training ({item.dtype}), no tensor"
            else:
                dtype = BFLOAT16 if item.dtype.kind == "V" and item.dtype.itemsize == 2 else item.dtype
                store.tensors[name] = Stored(item.shape, dtype, _h5_loader(item, dtype))

    with parsing(path, "HDF5"):
        visit(root, "")
    return store


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

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def take(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) != count:
            raise EOFError("it ends in the middle of a value")
        return data

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "big")

    def value(self) -> Any:
        """The next value; an array of numbers as a `Stored`-like (offset, dtype, shape)."""
        tag = self.take(1)[0]
        if tag < 0x80:
            return tag
        if tag < 0x90 or tag in (0xDE, 0xDF):
            count = tag & 0x0F if tag < 0x90 else self.number(2 if tag == 0xDE else 4)
            return self.pairs(count)
        if tag < 0xA0 or tag in (0xDC, 0xDD):
            count = tag & 0x0F if tag < 0xA0 else self.number(2 if tag == 0xDC else 4)
            return [self.value() for _ in range(count)]
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

    def pairs(self, count: int) -> dict[Any, Any]:
        values: dict[Any, Any] = {}
        for _ in range(count):
            key = self.value()
            if key in values:
                raise CheckpointError(f"two values fight for the name {key}")
            values[key] = self.value()
        return values

    def extension(self, length: int) -> Any:
        code, end = self.number(1), self.file.tell() + length
        if code != _NDARRAY:
            self.file.seek(end)
            return None
        if self.take(1)[0] != 0x93:
            raise ValueError("an array has no shape, dtype and data")
        shape, name, tag = tuple(self.value()), self.value(), self.take(1)[0]
        size = self.number(1 << tag - 0xC4)
        offset = self.file.tell()
        dtype = BFLOAT16 if name in ("bfloat16", "V2") else np.dtype(name)
        if offset + size != end or size != math.prod(shape) * dtype.itemsize or dtype.hasobject:
            raise ValueError(f"an array of {size} bytes says it has the shape {shape} and dtype {name}")
        self.file.seek(end)
        return _Leaf(offset, dtype, shape)


class _Leaf(NamedTuple):
    offset: int
    dtype: np.dtype
    shape: Shape


def read_msgpack(path: Path) -> Store:
    """A .msgpack file of flax.serialization; nested dicts give names with slashes."""
    store, size = Store(path, "msgpack"), path.stat().st_size
    with parsing(path, "Flax msgpack"), open(path, "rb") as file:
        content = _Msgpack(file).value()
        if file.tell() != size:  # a skipped last tensor may lie beyond the end
            raise EOFError(f"it has {size} bytes and needs {file.tell()}")
        if not isinstance(content, dict):
            raise ValueError("it holds no dict")

    def visit(values: Mapping[str, Any], prefix: str) -> None:
        for key, value in values.items():
            name = f"{prefix}{key}"
            if isinstance(value, _Leaf):
                store.tensors[name] = _raw(path, *value)
            elif isinstance(value, dict) and "__msgpack_chunked_array__" in value:
                chunks = [value["chunks"][str(i)] for i in range(len(value["chunks"]))]
                shape = tuple(value["shape"][str(i)] for i in range(len(value["shape"])))
                parts = [_raw(path, *chunk) for chunk in chunks]
                store.tensors[name] = Stored(shape, chunks[0].dtype, _joined(parts, shape))
            elif isinstance(value, dict):
                visit(value, name + "/")
            else:
                store.others[name] = f"a value of the training ({type(value).__name__}), no tensor"

    with parsing(path, "Flax msgpack"):
        visit(content, "")
    return store


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
    with open(path, "rb") as file:
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
    raise CheckpointError(
        f"{path} is no checkpoint that is known: it is neither safetensors, .npz, a PyTorch file, HDF5, .keras nor "
        "Flax msgpack. Is it whole?"
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
    """Open a file of any kind."""
    try:
        return KINDS[kind_of(path)](path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from None


def read_shards(index: Path) -> Store:
    """The files that an index names, as one."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map of tensor names to files; write or download it again.")
    merged: Store | None = None
    for file in sorted(set(weight_map.values())):
        if file != Path(file).name:
            raise CheckpointError(f"{index} names the shard {file!r}; expected a file name in the same folder.")
        if not (index.parent / file).is_file():
            raise CheckpointError(f"{index.parent} lacks the shard {file} that {index.name} names; copy it there.")
        shard = read_file(index.parent / file)
        merged = merged or Store(index, shard.kind)
        if twice := sorted(merged.tensors.keys() & shard.tensors.keys()):
            raise CheckpointError(f"{index}: two shards hold {summary(twice)}; keep one of each.")
        merged.tensors |= shard.tensors
        merged.others |= shard.others
    if merged is None:
        raise CheckpointError(f"{index} names no shard; write or download it again.")
    if lost := sorted(weight_map.keys() - merged.tensors.keys()):
        raise CheckpointError(f"{index} names tensors that its shards do not hold: {summary(lost)}.")
    return merged


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """A JSON file."""
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
