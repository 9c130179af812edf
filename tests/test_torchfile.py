"""PyTorch's files read without PyTorch, beside what torch.load makes of them; and the zip archives that they are."""

from __future__ import annotations

import collections
import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import conversion
from vit import archives
from vit.errors import CheckpointError
from vit.torchfile import Special, TorchFile, _Machine

FIXTURES = Path(__file__).parent / "fixtures" / "conversion"


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    """Every tensor that the file holds, read both ways."""
    file, found = TorchFile(path), {}
    for name, tensor in file.tensors.items():
        assert not isinstance(tensor, Special), name
        file.check(tensor)
        found[name] = file.read(tensor)
        assert found[name].tobytes() == file.read_again(tensor).tobytes()
    return found


def flat(content: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    result = {}
    for key, value in content.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, torch.Tensor):
            result[f"{prefix}{key}"] = value
    return result


def assert_as_torch_reads(path: Path) -> None:
    expected, found = flat(torch.load(path, weights_only=True)), tensors_of(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        bits = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert found[name].shape == tuple(tensor.shape), name
        assert found[name].tobytes() == bits, name


def rezip(source: Path, target: Path, mode: str) -> Path:
    """The file as a zip program packs it again: tensors no longer lie where PyTorch would have put them."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            deflate = mode == "deflated" or (mode == "mixed" and info.filename.endswith(("/data/0", "/data/7")))
            kind = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
            if mode == "streamed":  # sizes after the data, and in 64 bits
                with new.open(zipfile.ZipInfo(info.filename), "w", force_zip64=True) as member:
                    member.write(old.read(info))
            elif mode == "commented":
                entry = zipfile.ZipInfo(info.filename)
                entry.extra, entry.comment = struct.pack("<HH5s", 0x9999, 5, b"extra"), b"a comment"
                new.writestr(entry, old.read(info), kind)
            else:
                new.writestr(info.filename, old.read(info), kind)
    if mode == "prefixed":
        target.write_bytes(b"PK\x03\x04" + bytes(100) + target.read_bytes())
    return target


@pytest.mark.parametrize("mode", ["stored", "mixed", "deflated", "streamed", "commented"])
def test_a_file_that_was_zipped_again_gives_the_same_tensors(mode, tmp_path):
    path = rezip(FIXTURES / "dino_backbone.pth", tmp_path / "again.pth", mode)
    assert_as_torch_reads(path)
    conversion.convert(FIXTURES / "dino_backbone.pth", tmp_path / "first", num_attention_heads=4)
    conversion.convert(path, tmp_path / "second", num_attention_heads=4)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second


KINDS: dict[str, Any] = {
    "transposed": lambda: {"x": torch.arange(12.0).reshape(3, 4).T},
    "sliced": lambda: {"x": torch.arange(60.0).reshape(3, 4, 5)[1:, ::2, 1:4], "y": torch.arange(9)[4:]},
    "expanded": lambda: {"x": torch.arange(3.0).expand(4, 3), "y": torch.tensor(2.0).expand(2, 3)},
    "strided with a span that ends with the storage": lambda: {"x": torch.arange(10.0)[1::3]},
    "shared": lambda: (lambda x: {"x": x, "y": x, "z": x[2:]})(torch.arange(5.0)),
    "empty": lambda: {"x": torch.empty(0, 3), "y": torch.empty(3, 0).T, "scalar": torch.tensor(1.5)},
    "dtypes": lambda: {name: torch.arange(4).to(getattr(torch, name)) for name in (
        "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64",
        "complex128", "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2")},
    "parameters": lambda: torch.nn.Linear(3, 2).state_dict(keep_vars=True),
    "parameter": lambda: {"x": torch.nn.Parameter(torch.ones(2))},
    "values": lambda: {"x": torch.ones(2), "lr": 0.1, "n": [1, -2, 2**70, None, True], "s": "\ud800 é",
                       3: {4: torch.ones(1)}, "b": b"bytes", "a": bytearray(3), "d": torch.float32,
                       "z": torch.Size([2]), "c": 1 + 2j,
                       "o": collections.OrderedDict(a=1), "set": {1, 2}, "t": (1, (2, 3, 4, 5)),
                       "dev": torch.device("cpu")},
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older format"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tensor_is_what_torch_reads(kind, zipped, tmp_path):
    content = KINDS[kind]()
    if not zipped and kind == "dtypes":  # PyTorch writes the last five so, and does not read them
        content = dict(list(content.items())[:-5])
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert_as_torch_reads(tmp_path / "x.pth")


def test_what_is_no_tensor_is_named(tmp_path):
    torch.save(KINDS["values"](), tmp_path / "x.pth")
    others = TorchFile(tmp_path / "x.pth").others
    assert others["lr"] == "float"
    assert others["n"] == "list"
    assert others["a"] == "bytearray"
    assert others["d"] == "dtype"


def test_a_file_of_a_big_endian_machine_is_swapped(tmp_path):
    torch.save(
        {"x": torch.arange(4.0), "y": torch.arange(6, dtype=torch.int16).reshape(2, 3).T}, tmp_path / "little.pth"
    )
    with zipfile.ZipFile(tmp_path / "little.pth") as old, zipfile.ZipFile(tmp_path / "big.pth", "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if "/data/" in info.filename:
                data = np.frombuffer(data, f"i{4 if info.filename.endswith('0') else 2}").byteswap().tobytes()
            new.writestr(info.filename, b"big" if info.filename.endswith("/byteorder") else data)
    assert_as_torch_reads(tmp_path / "big.pth")


@pytest.mark.parametrize(
    ("make", "what"),
    [(lambda: torch.eye(3).to_sparse(), "sparse"), (lambda: torch.eye(3).to_sparse_csr(), "sparse"),
     (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantised"),
     (lambda: torch.empty(3, device="meta"), "meta"), (lambda: torch.ones(3, dtype=torch.complex64).conj(), "lazily")],
)  # fmt: skip
def test_tensors_that_are_no_plain_numbers_are_refused_by_name(make, what, tmp_path):
    torch.save({"fine": torch.ones(2), "odd.one": make()}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=rf"odd\.one is .*{what}|QInt8Storage"):
        conversion.open_source(tmp_path / "x.pth")


# === Damaged and made ===


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def write(path: Path, contents: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.save({"x": torch.arange(4.0), "y": torch.arange(6.0)}, tmp_path / "saved.pth")
    return tmp_path / "saved.pth"


class Call:
    """What a pickle makes of a function and its arguments, whether that can be or not; "STORAGE" is one."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def pickled_call(call: Call, storage: tuple = ("0", "cpu", 4)) -> bytes:
    """The pickle of {"x": a call}."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, *storage) if type(value) is str and value == "STORAGE" else None

    stream = io.BytesIO()
    Pickler(stream, 2).dump({"x": call})
    return stream.getvalue()


def pickled(storage: tuple, first: int, shape: tuple, strides: tuple) -> bytes:
    """The pickle of {"x": a tensor of these parts}, whether there is such a tensor or not."""
    call = Call(torch._utils._rebuild_tensor_v2, "STORAGE", first, shape, strides, False, collections.OrderedDict())
    return pickled_call(call, storage)


@pytest.mark.parametrize(
    ("storage", "first", "shape", "strides", "match"),
    [(("0", "cpu", 4), 1, (4,), (1,), "beyond its storage"), (("0", "cpu", 4), 0, (2, 2), (3, 1), "beyond its storage"),
     (("0", "cpu", 4), 0, (5,), (0,), None), (("0", "cpu", 4), 3, (2,), (0,), None),
     (("0", "cpu", 5), 0, (4,), (1,), "holds 16 bytes; expected 20"), (("9", "cpu", 4), 0, (4,), (1,), "holds nothing"),
     (("0", "cpu", 4), -1, (4,), (1,), "no storage"), (("0", "cpu", 4), 0, (-4,), (1,), "no shape"),
     (("0", "cpu", 4), 0, (4,), (-1,), "no shape"), (("0", "cpu", 4), 0, (4,), (1, 1), "number of strides"),
     (("0", "cpu", 4), 0, (True,), (1,), "no shape"), (("0", "cpu", 4), 0, (2**63,), (0,), "no shape"),
     (("0", "cpu", 4), 0, (2**40,), (0,), "would become"), (("0", "cpu", 4), 0, (1,) * 40, (1,) * 40, "no shape"),
     (("0", "cpu", -4), 0, (4,), (1,), "no size"), (("../0", "cpu", 4), 0, (4,), (1,), "holds nothing"),
     (("0", "cpu", 4), 0, [4], (1,), "no shape"), (("0", "cpu", 4), 0, (4,), [1], "no shape"),
     (("0", "cpu", 4), 0, 4, (1,), "no shape"), (("0", "cpu", 4), True, (2,), (1,), "no storage"),
     (("0", "cpu", 4), 0, (1,) * 32, (1,) * 32, None), (("0", "cpu", 4), 0, (1,) * 33, (1,) * 33, "no shape"),
     (("0", "cpu", 4, ("1", 0, 4)), 0, (4,), (1,), "part of another"),
     (("0", "cpu", 4, None, None), 0, (4,), (1,), "something else"), (("0", "cpu"), 0, (4,), (1,), "something else"),
     ((1.5, "cpu", 4), 0, (4,), (1,), "no kind and key"), ((0, "cpu", 4), 0, (4,), (1,), None),
     (("0", "cpu", True), 0, (1,), (1,), "no size"), (("0", "cpu", 2**62), 0, (1,), (1,), "no size")],
)  # fmt: skip
def test_a_tensor_lies_within_its_storage(storage, first, shape, strides, match, saved, tmp_path):
    contents = {**members_of(saved), "saved/data.pkl": pickled(storage, first, shape, strides)}
    path = write(tmp_path / "made.pth", contents)
    if match is None:
        assert_as_torch_reads(path)
        return
    with pytest.raises(CheckpointError, match=match):
        conversion.open_source(path)


V2, V3, TYPE = torch._utils._rebuild_tensor_v2, torch._utils._rebuild_tensor_v3, torch._tensor._rebuild_from_type_v2
PARTS = ("STORAGE", 0, (4,), (1,), False, collections.OrderedDict())
CALLS = {
    "a tensor": (Call(V2, *PARTS), None),
    "with an empty note": (Call(V2, *PARTS, {}), None),
    "conjugated": (Call(V2, *PARTS, {"conj": True}), "lazily"),
    "of a dtype of its own": (Call(V3, *PARTS, torch.int32), None),
    "conjugated, of a dtype of its own": (Call(V3, *PARTS, torch.int32, {"neg": True}), "lazily"),
    "of no dtype": (Call(V3, *PARTS, torch.strided), "no dtype"),
    "of a dtype that is a number": (Call(V3, *PARTS, 1), "no dtype"),
    "a parameter": (Call(torch._utils._rebuild_parameter, Call(V2, *PARTS), True, collections.OrderedDict()), None),
    "a parameter of a number": (Call(torch._utils._rebuild_parameter, 1, True, collections.OrderedDict()), "no tensor"),
    "of a type": (Call(TYPE, V2, torch.nn.Parameter, PARTS, {}), None),
    "of another class": (Call(TYPE, V2, collections.Counter, PARTS, {}), "class of its own"),
    "of a type, by no function": (Call(TYPE, 1, torch.Tensor, PARTS, {}), "made of no tensor"),
    "of a type, by another function": (Call(TYPE, collections.Counter, torch.Tensor, PARTS, {}), "made of no tensor"),
    "of a type, of no arguments": (Call(TYPE, V2, torch.Tensor, list(PARTS), {}), "made of no tensor"),
    "a dict": (Call(collections.OrderedDict, [["a", Call(V2, *PARTS)], ("b", 1)]), None),
    "a dict of no pairs": (Call(collections.OrderedDict, [("a", 1, 2)]), "no pairs"),
    "a dict of a text": (Call(collections.OrderedDict, "ab"), "no pairs"),
    "a dict of texts": (Call(collections.OrderedDict, ["ab"]), "no pairs"),
    "a dict with a key that is none": (Call(collections.OrderedDict, [(1.5, 1)]), "no names"),
    "a size that is none": (Call(torch.Size, [-1]), "no shape"),
}


@pytest.mark.parametrize("kind", CALLS)
def test_what_a_pickle_calls_has_the_arguments_that_torch_gives_it(kind, saved, tmp_path):
    call, match = CALLS[kind]
    path = write(tmp_path / "made.pth", {**members_of(saved), "saved/data.pkl": pickled_call(call)})
    if match is None:
        assert_as_torch_reads(path)
        return
    with pytest.raises(CheckpointError, match=match):
        conversion.open_source(path)


PICKLES = {
    "of protocol 3": (b"\x80\x03}.", None),
    "of protocol 4": (b"\x80\x04}.", "another protocol"),
    "appends to a number": (b"\x80\x02K\x01K\x02a.", "appends to something else"),
    "appends to a dict": (b"\x80\x02}(K\x01e.", "appends to something else"),
    "stores into a list": (b"\x80\x02]K\x01K\x02s.", "stores into something else"),
    "stores a key without a value": (b"\x80\x02}(K\x01u.", "stores into something else"),
    "has a list for a key": (b"\x80\x02}]K\x01s.", "keys that are no names"),
    "gives attributes to a number": (b"\x80\x02K\x01}b.", "gives attributes to a plain value"),
    "gives attributes to a list": (b"\x80\x02]}b.", "gives attributes to a plain value"),
    "calls a number": (b"\x80\x02K\x01)R.", "calls something that is no function"),
    "calls with a list": (b"\x80\x02ccollections\nOrderedDict\n]R.", "calls something that is no function"),
    "calls a storage": (b"\x80\x02ctorch\nFloatStorage\n)R.", "calls something that is no function"),
    "calls a dtype": (b"\x80\x02ctorch\nfloat32\n)R.", "calls something that is no function"),
    "has an opcode of protocol 0": (b"\x80\x02Pa\n.", "has the opcode b'P'"),
    "has no storage": (b"\x80\x02)Q.", "something else than tensors and their storages"),
    "ends with two values": (b"\x80\x02}}.", "ends in the middle"),
    "ends in a list": (b"\x80\x02}(.", "ends in the middle"),
    "does not end": (b"\x80\x02}", "ends in the middle"),
    "takes a pair of one": (b"\x80\x02}\x86.", "takes more than there is"),
    "takes what is there": (b"\x80\x02}X\x01\0\0\0aK\x01K\x02\x86s.", None),
    "has a storage of bytes that nobody wrote": (b"\x80\x02ctorch\nOddStorage\n.", "which has no numbers"),
}


@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_that_torch_does_not_write_is_refused(kind, saved, tmp_path):
    data, match = PICKLES[kind]
    path = write(tmp_path / "made.pth", {**members_of(saved), "saved/data.pkl": data})
    if match is None:
        assert TorchFile(path).tensors == {}
        return
    with pytest.raises(CheckpointError, match=match):
        conversion.open_source(path)


def test_every_value_of_a_pickle_is_what_pickle_makes_of_it(saved, tmp_path):
    """In every form that the pickles of protocol 2 and 3 have, of Python 2, too."""
    stream = b"".join([
        b"\x80\x02](K\xffM\x00\x01J\xff\xff\xff\xff\x8a\x02\xff\x00\x8a\x00G?\xf8\0\0\0\0\0\0N\x88\x89",
        b"U\x02\xe9bT\x03\0\0\0abcX\x02\0\0\0\xc3\xa9q\x05h\x05r\x00\x01\0\0j\x00\x01\0\0",
        b")K\x01\x85K\x01K\x02\x86K\x01K\x02K\x03\x87(K\x01K\x02K\x03K\x04t}(K\x01K\x02K\x03K\x04u}K\x05K\x06s]K\x07ae.",
    ])  # fmt: skip
    found = _Machine(io.BytesIO(stream), len(stream), tmp_path / "x").run()
    assert repr(found) == repr(pickle.loads(stream, encoding="latin-1"))


def test_of_a_pickle_no_more_is_read_than_its_size(tmp_path):
    stream = b"\x80\x02}(X\x01\0\0\0acollections\nOrderedDict\n)RK\x01G?\xf8\0\0\0\0\0\0u.".replace(b"aco", b"acco")
    assert _Machine(io.BytesIO(stream), len(stream), tmp_path / "x").run()
    for size in range(len(stream)):
        with pytest.raises((EOFError, ValueError)):
            _Machine(io.BytesIO(stream), size, tmp_path / "x").run()


def changed_bytes(path: Path, find: bytes, by: bytes, last: bool = False) -> None:
    data = path.read_bytes()
    place = data.rindex(find) if last else data.index(find)
    path.write_bytes(data[:place] + by + data[place + len(by) :])


def test_a_flipped_bit_in_a_tensor_is_found(saved):
    changed_bytes(saved, np.arange(4, dtype="f4").tobytes(), b"\x01")
    file = TorchFile(saved)
    with pytest.raises(EOFError, match="checksum"):
        file.read(file.tensors["x"])
    assert file.read(file.tensors["y"]).tolist() == list(range(6))


@pytest.mark.parametrize("kind", ["twice", "overlapping", "renamed", "encrypted", "sizes", "no header"])
def test_an_archive_that_contradicts_itself_is_refused(kind, saved, tmp_path):
    path = write(tmp_path / "made.pth", members_of(saved))
    match = {"twice": "two members", "overlapping": "lies where|overlap", "encrypted": "encrypted",
             "no header": "no header"}.get(kind, "disagree|two sizes")  # fmt: skip
    if kind == "twice":
        with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("saved/data/0", bytes(16))
    elif kind == "renamed":
        changed_bytes(path, b"saved/data/0", b"saved/data/9")  # in the header alone
    else:
        with zipfile.ZipFile(path) as archive:
            offsets = {info.filename: info.header_offset for info in archive.infolist()}
            directory = archive.start_dir
        data = bytearray(path.read_bytes())
        entry = data.index(b"saved/data/1", directory) - 46
        if kind == "overlapping":
            data[entry + 42 : entry + 46] = struct.pack("<I", offsets["saved/data/0"])
            data[entry + 46 : entry + 58] = b"saved/data/7"
        elif kind == "encrypted":
            data[entry + 8] |= 1
        elif kind == "sizes":
            data[entry + 20 : entry + 28] = struct.pack("<II", 20, 20)
        else:
            data[offsets["saved/data/1"]] = 0
        path.write_bytes(data)
    with pytest.raises(CheckpointError, match=match):
        conversion.open_source(path)


def test_nothing_is_called_and_no_byte_is_allocated_for_what_a_pickle_asks(tmp_path):
    class Huge:
        def __reduce__(self):
            return bytearray, (10**13,)

    torch.save({"x": torch.ones(2), "huge": Huge()}, tmp_path / "huge.pth")
    assert TorchFile(tmp_path / "huge.pth").others == {"huge": "bytearray"}


def test_dicts_that_hold_each_other_many_times_end(tmp_path):
    level: dict = {"x": torch.ones(1)}
    for _ in range(40):
        level = {"a": level, "b": level}
    torch.save(level, tmp_path / "lol.pth")
    with pytest.raises(CheckpointError, match="more than 20,000"):
        conversion.open_source(tmp_path / "lol.pth")
    deep: dict = {}
    for _ in range(100):
        deep = {"a": deep}
    torch.save(deep, tmp_path / "deep.pth")
    with pytest.raises(CheckpointError, match="deeper than"):
        conversion.open_source(tmp_path / "deep.pth")
    torch.save({"k" * 1000: {"k" * 1000: torch.ones(1)}}, tmp_path / "long.pth")
    with pytest.raises(CheckpointError, match="a name of more than"):
        conversion.open_source(tmp_path / "long.pth")


def test_two_values_of_one_name_are_refused(tmp_path):
    torch.save({"a/b": torch.ones(1), "a": {"b": torch.zeros(1)}}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="fight for the name a/b"):
        conversion.open_source(tmp_path / "x.pth")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}." + bytes(300 * 2**20))
    assert (tmp_path / "bomb.pth").stat().st_size < 2**20
    with pytest.raises(CheckpointError, match="would become"):
        archives.members(tmp_path / "bomb.pth")
