"""What a conversion refuses: each by name, with the target as it was."""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import conversion
from conversion import containers, rules
from vit import checkpoint
from vit.errors import CheckpointError
from vit.families.vit import ViTConfig

FIXTURES = Path(__file__).parent / "fixtures" / "conversion"
HEADS = {"num_attention_heads": 4}


def refused(source: Path, match: str, tmp_path: Path, **options: object) -> None:
    """Check that a conversion is refused, and leaves nothing behind."""
    folder = tmp_path / "targets"
    folder.mkdir()
    with pytest.raises(CheckpointError, match=match):
        conversion.convert(source, folder / "out", **{**HEADS, **options})
    assert not list(folder.iterdir())


@pytest.fixture
def state() -> dict[str, np.ndarray]:
    """A timm state dict."""
    return load_file(FIXTURES / "timm_vit.safetensors")


@pytest.fixture
def save(tmp_path: Path) -> Callable[[dict[str, np.ndarray]], Path]:
    """A writer of state dicts."""

    def write(tensors: dict[str, np.ndarray]) -> Path:
        save_file(tensors, tmp_path / "state.safetensors")
        return tmp_path / "state.safetensors"

    return write


# === Files ===


class Attack:
    """A pickle that would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (str(self.path), "w"))


def test_a_pickle_is_read_restricted_to_tensors_and_what_else_it_names_is_neither_imported_nor_called(tmp_path):
    import torch

    attack = Attack(tmp_path / "owned")
    content = torch.load(FIXTURES / "dino_full.pth", weights_only=True)
    torch.save({**content, "x": attack, "more": [attack, {attack: 1}]}, tmp_path / "full.pth")
    ignored = conversion.convert(tmp_path / "full.pth", tmp_path / "out", **HEADS).ignored
    assert "(io.open)" in ignored["x"]
    torch.save(attack, tmp_path / "bad.pth")
    refused(tmp_path / "bad.pth", "nothing but tensors is unpickled", tmp_path)
    torch.save({"cls_token": attack}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=r"holds no tensors, but cls_token \("):
        conversion.convert(tmp_path / "bad.pth", tmp_path / "other")
    assert not (tmp_path / "owned").exists()


def test_the_namespace_of_a_training_script_is_read_and_named(tmp_path):
    import torch

    content = torch.load(FIXTURES / "dino_full.pth", weights_only=True)
    content["args"] = argparse.Namespace(lr=0.1, arch="vit_small")
    content["optimizer"] = {"state": {0: {"exp_avg": torch.zeros(3)}}}
    content["teacher"]["head.mlp.0.weight"] = torch.zeros(3, 3)
    torch.save(content, tmp_path / "full.pth")
    ignored = conversion.convert(tmp_path / "full.pth", tmp_path / "out", **HEADS).ignored
    assert "Namespace" in ignored["args"]
    assert "training" in ignored["optimizer/state/0/exp_avg"]
    assert "projection head" in ignored["teacher/head.mlp.0.weight"]


def test_an_npz_of_objects_is_refused(tmp_path):
    arrays = dict(np.load(FIXTURES / "google_vit.npz"))
    np.savez(tmp_path / "bad.npz", **{**arrays, "cls": np.array([{}], dtype=object)})
    refused(tmp_path / "bad.npz", "cls is a pickled object", tmp_path)


@pytest.mark.parametrize("link", ["external link", "external data", "virtual data", "soft link"])
def test_an_h5_file_that_reaches_out_of_itself_is_refused(link, tmp_path):
    import h5py

    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.zeros((2, 2))
    folder = tmp_path / "bad"
    shutil.copytree(FIXTURES / "hf_tf_h5", folder)
    with h5py.File(folder / "tf_model.h5", "r+") as file:
        if link == "external link":
            file["vit/stolen"] = h5py.ExternalLink(secret, "x")
        elif link == "soft link":
            file["vit/stolen"] = h5py.SoftLink("/classifier")
        elif link == "external data":
            file.create_dataset("vit/stolen", (2, 2), "f8", external=[(os.fspath(secret), 0, 32)])
        else:
            layout = h5py.VirtualLayout((2, 2), "f8")
            layout[:] = h5py.VirtualSource(secret, "x", (2, 2))
            file.create_virtual_dataset("vit/stolen", layout)
    refused(folder, "vit/stolen (is a link out of|lies in another file)", tmp_path)


WHOLE = ("google_vit.npz", "timm_vit.safetensors", "torchvision_vit.pth", "dino_full.pth", "hf_tf_h5/tf_model.h5",
         "hf_flax_msgpack/flax_model.msgpack")  # fmt: skip


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.98, "one byte less"])
@pytest.mark.parametrize("name", WHOLE)
def test_a_truncated_file_is_refused(name, share, tmp_path):
    data = (FIXTURES / name).read_bytes()
    cut = tmp_path / Path(name).name
    cut.write_bytes(data[:-1] if isinstance(share, str) else data[: int(len(data) * share)])
    refused(cut, "is no|not a whole|cannot be read|holds", tmp_path)


@pytest.mark.parametrize("name", WHOLE)
def test_a_damaged_file_is_refused_or_read_but_nothing_else(name, tmp_path):
    rng, whole, errors = np.random.default_rng(0), np.fromfile(FIXTURES / name, np.uint8), []
    path = tmp_path / Path(name).name
    for reach in (64, 4000, len(whole)) * 15:
        damaged = whole.copy()
        places = rng.integers(0, reach, 3) * rng.choice([1, -1])  # at both ends, where headers and indices are
        damaged[places % len(whole)] = rng.integers(0, 256, 3)
        damaged.tofile(path)
        try:
            tensors_of(path)
        except CheckpointError as error:
            errors.append(str(error))
    assert errors
    assert all(str(path) in error for error in errors)


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    source = conversion.open_source(path, **HEADS)
    return {name: source.read(name) for name in source.shapes}


def test_truncated_keras_and_orbax_checkpoints_are_refused(tmp_path):
    conversion.convert(FIXTURES / "hf_tf_h5", tmp_path / "model.keras", target_format="keras")
    conversion.convert(FIXTURES / "hf_tf_h5", tmp_path / "orbax", target_format="orbax")
    data = (tmp_path / "model.keras").read_bytes()
    (tmp_path / "cut.keras").write_bytes(data[: len(data) // 2])
    refused(tmp_path / "cut.keras", "is no whole zip", tmp_path)
    (tmp_path / "targets").rmdir()
    for file in (tmp_path / "orbax" / "d").iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    refused(tmp_path / "orbax", "is no whole orbax|cannot be read", tmp_path)


@pytest.mark.parametrize("name", ["head/kernel", "Transformer/encoderblock_1/MlpBlock_0/Dense_0/kernel"])
def test_a_flipped_bit_of_an_npz_is_found(name, tmp_path):
    data = bytearray((FIXTURES / "google_vit.npz").read_bytes())
    with zipfile.ZipFile(FIXTURES / "google_vit.npz") as archive:
        info = archive.getinfo(f"{name}.npy")
    data[info.header_offset + info.file_size - 5] ^= 1
    (tmp_path / "flipped.npz").write_bytes(data)
    refused(tmp_path / "flipped.npz", "checksum|CRC", tmp_path)


@pytest.mark.parametrize(
    ("content", "match"),
    [(b"", "no checkpoint that is known"), (b"hello, world " * 20, "no checkpoint that is known"),
     (b"\x89PNG\r\n\x1a\n" + bytes(99), "no checkpoint that is known"), (b"PK\x03\x04" + bytes(99), "no whole zip"),
     (b"\x89HDF\r\n\x1a\n" + bytes(99), "no whole HDF5"), (b"\x81\xa1a\x01", "no tensors"),
     (bytes(257) + b"ustar" + bytes(300), "known: .* It is a tar archive: unpack it; one that PyTorch itself wrote"),
     (b"\x1f\x8b" + bytes(99), "known: .* It is compressed by gzip: unpack it"),
     (b"version https://git-lfs.github.com/spec/v1", "known: .* It is a pointer of git-lfs: 'git lfs pull' fetches")],
)  # fmt: skip
def test_a_file_of_something_else_is_refused(content, match, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    refused(tmp_path / "model.safetensors", match, tmp_path)


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite", "model.stablehlo"])
def test_an_export_is_named_as_one(name, tmp_path):
    (tmp_path / name).write_bytes(b"\x08\n\x12\x06trivit" + bytes(99))
    refused(tmp_path / name, "known: .* it is an export: 'vit serve' and vit.exporting.load run it", tmp_path)


NAMES = ["x.safetensors", "x.bin", "x.pth", "x.pth.tar", "x.npz", "x.h5", "x.msgpack", "x"]


@pytest.mark.parametrize("source", ["timm_vit.safetensors", "torchvision_vit.pth", "google_vit.npz"])
def test_a_file_is_what_its_bytes_are_whatever_its_name_is(source, tmp_path):
    expected = conversion.open_source(FIXTURES / source, num_attention_heads=4)
    for name in NAMES:
        shutil.copyfile(FIXTURES / source, tmp_path / name)
        found = conversion.open_source(tmp_path / name, num_attention_heads=4)
        assert found.config == expected.config
        for tensor in expected.store.tensors:
            np.testing.assert_array_equal(found.store.read(tensor), expected.store.read(tensor))


def test_what_is_not_there_is_refused(tmp_path):
    refused(tmp_path / "nowhere", "does not exist", tmp_path)
    (tmp_path / "targets").rmdir()
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no checkpoint that is known", tmp_path)


def test_a_missing_shard_is_named(tmp_path, reference):
    shutil.copytree(reference / "hf_torch_sharded", tmp_path / "sharded")
    (tmp_path / "sharded" / "model-00003-of-00008.safetensors").unlink()
    refused(tmp_path / "sharded", "lacks the shard model-00003-of-00008.safetensors", tmp_path)


def test_a_format_that_the_file_is_not_is_refused(tmp_path):
    refused(FIXTURES / "google_vit.npz", "is a npz file; timm checkpoints are", tmp_path, source_format="timm")
    (tmp_path / "targets").rmdir()
    refused(FIXTURES / "timm_vit.safetensors", "does not know", tmp_path, source_format="torchvision")
    (tmp_path / "targets").rmdir()
    refused(FIXTURES / "google_vit.npz", "Unknown format 'npz'", tmp_path, source_format="npz")
    (tmp_path / "targets").rmdir()
    refused(FIXTURES / "google_vit.npz", "Unknown target format", tmp_path, target_format="dino")


# === Tensors ===


@pytest.mark.parametrize(
    ("added", "family"),
    [("reg_token", "register tokens"), ("blocks.0.ls1.gamma", "layer scale"),
     ("patch_embed.backbone.stem.conv.weight", "a hybrid ResNet"), ("fc_norm.weight", "average pooling"),
     ("blocks.0.mlp.w12.weight", "SwiGLU"), ("attn_pool.latent", "attention pooling"),
     ("blocks.0.attn.q_norm.weight", "normalised queries"), ("norm_pre.weight", "CLIP"),
     ("decoder_embed.weight", "masked autoencoder"), ("blocks.0.attn.relative_position_bias_table", "BEiT")],
)  # fmt: skip
def test_each_other_family_is_refused_by_name(added, family, state, save, tmp_path):
    refused(save({**state, added: np.zeros(3, np.float32)}), f"{family}.*{added}", tmp_path)


@pytest.mark.parametrize(
    ("added", "removed", "family"),
    [("conv_root/kernel", None, "a hybrid ResNet stem"), ("MAPHead_0/probe", None, "attention pooling"),
     (None, "cls", "averaging")],
)  # fmt: skip
def test_other_families_of_the_jax_files_are_refused_by_name(added, removed, family, tmp_path):
    arrays = {key: value for key, value in np.load(FIXTURES / "google_vit.npz").items() if key != removed}
    np.savez(tmp_path / "other.npz", **arrays, **({added: np.zeros(3, np.float32)} if added else {}))
    refused(tmp_path / "other.npz", family, tmp_path)


def test_two_tensors_that_fight_for_one_name_are_named(state, save, tmp_path):
    refused(save({**state, "fc.weight": state["head.weight"]}), "fight for one name: (fc|head).weight and", tmp_path)


def test_an_unknown_tensor_is_named(state, save, tmp_path):
    refused(save({**state, "blocks.0.surprise": np.zeros(3, np.float32)}), "blocks.0.surprise", tmp_path)


def test_a_missing_tensor_is_named(state, save, tmp_path):
    del state["blocks.1.mlp.fc2.bias"]
    refused(save(state), "missing: blocks.1.mlp.fc2.bias", tmp_path)


def test_a_missing_layer_is_named(state, save, tmp_path):
    kept = {name: array for name, array in state.items() if not name.startswith("blocks.1.")}
    refused(save(kept), "missing: blocks.1.norm1.weight", tmp_path)


def test_a_mis_shaped_tensor_is_named_with_both_shapes(state, save, tmp_path):
    state["blocks.2.attn.qkv.weight"] = state["blocks.2.attn.qkv.weight"][:96].copy()
    refused(save(state), r"blocks.2.attn.qkv.weight is \(96, 48\), expected \(144, 48\)", tmp_path)


def test_heads_that_nothing_tells_are_asked_for(tmp_path):
    refused(FIXTURES / "timm_vit.safetensors", "--num-attention-heads N", tmp_path, num_attention_heads=None)
    (tmp_path / "targets").rmdir()
    refused(FIXTURES / "timm_vit.safetensors", "48 is not divisible by .* 7", tmp_path, num_attention_heads=7)


def test_heads_are_64_wide_by_convention_and_those_of_a_known_size_are_its_own(tmp_path, random_checkpoint):
    for config, heads, said in (
        (ViTConfig(hidden_size=128, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64), 2, "convention"),
        (ViTConfig(hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768), 3, "ViT-Ti"),
    ):
        source = random_checkpoint(tmp_path / said, config, "classifier")
        conversion.convert(source, tmp_path / f"{said}.safetensors", target_format="timm")
        opened = conversion.open_source(tmp_path / f"{said}.safetensors")
        assert opened.config.num_attention_heads == heads
        assert any(said in line for line in opened.said)


def test_integers_are_no_parameters(state, save, tmp_path):
    state["norm.weight"] = state["norm.weight"].astype(np.int32)
    refused(save(state), "dtype I32|stores parameters as int32", tmp_path)


# === The target ===


def test_a_target_that_exists_is_replaced_only_by_force(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="exists; name another target"):
        conversion.convert(FIXTURES / "google_vit.npz", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]
    conversion.convert(FIXTURES / "google_vit.npz", tmp_path / "out", max_shard_size="100KB", force=True)
    conversion.convert(FIXTURES / "google_vit.npz", tmp_path / "out", force=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json", "model.safetensors", "notes.txt", "preprocessor_config.json"]  # fmt: skip
    for name, format_ in (("out.npz", "google"), ("orbax", "orbax")):
        conversion.convert(FIXTURES / "google_vit.npz", tmp_path / name, target_format=format_)
        with pytest.raises(CheckpointError, match="exists"):
            conversion.convert(FIXTURES / "google_vit.npz", tmp_path / name, target_format=format_)
        conversion.convert(FIXTURES / "google_vit.npz", tmp_path / name, target_format=format_, force=True)
        assert conversion.open_source(tmp_path / name, **HEADS).config.hidden_size == 48
    with pytest.raises(CheckpointError, match="not replaced"):
        conversion.convert(FIXTURES / "google_vit.npz", tmp_path / "out", target_format="orbax", force=True)


def test_a_target_of_the_wrong_kind_is_refused(tmp_path):
    for target, format_, match in (("out", "google", "end its name in .npz"), ("out.h5", "hf", "looks like a file"),
                                   ("out.zip", "timm", "end its name in .safetensors")):  # fmt: skip
        with pytest.raises(CheckpointError, match=match):
            conversion.convert(FIXTURES / "google_vit.npz", tmp_path / target, target_format=format_)
    assert not list(tmp_path.iterdir())


def test_a_failed_conversion_leaves_a_forced_target_as_it_was(tmp_path, state, save):
    conversion.convert(FIXTURES / "google_vit.npz", tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    del state["norm.bias"]
    with pytest.raises(CheckpointError, match=r"norm\.bias"):
        conversion.convert(save(state), tmp_path / "out", force=True, **HEADS)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    "target", ["new.npz", "deep/er/new.npz", "folder", "orbax", "new.keras", "new.pth", "tf", "flax"]
)
def test_a_full_disk_is_a_clear_error_and_leaves_nothing(target, tmp_path):
    code = (
        "import resource, sys, conversion\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "try:\n    conversion.convert(sys.argv[1], sys.argv[2], target_format=sys.argv[3])\n"
        "except conversion.engine.CheckpointError as error:\n    print(error)\n"
    )
    formats = {".npz": "google", ".keras": "keras", ".pth": "timm"}
    named = {"orbax": "orbax", "tf": "transformers-tf", "flax": "transformers-flax"}
    format_ = formats.get(Path(target).suffix) or named.get(target, "hf")
    (tmp_path / "disk").mkdir()
    arguments = [FIXTURES / "google_vit.npz", tmp_path / "disk" / target, format_]
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert f"{target} cannot be written" in done.stdout, done.stderr
    assert not done.stderr
    assert not list((tmp_path / "disk").iterdir())


def test_the_comparison_finds_a_wrong_rule_and_a_wrong_write(tmp_path, monkeypatch):
    right = rules.Format.to_canonical

    def wrong(self, array, shape):
        result = right(self, array, shape)
        forgotten = self.name == "google" and len(shape) == 2 and shape[0] == shape[1]
        return np.ascontiguousarray(result.T) if forgotten else result

    monkeypatch.setattr(rules.Format, "to_canonical", wrong)
    with pytest.raises(CheckpointError, match=r"The comparison failed: vit.encoder.layer.0.attention"):
        conversion.convert(FIXTURES / "google_vit.npz", tmp_path / "rule")
    monkeypatch.undo()

    def careless(path, tensors, read, threads):
        checkpoint_write(path, tensors, lambda name: read(name) + np.float32(name == "vit.layernorm.bias"), threads)

    checkpoint_write = checkpoint.write_safetensors
    monkeypatch.setattr(checkpoint.writing, "write_safetensors", careless)
    with pytest.raises(CheckpointError, match=r"The comparison failed: vit.layernorm.bias"):
        conversion.convert(FIXTURES / "google_vit.npz", tmp_path / "write")
    assert not list(tmp_path.iterdir())
    conversion.convert(FIXTURES / "google_vit.npz", tmp_path / "unverified", verify=False)
    assert (tmp_path / "unverified").is_dir()


@pytest.fixture(scope="module")
def wide(tmp_path_factory, random_checkpoint) -> Path:
    """A google .npz whose MLP matrices, (1100, 320) and (320, 1100), are several tiles each way."""
    folder = tmp_path_factory.mktemp("wide")
    sizes = {"hidden_size": 320, "num_attention_heads": 5, "intermediate_size": 1100, "image_size": 32}
    random_checkpoint(folder / "hf", ViTConfig(num_hidden_layers=1, num_labels=3, **sizes), "classifier")
    conversion.convert(folder / "hf", folder / "wide.npz", target_format="google")
    return folder / "wide.npz"


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("name", ["intermediate", "output"])
@pytest.mark.parametrize("at", [(0, 0), (-1, -1), (0, -1), (-1, 0), (200, 130)])
def test_the_comparison_finds_one_flipped_bit_anywhere_in_a_matrix(name, at, dtype, wide, tmp_path, monkeypatch):
    parameter = f"vit.encoder.layer.0.{name}.dense.weight"

    def careless(path, tensors, read, threads):
        checkpoint_write(path, tensors, read, threads)
        tensor = checkpoint.read_header(path)[parameter]
        row, column = np.arange(tensor.shape[0])[at[0]], np.arange(tensor.shape[1])[at[1]]
        with open(path, "r+b") as file:
            file.seek(tensor.offset + int(row * tensor.shape[1] + column) * tensor.dtype.itemsize)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))

    checkpoint_write = checkpoint.write_safetensors
    monkeypatch.setattr(checkpoint.writing, "write_safetensors", careless)
    with pytest.raises(CheckpointError, match=f"The comparison failed: {parameter}"):
        conversion.convert(wide, tmp_path / "out", dtype=dtype)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stage", ["writing", "comparing"])
@pytest.mark.parametrize("target", ["out", "out.safetensors"])
def test_an_error_in_a_thread_ends_the_conversion_and_leaves_the_target_as_it_was(
    stage, target, wide, tmp_path, monkeypatch
):
    cls, method = (rules.Source, "read_stored") if stage == "writing" else (containers.Store, "read_again")
    whole, failed_at, threads = getattr(cls, method), "vit.encoder.layer.0.output.dense.weight", set()

    def failing(self, name):
        threads.add(threading.current_thread())
        if name in (failed_at, "Transformer/encoderblock_0/MlpBlock_3/Dense_1/kernel"):
            raise OSError(errno.EIO, "the disk is broken")
        return whole(self, name)

    format_ = "timm" if target.endswith(".safetensors") else "hf"
    conversion.convert(FIXTURES / "google_vit.npz", tmp_path / target, target_format=format_)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(cls, method, failing)
    with pytest.raises(CheckpointError, match="the disk is broken"):
        conversion.convert(wide, tmp_path / target, target_format=format_, force=True)
    assert threading.main_thread() not in threads
    assert not threads & set(threading.enumerate())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_disk_that_fails_during_the_comparison_leaves_nothing(wide, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="out cannot be written: No space left on device"):
        conversion.convert(wide, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_labels_that_cannot_be_read_are_refused(tmp_path):
    refused(FIXTURES / "google_vit.npz", "labels .*cannot be read", tmp_path, labels=tmp_path / "none.txt")
    (tmp_path / "bad.json").write_text("3")
    (tmp_path / "targets").rmdir()
    refused(FIXTURES / "google_vit.npz", "holds no list of labels", tmp_path, labels=tmp_path / "bad.json")
