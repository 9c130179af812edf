"""Saving replaces a checkpoint whole: whatever ends it, whoever reads meanwhile, and whoever saves at the same time."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vit import CheckpointError, ViTConfig, checkpoint, folders
from vit.checkpoint import Checkpoint

from . import kill

SIZES = [("5GB", "5GB"), ("5GB", "400"), ("400", "5GB"), ("400", "400"), ("800", "400")]
"""Of the shards before, and after."""


def save(folder: Path, value: int, size: str = "5GB") -> None:
    """A checkpoint in which everything says `value`: weights, configuration and image processor."""
    config = ViTConfig(num_labels=value)
    tensors = {name: ((100,), np.dtype("f4")) for name in "abcd"}
    with folders.replace_files(folder, checkpoint.STALE_WEIGHTS) as staging:
        read = lambda name: np.full(100, value, np.float32)  # noqa: E731
        checkpoint.write_files(staging, config, tensors, read, size, taken=folder)
        folders.write_text(staging / "preprocessor_config.json", json.dumps({"rescale_factor": value}))


def values(folder: Path) -> set[float]:
    """All that a reader finds in it: one value, or the checkpoint is a mix."""

    def read(find: folders.Find) -> set[float]:
        processor = find("preprocessor_config.json")
        assert processor is not None
        opened = Checkpoint(folder)
        find("config.json")
        found = {float(number) for name in opened.tensors for number in opened.read(name)}
        assert opened.tensors.keys() == set("abcd")
        return {opened.config.num_labels, json.loads(processor.read_text())["rescale_factor"], *found}

    return folders.at_one_moment(folder, read)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def fresh(folder: Path, value: int, size: str) -> set[str]:
    """The files that a save into a new folder makes."""
    save(folder, value, size)
    return names(folder)


# === Ended at every step ===


@pytest.mark.parametrize(("old_size", "new_size"), SIZES)
def test_a_save_killed_at_any_step_leaves_the_old_checkpoint_or_the_new_one_and_the_next_save_no_trace(
    tmp_path, old_size, new_size
):
    folder = tmp_path / "folder"
    save(folder, 1, old_size)
    warm = f"from pathlib import Path\nfrom {__name__} import save"
    seen = []
    for step in kill.every_step(folder, run=f"save(Path(), 2, {new_size!r})", warm=warm):
        assert step.killed or not step.number, step
        seen.append(values(folder))
        assert seen[-1] in ({1}, {2}), step
        save(folder, 3, new_size)
        assert values(folder) == {3}, step
        assert not [name for name in names(folder) if name.startswith(".")], step
        assert len([name for name in names(folder) if name.endswith(".safetensors")]) == (4 if new_size == "400" else 1)
    changed = seen.index({2})
    assert seen == [{1}] * changed + [{2}] * (len(seen) - changed)  # one step decides
    assert 10 < changed < len(seen) - 5


def test_a_save_into_a_new_folder_killed_at_any_step_is_whole_or_no_checkpoint(tmp_path):
    folder = tmp_path / "runs"
    warm = f"from pathlib import Path\nfrom {__name__} import save"
    (folder).mkdir()
    for step in kill.every_step(folder, run="save(Path('a/b'), 2, '400')", warm=warm, torn=False):
        try:
            assert values(folder / "a/b") == {2}, step
        except AssertionError:
            assert not any(
                name.endswith((".json", ".safetensors")) for name in names(folder) if ".incomplete" not in name
            )
        save(folder / "a/b", 3, "400")
        assert values(folder / "a/b") == {3}, step
        assert not [name for name in names(folder) if "/." in name], step


@pytest.mark.parametrize(("old_size", "new_size"), [("5GB", "400"), ("400", "5GB")])
def test_a_disk_full_from_any_step_on_leaves_the_old_checkpoint_or_the_new_one_and_is_named(
    tmp_path, old_size, new_size
):
    folder = tmp_path / "folder"
    save(folder, 1, old_size)
    before = names(folder)
    warm = f"from pathlib import Path\nfrom {__name__} import save"
    run = f"save(Path(), 2, {new_size!r})"
    outcomes = set()
    for step in kill.every_step(folder, run=run, warm=warm, error=errno.ENOSPC):
        found = values(folder)
        outcomes.add((step.status, *found))
        if step.status:
            said = step.stderr.splitlines()[-1]
            assert said.startswith("vit.errors.CheckpointError: "), said
            assert "No space left on device" in said
            if found == {1}:
                assert said.endswith("It is as it was."), said
                assert names(folder) == before, step
                if step.call in ("write", "openat", "fsync") and "." in Path(step.path).name.lstrip("."):
                    assert f"({Path(step.path).name})" in said
        save(folder, 3, new_size)
        assert values(folder) == {3}
    assert outcomes == {(1, 1), (1, 2), (0, 2)}


def test_killed_at_random_moments_it_is_whole_as_well(tmp_path):
    folder = tmp_path / "folder"
    save(folder, 1, "400")
    warm = f"from pathlib import Path\nfrom {__name__} import save"
    run = "for value in range(2, 12): save(Path(), value, '5GB' if value % 2 else '400')"
    seen = set()
    for step in kill.at_random(folder, run=run, warm=warm, times=60):
        (found,) = values(folder)
        seen.add(found)
        if step.number % 3 == 0:
            save(folder, 99)
            assert values(folder) == {99}
    assert len(seen) > 3


def test_what_killed_saves_left_is_removed_by_the_next_one(tmp_path):
    save(tmp_path, 1)
    for name in (".incomplete-x", ".incomplete-y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    ViTConfig(num_labels=1).save_pretrained(tmp_path)
    assert not [name for name in names(tmp_path) if name.startswith(".")]


# === Folders that are not what a save left ===


def test_a_link_in_the_place_of_a_finished_save_moves_nothing(tmp_path):
    theirs, folder = tmp_path / "theirs", tmp_path / "folder"
    theirs.mkdir()
    (theirs / "config.json").write_text("theirs")
    (theirs / folders.REMOVED).write_text("[]")
    save(folder, 1)
    (folder / folders.COMPLETE).symlink_to(theirs)
    assert values(folder) == {1}
    with pytest.raises(CheckpointError, match="cannot be saved into"):
        save(folder, 2)
    assert values(folder) == {1}
    assert names(theirs) == {"config.json", folders.REMOVED}


@pytest.mark.parametrize("content", ["{", "{}", "[1]", '["../theirs"]', '["/etc/passwd"]', '[""]', '[".."]'])
def test_a_list_of_removed_files_that_no_save_wrote_is_refused_and_removes_nothing(tmp_path, content):
    folder = tmp_path / "folder"
    save(folder, 1)
    (tmp_path / "theirs").write_text("theirs")
    (folder / folders.COMPLETE).mkdir()
    (folder / folders.COMPLETE / folders.REMOVED).write_text(content)
    before = names(tmp_path)
    for use in (values, lambda folder: save(folder, 2)):
        with pytest.raises(CheckpointError, match=r"\.complete is not what a save left"):
            use(folder)
    assert names(tmp_path) == before


def test_a_folder_of_that_name_that_is_not_ours_is_left_alone(tmp_path):
    save(tmp_path, 1)
    (tmp_path / folders.COMPLETE).mkdir()
    (tmp_path / folders.COMPLETE / "config.json").write_text("theirs")
    assert values(tmp_path) == {1}
    with pytest.raises(CheckpointError, match="cannot be saved into"):
        save(tmp_path, 2)
    assert values(tmp_path) == {1}
    assert (tmp_path / folders.COMPLETE / "config.json").read_text() == "theirs"


# === Savers and readers at the same time ===

SAVER = f"""
import sys
from pathlib import Path
from {__name__} import save
for i in range(int(sys.argv[3])):
    save(Path(sys.argv[1]), int(sys.argv[2]) + i % 5, "400" if i % 2 else "5GB")
print("done")
"""


def savers(folder: Path, count: int, times: int) -> list[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    command = [sys.executable, "-c", SAVER, str(folder)]
    return [
        subprocess.Popen([*command, str(10 * (i + 1)), str(times)], env=environment, stdout=subprocess.PIPE, text=True)
        for i in range(count)
    ]


def test_readers_see_one_checkpoint_at_a_time_while_two_processes_save_into_the_folder(tmp_path):
    save(tmp_path, 1)
    running, seen, reads = savers(tmp_path, 2, 150), set(), 0
    while any(process.poll() is None for process in running):
        (found,) = values(tmp_path)  # more than one would be a mix
        seen.add(found)
        reads += 1
    assert [process.communicate()[0] for process in running] == ["done\n"] * 2
    assert len(seen) > 5, (seen, reads)
    assert reads > 50
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def test_a_reader_that_never_gets_a_moment_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "ATTEMPTS", 3)
    save(tmp_path, 1)
    calls = []

    def read(find: folders.Find) -> None:
        calls.append(find("config.json"))
        save(tmp_path, 2)

    with pytest.raises(CheckpointError, match="is saved into again and again"):
        folders.at_one_moment(tmp_path, read)
    assert len(calls) == 3


def test_an_error_that_a_save_caused_is_none(tmp_path):
    save(tmp_path, 1, "400")
    saves = iter([2])

    def read(find: folders.Find) -> str:
        shard = find("model-00001-of-00004.safetensors")
        for value in saves:
            save(tmp_path, value)
        if shard is not None:
            raise CheckpointError("gone meanwhile")
        return "whole"

    assert folders.at_one_moment(tmp_path, read) == "whole"


def test_readers_change_nothing(tmp_path):
    folder = tmp_path / "folder"
    save(folder, 1, "400")
    warm = f"from pathlib import Path\nfrom {__name__} import save"
    for step in kill.every_step(folder, run="save(Path(), 2)", warm=warm, torn=False):
        before = names(folder)
        values(folder)
        assert names(folder) == before, step
