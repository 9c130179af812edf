"""The checkpoint folder: written and read back, shared with safetensors and PyTorch, whole whatever happens."""

from __future__ import annotations

import errno
import gc
import json
import os
import pickle
import resource
import shutil
import sys
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

import vit
from vit import CheckpointError, ViTConfig, checkpoint, posemb
from vit.checkpoint import Checkpoint, dtype_of, parse_size
from vit.files import _SIGNS, other_kind

FRAMEWORKS = {"pt": "", "tf": "TF", "flax": "Flax"}
HEADS = {None: "ViTModel", "classifier": "ViTForImageClassification", "decoder": "ViTForMaskedImageModeling"}
DTYPES = ("float16", "bfloat16", "float32", "float64")


def arrays(folder: Path) -> dict[str, np.ndarray]:
    opened = Checkpoint(folder)
    return {name: opened.read(name) for name in opened.tensors}


def files(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, by its path: the content of files, None for folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def assert_same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (value.dtype, value.shape), name
        assert actual[name].tobytes() == value.tobytes(), name


def write(folder: Path, tensors: dict[str, np.ndarray], config: ViTConfig | None = None, max_shard_size="5GB") -> Path:
    shapes = {name: (array.shape, array.dtype) for name, array in tensors.items()}
    checkpoint.write(folder, config or ViTConfig(), shapes, tensors.__getitem__, max_shard_size)
    return folder


def some_tensors(seed: int = 0, dtype="float32") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"a.weight": (30, 10), "a.bias": (30,), "b.weight": (20, 30), "b.bias": (20,), "c.weight": (7, 3, 2, 5)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def model_class(framework: str, head: str | None):
    return getattr(vit, FRAMEWORKS[framework] + HEADS[head])


# === Round trips ===


@pytest.mark.parametrize("max_shard_size", ["5GB", "1KB"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_is_read_back_bit_for_bit(tmp_path, dtype, max_shard_size):
    tensors = some_tensors(dtype=dtype_of(dtype))
    assert_same(arrays(write(tmp_path, tensors, max_shard_size=max_shard_size)), tensors)
    assert Checkpoint(tmp_path).dtype == dtype_of(dtype)


def test_tensors_of_several_dtypes_share_a_file(tmp_path):
    # In the order of their names they would lie at odd addresses.
    sizes = {"a": ("float16", 3), "b": ("float64", 1), "c": ("bfloat16", 5), "d": ("float32", 3), "e": ("float64", 2)}
    tensors = {name: np.ones(size, dtype_of(dtype)) * size for name, (dtype, size) in sizes.items()}
    assert_same(arrays(write(tmp_path, tensors)), tensors)
    assert Checkpoint(tmp_path).dtype == np.float64  # the widest
    for name, tensor in Checkpoint(tmp_path).tensors.items():
        assert tensor.offset % tensor.dtype.itemsize == 0, f"{name} is not aligned"


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1, 1, 1)])
def test_a_tensor_of_any_shape_is_read(tmp_path, shape):
    ViTConfig().save_pretrained(tmp_path)
    safetensors.numpy.save_file({"a": np.full(shape, 7.0, np.float32)}, tmp_path / "model.safetensors")
    assert_same(arrays(tmp_path), {"a": np.full(shape, 7.0, np.float32)})


def test_special_values_survive(tmp_path):
    values = np.array([np.nan, np.inf, -np.inf, -0.0, 5e-324], np.float64)
    assert arrays(write(tmp_path, {"a": values}))["a"].tobytes() == values.tobytes()


def test_the_config_is_read_back(tmp_path, tiny_config):
    config = tiny_config(dtype="float32", extra={"mine": 1})
    assert Checkpoint(write(tmp_path, some_tensors(), config)).config == config


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("head", HEADS)
def test_every_framework_writes_what_it_read(tmp_path, tiny_config, random_checkpoint, head, framework):
    folder = random_checkpoint(tmp_path / "in", tiny_config(image_size=(16, 8)), head)
    model_class(framework, head).from_pretrained(folder).save_pretrained(tmp_path / "out")
    assert_same(arrays(tmp_path / "out"), arrays(folder))
    assert Checkpoint(tmp_path / "out").config == Checkpoint(folder).config


# === Shards ===


@pytest.mark.parametrize(("max_shard_size", "shards"), [
    (10**9, 1), ("5GB", 1), ("4900", 1), ("5KB", 1), (4000, 2), ("3.4 kb", 2), ("2.5KB", 3), ("1KB", 4), (1, 5),
])  # fmt: skip
def test_shards_hold_at_most_the_given_size_unless_one_tensor_is_larger(tmp_path, max_shard_size, shards):
    tensors = some_tensors()  # 1200, 120, 2400, 80 and 840 bytes
    write(tmp_path, tensors, max_shard_size=max_shard_size)
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    if shards == 1:
        assert names == ["model.safetensors"]
        assert not (tmp_path / "model.safetensors.index.json").exists()
        return
    assert names == [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    sizes = [sum(array.nbytes for array in safetensors.numpy.load_file(tmp_path / name).values()) for name in names]
    counts = [len(safetensors.numpy.load_file(tmp_path / name)) for name in names]
    limit = parse_size(max_shard_size)
    assert all(size <= limit or count == 1 for size, count in zip(sizes, counts, strict=True))


def test_the_index_names_the_shard_of_every_tensor_and_the_total_size(tmp_path):
    tensors = some_tensors()
    write(tmp_path, tensors, max_shard_size="1KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(array.nbytes for array in tensors.values())}
    assert index["weight_map"].keys() == tensors.keys()
    for name, file in index["weight_map"].items():
        assert name in safetensors.numpy.load_file(tmp_path / file)


@pytest.mark.parametrize(("size", "expected"), [
    (1, 1), (5_000_000, 5_000_000), ("123", 123), ("1KB", 1000), ("2.5MB", 2_500_000), ("5GB", 5 * 10**9),
    ("5 gb", 5 * 10**9), ("10M", 10**7), (" 7B ", 7),
])  # fmt: skip
def test_sizes_are_bytes_or_numbers_with_a_unit(size, expected):
    assert parse_size(size) == expected


@pytest.mark.parametrize(
    "size", [0, -1, "", "GB", "5TB", "5GiB", "-5GB", "0", "0.1", "five", None, True, 1.5e300, "1e3"]
)
def test_an_unreadable_size_is_refused_and_nothing_is_written(tmp_path, size):
    with pytest.raises(CheckpointError, match=r"max_shard_size is .*; expected a number of bytes, or a size such as"):
        write(tmp_path / "new", some_tensors(), max_shard_size=size)
    assert files(tmp_path) == {}


# === Together with the safetensors library ===


@pytest.mark.parametrize("dtype", DTYPES)
def test_safetensors_reads_what_we_write(tmp_path, dtype):
    tensors = some_tensors(dtype=dtype_of(dtype))
    write(tmp_path, tensors)
    loaded = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, value in loaded.items():
        assert value.dtype == getattr(torch, dtype)
        np.testing.assert_array_equal(value.double().numpy(), tensors[name].astype(np.float64))
    with safetensors.safe_open(tmp_path / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}  # which transformers asks for


@pytest.mark.parametrize("dtype", DTYPES)
def test_we_read_what_safetensors_writes(tmp_path, dtype):
    tensors = some_tensors(dtype=dtype_of(dtype))
    write(tmp_path, tensors)
    bits = {
        name: torch.from_numpy(array.astype(np.float64)).to(getattr(torch, dtype)) for name, array in tensors.items()
    }
    safetensors.torch.save_file(bits, tmp_path / "model.safetensors", metadata={"anything": "at all"})
    assert_same(arrays(tmp_path), tensors)


def test_we_read_the_shards_of_transformers(reference):
    assert_same(arrays(reference / "hf_torch_sharded"), arrays(reference / "hf_torch"))


# === PyTorch's own files, read restricted to tensors ===


def test_we_read_the_pickle_of_transformers(reference):
    assert_same(arrays(reference / "hf_torch_bin"), arrays(reference / "hf_torch"))


def torch_folder(folder: Path, state: dict, **options) -> Path:
    ViTConfig().save_pretrained(folder)
    torch.save(state, folder / "pytorch_model.bin", **options)
    return folder


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_torch_file_of_either_format_is_read(tmp_path, dtype, zipped):
    tensors = some_tensors(dtype=dtype_of(dtype))
    state = {n: torch.from_numpy(a.astype(np.float64)).to(getattr(torch, dtype)) for n, a in tensors.items()}
    torch_folder(tmp_path, state, _use_new_zipfile_serialization=zipped)
    assert_same(arrays(tmp_path), tensors)


def test_parameters_and_views_of_a_torch_file_are_read(tmp_path):
    matrix = torch.arange(12.0).reshape(3, 4)
    torch_folder(tmp_path, {"parameter": torch.nn.Parameter(matrix), "transposed": matrix.T, "scalar": matrix[0, 1]})
    expected = {"parameter": matrix.numpy(), "transposed": matrix.T.numpy(), "scalar": np.float32(1.0).reshape(())}
    assert_same(arrays(tmp_path), expected)


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_a_torch_file_that_was_zipped_again_is_read(tmp_path, reference, kind):
    shutil.copytree(reference / "hf_torch_bin", tmp_path / "again")
    path = tmp_path / "again" / "pytorch_model.bin"
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", kind) as new:
        for name, data in members.items():
            new.writestr(name, data)
    assert_same(arrays(tmp_path / "again"), arrays(reference / "hf_torch"))
    model = model_class("pt", "classifier").from_pretrained(tmp_path / "again")
    expected = model_class("pt", "classifier").from_pretrained(reference / "hf_torch")
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_a_flipped_bit_of_a_torch_file_is_found(tmp_path, reference):
    shutil.copytree(reference / "hf_torch_bin", tmp_path / "bad")
    path = tmp_path / "bad" / "pytorch_model.bin"
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo("pytorch_model/data/20").header_offset + 400
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum"):
        arrays(tmp_path / "bad")


def test_sharded_torch_files_are_read(tmp_path, reference):
    tensors = arrays(reference / "hf_torch")
    shutil.copy(reference / "hf_torch" / "config.json", tmp_path)
    names = sorted(tensors)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, held in shards.items():
        torch.save({name: torch.from_numpy(tensors[name]) for name in held}, tmp_path / file)
    weight_map = {name: file for file, held in shards.items() for name in held}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_same(arrays(tmp_path), tensors)


def test_safetensors_is_preferred_to_a_pickle(tmp_path):
    torch_folder(tmp_path, {"from": torch.zeros(1)})
    write(tmp_path, {"from": np.ones(1, np.float32)})
    assert arrays(tmp_path)["from"] == 1


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


@pytest.mark.parametrize("where", ["zip", "legacy", "bare pickle", "inside a tensor dict"])
@pytest.mark.parametrize("framework", [None, *FRAMEWORKS])
def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path, where, framework):
    marker = tmp_path / "executed"
    folder, evil = tmp_path / "checkpoint", Malicious(marker)
    state = {"vit.layernorm.weight": torch.ones(3), "evil": evil} if where == "inside a tensor dict" else evil
    torch_folder(folder, state, _use_new_zipfile_serialization=where != "legacy")
    if where == "bare pickle":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(evil, protocol=2))
    with pytest.raises(
        CheckpointError, match=r"pytorch_model\.bin is damaged or holds more than tensors .*safetensors"
    ):
        Checkpoint(folder) if framework is None else model_class(framework, None).from_pretrained(folder)
    assert not marker.exists()


def test_the_malicious_pickle_would_have_run(tmp_path):
    torch.save({"evil": Malicious(tmp_path / "executed")}, tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=False)["evil"].close()
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04", b"\x80\x02.", "half"])
def test_a_damaged_torch_file_is_refused(tmp_path, content):
    path = torch_folder(tmp_path, {"a": torch.ones(1000)}) / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:2000] if content == "half" else content)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is damaged or holds more than tensors"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("state", [
    [torch.ones(1)], torch.ones(1), {"a": 1}, {"state_dict": {"a": torch.ones(1)}}, {1: torch.ones(1)},
    {"a": torch.ones(2, 2).to_sparse()},
], ids=["list", "tensor", "number", "nested", "unnamed", "sparse"])  # fmt: skip
def test_a_torch_file_of_something_else_is_refused(tmp_path, state):
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin holds something else than a state dict"):
        Checkpoint(torch_folder(tmp_path, state))


def test_a_torch_file_of_an_unknown_dtype_names_the_tensor(tmp_path):
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: a\.b: dtype is 'int64'; expected one of float64"):
        Checkpoint(torch_folder(tmp_path, {"a.b": torch.ones(2, dtype=torch.int64)}))


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux which files are mapped")
def test_a_torch_file_is_mapped_and_takes_no_memory_until_it_is_read(tmp_path):
    opened = Checkpoint(torch_folder(tmp_path, {"a": torch.ones(1000)}))
    assert str(tmp_path / "pytorch_model.bin") not in Path("/proc/self/maps").read_text()
    array = opened.read("a")
    assert str(tmp_path / "pytorch_model.bin") in Path("/proc/self/maps").read_text()
    array += 1  # its own from now on
    assert opened.read("a").sum() == 1000


# === Overwriting ===


def test_other_files_in_the_folder_stay(tmp_path):
    others = {"README.md": b"mine", "preprocessor_config.json": b"{}", "model-notes.safetensors.txt": b"x",
              "other.safetensors": b"y", "checkpoints/model.safetensors": b"z", "tf_model.h5": b"h"}  # fmt: skip
    (tmp_path / "checkpoints").mkdir()
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    write(tmp_path, some_tensors(), max_shard_size="1KB")
    write(tmp_path, some_tensors())
    written = {"config.json", "model.safetensors", "checkpoints"}
    assert others == {name: content for name, content in files(tmp_path).items() if name not in written}


SAVES = ["5GB", "3KB", "1KB", "1KB", "2KB", "5GB", "5GB", "1KB"]


def test_each_save_into_a_folder_replaces_the_one_before_whatever_its_shards(tmp_path):
    for seed, size in enumerate(SAVES):
        tensors = some_tensors(seed)
        write(tmp_path, tensors, max_shard_size=size)
        assert_same(arrays(tmp_path), tensors)
        named = {"config.json"}
        if (tmp_path / "model.safetensors.index.json").exists():
            index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
            named |= {"model.safetensors.index.json", *index["weight_map"].values()}
        else:
            named |= {"model.safetensors"}
        assert files(tmp_path).keys() == named


def test_a_model_may_be_saved_over_the_files_it_was_loaded_from(tmp_path, tiny_config, random_checkpoint):
    folder = random_checkpoint(tmp_path, tiny_config(), "classifier", max_shard_size="20KB")
    before = arrays(folder)
    model = vit.ViTForImageClassification.from_pretrained(folder)  # maps the files
    model.save_pretrained(folder)
    assert_same(arrays(folder), before)
    assert_same({name: value.numpy() for name, value in model.state_dict().items()}, before)


# === Interrupted saves ===


class Interruption(BaseException):
    """Stands for Ctrl-C, or any error of the code that gives the arrays."""


@pytest.mark.parametrize("error", [Interruption, KeyboardInterrupt, MemoryError, ValueError])
@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize("size", ["5GB", "1KB"])
def test_an_error_while_arrays_are_written_leaves_the_old_checkpoint_and_nothing_else(tmp_path, size, at, error):
    write(tmp_path, some_tensors(0), max_shard_size="2KB")
    before = files(tmp_path)
    tensors, count = some_tensors(1), iter(range(99))

    def read(name: str) -> np.ndarray:
        if next(count) == at:
            raise error("interrupted")
        return tensors[name]

    shapes = {name: (array.shape, array.dtype) for name, array in tensors.items()}
    for folder in (tmp_path, tmp_path / "new" / "deeper"):
        count = iter(range(99))
        with pytest.raises(error, match="interrupted"):
            checkpoint.write(folder, ViTConfig(num_labels=9), shapes, read, size)
    assert files(tmp_path) == before


def test_folders_that_others_fill_meanwhile_are_not_removed_after_a_failure(tmp_path):
    def read(name: str) -> np.ndarray:
        (tmp_path / "runs" / "theirs").mkdir()
        raise Interruption

    with pytest.raises(Interruption):
        checkpoint.write(tmp_path / "runs" / "ours", ViTConfig(), {"a": ((1,), np.dtype("f4"))}, read)
    assert files(tmp_path) == {"runs": None, "runs/theirs": None}


def test_an_array_of_another_shape_than_announced_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(CheckpointError, match=r"a has the shape \(3,\); expected \(2,\)"):
        checkpoint.write(tmp_path / "new", ViTConfig(), {"a": ((2,), np.dtype("f4"))}, lambda name: np.ones(3))
    assert files(tmp_path) == {}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [(), (0,), (5,), (0, 3), (3, 0), (1, 1), (1, 7), (7, 1), (33, 65), (1, 3000), (3000, 1), (1300, 301), (301, 1300),
     (2100, 600), (3, 5, 7), (13, 11, 5, 3)],
)  # fmt: skip
def test_arrays_in_any_order_are_written_and_copied_exactly(shape, dtype, tmp_path):
    bits = np.random.default_rng(0).integers(0, 256, (*shape, checkpoint.dtype_of(dtype).itemsize), np.uint8)
    array = bits.view(checkpoint.dtype_of(dtype)).reshape(shape)  # NaNs and all
    expected = array.T.copy().tobytes()
    assert checkpoint.in_order(array.T, array.dtype).tobytes() == expected
    target = np.empty(shape[::-1], array.dtype)
    checkpoint.fill(target, array.T)
    assert target.tobytes() == expected
    every_other = np.repeat(array, 2, axis=-1)[..., ::2] if shape else array
    assert checkpoint.in_order(every_other, array.dtype).tobytes() == array.tobytes()
    for threads in (1, 2):
        path = tmp_path / f"{threads}.safetensors"
        tensors = {"first": array.T, "second": array, "third": every_other}
        specs = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        checkpoint.write_safetensors(path, specs, tensors.__getitem__, threads)
        for name, tensor in checkpoint.read_header(path).items():
            assert tensor.shape == tensors[name].shape
            stored = path.read_bytes()[tensor.offset :][: array.nbytes]
            assert stored == (expected if name == "first" else array.tobytes())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(), (3,), (5, 37), (2, 3, 4), (2100, 301)])
def test_copies_are_contiguous_and_aligned_in_either_order(shape, dtype):
    array = np.random.default_rng(0).standard_normal(shape, np.float32)
    for each in (array, array.T):
        copy = checkpoint.aligned_copy(each, np.dtype(dtype))
        assert copy.flags.c_contiguous
        assert copy.dtype == dtype
        assert copy.ctypes.data % 64 == 0
        assert not np.shares_memory(copy, each)
        np.testing.assert_array_equal(copy, each)


@pytest.mark.parametrize(
    ("stored", "wanted"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("float64", "float16")]
)
def test_a_transposed_matrix_is_cast_as_any_other(stored, wanted):
    array = np.random.default_rng(0).standard_normal((1100, 601)).astype(checkpoint.dtype_of(stored))
    wanted = checkpoint.dtype_of(wanted)
    found = checkpoint.in_order(array.T, wanted)
    assert found.dtype == wanted
    assert found.tobytes() == array.astype(wanted).T.tobytes()


def test_an_error_in_one_of_several_threads_is_raised_and_the_rest_is_not_waited_for(tmp_path):
    names, read = [f"{i:03}" for i in range(200)], []

    def fail(name: str) -> np.ndarray:
        read.append(name)
        if name == "003":
            raise Interruption("interrupted")
        time.sleep(0.002)
        return np.ones(4, np.float32)

    with pytest.raises(Interruption, match="interrupted"):
        checkpoint.write_safetensors(tmp_path / "x", dict.fromkeys(names, ((4,), np.dtype("f4"))), fail, threads=2)
    assert len(read) < 100


def test_a_disk_that_takes_no_more_leaves_the_old_checkpoint_and_is_named(tmp_path):
    write(tmp_path, some_tensors(0))
    before = files(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))  # the system refuses to write further into a file
    try:
        reason = r"cannot be saved into: File too large \(model\.safetensors\)\. It is as it was"
        with pytest.raises(CheckpointError, match=reason):
            write(tmp_path, some_tensors(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path) == before


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_failing_disk_leaves_the_old_checkpoint_and_is_named(tmp_path, monkeypatch, call):
    write(tmp_path, some_tensors(0), max_shard_size="1KB")
    before = files(tmp_path)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(CheckpointError, match="cannot be saved into: No space left on device") as error:
        write(tmp_path, some_tensors(1), max_shard_size="1KB")
    assert error.value.__cause__.errno == errno.ENOSPC
    assert files(tmp_path) == before


def test_a_folder_where_a_file_should_go_is_refused_before_anything_is_replaced(tmp_path):
    write(tmp_path, some_tensors(0))
    (tmp_path / "config.json").rename(tmp_path / "config.bak")
    (tmp_path / "config.json").mkdir()
    before = files(tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.json is a folder"):
        write(tmp_path, some_tensors(1))
    assert files(tmp_path) == before


@pytest.mark.parametrize("below", ["file", "file/folder"])
def test_saving_into_a_file_is_refused(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match=f"{tmp_path / below}"):
        write(tmp_path / below, some_tensors())
    assert files(tmp_path) == {"file": b"mine"}


# === Fitting a checkpoint to a model ===


def parameters(config: ViTConfig, head: str | None = None, **parts: bool) -> dict[str, tuple[int, ...]]:
    return config.parameter_shapes(head=head, **parts)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_classification_checkpoint_loads_into_a_base_model(tmp_path, tiny_config, random_checkpoint, framework):
    folder = random_checkpoint(tmp_path / "in", tiny_config(), "classifier")
    model = model_class(framework, None).from_pretrained(folder, add_pooling_layer=False)
    model.save_pretrained(tmp_path / "out")
    expected = {n.removeprefix("vit."): v for n, v in arrays(folder).items() if not n.startswith("classifier")}
    assert_same(arrays(tmp_path / "out"), expected)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("head", ["classifier", "decoder"])
def test_a_base_checkpoint_loads_under_a_fresh_head_with_one_warning(
    tmp_path, tiny_config, random_checkpoint, framework, head
):
    folder = random_checkpoint(tmp_path / "in", tiny_config(), use_mask_token=True)
    with pytest.warns(UserWarning, match="freshly initialised") as caught:
        model = model_class(framework, head).from_pretrained(folder)
    part = "classifier" if head == "classifier" else "decoder.0"
    assert [str(warning.message) for warning in caught] == [
        f"{folder} holds no fitting {part}.bias, {part}.weight: freshly initialised. Train the model before relying on "
        "what depends on them."
    ]
    assert caught[0].filename == __file__  # the line that called from_pretrained
    model.save_pretrained(tmp_path / "out")
    saved, stored = arrays(tmp_path / "out"), arrays(folder)
    assert not saved[f"{part}.bias"].any()
    assert 0 < np.abs(saved[f"{part}.weight"]).max() <= 2 * model.config.initializer_range + 1e-6
    kept = {name: value for name, value in saved.items() if not name.startswith(part)}
    assert_same(kept, {f"vit.{n}": stored[n] for n in (name.removeprefix("vit.") for name in kept)})


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_pooler_that_the_checkpoint_lacks_starts_fresh_with_one_warning(
    tmp_path, tiny_config, random_checkpoint, framework
):
    folder = random_checkpoint(tmp_path, tiny_config(), add_pooling_layer=False)
    with pytest.warns(
        UserWarning, match=r"holds no fitting vit\.pooler\.dense\.bias, vit\.pooler\.dense\.weight"
    ) as caught:
        model = model_class(framework, None).from_pretrained(folder)
    assert len(caught) == 1
    assert model.pooler is not None


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_whole_checkpoint_loads_without_a_warning(reference, framework):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for head, name in ((None, "hf_torch_base"), ("classifier", "hf_torch"), ("decoder", "hf_torch_mim")):
            model_class(framework, head).from_pretrained(reference / name)


def test_a_base_checkpoint_may_store_its_names_with_the_prefix(tmp_path, tiny_config, random_checkpoint):
    config = tiny_config()
    plain = arrays(random_checkpoint(tmp_path / "plain", config))
    folder = write(tmp_path / "prefixed", {f"vit.{name}": value for name, value in plain.items()}, config)
    stored, fresh, resampled = checkpoint.fit(Checkpoint(folder), config, add_pooling_layer=True)
    assert stored == {f"vit.{name}": f"vit.{name}" for name in plain}
    assert (fresh, resampled) == ({}, set())


def test_a_tensor_stored_with_and_without_the_prefix_is_refused(tmp_path, tiny_config, random_checkpoint):
    config = tiny_config()
    tensors = arrays(random_checkpoint(tmp_path, config))
    write(tmp_path, {**tensors, "vit.layernorm.bias": tensors["layernorm.bias"]}, config)
    with pytest.raises(CheckpointError, match=r"with and without 'vit\.' before: layernorm\.bias\."):
        checkpoint.fit(Checkpoint(tmp_path), config)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    "override", [{"num_labels": 3}, {"id2label": {0: "a", 1: "b", 2: "c"}}], ids=lambda o: next(iter(o))
)
def test_another_number_of_labels_gives_a_fresh_head(tmp_path, tiny_config, random_checkpoint, framework, override):
    folder = random_checkpoint(tmp_path / "in", tiny_config(), "classifier")
    with pytest.warns(UserWarning, match=r"classifier\.bias, classifier\.weight") as caught:
        model = model_class(framework, "classifier").from_pretrained(folder, **override)
    assert len(caught) == 1
    model.save_pretrained(tmp_path / "out")
    assert arrays(tmp_path / "out")["classifier.weight"].shape == (3, 32)
    assert Checkpoint(tmp_path / "out").config.id2label == ViTConfig(**override).id2label


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_naming_the_stored_number_of_labels_keeps_the_head(tmp_path, tiny_config, random_checkpoint, framework):
    folder = random_checkpoint(tmp_path / "in", tiny_config(), "classifier")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = model_class(framework, "classifier").from_pretrained(folder, num_labels=5)
    model.save_pretrained(tmp_path / "out")
    assert_same(arrays(tmp_path / "out"), arrays(folder))


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("image_size", [24, 8, (12, 20)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_image_size_resamples_the_position_embeddings(
    tmp_path, tiny_config, random_checkpoint, framework, image_size, dtype
):
    folder = random_checkpoint(tmp_path / "in", tiny_config(), "classifier", dtype=dtype)
    model_class(framework, "classifier").from_pretrained(folder, image_size=image_size).save_pretrained(
        tmp_path / "out"
    )
    config = Checkpoint(tmp_path / "out").config
    assert config.image_size == image_size
    expected = arrays(folder)
    name = "vit.embeddings.position_embeddings"
    expected[name] = posemb.interpolate(expected[name], (4, 4), config.grid_size)
    assert_same(arrays(tmp_path / "out"), expected)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_mis_shaped_parameters_start_fresh_when_that_is_asked_for(tmp_path, tiny_config, random_checkpoint, framework):
    folder = random_checkpoint(tmp_path / "in", tiny_config(), "classifier")
    with pytest.warns(UserWarning, match="intermediate") as caught:
        model = model_class(framework, "classifier").from_pretrained(
            folder, intermediate_size=48, ignore_mismatched_sizes=True
        )
    assert len(caught) == 1
    model.save_pretrained(tmp_path / "out")
    saved, stored = arrays(tmp_path / "out"), arrays(folder)
    fresh = {name for name in stored if saved[name].shape != stored[name].shape}
    assert len(fresh) == 2 * 3  # in each layer: weight and bias of the one, weight of the other
    assert_same({n: v for n, v in saved.items() if n not in fresh}, {n: stored[n] for n in stored if n not in fresh})


def test_a_long_list_of_parameters_is_cut():
    config = ViTConfig(hidden_size=4, num_attention_heads=1, intermediate_size=4, image_size=4, patch_size=4)
    shapes = parameters(config)
    held = Checkpoint.__new__(Checkpoint)
    held.folder, held.config, held.tensors, held.pickled, held.buffers = Path("folder"), config, {}, {}, {}
    with pytest.raises(CheckpointError, match=rf"missing: .* and {len(shapes) - 8} more\.$"):
        checkpoint.fit(held, config)


# === dtypes ===


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("stored", ["bfloat16", "float64"])
def test_dtype_converts_the_parameters_and_names_itself_in_the_config(
    tmp_path, tiny_config, random_checkpoint, framework, dtype, stored
):
    folder = random_checkpoint(tmp_path / "in", tiny_config(), "classifier", dtype=stored)
    model = model_class(framework, "classifier").from_pretrained(folder, dtype=dtype)
    model.save_pretrained(tmp_path / "out")
    assert model.config.dtype == Checkpoint(tmp_path / "out").config.dtype == dtype
    expected = {name: value.astype(dtype_of(dtype)) for name, value in arrays(folder).items()}
    assert_same(arrays(tmp_path / "out"), expected)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("dtype", [None, "auto"])
def test_without_a_dtype_the_checkpoints_own_is_kept(tmp_path, tiny_config, random_checkpoint, framework, dtype):
    folder = random_checkpoint(tmp_path / "in", tiny_config(), dtype="float16")
    model_class(framework, None).from_pretrained(folder, dtype=dtype).save_pretrained(tmp_path / "out")
    assert_same(arrays(tmp_path / "out"), arrays(folder))


def every_frameworks_dtype(name: str) -> list:
    import jax.numpy as jnp
    import tensorflow as tf

    numpy_dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    return [name, numpy_dtype, numpy_dtype.type, getattr(torch, name), getattr(jnp, name), getattr(tf, name)]


@pytest.mark.parametrize("name", DTYPES)
def test_a_dtype_is_known_by_its_name_and_in_every_framework(name):
    for dtype in every_frameworks_dtype(name):
        assert dtype_of(dtype).name == name, dtype


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn", "", "f4,f4", "nonsense", 3, None, int, object(),
                                   torch.int32, np.dtype("int64"), [("a", "f4")], True])  # fmt: skip
def test_what_is_no_dtype_of_parameters_is_refused_with_the_known_ones(dtype):
    with pytest.raises(CheckpointError, match=r"dtype is .*; expected one of float64, float32, float16, bfloat16\."):
        dtype_of(dtype)


# === Reading ===


def test_a_file_cut_after_it_was_opened_is_named(tmp_path):
    opened = Checkpoint(write(tmp_path, some_tensors()))
    path = tmp_path / "model.safetensors"
    os.truncate(path, path.stat().st_size - 100)
    last = max(opened.tensors, key=lambda name: opened.tensors[name].offset)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors ends before {last}: it was changed"):
        opened.read(last)


def test_a_change_of_an_array_that_was_read_never_reaches_the_file(tmp_path):
    before = files(write(tmp_path, some_tensors()))
    Checkpoint(tmp_path).read("a.bias")[:] = 0
    assert files(tmp_path) == before
    np.testing.assert_array_equal(Checkpoint(tmp_path).read("a.bias"), some_tensors()["a.bias"])


def test_what_was_opened_is_read_whatever_takes_its_place(tmp_path):
    opened = Checkpoint(write(tmp_path, some_tensors(0), max_shard_size="1KB"))
    write(tmp_path, some_tensors(1))
    assert_same({name: opened.read(name) for name in opened.tensors}, some_tensors(0))


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("name", ["ViTModel", "TFViTModel", "FlaxViTModel"])
def test_loading_pauses_the_garbage_collector_and_leaves_it_as_it_was_even_if_it_fails(
    name: str, enabled: bool, tiny_config: Any, random_checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_checkpoint(tmp_path, tiny_config())
    cls, during = getattr(vit, name), []

    def fail(self: Any, config: Any, **options: Any) -> None:
        during.append(gc.isenabled())
        raise MemoryError

    try:
        (gc.enable if enabled else gc.disable)()
        cls.from_pretrained(tmp_path)
        assert gc.isenabled() is enabled
        monkeypatch.setattr(cls, "__init__", fail)
        with pytest.raises(MemoryError):
            cls.from_pretrained(tmp_path)
        assert (during, gc.isenabled()) == ([False], enabled)
    finally:
        gc.enable()


SIGNS = {
    "a zip archive": b"PK\x03\x04", "a PyTorch file of the format before 1.6": b"\x80\x02",
    "a safetensors file": bytes(8) + b"{", "an HDF5 file": b"\x89HDF\r\n", "a tar archive": bytes(257) + b"ustar",
    "compressed by gzip": b"\x1f\x8b", "a pointer of git-lfs": b"version https://git-lfs", "a web page": b"<",
}  # fmt: skip


def test_a_file_is_told_by_its_first_bytes(tmp_path):
    assert len(SIGNS) == len(_SIGNS)
    for what, sign in SIGNS.items():
        (tmp_path / "file").write_bytes(sign + b" more")
        assert other_kind(tmp_path / "file").startswith(f" It is {what}")
        assert not other_kind(tmp_path / "file", what)
        (tmp_path / "file").write_bytes(b" " + sign)
        assert not other_kind(tmp_path / "file")
