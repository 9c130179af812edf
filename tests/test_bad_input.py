"""Bad input: each is refused with a named error that says what is wrong and what to do, and nothing is made of it."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import vit
from vit import CheckpointError, ConfigError, InputError, ViTConfig, families, folders
from vit.config import keys_of
from vit.inputs import check_label_values

FRAMEWORKS = {"pt": "", "tf": "TF", "flax": "Flax"}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def model_class(framework: str, head: str | None = "classifier") -> Any:
    names = {None: "ViTModel", "classifier": "ViTForImageClassification", "decoder": "ViTForMaskedImageModeling"}
    return getattr(vit, FRAMEWORKS[framework] + names[head])


def files(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


# === Checkpoint folders ===


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_config, random_checkpoint) -> Path:
    """A checkpoint in one file."""
    return random_checkpoint(tmp_path_factory.mktemp("whole"), tiny_config(), "classifier")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, tiny_config, random_checkpoint) -> Path:
    """The same checkpoint in several files."""
    return random_checkpoint(tmp_path_factory.mktemp("sharded"), tiny_config(), "classifier", max_shard_size="30KB")


def edit_json(name: str, **changes: Any) -> Callable[[Path], None]:
    """A breaker that sets keys of a JSON file; those set to ... are removed."""

    def edit(folder: Path) -> None:
        values = {**json.loads((folder / name).read_text()), **changes}
        (folder / name).write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))

    return edit


def rewrite(name: str, content: bytes | Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """A breaker that gives a file other bytes."""

    def write(folder: Path) -> None:
        (folder / name).write_bytes(content((folder / name).read_bytes()) if callable(content) else content)

    return write


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def make_folder(name: str) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return replace


def edit_header(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A breaker that changes the header of the safetensors file; `edit` changes it in place, or returns another."""

    def change(content: bytes) -> bytes:
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        text = json.dumps(edit(header) or header).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]

    return rewrite(WEIGHTS, change)


def edit_tensors(edit: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    """A breaker that writes a sound file of other tensors; `edit` changes them in place."""

    def change(folder: Path) -> None:
        tensors = safetensors.numpy.load_file(folder / WEIGHTS)
        edit(tensors)
        safetensors.numpy.save_file(tensors, folder / WEIGHTS)

    return change


CONFIG_FILES = {
    "too many labels": (edit_json("config.json", num_labels=10**8, id2label=..., label2id=...), ConfigError,
                        "num_labels is 100000000; the 8.* bytes of weights beside it hold at most 30,000"),
    "too many layers": (edit_json("config.json", num_hidden_layers=10**7), ConfigError,
                        "num_hidden_layers is 10000000; the 8.* bytes of weights beside it hold at most 16"),
    "more layers than the weights hold": (edit_json("config.json", num_hidden_layers=500), ConfigError,
                                          "num_hidden_layers is 500; the 8.* bytes of weights beside it hold at most"),
    "endless layers": (edit_json("config.json", num_hidden_layers=10**400), ConfigError,
                       "num_hidden_layers is 1000.*at most"),
    "infinite layers": (edit_json("config.json", num_hidden_layers=float("inf")), ConfigError,
                        "num_hidden_layers is inf; expected an int of at least 0"),
    "more digits than Python reads": (rewrite("config.json", b'{"hidden_size": ' + b"9" * 5000 + b"}"),
                                      CheckpointError, "is not JSON"),
    "no config.json": (remove("config.json"), CheckpointError, "has no config.json; expected a folder that"),
    "config.json is a folder": (make_folder("config.json"), CheckpointError, r"json is a folder; expected a file"),
    "empty": (rewrite("config.json", b""), CheckpointError, r"config\.json is not JSON: .* Write or download it again"),
    "cut": (rewrite("config.json", lambda text: text[:-20]), CheckpointError, r"config\.json is not JSON"),
    "binary": (rewrite("config.json", b"\xff\xfe\x00\x81"), CheckpointError, r"config\.json is not JSON"),
    "nested too deep": (rewrite("config.json", b"[" * 200_000), CheckpointError, r"config\.json is not JSON"),
    "a list": (rewrite("config.json", b"[1]"), CheckpointError, r"config\.json holds a JSON list; expected an object"),
    "null": (rewrite("config.json", b"null"), CheckpointError, r"config\.json holds a JSON NoneType; expected an obj"),
    **{f"{key} {value}": (edit_json("config.json", **{key: value}), ConfigError, rf"config\.json: {message}")
       for key, value, message in (
           ("hidden_size", -1, "hidden_size is -1; expected an int of at least 1"),
           ("hidden_size", "32", "hidden_size is '32'; expected an int"),
           ("hidden_size", 30, "hidden_size 30 is not divisible by num_attention_heads 4"),
           ("hidden_act", "swoosh", "hidden_act is 'swoosh'; expected one of 'gelu', 'gelu_new', 'gelu_pytorch_tanh'"),
           ("pooler_act", ["gelu"], r"pooler_act is \['gelu'\]; expected one of 'gelu'"),
           ("layer_norm_eps", float("nan"), "layer_norm_eps is nan; expected a finite number"),
           ("hidden_dropout_prob", 1.0, r"hidden_dropout_prob is 1\.0; expected a probability"),
           ("patch_size", 17, "patch_size 17 is larger than image_size 16"),
           ("image_size", [16, 16, 16], r"image_size is \(16, 16, 16\); expected a positive int, or"),
           ("model_type", "clip", "model_type is .clip.; expected one of .*.vit."),
           ("dtype", "int8", "dtype is 'int8'; expected one of None, 'float16'"),
           ("id2label", {"0": "a", "7": "b"}, r"id2label has the indices \[0, 7\]; expected 0 to 1"),
           ("id2label", ["a", "b"], r"id2label is \['a', 'b'\]; expected a mapping"),
           ("num_labels", 9, "num_labels is 9 but id2label names 5 labels"),
           ("id2label", {"0": "a", "00": "b"}, "id2label is {'0': 'a', '00': 'b'} and .*; expected ints as label ind"),
           ("id2label", {"1e5": "a"}, "id2label is {'1e5': 'a'} and .*; expected ints as label indices"),
           ("id2label", {"1" * 400: "a"}, "id2label is {'111.* and .*; expected ints as label indices"),
           ("id2label", {"-1": "a"}, "id2label is {'-1': 'a'} and .*; expected ints as label indices"),
           ("id2label", {"\u0660": "a"}, "id2label is {'.': 'a'} and .*; expected ints as label indices"),
           ("hidden_size", 10**400, "hidden_size is 1000.*0; expected an int of at most 2,147,483,647"),
           ("image_size", 2**40, "image_size is 1099511627776; expected a positive int"),
           ("initializer_range", 10**400, "initializer_range is 1000.*0; expected a finite number"),
           ("initializer_range", float("inf"), "initializer_range is inf; expected a finite number"),
           ("hidden_act", "\ud800", r"hidden_act is '\\ud800'; expected one of"),
           ("hidden_act", "x" * 300, "hidden_act is 'xxx.*; expected one of"),
           ("hidden_act", {"a": ["b" * 300] * 300}, "hidden_act is {'a': .*; expected one of"),
           ("architectures", "ViTModel", "architectures is 'ViTModel'; expected a list of class names"),
       )},
}  # fmt: skip

H5 = Path(__file__).parent / "fixtures" / "conversion" / "hf_tf_h5" / "tf_model.h5"
TORCH = "pytorch_model.bin"


def torch_file(path: Path, **options: Any) -> None:
    """Replace a safetensors file by one of PyTorch, of the same tensors and the same name."""
    import torch

    tensors = safetensors.numpy.load_file(path)
    torch.save({name: torch.from_numpy(array) for name, array in tensors.items()}, path, **options)


def tar_file(path: Path) -> None:
    """Replace a file by a tar archive of it, as PyTorch 0.1 wrote storages and tensors."""
    data = path.read_bytes()
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


NOT_WHOLE = r"model\.safetensors is not a whole safetensors file \(.*\); write or download it again"
NORM, QUERY = "vit.layernorm.weight", "vit.encoder.layer.1.attention.attention.query.bias"

WEIGHT_FILES = {
    "of another image size by far": (edit_json("config.json", image_size=10**6), "mis-shaped: .*position_embeddings"),
    "no weights": (remove(WEIGHTS), r"has no model\.safetensors, .*pytorch_model\.bin.*: there are no weights"),
    "weights are a folder": (make_folder(WEIGHTS), r"model\.safetensors is a folder; expected a file"),
    "empty": (rewrite(WEIGHTS, b""), NOT_WHOLE),
    "seven bytes": (rewrite(WEIGHTS, b"1234567"), NOT_WHOLE),
    "cut in the header": (rewrite(WEIGHTS, lambda content: content[:100]), NOT_WHOLE),
    "cut in the tensors": (rewrite(WEIGHTS, lambda content: content[:-1]), NOT_WHOLE),
    "bytes after the end": (rewrite(WEIGHTS, lambda content: content + b"x"), NOT_WHOLE),
    "oversized header": (rewrite(WEIGHTS, lambda content: struct.pack("<Q", 2**62) + content[8:]), NOT_WHOLE),
    "header longer than the file": (rewrite(WEIGHTS, lambda c: struct.pack("<Q", len(c)) + c[8:]), NOT_WHOLE),
    "garbage header": (rewrite(WEIGHTS, lambda content: content[:8] + b"\xff" * 40 + content[48:]), NOT_WHOLE),
    "header is a list": (edit_header(lambda header: [1]), NOT_WHOLE),
    "header without offsets": (edit_header(lambda header: header[NORM].pop("data_offsets") and None), NOT_WHOLE),
    "offsets beyond the end": (edit_header(lambda h: h[NORM].update(data_offsets=[2**40, 2**40 + 128])), NOT_WHOLE),
    "offsets backwards": (edit_header(lambda h: h[NORM]["data_offsets"].reverse()), NOT_WHOLE),
    "shape of another size": (edit_header(lambda h: h[NORM].update(shape=[33])), NOT_WHOLE),
    "negative shape": (edit_header(lambda h: h[NORM].update(shape=[-32])), NOT_WHOLE),
    "invented dtype": (edit_header(lambda h: h[NORM].update(dtype="F31")), NOT_WHOLE),
    "a pointer of git-lfs": (rewrite(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\noid"), NOT_WHOLE),
    "a PyTorch file": (lambda folder: torch_file(folder / WEIGHTS), NOT_WHOLE + r"\. It is a zip archive, as PyTorch"),
    "an older PyTorch file": (lambda folder: torch_file(folder / WEIGHTS, _use_new_zipfile_serialization=False),
                              NOT_WHOLE + r"\. It is a PyTorch file of the format before 1\.6: name it pytorch_model"),
    "a tar archive": (lambda folder: tar_file(folder / WEIGHTS), NOT_WHOLE + r"\. It is a tar archive: unpack it"),
    "a gzip": (rewrite(WEIGHTS, gzip.compress), NOT_WHOLE + r"\. It is compressed by gzip: unpack it"),
    "an HDF5 file": (lambda folder: shutil.copyfile(H5, folder / WEIGHTS), NOT_WHOLE + r"\. It is an HDF5 file: 'vit"),
    "a web page": (rewrite(WEIGHTS, b"<!DOCTYPE html><html>"), NOT_WHOLE + r"\. It is a web page, or XML: download"),
    "a pipe": (lambda folder: ((folder / WEIGHTS).unlink(), os.mkfifo(folder / WEIGHTS)), "is a pipe; expected"),
    "safetensors as a .bin": (lambda folder: (folder / WEIGHTS).rename(folder / TORCH),
                              r"pytorch_model\.bin is damaged or .* It is a safetensors file: name it model"),
    "a tar archive as a .bin": (lambda folder: (tar_file(folder / WEIGHTS), (folder / WEIGHTS).rename(folder / TORCH)),
                                r"pytorch_model\.bin is damaged or .* It is a tar archive: unpack it; one that"),
    "integers": (edit_tensors(lambda t: t.update({NORM: np.ones(32, np.int64)})),
                 rf"model\.safetensors: {NORM} has the dtype I64; expected one of F64, F32, F16, BF16"),
    "no tensors": (edit_tensors(dict.clear), r"missing: vit\.embeddings\.cls_token, .* and 30 more\."),
    "one missing": (edit_tensors(lambda t: t.pop(QUERY)), rf"missing: {QUERY}\."),
    "a layer missing": (edit_json("config.json", num_hidden_layers=3), r"missing: vit\.encoder\.layer\.2\..* 8 more"),
    "one unexpected": (edit_tensors(lambda t: t.update({"vit.adapter": np.ones(1)})), r"unexpected: vit\.adapter\."),
    "a layer unexpected": (edit_json("config.json", num_hidden_layers=1), r"unexpected: vit\.encoder\.layer\.1\."),
    "biases unexpected": (edit_json("config.json", qkv_bias=False), r"unexpected: .*key\.bias"),
    "one mis-shaped": (edit_tensors(lambda t: t.update({NORM: np.ones((32, 1), "f4")})),
                       rf"mis-shaped: {NORM} is \(32, 1\), expected \(32,\)\. Pass ignore_mismatched_sizes=True"),
    "head of another size": (edit_json("config.json", id2label={"0": "a"}, label2id=...),
                             r"mis-shaped: classifier\.weight is \(5, 32\), expected \(1, 32\)"),
    "positions of another size": (edit_json("config.json", image_size=32),
                                  r"mis-shaped: vit\.embeddings\.position_embeddings is \(1, 17, 32\), expected"),
    "all three": (edit_tensors(lambda t: (t.pop(QUERY), t.update({NORM: np.ones(3), "vit.extra": np.ones(1)}))),
                  rf"missing: {QUERY}; unexpected: vit\.extra; mis-shaped: {NORM} is \(3,\), expected \(32,\)"),
    "with and without prefix": (edit_tensors(lambda t: t.update({NORM.removeprefix("vit."): t[NORM]})),
                                r"stores parameters with and without 'vit\.' before: layernorm\.weight"),
}  # fmt: skip


def edit_map(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A breaker that changes the weight_map of the index; `edit` changes it in place."""

    def change(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        edit(index["weight_map"])
        (folder / INDEX).write_text(json.dumps(index))

    return change


SHARD = "model-00002-of-00003.safetensors"
OUTSIDE = r"index\.json names the shard '.*'; expected a file name in the same folder"
SHARDS = {
    "a shard missing": (remove(SHARD), f"lacks the shard {SHARD} that {INDEX} names; copy it there"),
    "a shard cut": (rewrite(SHARD, lambda content: content[:-1]), f"{SHARD} is not a whole safetensors file"),
    "index is not JSON": (rewrite(INDEX, b"{"), r"index\.json is not JSON"),
    "index is a list": (rewrite(INDEX, b"[]"), r"index\.json holds a JSON list; expected an object"),
    "no weight_map": (edit_json(INDEX, weight_map=...), r"index\.json has no weight_map of tensor names to files"),
    "weight_map is a list": (edit_json(INDEX, weight_map=[SHARD]), r"index\.json has no weight_map"),
    "weight_map of numbers": (edit_json(INDEX, weight_map={NORM: 3}), r"index\.json has no weight_map"),
    "weight_map is empty": (edit_json(INDEX, weight_map={}), "missing: "),
    "a shard in the folder above": (edit_map(lambda m: m.update({NORM: "../secret.safetensors"})), OUTSIDE),
    "a shard at an absolute path": (edit_map(lambda m: m.update({NORM: "/etc/passwd"})), OUTSIDE),
    "a shard in a folder below": (edit_map(lambda m: m.update({NORM: "sub/a.safetensors"})), OUTSIDE),
    "a shard of no name": (edit_map(lambda m: m.update({NORM: ""})), "lacks the shard"),
    "a shard that is the folder above": (edit_map(lambda m: m.update({NORM: ".."})), r"\. is a folder; expected"),
    "a tensor in no shard": (edit_map(lambda m: m.update({"vit.x": SHARD})), r"names tensors that are not .*: vit\.x"),
    "a tensor in another shard": (edit_map(lambda m: m.update({NORM: SHARD})), f"tensors that are not .*: {NORM}"),
}  # fmt: skip
BROKEN = {
    **{f"config: {name}": ("whole", *case) for name, case in CONFIG_FILES.items()},
    **{f"weights: {name}": ("whole", edit, CheckpointError, message) for name, (edit, message) in WEIGHT_FILES.items()},
    **{f"shards: {name}": ("sharded", edit, CheckpointError, message) for name, (edit, message) in SHARDS.items()},
}


@pytest.fixture
def broken(request, tmp_path) -> tuple[Path, type[ValueError], str]:
    """A broken copy of a checkpoint, and the error that is expected."""
    original, edit, error, message = BROKEN[request.param]
    folder = shutil.copytree(request.getfixturevalue(original), tmp_path / "broken")
    edit(folder)
    return folder, error, message


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("broken", BROKEN, indirect=True)
def test_a_broken_checkpoint_is_refused_by_name_and_left_as_it_is(broken, framework):
    folder, error, message = broken
    before = files(folder)
    with pytest.raises(error, match=message) as refused:
        model_class(framework).from_pretrained(folder)
    assert str(folder) in str(refused.value)
    assert files(folder) == before


@pytest.mark.parametrize("broken", [f"config: {name}" for name in CONFIG_FILES], indirect=True)
def test_a_broken_config_is_refused_in_the_same_words_on_its_own(broken):
    folder, error, message = broken
    with pytest.raises(error, match=message):
        ViTConfig.from_pretrained(folder)


ODD: tuple[Any, ...] = (
    True, -1, 0, 0.5, 10**400, -(10**400), 10**5000, 2**40, 1e308, float("inf"), float("-inf"), float("nan"), 1j, "",
    "x", "\ud800", "\x1b[31m", "n" * 300, "9" * 300, b"x", [], [1, 2], [10**400, 1], [[]], (), {}, {"a": 1}, {"0": "a"},
    {"00": "a"}, {10**400: "a"}, {"x" * 300: "y" * 300}, {0: 10**5000}, {0.5: "a"}, {True: "a"}, {"a": "0" * 10**6},
    {"a": 0, "b": 0}, object(), None,
)  # fmt: skip


@pytest.mark.parametrize("model_type", families.CONFIGS)
def test_any_value_of_any_key_makes_a_configuration_or_one_short_error(model_type):
    config_class = families.config_class(model_type)
    refused = 0
    for key in keys_of(config_class):
        for value in ODD:
            error = None
            try:
                config = config_class(**{key: value})
            except ConfigError as raised:
                error = raised
            if error is not None:
                refused += 1
                assert str(error).isprintable(), (key, value)
                assert len(str(error)) < 700, (key, value)
            elif key != "architectures":
                assert config_class.from_dict(json.loads(json.dumps(config.to_dict()))) == config, (key, value)
    assert refused > 20 * len(ODD)
    for key in ("x" * 300, "\ud800", "\x1b[31m"):
        with pytest.raises(ConfigError, match="Unknown configuration key"):
            config_class().replace(**{key: 1})


def test_labels_without_names_are_limited_and_those_with_names_are_not():
    with pytest.raises(ConfigError, match="num_labels is 100000000; expected at most 400,000, or id2label with"):
        ViTConfig(num_labels=10**8)
    assert ViTConfig(id2label=dict.fromkeys(range(400_001), "x")).num_labels == 400_001


@pytest.mark.parametrize("gone", [WEIGHTS, "config.json of no save"])
def test_weights_that_a_save_moves_meanwhile_are_no_error(gone, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    (tmp_path / WEIGHTS).write_bytes(bytes(100))
    listed = os.listdir

    def listdir(folder):
        if os.path.basename(folder) == folders.COMPLETE:
            raise FileNotFoundError(folder)
        found = listed(folder)
        (tmp_path / gone).unlink(missing_ok=True)
        return found

    monkeypatch.setattr(os, "listdir", listdir)
    assert ViTConfig.from_pretrained(tmp_path).num_labels == 2


def test_weights_that_a_save_has_not_moved_yet_count(tmp_path):
    complete = tmp_path / folders.COMPLETE
    complete.mkdir()
    (complete / folders.REMOVED).write_text("[]")
    (complete / WEIGHTS).write_bytes(bytes(100))
    for place in (tmp_path, complete):
        (place / "config.json").write_text(json.dumps({"model_type": "vit", "num_labels": 10**8}))
        with pytest.raises(ConfigError, match="the 100 bytes of weights beside it"):
            ViTConfig.from_pretrained(tmp_path)


def test_labels_are_compared_with_weights_and_with_nothing_else(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "num_labels": 50_000}))
    (tmp_path / "preprocessor_config.json").write_text("{}")  # all that a hub gives for the configuration alone
    assert ViTConfig.from_pretrained(tmp_path).num_labels == 50_000
    (tmp_path / WEIGHTS).write_bytes(bytes(64 * 50_000 - 1))
    with pytest.raises(ConfigError, match="num_labels is 50000; the 3,199,999 bytes of weights beside it hold at most"):
        ViTConfig.from_pretrained(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(bytes(64 * 50_000))
    assert ViTConfig.from_pretrained(tmp_path).num_labels == 50_000


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("original", ["whole", "sharded"])
def test_what_is_broken_above_loads_while_it_is_whole(request, original, framework):
    model_class(framework).from_pretrained(request.getfixturevalue(original))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_config_alone_cannot_be_loaded_as_a_model(tmp_path, framework):
    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="there are no weights to load"):
        model_class(framework).from_pretrained(tmp_path)
    ViTConfig().save_pretrained(tmp_path / "best")  # as a training run has it
    with pytest.raises(CheckpointError, match="Checkpoints are in its folders best: give the path"):
        model_class(framework).from_pretrained(tmp_path)


# === Arguments of from_pretrained and save_pretrained ===

ARGUMENTS = {
    "misspelt key": ({"imagesize": 32}, ConfigError, "Unknown configuration key 'imagesize'; did you mean 'image_s"),
    "misspelt option": ({"local_file_only": True}, ConfigError, "Unknown configuration key 'local_file_only'"),
    "pooler under a head": ({"add_pooling_layer": True}, ConfigError, "Unknown configuration key 'add_pooling_layer'"),
    "impossible override": ({"num_channels": 0}, ConfigError, "num_channels is 0; expected an int of at least 1"),
    "override that does not fit": ({"hidden_size": 64}, CheckpointError, r"mis-shaped: .* is \(1, 1, 32\), exp"),
    "unknown attention": ({"attn_implementation": "flash_attention_2"}, ConfigError,
                          "attn_implementation is 'flash_attention_2'; expected one of 'sdpa', 'eager'"),
    "unknown activation": ({"hidden_act": "swoosh"}, ConfigError, "hidden_act is 'swoosh'; expected one of 'gelu'"),
    "dtype of integers": ({"dtype": "int8"}, CheckpointError, "dtype is 'int8'; expected one of float64, float32,"),
    "nonsense as dtype": ({"dtype": "float31"}, CheckpointError, "dtype is 'float31'; expected one of float64, float"),
    "a number as dtype": ({"dtype": 32}, CheckpointError, "dtype is '32'; expected one of float64, float32"),
}  # fmt: skip


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("arguments", "error", "message"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_an_impossible_argument_of_from_pretrained_is_refused(whole, framework, arguments, error, message):
    with pytest.raises(error, match=message):
        model_class(framework).from_pretrained(whole, **arguments)


@pytest.mark.parametrize("framework", ["pt", "tf", "flax"])
@pytest.mark.parametrize("device", ["cuda:99", "abacus", "cpu:x"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(whole, framework, device):
    with pytest.raises(InputError, match=f"(?i)device is '{device}'; .* sees .*cpu") as error:
        model_class(framework).from_pretrained(whole, device=device)
    assert "\n" not in str(error.value)


def test_float64_is_refused_while_jax_has_it_switched_off(whole):
    with pytest.raises(InputError, match=r"dtype is float64, which JAX has .*jax_enable_x64.*dtype='float32'"):
        model_class("flax").from_pretrained(whole, dtype="float64")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_impossible_argument_of_save_pretrained_is_refused_and_nothing_is_written(whole, tmp_path, framework):
    model = model_class(framework).from_pretrained(whole)
    (tmp_path / "file").write_text("mine")
    for folder, size, message in (
        ("file", "5GB", f"{tmp_path / 'file'} is a file; expected a folder to save into"),
        ("file/below", "5GB", f"{tmp_path / 'file' / 'below'} cannot be saved into: Not a directory"),
        ("new", "five", "max_shard_size is 'five'; expected a number of bytes, or a size such as '500MB'"),
        ("new", 0, "max_shard_size is 0; expected a number of bytes"),
    ):
        with pytest.raises(CheckpointError, match=message):
            model.save_pretrained(tmp_path / folder, max_shard_size=size)
    assert files(tmp_path) == {"file": b"mine"}


def test_a_config_is_not_saved_into_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="is a file; expected a folder to save into"):
        ViTConfig().save_pretrained(tmp_path / "file")
    assert files(tmp_path) == {"file": b"mine"}


# === Arguments of a call ===


@pytest.fixture(scope="module", params=FRAMEWORKS)
def models(request, tmp_path_factory, tiny_config, random_checkpoint) -> dict[str | None, Any]:
    """{head: model} of one framework."""
    return {
        head: model_class(request.param, head).from_pretrained(
            random_checkpoint(tmp_path_factory.mktemp("models"), tiny_config(), head)
        )
        for head in (None, "classifier", "decoder")
    }


def tensor(model: Any, array: Any, dtype: str | None = None) -> Any:
    """An array as the framework of the model has it."""
    array = np.asarray(array, dtype)
    array = array.astype("float32") if array.dtype == np.float64 else array
    name = type(model).__name__
    if name.startswith("TF"):
        return __import__("tensorflow").convert_to_tensor(array)
    return __import__("jax").numpy.asarray(array) if name.startswith("Flax") else __import__("torch").as_tensor(array)


IMAGES = {
    (2, 3, 17, 16): "pixel_values is 17 x 16; the model expects 16 x 16. Resize the images, or pass "
                    "interpolate_pos_encoding=True.",
    (2, 3, 16, 32): "pixel_values is 16 x 32; the model expects 16 x 16.",
    (2, 1, 16, 16): "pixel_values has 1 channels (shape (2, 1, 16, 16)); the model expects 3",
    (2, 4, 16, 16): "pixel_values has 4 channels (shape (2, 4, 16, 16)); the model expects 3",
    (2, 16, 16, 3): "expects 3, as (batch, channels, height, width). It looks like channels last; transpose it.",
    (3, 16, 16): "pixel_values has the shape (3, 16, 16); expected (batch, channels, height, width).",
    (2, 768): "pixel_values has the shape (2, 768); expected (batch, channels, height, width).",
    (2, 3, 16, 16, 1): "pixel_values has the shape (2, 3, 16, 16, 1); expected (batch, channels, height, width).",
}  # fmt: skip


@pytest.mark.parametrize("head", [None, "classifier", "decoder"])
@pytest.mark.parametrize(("shape", "message"), IMAGES.items(), ids=str)
def test_images_of_another_shape_are_refused(models, head, shape, message):
    with pytest.raises(InputError, match=re.escape(message)):
        models[head](tensor(models[head], np.zeros(shape)))


@pytest.mark.parametrize(("shape", "message"), [
    ((1, 3, 3, 16), "pixel_values is 3 x 16, smaller than one patch of 4 x 4."),
    ((1, 3, 16, 0), "pixel_values is 16 x 0, smaller than one patch of 4 x 4."),
    ((1, 1, 32, 32), "pixel_values has 1 channels"),
])  # fmt: skip
def test_images_that_no_interpolation_helps_are_refused(models, shape, message):
    with pytest.raises(InputError, match=re.escape(message)):
        models[None](tensor(models[None], np.zeros(shape)), interpolate_pos_encoding=True)


@pytest.mark.parametrize("shape", [(2, 15), (2, 17), (1, 16), (16,), (2, 4, 4)])
def test_a_mask_of_another_shape_is_refused(models, shape):
    model = models["decoder"]
    message = f"bool_masked_pos has the shape {shape}; expected (2, 16), one value for each patch."
    with pytest.raises(InputError, match=re.escape(message)):
        model(tensor(model, np.zeros((2, 3, 16, 16))), bool_masked_pos=tensor(model, np.zeros(shape, bool)))


def test_a_mask_needs_a_mask_token(models):
    model = models[None]
    with pytest.raises(InputError, match=r"needs a mask token: build the model with use_mask_token=True"):
        model(tensor(model, np.zeros((2, 3, 16, 16))), bool_masked_pos=tensor(model, np.zeros((2, 16), bool)))


LABELS = {
    "too large": ([0, 5], "labels holds 5; expected 0 to 4 (num_labels is 5), or -100"),
    "negative": ([-1, 0], "labels holds -1; expected 0 to 4"),
    "one too few": ([0], "labels has the shape (1,); expected (2,) for single_label_classification."),
    "one too many": ([0, 1, 2], "labels has the shape (3,); expected (2,) for single_label_classification."),
    "a column": ([[0], [1]], "labels has the shape (2, 1); expected (2,) for single_label_classification."),
    "one number": (3, "labels has the shape (); expected (2,) for single_label_classification."),
    "floats for each image": ([0.0, 1.0], "labels has the shape (2,); expected (2, 5) for multi_label_classification."),
    "too few of several": ([[0.0] * 4] * 2, "labels has the shape (2, 4); expected (2, 5) for multi_label_"),
}


@pytest.mark.parametrize(("labels", "message"), LABELS.values(), ids=LABELS)
def test_labels_out_of_range_or_of_another_shape_are_refused(models, labels, message):
    model = models["classifier"]
    with pytest.raises(InputError, match=re.escape(message)):
        model(tensor(model, np.zeros((2, 3, 16, 16))), labels=tensor(model, labels))


@pytest.mark.parametrize(("problem_type", "labels", "message"), [
    ("single_label_classification", [0.0, float("nan")], "labels holds nan; expected 0 to 4"),
    ("single_label_classification", [[0, 1, 0, 0, 0]] * 2, "labels has the shape (2, 5); expected (2,) for single_"),
    ("multi_label_classification", [0, 1], "labels has the shape (2,); expected (2, 5) for multi_label_classification"),
    ("regression", [0.5, 1.5], "labels has the shape (2,); expected (2, 5) for regression"),
])  # fmt: skip
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_labels_that_do_not_fit_the_configured_problem_are_refused(whole, framework, problem_type, labels, message):
    model = model_class(framework).from_pretrained(whole, problem_type=problem_type)
    if framework == "pt" and message.startswith("labels holds"):  # PyTorch asks for integers before it looks at them
        message = "labels is torch.float32; expected integer classes"
    with pytest.raises(InputError, match=re.escape(message)):
        model(tensor(model, np.zeros((2, 3, 16, 16))), labels=tensor(model, labels))


@pytest.mark.parametrize(("labels", "wrong"), [
    ([0, 5], "5"), ([-100, -1], "-1"), ([0.0, 1.5], "1.5"), ([np.nan], "nan"), ([np.inf], "inf"), ([-99.5], "-99.5"),
])  # fmt: skip
def test_a_label_is_a_class_or_the_ignored_one(labels, wrong):
    check_label_values(np.array([0, 4, -100]), 5)
    check_label_values(np.array([0.0, 4.0, -100.0]), 5)
    check_label_values(np.array([], np.int64), 5)
    with pytest.raises(InputError, match=rf"labels holds {wrong}; expected 0 to 4 \(num_labels is 5\), or -100 for"):
        check_label_values(np.array(labels), 5)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_decoder_whose_stride_is_not_the_patch_size_is_refused(tmp_path, tiny_config, random_checkpoint, framework):
    folder = random_checkpoint(tmp_path, tiny_config(encoder_stride=2), "decoder")
    with pytest.raises(ConfigError, match="encoder_stride is 2 and patch_size 4; masked image modelling needs them"):
        model_class(framework, "decoder").from_pretrained(folder)


def test_every_error_is_a_value_error_that_one_line_catches():
    assert all(issubclass(error, ValueError) for error in (CheckpointError, ConfigError, InputError))


def test_pytorch_refuses_classes_that_are_no_integers(tiny_config):
    import torch

    model = vit.ViTForImageClassification(tiny_config(problem_type="single_label_classification"))
    with pytest.raises(InputError, match=r"labels is torch\.float32; expected integer classes"):
        model(torch.zeros(2, 3, 16, 16), labels=torch.tensor([0.0, 1.5]))
