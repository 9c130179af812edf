"""What reading may cost, and what a message may quote."""

from __future__ import annotations

import io
import os
import socket
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.numpy
import torch
from flax.serialization import to_bytes

from conversion import containers
from vit import budgets
from vit.errors import CheckpointError, quoted, shown


def test_only_files_are_opened_and_nothing_waits(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for path, kind in ((tmp_path, "folder"), (tmp_path / "pipe", "pipe"), ("/dev/zero", "device")):
            with pytest.raises(CheckpointError, match=f"is a {kind}; expected a file"):
                budgets.open_file(path)
        with pytest.raises(OSError, match="socket"):
            budgets.open_file(tmp_path / "socket")
    with pytest.raises(FileNotFoundError):
        budgets.open_file(tmp_path / "nowhere")


def test_a_small_file_is_read_whole_and_a_large_one_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(bytes(10))
    assert budgets.read_whole(tmp_path / "file", 10) == bytes(10)
    with pytest.raises(CheckpointError, match="has 10 bytes; expected at most 9"):
        budgets.read_whole(tmp_path / "file", 9)
    with pytest.raises(CheckpointError, match="expected at most"):
        budgets.read_whole("/proc/self/maps", 9)  # says that it has 0 bytes


def test_contents_are_in_proportion_to_their_file(tmp_path):
    budgets.check_total(tmp_path, budgets.SLACK + 160, 10)
    with pytest.raises(CheckpointError, match="has 10 bytes and would become"):
        budgets.check_total(tmp_path, budgets.SLACK + 161, 10)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("plain name", "plain name"), ("é猫🐈", "é猫🐈"), ("a\x1b[31m\nb", "a\\x1b[31m\\nb"), ("\udcff", "\\udcff"),
     ("\u202ereversed", "\\u202ereversed"), ("x" * 300, "x" * 200 + "...")],
)  # fmt: skip
def test_what_is_shown_prints(given, expected):
    assert shown(given) == expected
    shown(given).encode()


def test_a_value_is_quoted_without_going_through_it():
    assert quoted("a\x00") == "'a\\x00'"
    assert quoted(list(range(10**6))) == "[0, 1, 2, 3, 4, 5, ...]"
    assert len(quoted(10**400)) <= 203
    assert len(quoted({"a" * 500: ["b" * 500] * 9})) <= 203
    assert quoted(10**5000) == "a value of type int"
    deep: list = []
    for _ in range(10**5):
        deep = [deep]
    assert len(quoted(deep)) < 20


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_an_array_of_every_version_of_numpys_format_is_read(version, tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive, archive.open("kernel.npy", "w") as member:
        np.lib.format.write_array(member, array, version)
    store = containers.read_file(tmp_path / "x.npz")
    assert np.array_equal(store.read("kernel"), array)


def test_a_part_of_a_file_is_read_as_a_file_of_its_own(tmp_path):
    (tmp_path / "file").write_bytes(bytes(range(20)))
    for calls in (
        [("read",)], [("read", 3), ("tell",), ("read", 99), ("read", 1)], [("seek", 4), ("read", 2), ("seek", -1, 1)],
        [("seek", -2, 2), ("read",), ("tell",)], [("seek", 9), ("read", 1)], [("read", 2), ("seek", 0), ("read",)],
    ):  # fmt: skip
        with containers.Window(tmp_path / "file", 5, 7) as part, io.BytesIO(bytes(range(5, 12))) as whole:
            for name, *arguments in calls:
                assert getattr(part, name)(*arguments) == getattr(whole, name)(*arguments), calls


# === Each limit is the most that is read ===


def test_the_limits_are_those_that_were_measured():
    mb = 2**20
    expected = {
        "EXPANSION": 16, "SLACK": 256 * mb, "JSON": 32 * mb, "PICKLE": mb, "NAME": 1024, "TENSORS": 20_000, "DEPTH": 64,
        "AXES": 32, "CHUNKS": 100_000, "LABELS": 400_000, "LAYERS": 2_000, "URL_BYTES": 64 * mb, "URL_SECONDS": 30.0,
        "URL_SILENCE": 10.0, "HUB_SECONDS": 30.0, "HUB_ANSWERS": 40, "HUB_FAILURES": 3, "IMAGE_EXPANSION": 100,
        "IMAGE_SCANS": 4, "MB": mb,
    }  # fmt: skip
    assert {
        name: value for name, value in vars(budgets).items() if name.isupper() and name not in ("T", "TYPE_CHECKING")
    } == expected


ARRAYS = {"a": np.zeros(2, np.float32), "b": np.ones(3, np.float32), "c": np.full((1, 1, 2), 2, np.float32)}


def write_h5(path: Path, group: str = "group") -> None:
    with h5py.File(path, "w") as file:
        for name, array in ARRAYS.items():
            file[f"{group}/{name}"] = array


FILES = {
    "x.npz": lambda path: np.savez(path, **ARRAYS),
    "x.safetensors": lambda path: safetensors.numpy.save_file(ARRAYS, path),
    "x.pth": lambda path: torch.save({"group": {n: torch.from_numpy(a) for n, a in ARRAYS.items()}}, path),
    "old.pth": lambda path: torch.save(
        {"group": {n: torch.from_numpy(a) for n, a in ARRAYS.items()}}, path, _use_new_zipfile_serialization=False
    ),
    "x.h5": write_h5,
    "x.msgpack": lambda path: path.write_bytes(to_bytes({"group": ARRAYS})),
    "deep.h5": lambda path: write_h5(path, "a/b/c"),
    "deep.pth": lambda path: torch.save({"a": {"b": {"c": {n: torch.from_numpy(a) for n, a in ARRAYS.items()}}}}, path),
    "deep.msgpack": lambda path: path.write_bytes(to_bytes({"a": {"b": {"c": ARRAYS}}})),
}  # fmt: skip

# Of the files above. A zip archive of torch.save has 9 members; its dicts and tensors, and HDF5's groups, count too.
LEAST = {
    "TENSORS": {"x.npz": 3, "x.safetensors": 3, "x.pth": 9, "old.pth": 5, "x.h5": 4, "x.msgpack": 3},
    "DEPTH": {"x.pth": 1, "old.pth": 1, "x.h5": 1, "x.msgpack": 3, "deep.pth": 3, "deep.h5": 3, "deep.msgpack": 5},
    "NAME": {"x.npz": 1, "x.safetensors": 1, "x.pth": 7, "old.pth": 7, "x.h5": 7, "x.msgpack": 7},
    "AXES": dict.fromkeys(FILES, 3),
}


@pytest.mark.parametrize(("limit", "name"), [(limit, name) for limit, files in LEAST.items() for name in files])
def test_a_file_is_read_up_to_a_limit_and_not_beyond_it(limit, name, tmp_path, monkeypatch):
    FILES[name](tmp_path / name)
    least = next(value for value in range(100) if is_read(tmp_path / name, limit, value, monkeypatch))
    assert least == LEAST[limit][name]


def is_read(path: Path, limit: str, value: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(budgets, limit, value)
    try:
        store = containers.read_file(path)
    except CheckpointError:
        return False
    assert len(store.tensors) == len(ARRAYS)
    return True
