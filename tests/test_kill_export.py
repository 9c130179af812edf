"""An export that a kill or a full disk ends leaves what was there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from vit.cli.frameworks import DIGITS

from . import kill

# What is written and how it is run does not matter to where it goes: a fork has no threads for either.
WARM = """
import vit
from vit.exporting import Artifact, export, formats, onnx, openvino

def write(job, path):
    if job.format == "openvino":
        path.mkdir()
        (path / "model.bin").write_bytes(b"new" * 9)
    (path / "model.xml" if job.format == "openvino" else path).write_bytes(b"new" * 9)

for module in (onnx, openvino):
    module.write, module.load = write, lambda path: Artifact("", path, {}, None)
"""
RUN = f"export({str(DIGITS)!r}, {{!r}}, to={{!r}}, force=True, verify=False)"
CASES = {"onnx": "a.onnx", "openvino": "a"}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A folder with an old export, which somebody has put a note beside, and what exports anew over it."""
    name, folder = request.param, tmp_path / "folder"
    target = folder / CASES[name]
    (target if name == "openvino" else folder).mkdir(parents=True)
    files = [target / "model.xml", target / "model.bin"] if name == "openvino" else [target]
    for file in files:
        file.write_bytes(b"old" * 9)
    (files[0].parent / "notes").write_text("mine")
    return folder, RUN.format(CASES[name], name)


def whole(folder: Path) -> str:
    """Which export there is, "old" or "new"; nothing else may lie in the folder but what a kill leaves."""
    paths = {path for path in folder.rglob("*") if path.is_file() and ".converting-" not in str(path)}
    found = {path.read_bytes() for path in paths if path.name != "notes"}
    assert found in ({b"old" * 9}, {b"new" * 9}), paths
    assert [path.read_text() for path in paths if path.name == "notes"] == ["mine"]
    return found.pop()[:3].decode()


def test_a_kill_at_any_step_leaves_the_old_export_or_the_new_one(case: tuple[Path, str]) -> None:
    folder, run = case
    seen = []
    for step in kill.every_step(folder, warm=WARM, run=run):
        assert step.killed == bool(step.number), step
        seen.append(whole(folder))
    assert seen == sorted(seen, reverse=True)  # the old one first
    assert set(seen) == {"old", "new"}


def test_a_full_disk_at_any_step_leaves_the_old_export_and_nothing_else(case: tuple[Path, str]) -> None:
    folder, run = case
    before = sorted(os.listdir(folder))
    failed = 0
    for step in kill.every_step(folder, warm=WARM, run=run, error=errno.ENOSPC):
        assert sorted(os.listdir(folder)) == before, step
        if step.status:
            failed += 1
            assert whole(folder) == "old"
            assert "cannot be written: No space left on device" in step.stderr, step
    assert failed > 3
