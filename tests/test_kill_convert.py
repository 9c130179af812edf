"""A conversion that a full disk or a signal ends leaves what was there; the next removes what a kill left."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import conversion

from . import kill

SOURCE = Path(__file__).parent / "fixtures" / "conversion" / "google_vit.npz"
WARM = "import conversion, h5py"
# Format -> the name of its target, and every how many steps one is tried: HDF5 writes in hundreds.
FORMATS = {"hf": ("out", 1), "google": ("out.npz", 4), "transformers-flax": ("out", 2), "transformers-tf": ("out", 20),
           "keras": ("out.keras", 30)}  # fmt: skip
OLD, NEW = "abcdefg", "hijklmn"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def running(target: str, target_format: str, labels: str) -> str:
    return (
        f"conversion.convert({str(SOURCE)!r}, {target!r}, target_format={target_format!r}, labels=list({labels!r}), "
        "force=True)"
    )


@pytest.fixture(params=FORMATS)
def case(request, tmp_path) -> tuple[Path, str, str, int]:
    """A folder with an old checkpoint and somebody's notes; a format, its target there, and every how many steps."""
    name, every = FORMATS[request.param]
    folder = tmp_path / "folder"
    folder.mkdir()
    conversion.convert(SOURCE, folder / name, target_format=request.param, labels=list(OLD))
    (folder / "notes").write_text("mine")
    return folder, request.param, name, every


def test_a_disk_that_is_full_from_any_step_on_is_named_and_nothing_changes(case):
    folder, target_format, name, every = case
    before, failed = contents(folder), 0
    for step in kill.every_step(
        folder, run=running(name, target_format, NEW), warm=WARM, error=errno.ENOSPC, every=every
    ):
        found = contents(folder)
        assert found.keys() == before.keys()
        if step.status == 0:  # the end, or a step that nothing depends on: the name of the folder on the disk
            assert found != before or target_format == "google"
            continue
        failed += 1
        assert found == before
        assert step.status == 1
        said = step.stderr.strip().splitlines()[-1]
        assert said.endswith(f"CheckpointError: {name} cannot be written: No space left on device. It is as it was.")
    assert failed > 5


def test_what_a_kill_left_is_removed_by_the_next_conversion(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    left = 0
    for step in kill.every_step(folder, run=running("out", "hf", NEW), warm=WARM, every=9, torn=False):
        hidden = [path for path in folder.iterdir() if path.name.startswith(".converting-")]
        left += len(hidden)
        for path in hidden:
            os.utime(path, (time.time() - 100,) * 2)
        conversion.convert(SOURCE, folder / "next", force=True)
        assert {path.name for path in folder.iterdir()} - {"out"} == {"next"}, step
    assert left


STOPPED = """
import os, sys
import vit.cli.convert as command
from vit.cli import main

class Bar:
    def __init__(self, quiet):
        self.quiet = quiet

    def __enter__(self):
        numbers = [int(sys.argv[1])]
        return lambda done, total: done > total * float(sys.argv[2]) and numbers and os.kill(os.getpid(), numbers.pop())
    def __exit__(self, *error):
        pass

command._Bar = Bar
main(["convert", *sys.argv[3:]])
"""


@pytest.mark.parametrize("share", ["0", "0.4", "0.9"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_what_was_there_and_nothing_else(number, share, tmp_path):
    for name in ("out", "fresh/new/out"):
        target = tmp_path / "folder" / name
        if name == "out":
            conversion.convert(SOURCE, target, labels=list(OLD))
        before = contents(tmp_path), sorted(tmp_path.rglob("*"))
        done = subprocess.run(
            [sys.executable, "-c", STOPPED, str(int(number)), share, str(SOURCE), str(target), "--force"],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 128 + number, done.stderr
        assert "Traceback" not in done.stderr
        assert (contents(tmp_path), sorted(tmp_path.rglob("*"))) == before
