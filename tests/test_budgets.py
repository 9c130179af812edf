"""What reading may cost, and what a message may quote."""

from __future__ import annotations

import os
import socket

import pytest

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
