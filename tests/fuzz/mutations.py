"""What is done to inputs: bytes anywhere, members of zip archives, and values of JSON; all from a seeded generator."""

from __future__ import annotations

import io
import json
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

_NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
_MOST = 2**20


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to four changes, most of them at the two ends, where headers and directories are."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        size = len(changed)
        if not size:
            break
        reach = min(size, rng.choice((64, 1024, 8192, size)))
        place = rng.randrange(reach) if rng.random() < 0.6 else size - 1 - rng.randrange(reach)
        match rng.randrange(8):
            case 0:
                changed[place] ^= 1 << rng.randrange(8)
            case 1:
                changed[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2 | 3:
                width = rng.choice((1, 2, 4, 8))
                number = rng.choice(_NUMBERS) % 256**width
                changed[place : place + width] = number.to_bytes(width, rng.choice(("little", "big")))
            case 4:
                del changed[place : place + rng.choice((1, 4, 100))]
            case 5:
                changed[place:place] = changed[place : place + rng.choice((1, 8, 300))]
            case 6:
                other = rng.randrange(size)
                changed[place : place + 16] = changed[other : other + 16]
            case _:
                if rng.random() < 0.3:
                    del changed[place:]
                else:
                    changed[place:place] = rng.randbytes(rng.choice((1, 4, 50)))
    return bytes(changed)


def _members(data: bytes) -> list[tuple[zipfile.ZipInfo, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(info, archive.read(info)) for info in archive.infolist()]


def _packed(members: list[tuple[str, bytes, int]]) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as archive:
        warnings.filterwarnings("ignore", "Duplicate name")
        for name, content, kind in members:
            archive.writestr(zipfile.ZipInfo(name), content, kind)
    return stream.getvalue()


def mutate_zip_members(data: bytes, rng: random.Random) -> bytes:
    """What is in a member changes, and its checksum with it: the damage is not found by the archive."""
    members, kind = _members(data), rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    small = [i for i, (info, _) in enumerate(members) if info.filename.endswith((".pkl", ".json", "byteorder"))]
    target = rng.choice(small) if small and rng.random() < 0.8 else rng.randrange(len(members))
    packed = []
    for i, (info, content) in enumerate(members):
        content = mutate_bytes(content, rng) if i == target else content
        packed.append((info.filename, content, kind if rng.random() < 0.5 else zipfile.ZIP_STORED))
    return _packed(packed)


def mutate_zip_structure(data: bytes, rng: random.Random) -> bytes:
    """Members are packed again, change places, are lost, doubled or renamed."""
    packed = [(info.filename, content, rng.choice((0, 8))) for info, content in _members(data)]
    a, b = rng.randrange(len(packed)), rng.randrange(len(packed))
    match rng.randrange(6):
        case 0:
            rng.shuffle(packed)
        case 1:
            del packed[a]
        case 2:
            packed.append(packed[a])
        case 3:
            packed[a] = (packed[b][0], *packed[a][1:])
        case 4:
            packed[a], packed[b] = (packed[a][0], *packed[b][1:]), (packed[b][0], *packed[a][1:])
        case _:
            packed[a] = (rng.choice(("", "../x", "a" * 300, "\x1b[31m", "ü/x")), *packed[a][1:])
    return _packed(packed)


_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 10**8, 10**400, -(10**400), 0.5, 1e308, float("inf"), float("-inf"), float("nan"),
    "", "x", "768", "gelu", "\ud800", "\x1b[31mred", "\u202e", "n" * 300, [], [1, 2], [[]], {}, {"a": 1}, {"0": "a"},
    [None], ["x"] * 50, {"": {}},
)  # fmt: skip


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """One to three values of a JSON text change kind, are lost, doubled or buried; now and then the text itself."""
    if rng.random() < 0.1:
        return mutate_bytes(data, rng)
    root = [json.loads(data)]
    for _ in range(rng.choice((1, 1, 2, 3))):
        places: list[tuple[Any, Any]] = []

        def visit(node: Any, places: list[tuple[Any, Any]] = places) -> None:
            keys = node.keys() if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
            for key in list(keys):
                places.append((node, key))
                visit(node[key])

        visit(root)
        near = [place for place in places if len(places) < 40 or rng.random() < 0.5] or places
        node, key = rng.choice(near)
        match rng.randrange(8):
            case 0:
                del node[key]
                if not root:
                    root = [None]
            case 1:
                node[key] = [node[key]]
            case 2:
                node[key] = {"0": node[key]}
            case 3 if isinstance(node, dict):
                node[rng.choice(("x", "\ud800", "n" * 300, "model_type", "num_labels", "architecture"))] = node[key]
            case 4 if isinstance(node[key], int | float):
                node[key] = rng.choice((-node[key], node[key] * 2, node[key] + 1, node[key] // 2, repr(node[key])))
            case _:
                node[key] = json.loads(json.dumps(rng.choice(_VALUES)))
    return json.dumps(root[0]).encode()


def mutate_zip_json(data: bytes, rng: random.Random) -> bytes:
    """The values of an archive's config.json."""
    return _packed([
        (info.filename, mutate_json(content, rng) if info.filename == "config.json" else content, 0)
        for info, content in _members(data)
    ])  # fmt: skip


def mutate_header(data: bytes, rng: random.Random) -> bytes:
    """The values of the JSON before the tensors of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    header = mutate_json(data[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bytes": mutate_bytes,
    "zip members": mutate_zip_members,
    "zip structure": mutate_zip_structure,
    "json": mutate_json,
    "zip json": mutate_zip_json,
    "header": mutate_header,
}


# === Inputs that are made to hurt, one a kind ===


def bomb(kind: str) -> bytes:
    """A file of less than 1 MB that would fill the memory, or take for ever.

    Args:
        kind: of `BOMBS`.
    """
    return BOMBS[kind]()


def _zip(name: str, content: bytes, others: dict[str, bytes] | None = None) -> bytes:
    return _packed([(name, content, 8), *((n, c, 8) for n, c in (others or {}).items())])


def _npy(header: bytes, version: int = 2) -> bytes:
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<I", len(header)) + header


def _safetensors(header: Any, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _msgpack_nested(depth: int) -> bytes:
    return b"\x81\xa1a" * depth + b"\xc0"


def _tensor_pickle(shape: tuple[int, ...], strides: tuple[int, ...], names: int = 1) -> bytes:
    def integer(value: int) -> bytes:
        data = value.to_bytes(9, "little", signed=True)
        return b"\x8a\x09" + data

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + b"ctorch\nFloatStorage\n" + text("0")
        + text("cpu") + integer(4) + b"tQ" + integer(0) + b"(" + b"".join(map(integer, shape)) + b"t("
        + b"".join(map(integer, strides)) + b"t\x89}tR"
    )  # fmt: skip
    items = b"".join(text(f"blocks.{i}.norm1.weight") + tensor for i in range(names))
    return b"\x80\x02}(" + items + b"u."


def _torch(pickle: bytes) -> bytes:
    return _packed([("x/data.pkl", pickle, 8), ("x/byteorder", b"little", 0), ("x/data/0", bytes(16), 0)])


def _h5(kind: str) -> bytes:
    import h5py
    import numpy as np

    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        if kind == "never stored":
            file.create_dataset("vit/x", (10**5, 10**5), "f4", chunks=(1000, 1000))
        elif kind == "many chunks":
            file.create_dataset("vit/x", (10**4, 10**4), "f4", chunks=(1, 1))[0, 0] = 1
        elif kind == "one huge chunk":
            file.create_dataset("vit/x", (2, 2), "f4", chunks=(2, 2), maxshape=(None, None), compression="gzip")
            file["vit/x"][:] = 1
            file.create_dataset("vit/y", (29000, 29000), "f4", chunks=(29000, 29000), compression="gzip")
            file["vit/y"].id.write_direct_chunk((0, 0), __import__("zlib").compress(bytes(10**6)))
        elif kind == "links":
            group = file.create_group("g0")
            group["x"] = np.zeros(3)
            for i in range(1, 40):
                above = file.create_group(f"g{i}")
                above["a"], above["b"] = file[f"g{i - 1}"], file[f"g{i - 1}"]
        elif kind == "cycle":
            inner = file.create_group("a/b")
            inner["c"] = file["a"]
        elif kind == "deep":
            node = file
            for _ in range(300):
                node = node.create_group("g" * 20)
        else:
            file.create_dataset("vit/x", (3, 10**8), "f4", compression="gzip")[:, :1000] = 1
    return stream.getvalue()


def _dicts(level: bytes, times: int) -> bytes:
    """A pickle of dicts that hold each one below them twice."""
    memo = b"".join(b"}q" + bytes([i]) + b"(X\x01\0\0\0ah" + bytes([i - 1]) + b"X\x01\0\0\0bh" + bytes([i - 1]) + b"u0"
                    for i in range(1, times))  # fmt: skip
    return b"\x80\x02" + level + b"q\x000" + memo + b"h" + bytes([times - 1]) + b"."


BOMBS: dict[str, Callable[[], bytes]] = {
    "zip of zeros": lambda: _zip("x/data.pkl", bytes(500 * _MOST)),
    "npz, a header of 4 GB": lambda: _packed([("x.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(200 * _MOST), 8)]),
    "npz, an array of zeros": lambda: _packed(
        [("cls.npy", _npy(b"{'descr':'<f4','fortran_order':False,'shape':(1,1,60000000)}\n") + bytes(240 * _MOST), 8)]
    ),
    "npz, a shape of brackets": lambda: _packed([("x.npy", _npy(b"(" * 9000), 0)]),
    "npz, a shape of 10**400": lambda: _packed(
        [("x.npy", _npy(b"{'descr':'<f4','fortran_order':False,'shape':(" + b"9" * 400 + b",)}\n"), 0)]
    ),
    "safetensors, a header of 2**60": lambda: (2**60).to_bytes(8, "little") + b"{" + bytes(100),
    "safetensors, layer 10**10": lambda: _safetensors(
        {f"blocks.{'9' * n}.norm1.weight": {"dtype": "F32", "shape": [1], "data_offsets": [4 * n - 4, 4 * n]}
         for n in range(1, 13)} | {"blocks.0.norm1.weight": {"dtype": "F32", "shape": [1], "data_offsets": [48, 52]},
                                   "cls_token": {"dtype": "F32", "shape": [1], "data_offsets": [52, 56]}}, bytes(56)),
    "safetensors, many names": lambda: _safetensors(
        {f"{i:x}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(15_000)}),
    "safetensors, deep": lambda: (100_016).to_bytes(8, "little") + b'{"a":' + b"[" * 100_000 + bytes(11),
    "msgpack, deep": lambda: _msgpack_nested(100_000),
    "msgpack, bytes of 4 GB": lambda: b"\x81\xa1a\xc6\xff\xff\xff\xff" + bytes(100),
    "msgpack, a list of 4 G": lambda: b"\x81\xa1a\xdd\xff\xff\xff\xff" + bytes(900_000),
    "msgpack, an extension of 4 GB": lambda: b"\x81\xa1a\xc9\xff\xff\xff\xff\x01" + bytes(100),
    "msgpack, many empty arrays": lambda: b"\xdf\x00\x00\xaf\xc8" + b"".join(
        b"\xa5" + b"%05d" % i + b"\xc7\x0d\x01\x93\x91\x00\xa7float32\xc4\x00" for i in range(45_000)),
    "msgpack, long names": lambda: b"\x81\xda\xff\xff" + b"k" * 65535 + b"\xdf\x00\x00\x40\x00" + b"".join(
        b"\xa5" + b"%05d" % i + b"\xc0" for i in range(16384)),
    "torch, dicts of dicts": lambda: _torch(_dicts(b"}X\x01\0\0\0xK\x01s", 60)),
    "torch, empty dicts of dicts": lambda: _torch(_dicts(b"}", 60)),
    "torch, a bytearray": lambda: _torch(b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x09\x85R."),
    "torch, an expanded tensor": lambda: _torch(_tensor_pickle((10**6, 10**6), (0, 0))),
    "torch, many expanded tensors": lambda: _torch(_tensor_pickle((10**4, 10**3), (0, 1), 2000)),
    "torch, a head for 10**8": lambda: _torch(_tensor_pickle((6 * 10**7,), (0,))),
    "torch, lists": lambda: _torch(b"\x80\x02" + b"]" * 10**6 + b"."),
    "torch, many lists": lambda: _torch(b"\x80\x02" + b"]" * 60 * 10**6 + b"."),
    "torch, tuples": lambda: _torch(b"\x80\x02)" + b"\x85" * 10**6 + b"."),
    "torch, memos": lambda: _torch(b"\x80\x02Nr\xff\xff\xff\xff."),
    "keras, a configuration of zeros": lambda: _zip("config.json", bytes(100 * _MOST), {"model.weights.h5": b""}),
    "h5, never stored": lambda: _h5("never stored"),
    "h5, many chunks": lambda: _h5("many chunks"),
    "h5, one huge chunk": lambda: _h5("one huge chunk"),
    "h5, hard links": lambda: _h5("links"),
    "h5, a group in itself": lambda: _h5("cycle"),
    "h5, deep": lambda: _h5("deep"),
    "h5, compressed": lambda: _h5("compressed"),
}  # fmt: skip
