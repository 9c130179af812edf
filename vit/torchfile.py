"""PyTorch's files (.pth, .pt, .bin) without PyTorch and without unpickling: names, shapes, and where the data lie.

The pickle in such a file is a program. Here it is interpreted by a machine that knows dicts, lists, numbers, strings
and tensors, and calls nothing: what another name stands for, as trainings keep much beside their tensors, stays that
name. Both formats are read, the zip archive (since PyTorch 1.6) and the sequence of pickles before it. The format is
that of `torch.save` (torch/serialization.py).
"""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from . import budgets
from .archives import Member, check_crc, mapped, members, read_member
from .errors import CheckpointError, quoted, shown
from .weights import Shape

_MAGIC = 0x1950A86A20F9469CFC6C
_MOST = 64 * budgets.MB

_DTYPES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
    "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool",
    "ComplexFloat": "complex64", "ComplexDouble": "complex128",
}  # fmt: skip
_NAMES = (*_DTYPES.values(), "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2")


def _numpy_dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


class Value(NamedTuple):
    """What the file holds beside tensors: a name that stands for it."""

    what: str
    dtype: np.dtype | None = None  # of a storage class, or of a dtype


class Storage(NamedTuple):
    """The memory that tensors look at: its key in the file, its dtype (None: bytes), and how many elements it has."""

    key: str
    dtype: np.dtype | None
    length: int


class Tensor(NamedTuple):
    """A tensor: the storage that it looks at, from which element, and how; or why it cannot be read."""

    storage: Storage
    dtype: np.dtype
    first: int
    shape: Shape
    strides: Shape  # in elements

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements lie together in their order."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True


class Special(NamedTuple):
    """A tensor that is not plain numbers."""

    what: str


class TorchFile:
    """An opened file of `torch.save`.

    Args:
        path: of the file.

    Attributes:
        tensors: name -> `Tensor`, or `Special`; nested dicts give names with slashes.
        others: name -> what it is, of values that are no tensors.
        is_state_dict: whether it holds names and dense tensors, and nothing else.

    Raises:
        CheckpointError: it holds more than tensors, or is out of proportion.
        Exception: a damaged file, whatever its pieces raise.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.tensors, self.others = path, dict[str, Tensor | Special](), dict[str, str]()
        self._members: dict[str, Member] = {}  # of a zip archive: storage -> where it lies
        self._offsets: dict[str, int] = {}  # of the older format
        self._swapped = False
        self._visited = 0
        self._checked: set[str] = set()
        with budgets.open_file(path) as file:
            zipped = file.read(4) == b"PK\x03\x04"
        content = self._open_zip() if zipped else self._open_legacy()
        if isinstance(content, Value):
            raise CheckpointError(
                f"{shown(path)} holds an object of {shown(content.what)}, and nothing but tensors is unpickled. Save "
                "its state dict: torch.save(model.state_dict(), ...), or model.save_pretrained(...)."
            )
        self.is_state_dict = isinstance(content, dict) and all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
        )
        for name, value in self._flatten(content):
            if name in self.tensors or name in self.others:
                raise CheckpointError(f"{shown(path)}: two values fight for the name {shown(name)}.")
            if isinstance(value, Tensor | Special):
                self.tensors[name] = value
            else:
                self.others[name] = value.what if isinstance(value, Value) else type(value).__name__

    # === Opening ===

    def _open_zip(self) -> Any:
        found = members(self.path)
        pickles = [name for name in found if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"it has {len(pickles)} members data.pkl; expected one")
        folder = pickles[0].removesuffix("data.pkl")
        if folder + "constants.pkl" in found:
            raise CheckpointError(f"{shown(self.path)} is a TorchScript program; save its state dict.")
        order = read_member(self.path, folder + "byteorder") if folder + "byteorder" in found else b"little"
        if order not in (b"little", b"big"):
            raise ValueError("its byte order is neither little nor big")
        self._swapped = order == b"big"
        size = found[pickles[0]].size
        if size > min(_MOST, budgets.PICKLE + self.path.stat().st_size):
            raise CheckpointError(f"{shown(self.path)} has {size:,} bytes of names and values, out of proportion.")
        content = _Machine(io.BytesIO(read_member(self.path, pickles[0])), size, self.path).run()
        prefix = folder + "data/"
        self._members = {name.removeprefix(prefix): each for name, each in found.items() if name.startswith(prefix)}
        return content

    def _open_legacy(self) -> Any:
        with budgets.open_file(self.path) as file:
            size = os.fstat(file.fileno()).st_size
            machine = _Machine(file, min(size, _MOST), self.path)
            if machine.run() != _MAGIC or machine.run() != 1001:
                raise ValueError("it does not begin as PyTorch's files do")
            system = machine.run()
            if not isinstance(system, dict) or system.get("little_endian") is not True:
                raise ValueError("it was written on a big-endian machine")
            content = machine.run()
            keys = machine.run()
            storages = machine.storages
            if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
                raise ValueError("its storages are not those that its tensors name")
            for key in map(str, keys):
                dtype = storages[key].dtype or np.dtype(np.uint8)
                head = file.read(8)
                if len(head) < 8 or int.from_bytes(head, "little", signed=True) != storages[key].length:
                    raise ValueError("a storage has another size than its tensors say")
                self._offsets[key] = file.tell()
                file.seek(storages[key].length * dtype.itemsize, os.SEEK_CUR)
            if file.tell() > size:
                raise EOFError("it ends in the middle of a tensor")
        return content

    def _flatten(self, content: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
        """(name, value) of what nested dicts hold; limited, since a dict may hold another many times."""
        self._visited += 1
        if self._visited > budgets.TENSORS:
            raise CheckpointError(f"{shown(self.path)} holds more than {budgets.TENSORS:,} tensors and values.")
        if not isinstance(content, dict):
            yield prefix.removesuffix("/"), content
            return
        if depth > budgets.DEPTH:
            raise CheckpointError(f"{shown(self.path)} holds dicts deeper than {budgets.DEPTH} in each other.")
        for key, value in content.items():
            name = key if isinstance(key, str) else quoted(key)
            if len(prefix) + len(name) > budgets.NAME:
                raise CheckpointError(f"{shown(self.path)} holds a name of more than {budgets.NAME:,} characters.")
            yield from self._flatten(value, f"{prefix}{name}/", depth + 1)

    # === Tensors ===

    def place(self, tensor: Tensor) -> int | None:
        """The byte at which a tensor's elements lie in their order, after comparing checksums; None if they do not.

        Raises:
            ValueError, EOFError: damaged.
        """
        offset = self._storage_offset(tensor.storage)
        if offset is None or self._swapped or not tensor.is_contiguous:
            return None
        return offset + tensor.first * tensor.dtype.itemsize

    def _storage_offset(self, storage: Storage) -> int | None:
        if storage.key in self._offsets:
            return self._offsets[storage.key]
        member = self._member(storage)
        if member.offset is not None and storage.key not in self._checked:
            check_crc(self.path, member)
            self._checked.add(storage.key)
        return member.offset

    def _member(self, storage: Storage) -> Member:
        size = storage.length * (1 if storage.dtype is None else storage.dtype.itemsize)
        member = self._members.get(storage.key)
        if member is None or member.size != size:
            held = "nothing" if member is None else f"{member.size} bytes"
            raise ValueError(f"its storage holds {held}; expected {size} bytes")
        return member

    def check(self, tensor: Tensor) -> int:
        """The bytes that reading a tensor takes, after checking that its storage is there.

        Raises:
            ValueError: it is not, or has another size.
        """
        size = math.prod(tensor.shape) * tensor.dtype.itemsize
        if tensor.storage.key not in self._offsets and self._member(tensor.storage).offset is None:
            size = max(size, self._member(tensor.storage).size)  # decompressed as a whole
        return size

    def read(self, tensor: Tensor, rows: slice | None = None) -> np.ndarray:
        """A tensor, or the `rows` of it along its first axis: mapped to the file where it lies there as it is."""
        offset = self.place(tensor)
        if offset is None:
            return self._view(tensor, self._storage(tensor))[... if rows is None else rows]
        shape = tensor.shape
        if rows is not None:
            offset += rows.start * math.prod(shape[1:]) * tensor.dtype.itemsize
            shape = (rows.stop - rows.start, *shape[1:])
        return mapped(self.path, offset, tensor.dtype, shape)

    def read_again(self, tensor: Tensor) -> np.ndarray:
        """A tensor by another way: its whole storage through the zipfile library, or by reading the older file."""
        if tensor.storage.key in self._offsets:
            size = tensor.storage.length * (tensor.storage.dtype or np.dtype(np.uint8)).itemsize
            with budgets.open_file(self.path) as file:
                file.seek(self._offsets[tensor.storage.key])
                data = file.read(size)
        else:
            data = read_member(self.path, self._member(tensor.storage).name)
        return self._view(tensor, np.frombuffer(data, np.uint8))

    def _storage(self, tensor: Tensor) -> np.ndarray:
        """The bytes of a storage."""
        size = tensor.storage.length * (tensor.storage.dtype or np.dtype(np.uint8)).itemsize
        if (offset := self._storage_offset(tensor.storage)) is not None:
            return mapped(self.path, offset, np.dtype(np.uint8), (size,))
        return np.frombuffer(read_member(self.path, self._member(tensor.storage).name), np.uint8)

    def _view(self, tensor: Tensor, storage: np.ndarray) -> np.ndarray:
        """A tensor of the bytes of its storage; `_Machine` has checked that it lies within them."""
        if not math.prod(tensor.shape):
            return np.empty(tensor.shape, tensor.dtype)
        values = storage[: len(storage) // tensor.dtype.itemsize * tensor.dtype.itemsize].view(tensor.dtype)
        if self._swapped:
            values = values.byteswap()
        strides = [stride * tensor.dtype.itemsize for stride in tensor.strides]
        items = values.view(f"V{tensor.dtype.itemsize}")  # as_strided does not know ml_dtypes' types
        view = np.lib.stride_tricks.as_strided(items[tensor.first :], tensor.shape, strides, writeable=False)
        return view.view(tensor.dtype)


# === The machine ===


class _Machine:
    """Runs the opcodes that `torch.save` writes (pickle protocol 2), building plain values only."""

    def __init__(self, file: BinaryIO, size: int, path: Path) -> None:
        self.file, self.left, self.path = file, size, path
        self.storages: dict[str, Storage] = {}

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise EOFError("it ends in the middle of a value")
        self.left -= count
        data = self.file.read(count)
        if len(data) != count:
            raise EOFError("it ends in the middle of a value")
        return data

    def line(self) -> str:
        data = self.file.readline(min(self.left, 1000))
        self.left -= len(data)
        return data[:-1].decode()

    def number(self, format: str) -> Any:
        return struct.unpack(format, self.take(struct.calcsize(format)))[0]

    def run(self) -> Any:
        """The value of one pickle."""
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}

        def since_mark() -> list[Any]:
            begin = marks.pop()
            items = stack[begin:]
            del stack[begin:]
            return items

        while True:
            match op := self.take(1):
                case b"\x80":  # PROTO
                    if self.take(1)[0] > 3:
                        raise ValueError("its pickles are of another protocol than torch.save's")
                case b".":  # STOP
                    if len(stack) != 1 or marks:
                        raise ValueError("its pickle ends in the middle")
                    return stack.pop()
                case b"(":
                    marks.append(len(stack))
                case b"}":
                    stack.append({})
                case b"]":
                    stack.append([])
                case b")":
                    stack.append(())
                case b"\x8f":  # EMPTY_SET
                    stack.append(Value("set"))
                case b"\x90":  # ADDITEMS
                    since_mark()
                case b"t":
                    stack.append(tuple(since_mark()))
                case b"\x85" | b"\x86" | b"\x87":  # TUPLE1, TUPLE2, TUPLE3
                    size = op[0] - 0x84
                    items = stack[-size:]
                    if len(items) != size:
                        raise ValueError("its pickle takes more than there is")
                    stack[-size:] = [tuple(items)]
                case b"a":
                    item = stack.pop()
                    self._append(stack[-1], [item])
                case b"e":
                    items = since_mark()
                    self._append(stack[-1], items)
                case b"s":
                    value, key = stack.pop(), stack.pop()
                    self._set(stack[-1], [key, value])
                case b"u":
                    items = since_mark()
                    self._set(stack[-1], items)
                case b"N":
                    stack.append(None)
                case b"\x88" | b"\x89":
                    stack.append(op == b"\x88")
                case b"J":
                    stack.append(self.number("<i"))
                case b"K":
                    stack.append(self.number("<B"))
                case b"M":
                    stack.append(self.number("<H"))
                case b"\x8a":  # LONG1
                    stack.append(int.from_bytes(self.take(self.number("<B")), "little", signed=True))
                case b"G":
                    stack.append(self.number(">d"))
                case b"X":
                    stack.append(self.take(self.number("<I")).decode("utf-8", "surrogatepass"))
                case b"U":  # SHORT_BINSTRING, of Python 2
                    stack.append(self.take(self.number("<B")).decode("latin-1"))
                case b"T":  # BINSTRING, of Python 2
                    stack.append(self.take(self.number("<I")).decode("latin-1"))
                case b"B" | b"C":  # bytes of protocol 3
                    stack.append(Value(f"bytes of {len(self.take(self.number('<I' if op == b'B' else '<B')))}"))
                case b"h":
                    stack.append(memo[self.number("<B")])
                case b"j":
                    stack.append(memo[self.number("<I")])
                case b"q":
                    memo[self.number("<B")] = stack[-1]
                case b"r":
                    memo[self.number("<I")] = stack[-1]
                case b"c":
                    stack.append(self._global(self.line(), self.line()))
                case b"R" | b"\x81":  # REDUCE, NEWOBJ
                    arguments, function = stack.pop(), stack.pop()
                    stack.append(self._call(function, arguments))
                case b"b":  # BUILD: attributes, which nothing here has
                    stack.pop()
                    if not isinstance(stack[-1], dict | Value | Tensor | Special):
                        raise ValueError("its pickle gives attributes to a plain value")
                case b"Q":
                    stack.append(self._storage(stack.pop()))
                case _:
                    raise ValueError(f"its pickle has the opcode {op!r}, which torch.save does not write")

    def _append(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, Value):
            return
        if not isinstance(target, list):
            raise ValueError("its pickle appends to something else than a list")
        target.extend(items)

    def _set(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, Value):
            return
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("its pickle stores into something else than a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int | float | bool | None | tuple):  # a Value is a tuple
                raise ValueError("a dict has keys that are no names")
            target[key] = value

    # === What stands for names ===

    def _global(self, module: str, name: str) -> Value:
        full = f"{module}.{name}".replace("__builtin__.", "builtins.")
        kind = name.removesuffix("Storage").removeprefix("Untyped").removeprefix("Typed")
        if module in ("torch", "torch.cuda", "torch.storage") and name.endswith("Storage") and kind in {"", *_DTYPES}:
            return Value("storage", _numpy_dtype(_DTYPES[kind]) if kind else None)
        if module == "torch" and name in _NAMES:
            return Value("dtype", _numpy_dtype(name))
        if name.endswith("Storage"):
            raise CheckpointError(f"{shown(self.path)} holds a {shown(full)}, which has no numbers that are read.")
        return Value(full)  # never imported; what a training made of it is left out

    def _call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Value) or not isinstance(arguments, tuple):
            raise ValueError("its pickle calls something that is no function")
        if function.what in _CALLS:
            return _CALLS[function.what](*arguments)
        if function.what in _SPECIAL:
            return Special(_SPECIAL[function.what])
        if function.dtype is not None or function.what in ("storage", "dtype"):
            raise ValueError("its pickle calls something that is no function")
        return Value(_INERT.get(function.what, function.what))

    def _storage(self, identity: Any) -> Storage:
        if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
            raise ValueError("it holds something else than tensors and their storages")
        _, kind, key, _, count, *view = identity
        if not isinstance(kind, Value) or kind.what != "storage" or not isinstance(key, str | int):
            raise ValueError("a storage has no kind and key")
        if any(part is not None for part in view):
            raise ValueError("a storage is part of another, as PyTorch before 0.4 wrote them")
        if not _is_size(count):
            raise ValueError("a storage has no size")
        storage = Storage(str(key), kind.dtype, count)
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError("two tensors disagree about their storage")
        return storage


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _sizes(values: Any) -> Shape:
    if not isinstance(values, tuple) or len(values) > budgets.AXES or not all(map(_is_size, values)):
        raise ValueError("a tensor has no shape")
    return values


def _tensor(storage: Any, first: Any, shape: Any, strides: Any, dtype: np.dtype | None = None) -> Tensor:
    if not isinstance(storage, Storage) or not _is_size(first):
        raise ValueError("a tensor has no storage")
    dtype = dtype or storage.dtype
    if dtype is None:
        raise ValueError("a tensor has no dtype")
    shape, strides = _sizes(shape), _sizes(strides)
    if len(shape) != len(strides):
        raise ValueError("a tensor has another number of strides than of axes")
    span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) if all(shape) else 0
    held = storage.length * (1 if storage.dtype is None else storage.dtype.itemsize)
    if span and (first + span) * dtype.itemsize > held:
        raise ValueError("a tensor reaches beyond its storage")
    return Tensor(storage, dtype, first, shape, strides)


def _tensor_v2(storage: Any, first: Any, shape: Any, strides: Any, _grad: Any = None, _hooks: Any = None,
               metadata: Any = None) -> Tensor | Special:  # fmt: skip
    # Conjugated and negated views keep that in a dict beside their numbers.
    return Special("a lazily conjugated or negated view") if metadata else _tensor(storage, first, shape, strides)


def _tensor_v3(storage: Any, first: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any,
               metadata: Any = None) -> Tensor | Special:  # fmt: skip
    if not isinstance(dtype, Value) or dtype.what != "dtype":
        raise ValueError("a tensor has no dtype")
    whole = _tensor(storage, first, shape, strides, dtype.dtype)
    return Special("a lazily conjugated or negated view") if metadata else whole


def _parameter(data: Any, *_rest: Any) -> Any:
    if not isinstance(data, Tensor | Special):
        raise ValueError("a parameter is no tensor")
    return data


def _from_type(function: Any, kind: Any, arguments: Any, _state: Any) -> Any:
    if not isinstance(kind, Value) or kind.what not in ("torch.Tensor", "torch.nn.parameter.Parameter"):
        return Special("a tensor of a class of its own")
    if not isinstance(function, Value) or function.what not in _CALLS or not isinstance(arguments, tuple):
        raise ValueError("a tensor is made of no tensor")
    return _CALLS[function.what](*arguments)


def _pairs(items: Any = ()) -> dict[Any, Any]:
    if not isinstance(items, list | tuple) or not all(isinstance(i, list | tuple) and len(i) == 2 for i in items):
        raise ValueError("a dict is made of no pairs")
    result: dict[Any, Any] = {}
    for key, value in items:
        if not isinstance(key, str | int):
            raise ValueError("a dict has keys that are no names")
        result[key] = value
    return result


def _size(items: Any = ()) -> Any:
    return _sizes(tuple(items) if isinstance(items, list) else items)


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _pairs,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
}
_SPECIAL = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor on the meta device, without data",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of a class of its own",
    "torch._utils._rebuild_device_tensor_from_numpy": "a tensor of another device",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
}
_INERT = {  # values that trainings keep beside their tensors; they are named, and nothing is made of them
    "argparse.Namespace": "Namespace", "collections.Counter": "Counter", "collections.defaultdict": "defaultdict",
    "_codecs.encode": "bytes", "builtins.bytearray": "bytearray", "builtins.bytes": "bytes",
    "builtins.set": "set", "builtins.complex": "complex",
    "torch.device": "device", "torch.Tensor": "class", "torch.nn.parameter.Parameter": "class",
    "torch.serialization._get_layout": "layout", "torch.per_tensor_affine": "layout",
    "torch.per_channel_affine": "layout",
}  # fmt: skip
