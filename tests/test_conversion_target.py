"""What a forced conversion replaces and what it leaves; and the wrappers that a source may be in."""

from __future__ import annotations

import collections
import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from tf_keras.src.saving.legacy.hdf5_format import load_attributes_from_hdf5_group

import conversion
from conversion import target as targets
from conversion import transformers
from vit import checkpoint, folders
from vit.errors import CheckpointError
from vit.families.vit import ViTConfig

FIXTURES = Path(__file__).parent / "fixtures" / "conversion"
SOURCE = FIXTURES / "google_vit.npz"
FOLDERS = ("hf", "transformers-tf", "transformers-flax", "orbax")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("swaps", [True, False], ids=["in one step", "in two"])
@pytest.mark.parametrize("format_", FOLDERS)
def test_a_forced_conversion_replaces_its_own_files_and_leaves_the_others(format_, swaps, tmp_path, monkeypatch):
    if not swaps:
        monkeypatch.setattr(targets.ctypes, "CDLL", lambda *args, **kwargs: None)
    target = tmp_path / "out"
    conversion.convert(SOURCE, target, target_format=format_, labels=list("abcdefg"), max_shard_size="100KB")
    written = tree(target)
    mine = {"notes.txt": b"1", "model-mine.safetensors": b"2", "sub/notes": b"3", "sub/deep/er": b"4", "d/thesis": b"5"}
    for name, data in mine.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)
    (target / "empty").mkdir()
    (target / "link").symlink_to("notes.txt")
    conversion.convert(SOURCE, target, target_format=format_, labels=list("hijklmn"), force=True)
    found = tree(target)
    assert {name: found[name] for name in mine} == mine
    assert (target / "empty").is_dir()
    assert os.readlink(target / "link") == "notes.txt"
    assert conversion.open_source(target, labels=None).config.id2label[0] == "h"
    # Nothing of the old checkpoint is left that the new one does not have.
    conversion.convert(SOURCE, tmp_path / "fresh", target_format=format_, labels=list("hijklmn"))
    own, fresh = found.keys() - mine.keys() - {"link"}, tree(tmp_path / "fresh").keys()
    assert len(own) == len(fresh)
    assert not {name for name in own & written.keys() if name.startswith(("model-", "d/"))}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_which_shards_a_forced_conversion_removes(tmp_path):
    old = ["model.safetensors", "model.safetensors.index.json", "model-00001-of-00002.safetensors",
           "model-2-00001-of-00002.safetensors", "preprocessor_config.json"]  # fmt: skip
    kept = ["model-ema.safetensors", "model-00001.safetensors", "mymodel.safetensors", "model.safetensors.bak",
            "pytorch_model.bin", "tf_model.h5", "model-00001-of-00002.safetensors.index"]  # fmt: skip
    (tmp_path / "out").mkdir()
    for name in (*old, *kept):
        (tmp_path / "out" / name).write_text("old")
    conversion.convert(SOURCE, tmp_path / "out", force=True)
    left = {path.name for path in (tmp_path / "out").iterdir() if path.read_bytes() == b"old"}
    assert left == set(kept)
    assert not (tmp_path / "out" / old[1]).exists()


def test_a_folder_whose_weights_would_be_read_first_is_not_written_into(tmp_path):
    conversion.convert(SOURCE, tmp_path / "out")
    before = tree(tmp_path / "out")
    for format_ in ("transformers-tf", "transformers-flax"):
        with pytest.raises(CheckpointError, match=r"holds model\.safetensors, which would be read instead of"):
            conversion.convert(SOURCE, tmp_path / "out", target_format=format_, force=True)
    assert tree(tmp_path / "out") == before


def test_an_orbax_checkpoint_below_the_target_is_not_replaced(tmp_path):
    conversion.convert(SOURCE, tmp_path / "run" / "default", target_format="orbax")
    (tmp_path / "run" / "log.txt").write_text("mine")
    before = tree(tmp_path / "run")
    with pytest.raises(CheckpointError, match="something else than an orbax checkpoint"):
        conversion.convert(SOURCE, tmp_path / "run", target_format="orbax", force=True)
    assert tree(tmp_path / "run") == before


@pytest.mark.parametrize("name", ["a%2Fb", "%2e%2e%2Fup", "sp ace", "ü#?&=", "a\nb"])
def test_the_name_of_an_orbax_folder_is_no_url(name, tmp_path):
    folder = tmp_path / "in" / name
    conversion.convert(SOURCE, folder, target_format="orbax")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == [name]
    assert conversion.open_source(folder).config.hidden_size == 48


@pytest.mark.parametrize(("name", "format_"), [("out", "hf"), ("out", "orbax"), ("out.npz", "google")])
@pytest.mark.parametrize("there", [True, False], ids=["to something", "to nothing"])
def test_a_symbolic_link_is_not_followed(name, format_, there, tmp_path):
    real = tmp_path / "real"
    if there:
        conversion.convert(SOURCE, real.with_suffix(Path(name).suffix), target_format=format_)
    (tmp_path / name).symlink_to(real.with_suffix(Path(name).suffix))
    before = tree(tmp_path)
    with pytest.raises(CheckpointError, match="symbolic link, which is not followed"):
        conversion.convert(SOURCE, tmp_path / name, target_format=format_, force=True)
    assert tree(tmp_path) == before


def test_what_is_in_the_way_is_named_and_nothing_changes(tmp_path):
    (tmp_path / "out" / "config.json").mkdir(parents=True)
    (tmp_path / "out" / "config.json" / "mine").write_text("x")
    with pytest.raises(CheckpointError, match=r"config\.json is in the way"):
        conversion.convert(SOURCE, tmp_path / "out", force=True)
    assert tree(tmp_path) == {"out/config.json/mine": b"x"}


def test_a_kill_at_any_step_leaves_the_old_checkpoint_or_the_new_one_whole(tmp_path):
    # The audit hooks of Python see every rename, link, removal and opening, and end the process at the n-th.
    code = (
        "import os, sys, conversion\n"
        "events = 'os.rename', 'os.link', 'os.remove', 'os.rmdir', 'os.mkdir', 'open', 'ctypes.dlopen'\n"
        "left = [None]\n"
        "def hook(event, args):\n"
        "    if event in events and left[0] is not None:\n"
        "        left[0] -= 1\n"
        "        if left[0] < 0:\n"
        "            os._exit(9)\n"
        "publish = conversion.engine.publish\n"
        "def killed(*args):\n"
        "    left[0] = int(sys.argv[3])\n"
        "    publish(*args)\n"
        "conversion.engine.publish = killed\n"
        "sys.addaudithook(hook)\n"
        "conversion.convert(sys.argv[1], sys.argv[2], labels=list('hijklmn'), force=True, verify=False)\n"
    )
    whole, seen = set(), []
    for step in range(100):
        target = tmp_path / str(step) / "out"
        conversion.convert(SOURCE, target, labels=list("abcdefg"), max_shard_size="200KB", verify=False)
        (target / "notes").write_text("mine")
        done = subprocess.run([sys.executable, "-c", code, str(SOURCE), str(target), str(step)], capture_output=True)
        found = conversion.inspect(target)
        assert found.whole, (step, found.problem)
        assert (target / "notes").read_text() == "mine"
        whole.add(found.config.id2label[0])
        files = {path.name for path in target.iterdir()}
        assert ("model.safetensors" in files) == (found.config.id2label[0] == "h")
        assert ("model.safetensors.index.json" in files) == (found.config.id2label[0] == "a")
        seen.append(done.returncode)
        if done.returncode == 0:
            break
    assert whole == {"a", "h"}
    assert seen[-1] == 0
    assert set(seen[:-1]) == {9}
    assert len(seen) > 5


def half_saved(folder: Path, decided: bool) -> None:
    """The labels a to g in one file; a save of h to n, in shards, was killed before or after it was decided."""
    conversion.convert(SOURCE, folder, labels=list("abcdefg"))
    (folder / "notes").write_text("mine")
    conversion.convert(SOURCE, folder.with_name("new"), labels=list("hijklmn"), max_shard_size="200KB")
    new = folder.with_name("new").rename(folder / (folders.COMPLETE if decided else f"{folders.STAGED}x"))
    (new / folders.REMOVED).write_text('["model.safetensors"]')


@pytest.mark.parametrize("format_", ["hf", "transformers-tf", "transformers-flax"])
@pytest.mark.parametrize("decided", [True, False])
def test_what_a_killed_save_left_is_not_carried_into_the_new_folder(decided, format_, tmp_path):
    target = tmp_path / "out"
    half_saved(target, decided)
    if format_ != "hf":
        with pytest.raises(CheckpointError, match=r"out holds model\.safetensors(\.index\.json)?, which would be read"):
            conversion.convert(SOURCE, target, target_format=format_, force=True)
        return
    conversion.convert(SOURCE, target, labels=list("opqrstu"), force=True)
    assert tree(target).keys() == {"config.json", "model.safetensors", "preprocessor_config.json", "notes"}
    assert checkpoint.Checkpoint(target).config.id2label[0] == "o"


def test_a_place_of_a_finished_save_that_no_save_left_is_named_and_nothing_changes(tmp_path):
    target = tmp_path / "out"
    half_saved(target, True)
    (target / folders.COMPLETE / folders.REMOVED).write_text("{")
    before = tree(tmp_path)
    with pytest.raises(CheckpointError, match=r"\.complete is not what a save left"):
        conversion.convert(SOURCE, target, force=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("decided", [True, False])
def test_a_source_folder_is_read_as_a_killed_save_decided(decided, tmp_path):
    folder = tmp_path / "folder"
    half_saved(folder, decided)
    before, label = tree(folder), "h" if decided else "a"
    conversion.convert(folder, tmp_path / "out", source_format="hf")
    assert checkpoint.Checkpoint(tmp_path / "out").config.id2label[0] == label
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()
    found = conversion.inspect(folder)
    assert found.whole, found.problem
    assert found.config.id2label[0] == label
    once = [data for name, data in before.items() if name.startswith(".") == decided or name == "notes"]
    assert found.size == sum(map(len, once)) - (len('["model.safetensors"]') if decided else 0)
    assert conversion.open_source(folder).config.id2label[0] == label
    verified = conversion.verify(folder, frameworks=["pt", "flax"])
    assert verified.passed
    assert verified.config.id2label[0] == label
    assert tree(folder) == before


def test_what_a_killed_conversion_left_is_removed_by_the_next_and_what_one_uses_is_not(tmp_path):
    left, used, fresh = (tmp_path / f".converting-{name}" for name in ("left", "used", "fresh"))
    for folder in (left, used, fresh):
        folder.mkdir()
        (folder / "file").write_text("x")
    for folder in (left, used):
        os.utime(folder, (time.time() - 3600,) * 2)
    with targets._locked(used):
        conversion.convert(SOURCE, tmp_path / "out")
    assert not left.exists()
    assert used.exists()
    assert fresh.exists()


# === Wrappers ===


class Unknown(list):
    """Stands for what a training keeps: with items, attributes, and a class that no converter knows."""

    def __init__(self, what: object) -> None:
        super().__init__([what])
        self.what = what


@pytest.mark.parametrize("head", ["classifier", None, "decoder"])
@pytest.mark.parametrize("kind", [
    "plain", "module.", "_orig_mod.", "module._orig_mod.", "model.", "lightning", "model", "module in model",
    "averaged", "lightning of any name", "whole training",
])  # fmt: skip
def test_published_names_in_a_wrapper_are_converted(kind, head, tmp_path, random_checkpoint, tiny_config):
    import torch

    config: ViTConfig = tiny_config(hidden_size=64, num_attention_heads=1)
    folder = random_checkpoint(tmp_path / "own", config, head)
    own = checkpoint.Checkpoint(folder)
    arrays = {name: np.array(own.read(name)) for name in own.tensors}
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    content = {
        "lightning": {"state_dict": {f"model.{name}": value for name, value in state.items()}, "epoch": 3},
        "model": {"model": state, "epoch": 1, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
        "module in model": {"model": {f"module.{name}": value for name, value in state.items()}},
        "lightning of any name": {"state_dict": {f"my_net._orig_mod.{name}": value for name, value in state.items()}},
        "whole training": {
            "state_dict": {
                **{f"net.{name}": value for name, value in state.items()},
                "criterion.weight": torch.ones(5),
            },
            "callbacks": {Unknown: Unknown(3)},
            "hyper_parameters": Unknown({"lr": 0.1}),
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
            "loops": collections.deque([Unknown(1)]),
            "rng": np.random.default_rng(0),
        },
        "averaged": {"model": {name: value * 0 for name, value in state.items()}, "model_ema": state},
    }.get(kind) or {("" if kind == "plain" else kind) + name: value for name, value in state.items()}
    torch.save(content, tmp_path / "x.pth")
    report = conversion.convert(tmp_path / "x.pth", tmp_path / "out")
    assert report.source_format == "transformers-pt"
    assert report.tensors == len(arrays)
    result = checkpoint.Checkpoint(tmp_path / "out")
    assert {name: result.read(name).tobytes() for name in result.tensors} == {n: a.tobytes() for n, a in arrays.items()}
    if kind == "averaged":
        assert any("averaged" in line for line in report.said)


def test_a_file_of_several_models_is_refused_with_their_names(tmp_path, random_checkpoint, tiny_config):
    import torch

    own = checkpoint.Checkpoint(random_checkpoint(tmp_path / "own", tiny_config(), "classifier"))
    state = {name: torch.from_numpy(np.array(own.read(name))) for name in own.tensors}
    both = {f"{which}.{name}": value for name, value in state.items() for which in ("student", "teacher")}
    torch.save({"state_dict": both}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"several models .*student.*teacher"):
        conversion.convert(tmp_path / "x.ckpt", tmp_path / "out")


def test_a_pickled_model_is_refused_with_what_to_save_instead(tmp_path):
    import torch

    torch.save(torch.nn.Linear(3, 2), tmp_path / "model.pth")
    torch.save({"model": torch.nn.Linear(3, 2)}, tmp_path / "inside.pth")
    with pytest.raises(CheckpointError, match=r"an object of torch\.nn\.modules\.linear\.Linear, .*Save its state"):
        conversion.convert(tmp_path / "model.pth", tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"no tensors, but model \(.*Linear"):
        conversion.convert(tmp_path / "inside.pth", tmp_path / "out")


# === Where folders cannot change places ===


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EBUSY])
def test_a_mounted_folder_stays_and_its_files_are_replaced(code, tmp_path, monkeypatch):
    def exchange(staged, target):
        raise OSError(code, os.strerror(code))

    target = tmp_path / "out"
    conversion.convert(SOURCE, target, labels=list("abcdefg"), max_shard_size="100KB")
    mine = {"notes": b"mine", "sub/notes": b"too"}
    for name, data in mine.items():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes(data)
    inode = target.stat().st_ino
    monkeypatch.setattr(targets, "_exchange", exchange)
    conversion.convert(SOURCE, target, labels=list("hijklmn"), force=True)
    assert target.stat().st_ino == inode
    found = tree(target)
    assert found.keys() == {"config.json", "model.safetensors", "preprocessor_config.json", *mine}
    assert {name: found[name] for name in mine} == mine
    assert checkpoint.Checkpoint(target).config.id2label[0] == "h"


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one_there(tmp_path, monkeypatch):
    def rename(old, new):
        if Path(old).name == "out" and ".converting-" in str(old):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        original(old, new)

    target, original = tmp_path / "out", os.rename
    conversion.convert(SOURCE, target, labels=list("abcdefg"))
    before = tree(target)
    monkeypatch.setattr(targets.ctypes, "CDLL", lambda *args, **kwargs: None)
    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(CheckpointError, match=r"out cannot be written: Input/output error. It is as it was\."):
        conversion.convert(SOURCE, target, labels=list("hijklmn"), force=True)
    assert tree(target) == before


def test_an_empty_folder_of_an_old_orbax_checkpoint_does_not_stay(tmp_path):
    target = tmp_path / "out"
    conversion.convert(SOURCE, target, target_format="orbax")
    for name in ("ocdbt.process_7", "mine"):
        (target / name).mkdir()
    conversion.convert(SOURCE, target, target_format="orbax", force=True)
    assert not (target / "ocdbt.process_7").exists()
    assert (target / "mine").is_dir()


# === Long lists of names ===


@pytest.mark.parametrize(("limit", "attributes"), [(30, 1), (29, 2), (12, 3), (11, 5), (6, 5)])
def test_a_list_of_names_that_no_attribute_holds_is_split_as_keras_reads_it(limit, attributes, tmp_path, monkeypatch):
    monkeypatch.setattr(transformers, "_ATTRIBUTE_LIMIT", limit)
    names = [f"name/{i}" for i in range(5)]  # of 6 bytes each
    tensors = {f"group/{name}": ((1,), np.dtype("f4")) for name in names}
    transformers.write_tf_h5(tmp_path / "x.h5", tensors, lambda name: np.float32([int(name[-1])]))
    with h5py.File(tmp_path / "x.h5") as file:
        group = file["group"]
        assert load_attributes_from_hdf5_group(group, "weight_names") == names
        assert len(group.attrs) == attributes
        assert [int(group[name][0]) for name in names] == list(range(5))
