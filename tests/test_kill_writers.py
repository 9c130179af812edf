"""Every writer of checkpoints and their parts ended at each durable step: the old one is there or the new one, whole.

`python -m tests.test_kill_writers --random 20` kills each at every step, where this suite copies what a kill would
leave, and at random moments besides; it counts the kills.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import conversion
from conversion import engine
from vit import ViTConfig, ViTImageProcessor, ViTImageProcessorFast, folders
from vit.config import PreTrainedConfig
from vit.errors import CheckpointError

from . import equivalence, kill

CONVERSIONS = {
    "hf": ("out", "vit", {}),
    "hf in shards": ("out", "vit", {"max_shard_size": "4KB"}),
    "transformers-tf": ("out", "vit", {}),
    "transformers-flax": ("out", "vit", {}),
    "orbax": ("out", "vit", {}),
    "google": ("out.npz", "vit", {}),
    "keras": ("out.keras", "vit", {}),
    "keras weights": ("out.weights.h5", "vit", {}),
    "timm": ("out.safetensors", "vit", {}),
    "timm of PyTorch": ("out.pth", "vit", {}),
    "torchvision": ("out.pth", "vit", {}),
    "beit": ("out.pth", "beit", {}),
    "mae": ("out.pth", "vit_mae", {}),
    "dinov2": ("out.pth", "dinov2", {}),
}
"""Writer -> (the target's name, family, options); the format is its first word."""

SAVERS: dict[str, tuple[str, str]] = {
    "vit.pt": ("vit.pt", "ViTForImageClassification"),
    "vit.tf": ("vit.tf", "TFViTForImageClassification"),
    "vit.flax": ("vit.flax", "FlaxViTForImageClassification"),
}
"""Writer -> (module, class) of a model that it saves; in shards too."""

PARTS: dict[str, tuple[Callable[[int], Any], Callable[[Path], int]]] = {
    "processor": (
        lambda value: ViTImageProcessor(size=value),
        lambda folder: ViTImageProcessor.from_pretrained(folder).size["height"],
    ),
    "fast processor": (
        lambda value: ViTImageProcessorFast(size=value),
        lambda folder: ViTImageProcessor.from_pretrained(folder).size["height"],
    ),
    "configuration": (
        lambda value: ViTConfig(num_labels=value),
        lambda folder: PreTrainedConfig.from_pretrained(folder).num_labels,
    ),
}  # fmt: skip

WRITERS = [*CONVERSIONS, *(f"{name}{shards}" for name in SAVERS for shards in ("", " in shards")), *PARTS]


def target_of(writer: str) -> Path:
    return Path(CONVERSIONS[writer][0] if writer in CONVERSIONS else "out")


def module_of(writer: str) -> str:
    return SAVERS.get(writer.removesuffix(" in shards"), ("vit",))[0]


def prepare(sources: Path) -> None:
    """Checkpoints 1, 2 and 3 of each family, which differ in their layers and in every number."""
    heads = {"vit": "classifier", "beit": "classifier", "vit_mae": "decoder", "dinov2": None}
    for family, head in heads.items():
        for value in (1, 2, 3):
            sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_hidden_layers": value}
            if family == "vit_mae":
                sizes |= {"decoder_hidden_size": 8, "decoder_num_attention_heads": 1, "decoder_intermediate_size": 8}
            if family == "beit":
                sizes |= {"use_shared_relative_position_bias": False}
            config = equivalence.tiny_config(family, **sizes)
            equivalence.random_checkpoint(sources / f"{family}-{value}", config, head, seed=value)


def write(writer: str, value: int, sources: Path, here: Path = Path()) -> None:
    """Let a writer write the checkpoint `value` to its target, whether or not something is there."""
    target = here / target_of(writer)
    if writer in PARTS:
        PARTS[writer][0](value).save_pretrained(target)
    elif writer in CONVERSIONS:
        _, family, options = CONVERSIONS[writer]
        format_ = writer.split(" ")[0]
        conversion.convert(sources / f"{family}-{value}", target, target_format=format_, force=True, **options)
    else:
        name = writer.removesuffix(" in shards")
        module, class_ = SAVERS[name]
        model = getattr(__import__(module, fromlist=[class_]), class_).from_pretrained(sources / f"vit-{value}")
        model.save_pretrained(target, max_shard_size="5GB" if name == writer else "4KB")


def read(writer: str, here: Path) -> Any:
    """What a reader finds there; None where no checkpoint is, nor a part of one."""
    target = here / target_of(writer)
    visible = target.is_dir() and any(not path.name.startswith(".") for path in target.iterdir())
    if not (visible or target.is_file() or (target / ".complete").exists()):
        return None
    if writer in PARTS:
        return PARTS[writer][1](target)
    options = {} if target.is_dir() else {"num_attention_heads": 1}
    opened = conversion.open_source(target, **options)
    digest = hashlib.sha256()
    for name in sorted(opened.shapes):
        digest.update(f"{name} {opened.dtype(name)} {opened.shapes[name]}".encode() + opened.read(name).tobytes())
    return opened.config.num_hidden_layers, digest.hexdigest()


def ends(writer: str, sources: Path, folder: Path, how: Any, old: int | None, **options: Any) -> Iterator[kill.Step]:
    """End the writing of checkpoint 2 over `old`, and look each time at what is left."""
    expected: dict[Any, str] = {None: "none"}
    for value in (1, 2, 3):
        for path in folder.iterdir():
            remove(path)
        write(writer, value, sources, folder)
        expected[read(writer, folder)] = {1: "old", 2: "new", 3: "next"}[value]
    assert len(expected) == 4
    for path in folder.iterdir():
        remove(path)
    if old is not None:
        write(writer, old, sources, folder)
    is_folder = target_of(writer).suffix == ""
    notes = folder / target_of(writer) / "notes.txt" if is_folder and old is not None else folder / "notes.txt"
    notes.write_text("mine")
    allowed = {"new", "none" if old is None else "old"}
    run = f"write({writer!r}, 2, Path({str(sources)!r}))"
    warm = f"import {module_of(writer)}, h5py\nfrom pathlib import Path\nfrom tests.test_kill_writers import write"
    seen = []
    for count, step in enumerate(how(folder, run=run, warm=warm, **options)):
        assert step.killed or step.status == 0, step
        seen.append(expected[read(writer, folder)])
        assert seen[-1] in allowed, step
        assert step.number or step.killed or seen[-1] == "new", step
        assert notes.read_text() == "mine", step
        if count % 8 == 0:  # the next one finishes or undoes it
            if writer in CONVERSIONS or writer in PARTS:
                write(writer, 3, sources, folder)
            else:
                equivalence.random_checkpoint(
                    folder / "out", PreTrainedConfig.from_pretrained(sources / "vit-3"), "classifier", seed=3
                )
            assert expected[read(writer, folder)] == "next", step
            assert notes.read_text() == "mine", step
            assert not [path for path in (folder / target_of(writer)).rglob(".*") if is_folder], step
        yield step
    if how is kill.every_step:  # one step decides
        changed = seen.index("new")
        assert seen == seen[:1] * changed + ["new"] * (len(seen) - changed)
        assert changed > 3


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    prepare(folder)
    return folder


@pytest.mark.parametrize(
    ("writer", "old"), [(writer, old) for writer in WRITERS for old in (None, 1) if old or "in shards" not in writer]
)
def test_whatever_ends_a_writer_its_target_is_the_old_one_or_the_new_one(writer, old, sources, tmp_path):
    every = 25 if writer == "orbax" else 1  # which takes a hundred times as many
    assert sum(1 for _ in ends(writer, sources, tmp_path, kill.every_step, old, once=True, every=every)) > 8


@pytest.mark.parametrize("writer", ["hf in shards", "orbax", "transformers-flax", "vit.pt in shards", "processor"])
def test_killed_at_random_moments_too(writer, sources, tmp_path):
    assert sum(1 for _ in ends(writer, sources, tmp_path, kill.at_random, 1, times=8)) == 8


# === Places where nothing can be written ===


@pytest.mark.parametrize("writer", ["hf", "google", "vit.pt", "processor", "configuration"])
def test_a_place_that_cannot_be_written_is_named(writer, sources, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for here in (tmp_path / "file", Path("/proc/no-such-folder")):  # where root too can make nothing
        with pytest.raises(CheckpointError) as caught:
            write(writer, 1, sources, here)
        said = str(caught.value)
        assert said.startswith(f"{here / target_of(writer)} cannot be "), said
        assert said.endswith("). It is as it was."), said  # in brackets what was in the way
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("gone", ["runs/folder", "runs"])
def test_a_folder_that_vanishes_while_it_is_saved_into_is_named(gone, tmp_path, monkeypatch):
    def write_and_lose(path: Path, text: str) -> None:
        path.write_text(text)
        shutil.rmtree(tmp_path / gone)

    monkeypatch.setattr(folders, "write_text", write_and_lose)
    folder = tmp_path / "runs" / "folder"
    with pytest.raises(CheckpointError, match=r"cannot be saved into: No such file or directory \(.*\)") as caught:
        ViTConfig().save_pretrained(folder)
    assert str(caught.value).startswith(str(folder)), caught
    assert not folder.exists()


@pytest.mark.parametrize("writer", ["hf", "google"])
def test_a_parent_that_vanishes_during_a_conversion_is_an_error_that_names_the_target(
    writer, sources, tmp_path, monkeypatch
):
    def write_and_lose(staged, *arguments):
        original(staged, *arguments)
        shutil.rmtree(tmp_path / "runs")

    original = engine._write
    monkeypatch.setattr(engine, "_write", write_and_lose)
    target = tmp_path / "runs" / target_of(writer)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(target.parent))}.* (does not exist|cannot be )"):
        write(writer, 1, sources, target.parent)
    assert not target.exists()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--random", type=int, default=0, help="kills at random moments, of each writer")
    parser.add_argument("--only", action="append", default=[], help="a writer; may be repeated")
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as made:
        prepare(Path(made) / "sources")
        (Path(made) / "here").mkdir()
        for writer in arguments.only or WRITERS:
            for old in (None, 1):
                places = (Path(made) / "sources", Path(made) / "here")
                counts[writer] += sum(step.killed for step in ends(writer, *places, kill.every_step, old))
                if arguments.random:
                    how = ends(writer, *places, kill.at_random, old, times=arguments.random)
                    counts["at random"] += sum(step.killed for step in how)
            print(f"{writer}: {counts[writer]} kills", flush=True)
    print(f"{counts.total()} kills, {counts['at random']} of them at random moments; none lost, none mixed")
