"""`vit classify` and `vit embed` killed at each durable step, or their disk full there: nothing is lost or mixed.

The model is a stub that needs no framework: what is tested is everything after it.
"""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from . import kill

IMAGES = ["1.png", "2.png", "3-broken.png", "4.png", "5.png", "6\udcff.png", "7.png"]
WARM = (
    f"""
IMAGES = {IMAGES!r}"""
    + """
import os
import sys
import zlib
import numpy as np
from pathlib import Path
from types import SimpleNamespace
from vit import ViTConfig, hub, pipeline
from vit.cli import batch, describe, frameworks, images, journal
from vit.errors import InputError
from vit.pipeline import Prediction
import pyarrow.parquet, rich.progress

config = ViTConfig.from_pretrained(frameworks.DIGITS)

def predict(images, forward, *, start, task, **options):
    for index, path in enumerate(images, start):
        random = np.random.default_rng(zlib.crc32(os.fsencode(path)))
        if "broken" in path:
            yield Prediction(index, path, error="is broken.")
        elif task == "embed":
            yield Prediction(index, path, vector=random.random(64, np.float32))
        else:
            yield Prediction(index, path, ("1", "2"), tuple(random.random(2)))

def stub(patch):
    patch(pipeline, "predict", predict)
    patch(batch, "open_model", lambda *arguments, **options: SimpleNamespace(device_type="cpu", config=config))
    patch(journal, "INTERVAL", 0)

def go(name, count=7, resume=True, force=False):
    # the exit status of the command; its error goes to stderr
    task, setting = ("classify", {"top_k": 2}) if name[0] == "r" else ("embed", {"pool": "cls"})
    try:
        return batch.run(
            [f"images/{image}" for image in IMAGES[:count]], task, setting, model=None, hub={},
            framework=["pt"], device=None, dtype=None, batch_size=3,
            workers=None, output=Path("out", name), suffixes=(".csv", ".jsonl", ".npy", ".parquet"),
            resume=resume and not force, force=force, strict=False, as_json=False, quiet=True,
        )
    except InputError as error:
        print(describe(error), file=sys.stderr)
        return 2
"""
)
OUTPUTS = {"r.csv": "classify", "r.jsonl": "classify", "r.parquet": "classify", "v.npy": "embed", "v.parquet": "embed"}
outputs = pytest.mark.parametrize("name", OUTPUTS)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command runs, in this process too: with the images, and in `out` nothing."""
    folder = tmp_path / "folder"
    (folder / "images").mkdir(parents=True)
    (folder / "out").mkdir()
    for name in IMAGES:
        (folder / "images" / name).touch()
    HERE["stub"](monkeypatch.setattr)
    monkeypatch.chdir(folder)
    return folder


HERE: dict[str, Any] = {}
exec(WARM, HERE)
go = HERE["go"]


def state(folder: Path) -> dict[str, Any]:
    """What the output is."""
    found: dict[str, Any] = {}
    for path in sorted((folder / "out").iterdir()):
        if path.suffix == ".parquet":
            found[path.name] = str(parquet.read_table(path).to_pylist())
        elif path.suffix in (".csv", ".jsonl", ".npy"):
            found[path.name] = path.read_bytes()
        else:
            found[path.name] = None
    return found


def check_readable(folder: Path, name: str) -> None:
    """A reader at this moment sees rows from the first on, whole, and each with its own values; or no output."""
    path = folder / "out" / name
    if not path.exists():
        return
    if name.endswith(".parquet"):
        assert len(parquet.read_table(path)) in (5, len(IMAGES))  # the old one or the new
    elif name.endswith(".npy") and path.stat().st_size >= 128:  # the header
        vectors = np.load(path)
        lines = path.with_suffix(".jsonl").read_text().splitlines()
        assert [json.loads(line)["row"] for line in lines[: len(vectors)]] == list(range(len(vectors)))


BEGINNINGS = {"new": 0, "go on": 5, "again": 5}
"""How many images are there before."""
CASES = [(name, "new") for name in OUTPUTS] + [("r.csv", "go on"), ("v.npy", "go on"), ("v.npy", "again"),
                                               ("r.parquet", "again")]  # fmt: skip


def killed(folder: Path, name: str, how: Any = kill.every_step, force: bool = False, **options: Any) -> Any:
    run = f"os.chdir('..')\nsys.exit(go({name!r}, force={force}))"
    return how(folder / "out", warm=WARM + "\nstub(setattr)", run=run, **options)


def whole(folder: Path, name: str) -> dict[str, Any]:
    """What a run without an end gives; the output is then not there."""
    assert go(name) == 1  # one image is broken
    found = state(folder)
    empty(folder)
    return found


def empty(folder: Path) -> None:
    for path in (folder / "out").iterdir():
        path.unlink()


@pytest.mark.parametrize(("name", "beginning"), CASES)
def test_killed_at_any_step_and_resumed_it_is_what_a_run_without_a_kill_gives(name, beginning, folder):
    expected = whole(folder, name)
    force = beginning == "again"
    if before := BEGINNINGS[beginning]:
        go(name, before)
    count = 0
    for step in killed(folder, name, force=force):
        check_readable(folder, name)
        if step.number:
            assert step.killed, step
            assert go(name, force=force) == 1, step
            count += 1
        else:
            assert step.status == 1, step
        assert state(folder) == expected, step
    assert count > 15


@pytest.mark.parametrize("name", ["v.npy", "v.parquet"])
def test_killed_and_killed_again_while_it_goes_on_it_is_the_same(name, folder):
    expected = whole(folder, name)
    total = sum(1 for _ in killed(folder, name, torn=False))
    for first in (total // 2, total * 3 // 4):
        empty(folder)
        assert next(killed(folder, name, first=first)).killed
        for step in killed(folder, name, every=4, torn=False):
            check_readable(folder, name)
            assert go(name) == 1, step
            assert state(folder) == expected, step


@outputs
def test_killed_at_random_moments_it_is_the_same(name, folder):
    expected = whole(folder, name)
    for step in killed(folder, name, kill.at_random, times=8):
        check_readable(folder, name)
        assert go(name) == 1, step
        assert state(folder) == expected, step


@outputs
def test_a_full_disk_names_the_file_and_the_run_goes_on_when_there_is_room(name, folder):
    expected = whole(folder, name)
    for step in killed(folder, name, error=errno.ENOSPC, every=3):
        check_readable(folder, name)
        if step.status == 2:
            assert step.stderr.count("\n") == 1, step
            assert step.stderr.startswith((f"out/{name.split('.')[0]}.", "out cannot")), step
            assert " cannot be written: " in step.stderr, step
        else:  # all was written before the journal is made small
            assert not step.number or ".run" in step.path, step
            assert {**expected, f"{name}.run-wal": None} == {**state(folder), f"{name}.run-wal": None}, step
        assert go(name) == 1, step
        assert state(folder) == expected, step
