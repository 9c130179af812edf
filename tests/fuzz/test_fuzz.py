"""A minute of broken inputs: none crashes, hangs, fills the memory, fails unclearly, or is read wrongly in silence."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from conversion import containers
from conversion.engine import FORMATS
from vit.image_processing import FORMATS as image_formats

from . import worker as workers
from .campaign import run
from .mutations import BOMBS, bomb
from .readers import FOREIGN, OTHERS, readers
from .worker import Worker

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux resets a peak of memory")
EACH = 25  # mutants of each reader


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def worker(folder: Path) -> Iterator[Worker]:
    with Worker(folder / "seeds") as process:
        yield process


def test_every_kind_of_file_that_is_read_is_in_the_table(folder):
    names = readers(folder / "seeds")
    kinds = {name.partition(":")[0] for name in names}
    read = containers.KINDS.keys() | {kind for format in FORMATS.values() for kind in format.kinds}
    assert kinds - set(OTHERS) == read
    images = {name.partition(": ")[2] for name in names if name.startswith("image: ")}
    assert images >= {name for name in image_formats if name in Image.SAVE}
    assert len(images) > 12


def test_every_seed_is_whole(worker, folder):
    for name, reader in readers(folder / "seeds").items():
        for seed in reader.seeds:
            verdict = worker.judge(name, seed)
            assert verdict.kind == "read", (name, verdict)
            assert verdict.checked == (reader.oracle is not None), (name, verdict)


def test_no_mutant_is_a_fault(folder):
    counts, failures = run(folder, each=EACH)
    assert not failures, "\n".join(map(str, failures))
    for name in readers(folder / "seeds"):
        assert counts[name, "read"] + counts[name, "refused"] == EACH
        assert counts[name, "refused"] or name.startswith("image: ")  # of pixels, most changes are other pixels


@pytest.mark.parametrize("kind", BOMBS)
def test_a_small_file_takes_little(kind, worker, tmp_path):
    name = kind.partition(",")[0].partition(" ")[0]
    reader = {"zip": "torch: zip", "npz": "npz: stored", "torch": "torch: zip", "h5": "h5: transformers"}.get(
        name, name
    )
    data = bomb(kind)
    assert len(data) < 2**20, len(data)
    (tmp_path / "input").write_bytes(data)
    verdict = worker.judge(reader, tmp_path / "input")
    assert not verdict.failed, verdict
    assert verdict.kind == "refused", verdict


@pytest.mark.parametrize("special", ["pipe", "device", "folder"])
@pytest.mark.parametrize("name", ["alone", "config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5",
                                  "flax_model.msgpack", "model.safetensors.index.json"])  # fmt: skip
def test_what_is_no_file_is_refused_and_waited_for_by_nobody(name, special, worker, tmp_path):
    path = tmp_path / name
    if name == "config.json":
        shutil.copyfile(FOREIGN / "timm_vit.safetensors", tmp_path / "model.safetensors")
    if special == "pipe":
        os.mkfifo(path)
    elif special == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    verdict = worker.judge("safetensors", path if name == "alone" else tmp_path)
    assert verdict.kind == "refused", verdict


def test_a_worker_that_dies_hangs_or_takes_too_much_is_found_and_replaced(folder, tmp_path, monkeypatch):
    # The worker is this project's own: what it finds must be found.
    code = (
        "import sys, time, os, tests.fuzz.worker as w, tests.fuzz.readers as r\n"
        "def read(path):\n"
        "    kind = path.read_text()\n"
        "    if kind == 'dies': os._exit(3)\n"
        "    if kind == 'hangs':\n"
        "        while True: sum(range(10**6))\n"
        "    if kind == 'grows': return len(bytearray(2**30 + 2**28)) and {}\n"
        "    if kind == 'fails': raise KeyError('x')\n"
        "    return {'x': __import__('numpy').zeros(1 if kind == 'wrong' else 2)}\n"
        "made = r.Reader((r.Path(__file__).parent / 'seed',), read, oracle=lambda p: {'x': w.np_zeros})\n"
        "import numpy\n"
        "w.np_zeros = numpy.zeros(2)\n"
        "r.readers = lambda folder: {'made': made}\n"
        "w.main()\n"
    )
    (tmp_path / "made.py").write_text(code)
    (tmp_path / "seed").write_text("fine")
    monkeypatch.setattr(workers, "COMMAND", [sys.executable, str(tmp_path / "made.py")])
    monkeypatch.setattr(workers, "SECONDS", 4.0)
    with Worker(folder / "seeds") as made:
        for kind, verdict in {"fine": "read", "dies": "crash", "hangs": "hang", "grows": "memory", "wrong": "wrong",
                              "fails": "other error"}.items():  # fmt: skip
            (tmp_path / "input").write_text(kind)
            found = made.judge("made", tmp_path / "input")
            assert found.kind == verdict, (kind, found)
            assert found.failed == (kind != "fine")
