"""Files of any structure that their own libraries write are read as those libraries read them."""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import h5py
import msgpack
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from conversion import containers
from conversion.containers import Store
from vit.errors import CheckpointError
from vit.torchfile import TorchFile

from .readers import Arrays, differences, h5py_load, msgpack_load, numpy_load, torch_load

settings.register_profile("fixed", derandomize=True, max_examples=60, deadline=None,
                          suppress_health_check=list(HealthCheck))  # fmt: skip
fixed = settings.get_profile("fixed")

NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8)
NUMBERS = st.sampled_from([np.dtype(kind) for kind in ("f2", "f4", "f8", "i1", "i4", "i8", "u1", "u2", "bool", "c8")])
ARRAYS = hnp.arrays(NUMBERS, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))


def trees(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Dicts of leaves and dicts, as deep as trainings nest them."""
    level = st.dictionaries(NAMES, leaves, max_size=4)
    return st.dictionaries(NAMES, st.one_of(leaves, level, st.dictionaries(NAMES, level, max_size=2)), max_size=5)


def contents(store: Store) -> Arrays:
    for name in store.tensors:
        assert store.read(name).tobytes() == store.read_again(name).tobytes()
    return {name: store.read(name) for name in store.tensors}


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """A tensor that is a view of another: transposed, sliced, expanded, or not."""
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8,
                                  torch.bool, torch.complex64]))  # fmt: skip
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    tensor = torch.arange(int(np.prod(shape, dtype=int))).reshape(shape).to(dtype)
    for axis in range(tensor.ndim):
        start, step = draw(st.integers(0, 2)), draw(st.integers(1, 3))
        tensor = tensor[(slice(None),) * axis + (slice(start, None, step),)]
    if tensor.ndim > 1 and draw(st.booleans()):
        tensor = tensor.transpose(0, -1)
    if draw(st.booleans()) and tensor.ndim < 3:
        tensor = tensor.expand(draw(st.integers(1, 3)), *tensor.shape)
    return torch.nn.Parameter(tensor) if tensor.is_floating_point() and draw(st.booleans()) else tensor


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=300), st.binary(min_size=1, max_size=9),
    st.lists(st.integers(), max_size=3), st.tuples(st.integers(), st.text(max_size=3)),
)  # fmt: skip


@fixed
@given(trees(st.one_of(tensors(), VALUES)), st.sampled_from(["zip", "older", "stored", "deflated"]))
def test_what_torch_saves(content, mode):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.pth"
        torch.save(content, path, _use_new_zipfile_serialization=mode != "older")
        if mode in ("stored", "deflated"):
            with zipfile.ZipFile(path) as old:
                packed = [(name, old.read(name)) for name in old.namelist()]
            kind = zipfile.ZIP_DEFLATED if mode == "deflated" else zipfile.ZIP_STORED
            with zipfile.ZipFile(path, "w", kind) as new:
                for name, data in packed:
                    new.writestr(name, data)
        found = contents(containers.read_torch(path))
        assert not differences(found, torch_load(path))
        plain = {name: kind for name, kind in TorchFile(path).others.items() if "/" not in name}
        assert plain.keys() == {k for k, v in content.items() if not isinstance(v, dict | torch.Tensor)}


@fixed
@given(st.dictionaries(NAMES, ARRAYS, max_size=5), st.booleans(), st.sampled_from(["C", "F", "swapped"]))
def test_what_numpy_saves(arrays, compressed, order):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npz"
        if order == "swapped":
            arrays = {name: array.astype(array.dtype.newbyteorder()) for name, array in arrays.items()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
            for name, array in arrays.items():
                stream = io.BytesIO()
                np.lib.format.write_array(stream, np.asarray(array, order="F" if order == "F" else "C"))
                archive.writestr(f"{name}.npy", stream.getvalue())
        store = containers.read_npz(path).check(path.stat().st_size)
        expected = {n: a.astype(a.dtype.newbyteorder("=")) for n, a in numpy_load(path).items()}
        assert not differences(contents(store), expected)


PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(width=32), st.text(max_size=40),
              st.binary(max_size=40)),
    lambda inner: st.one_of(st.lists(inner, max_size=20), st.dictionaries(st.text(max_size=5), inner, max_size=20)),
    max_leaves=30,
)  # fmt: skip


@fixed
@given(PLAIN, st.booleans())
def test_every_plain_value_of_msgpack(value, single):
    value = [value, 0.1, -3.5, float("inf")] if single else value
    data = msgpack.packb(value, use_single_float=single)
    found = containers._Msgpack(io.BytesIO(data), len(data)).value()
    expected = msgpack.unpackb(data, strict_map_key=False)
    assert repr(found) == repr(expected)  # equal, of the same types, and a NaN where there is one


def extension(array: np.ndarray) -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))


@fixed
@given(trees(st.one_of(ARRAYS, st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=5))))
def test_what_flax_saves(tree):
    def packed(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: packed(value) for key, value in node.items()}
        return extension(node) if isinstance(node, np.ndarray) else node

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.msgpack"
        path.write_bytes(msgpack.packb(packed(tree)))
        store = containers.read_msgpack(path)
        assert not differences(contents(store), msgpack_load(path))
        plain = {name for name, value in tree.items() if not isinstance(value, dict | np.ndarray)}
        assert {name for name in store.others if "/" not in name} == plain


@fixed
@given(trees(ARRAYS.filter(lambda array: array.dtype.kind != "c")), st.integers(8, 100))
def test_what_is_written_for_flax_in_one_piece_or_many(tree, chunk):
    from flax import serialization

    flat: Arrays = {}

    def visit(node: dict[str, Any], prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                visit(value, f"{prefix}{key}/")
            else:
                flat[prefix + key] = value

    visit(tree, "")
    flat = {name: array for name, array in flat.items() if array.ndim}
    with tempfile.TemporaryDirectory() as folder:
        path, whole = Path(folder) / "x.msgpack", containers._CHUNK
        containers._CHUNK = chunk
        try:
            specs = {name: (array.shape, array.dtype) for name, array in flat.items()}
            containers.write_msgpack(path, specs, flat.__getitem__)
        finally:
            containers._CHUNK = whole
        assert not differences(contents(containers.read_msgpack(path)), flat)
        restored = serialization.msgpack_restore(path.read_bytes())
        for name, array in flat.items():
            node = restored
            for part in name.split("/"):
                node = node[part]
            np.testing.assert_array_equal(node, array)
            assert node.dtype == array.dtype


@fixed
@given(trees(ARRAYS.filter(lambda array: array.dtype.kind not in "bc")), st.sampled_from([None, "chunks", "gzip"]))
def test_what_h5py_saves(tree, layout):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.h5"
        with h5py.File(path, "w") as file:

            def visit(group: Any, node: dict[str, Any]) -> None:
                for key, value in node.items():
                    if key in (".", ".."):
                        continue
                    if isinstance(value, dict):
                        visit(group.require_group(key), value)
                    else:
                        split = layout and value.size and value.ndim
                        group.create_dataset(key, data=value, chunks=value.shape if split else None,
                                             compression="gzip" if split and layout == "gzip" else None)  # fmt: skip

            visit(file, tree)
        assert not differences(contents(containers.read_h5(path)), h5py_load(path))


# === The edges of msgpack's short forms, and what is none of flax's ===


def test_lengths_at_the_ends_of_the_short_forms_are_written_for_flax():
    from flax import serialization

    names = [f"{'n' * size}{i}" for size in (30, 31) for i in range(8)]
    shapes = {name: (127 + i % 2, 1) for i, name in enumerate(names)}
    shapes |= {f"{'g' * 200}/{name}": (1,) * 15 for name in names[:15]} | {"é" * 16: (300,), "e": (2,)}
    tree = {name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) for name, shape in shapes.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.msgpack"
        specs = {name: (array.shape, array.dtype) for name, array in tree.items()}
        for count in (15, 16, len(tree)):  # of the first level, at last with a level below
            some = dict(list(tree.items())[:count])
            containers.write_msgpack(path, {name: specs[name] for name in some}, some.__getitem__)
            assert not differences(contents(containers.read_msgpack(path)), some)
            restored = serialization.msgpack_restore(path.read_bytes())
            flat = {name: value for name, value in restored.items() if not isinstance(value, dict)}
            flat |= {f"{key}/{name}": value for key, level in restored.items() if isinstance(level, dict)
                     for name, value in level.items()}  # fmt: skip
            assert not differences(flat, some)


PIECE = extension(np.arange(2, dtype=np.float32))
WHOLE = {"__msgpack_chunked_array__": True, "shape": {"0": 4}, "chunks": {"0": PIECE, "1": PIECE}}


def array(*parts: Any) -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb(parts))


ODD = {
    "an array of two parts": (array([2], "float32"), "no shape, dtype and data"),
    "an array that is a map": (msgpack.ExtType(1, msgpack.packb({"a": 1, "b": 2, "c": 3})), "no shape, dtype and data"),
    "a shape of a fraction": (array([2.0], "float32", bytes(8)), "has the shape"),
    "a shape that is a number": (array(2, "float32", bytes(8)), "has the shape"),
    "a shape of a truth value": (array([True], "float32", bytes(4)), "has the shape"),
    "a shape below 0": (array([-1, -2], "float32", bytes(8)), "has the shape"),
    "a shape of many axes": (array([1] * 33, "float32", bytes(4)), "has the shape"),
    "a dtype that is a number": (array([2], 4, bytes(8)), "and dtype 4"),
    "a dtype of objects": (array([1], "object", bytes(8)), "and dtype 'object'"),
    "data of another size": (array([2], "float32", bytes(12)), "12 bytes says it has the shape"),
    "data that is text": (array([2], "float32", "abcdefgh"), "-1 bytes says it has the shape"),
    "data and more": (array([2], "float32", bytes(8), 0), "no shape, dtype and data"),
    "data and more behind it": (msgpack.ExtType(1, PIECE.data + b"\0"), "says it has the shape"),
    "no pieces": ({**WHOLE, "chunks": {}, "shape": {"0": 0}}, "in pieces has none, or no shape"),
    "a piece that is none": ({**WHOLE, "chunks": {"0": PIECE, "1": 2}}, "in pieces has none, or no shape"),
    "pieces of a shape that is none": ({**WHOLE, "shape": {"0": -4}}, "in pieces has none, or no shape"),
    "pieces of another shape": ({**WHOLE, "shape": {"0": 5}}, "are not those of the shape"),
    "pieces of two dtypes": ({**WHOLE, "chunks": {"0": PIECE, "1": extension(np.zeros(2, np.int32))}}, "not those of"),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_array_of_flax_is_refused(kind, tmp_path):
    value, match = ODD[kind]
    path = tmp_path / "x.msgpack"
    path.write_bytes(msgpack.packb({"fine": PIECE, "odd": value}))
    with pytest.raises(CheckpointError, match=match):
        containers.read_msgpack(path)


def test_other_extensions_are_passed_over_and_the_rest_is_read(tmp_path):
    path, other = tmp_path / "x.msgpack", [msgpack.ExtType(2, bytes(size)) for size in (1, 2, 4, 8, 16, 3, 300, 70000)]
    data = msgpack.packb({"whole": WHOLE, **{str(i): each for i, each in enumerate(other)}, "last": PIECE})
    path.write_bytes(data)
    store = containers.read_msgpack(path)
    assert {name: array.tolist() for name, array in contents(store).items()} == {"whole": [0, 1, 0, 1], "last": [0, 1]}
    assert len(store.others) == len(other)
    for wrong, match in ((data + b"\0", "bytes and needs"), (data[:-1], "needs|middle"), (data[:9], "needs|middle"),
                         (b"\x91" + data, "holds no dict"), (b"\x81\xa1a\xc4\x05ab", "ends in the middle"),
                         (b"\xc1", "0xc1|193|no Flax msgpack|cannot be read"),
                         (b"\x81\x01\x02", "keys that are no names"), (b"\x82\xa1a\x01\xa1a\x02", "fight for the name"),
                         (b"\x82\xa1a\x81\xa1b\x01\xa3a/b\x02", "fight for the name")):  # fmt: skip
        path.write_bytes(wrong)
        with pytest.raises(CheckpointError, match=match):
            containers.read_msgpack(path)
