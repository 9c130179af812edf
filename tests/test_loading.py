"""from_pretrained of what is no canonical folder: transformers' TensorFlow and Flax files, and those of trainings."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import conversion
import vit
from vit import CheckpointError, ConfigError, checkpoint, families
from vit.errors import install_line
from vit.loading import open_checkpoint

from .tiny import HEADS, tiny_checkpoint

FIXTURES = Path(__file__).parent / "fixtures" / "conversion"
frameworks = pytest.mark.parametrize("framework", families.PREFIXES)
OLD = {"tf": "tf_model.h5", "flax": "flax_model.msgpack"}


def arrays_of(folder: Path | str, source: str | None = None) -> dict[str, np.ndarray]:
    opened = open_checkpoint(folder, source)
    return {name: np.array(opened.read(name)) for name in opened.tensors}


def load(framework: str, folder: Path, **options: Any) -> Any:
    """The model of the class that wrote a checkpoint, with the optional parts that it has."""
    opened = open_checkpoint(folder)
    config, head = opened.config, checkpoint.head_of(opened)
    parts = {} if head else checkpoint.parts_of(opened)
    return families.model_class(framework, config.model_type, head).from_pretrained(folder, **{**parts, **options})


def parameters_of(model: Any, folder: Path) -> dict[str, np.ndarray]:
    model.save_pretrained(folder)
    return arrays_of(folder)


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert np.array_equal(found[name], array), name


# === transformers' TensorFlow and Flax files ===

FORMS = {"tf": ("vit", "deit", "vit_mae"), "flax": ("vit", "beit", "dinov2")}
OLD_CLASSES = [
    (source, model_type, head)
    for source in OLD
    for model_type, head in HEADS
    if model_type in FORMS[source] and (head != "decoder" or model_type == "vit_mae")
]


@frameworks
@pytest.mark.parametrize(("source", "model_type", "head"), OLD_CLASSES)
def test_the_files_of_transformers_classes_load_in_every_framework(
    framework, source, model_type, head, tmp_path, capsys
):
    tiny_checkpoint(tmp_path / "own", model_type, head)
    report = conversion.convert(tmp_path / "own", tmp_path / "old", target_format=f"transformers-{source}")
    assert OLD[source] in os.listdir(tmp_path / "old")
    model = load(framework, tmp_path / "old")
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(" is converted")[0] for line in said] == [str(tmp_path / "old" / OLD[source])]
    kept = {name: array for name, array in arrays_of(tmp_path / "own").items() if name not in report.ignored}
    assert_same(parameters_of(model, tmp_path / "saved"), kept)
    assert model.config.name_or_path == str(tmp_path / "old")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("source", OLD)
def test_sharded_files_of_transformers_own_classes_load_with_an_index_of_their_names(source, tmp_path):
    import transformers

    tiny_checkpoint(tmp_path / "own", "vit", "classifier", image_size=16)
    theirs = {"tf": "TFViTForImageClassification", "flax": "FlaxViTForImageClassification"}[source]
    model = getattr(transformers, theirs).from_pretrained(tmp_path / "own", from_pt=True)
    options = {"safe_serialization": False} if source == "tf" else {}
    model.save_pretrained(tmp_path / "old", max_shard_size="20KB", **options)
    assert f"{OLD[source]}.index.json" in os.listdir(tmp_path / "old")
    expected = arrays_of(tmp_path / "own")
    expected.pop("vit.embeddings.mask_token", None)
    assert_same(arrays_of(tmp_path / "old"), expected)
    shard = next(path for path in (tmp_path / "old").iterdir() if "-00002-of" in path.name)
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"lacks the shard {shard.name}"):
        arrays_of(tmp_path / "old")


@frameworks
def test_what_was_asked_for_is_read_and_nothing_else(framework, tmp_path):
    tiny_checkpoint(tmp_path / "all", "vit", "classifier")
    for seed, source in enumerate(OLD, 1):
        tiny_checkpoint(tmp_path / source, "vit", "classifier", seed)
        conversion.convert(tmp_path / source, tmp_path / f"old-{source}", target_format=f"transformers-{source}")
        shutil.copy(tmp_path / f"old-{source}" / OLD[source], tmp_path / "all")
    for options, same in (({}, "all"), ({"from_pt": True}, "all"), ({"from_tf": True}, "tf"),
                          ({"from_flax": True, "from_tf": False}, "flax")):  # fmt: skip
        model = load(framework, tmp_path / "all", **options)
        assert_same(parameters_of(model, tmp_path / "saved"), arrays_of(tmp_path / same))
    with pytest.raises(ConfigError, match="from_tf and from_flax exclude each other"):
        load(framework, tmp_path / "all", from_tf=True, from_flax=True)
    with pytest.raises(CheckpointError, match=r"has no tf_model\.h5, .*It has flax_model\.msgpack: leave from_tf out"):
        load(framework, tmp_path / "old-flax", from_tf=True)
    tiny_checkpoint(tmp_path / "own", "vit", "classifier")
    for options in ({"from_tf": True}, {"from_flax": True}):  # what has canonical weights alone
        assert_same(parameters_of(load(framework, tmp_path / "own", **options), tmp_path / "saved"),
                    arrays_of(tmp_path / "own"))  # fmt: skip
    file = tmp_path / "own" / "model.safetensors"
    model = families.model_class(framework, "vit", "classifier").from_pretrained(file, from_flax=True)
    assert_same(parameters_of(model, tmp_path / "saved"), arrays_of(tmp_path / "own"))


@frameworks
def test_loading_information_and_overrides_are_those_of_a_canonical_folder(framework, tmp_path):
    tiny_checkpoint(tmp_path / "own", "vit", "classifier")
    conversion.convert(tmp_path / "own", tmp_path / "old", target_format="transformers-flax")
    with pytest.warns(UserWarning, match="freshly initialised"):
        model, info = load(framework, tmp_path / "old", num_labels=9, dtype="float16", output_loading_info=True)
    assert info["mismatched_keys"] == ["classifier.bias", "classifier.weight"]
    assert info["missing_keys"] == info["unexpected_keys"] == []
    assert (model.config.dtype, model.config.num_labels) == ("float16", 9)
    auto = getattr(vit, f"{families.PREFIXES[framework]}AutoModel")
    base, info = auto.from_pretrained(tmp_path / "old", add_pooling_layer=False, output_loading_info=True)
    assert info["unexpected_keys"] == ["classifier.bias", "classifier.weight"]
    assert base.head is None


def test_a_missing_h5py_is_named_with_the_line_that_installs_it(tmp_path):
    shutil.copytree(FIXTURES / "hf_tf_h5", tmp_path / "old")
    code = """
import sys
sys.modules["h5py"] = None
import vit
try:
    vit.ViTForImageClassification.from_pretrained(sys.argv[1])
except ImportError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "old"], cwd=Path(vit.__file__).parents[1],
                         capture_output=True, text=True, check=True)  # fmt: skip
    assert run.stdout.strip().endswith(install_line("convert"))
    assert run.stderr == ""


@frameworks
@pytest.mark.parametrize("file", OLD.values())
@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n" + bytes(50), b"\x81\xa3vit\xc7", b"{}"])
def test_a_damaged_file_is_named_with_the_command_that_reads_such_files(framework, file, content, tmp_path):
    tiny_checkpoint(tmp_path, "vit", "classifier")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / file).write_bytes(content)
    cls = families.model_class(framework, "vit", "classifier")
    with pytest.raises(CheckpointError, match=rf"{file} .*'vit convert'"):
        cls.from_pretrained(tmp_path)


# === Files of trainings ===


class Callback(list):
    """Stands for what a training keeps: with items, attributes, and a class that no reader knows."""

    def __init__(self, what: object) -> None:
        super().__init__([what])
        self.what = what


def trainings(state: dict[str, Any]) -> dict[str, Any]:
    """What torch.save is given by those who train: kind -> content."""
    import torch

    def prefixed(prefix: str) -> dict[str, Any]:
        return {prefix + name: value for name, value in state.items()}

    optimizer = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    return {
        "state dict": state,
        "DistributedDataParallel": prefixed("module."),
        "torch.compile": prefixed("_orig_mod."),
        "model": {"model": state, "optimizer": optimizer, "epoch": 3},
        "model_state_dict": {"model_state_dict": prefixed("module."), "loss": torch.tensor(0.5)},
        "Lightning": {
            "epoch": 1, "state_dict": {**prefixed("net."), "loss.weight": torch.ones(4)}, "loops": {"fit_loop": {}},
            "optimizer_states": [optimizer], "lr_schedulers": [], "callbacks": {"x": Callback(3), Callback: 4},
            "hyper_parameters": Callback({"model": Callback(1)}), "pytorch-lightning_version": "2.6.0",
        },
    }  # fmt: skip


KINDS = ("state dict", "DistributedDataParallel", "torch.compile", "model", "model_state_dict", "Lightning")


@frameworks
@pytest.mark.parametrize("kind", KINDS)
def test_the_checkpoint_of_a_training_loads_as_a_file_and_from_its_folder(framework, kind, tmp_path):
    import torch

    config = tiny_checkpoint(tmp_path / "own", "vit", "classifier")
    expected = arrays_of(tmp_path / "own")
    content = trainings({name: torch.from_numpy(array) for name, array in expected.items()})[kind]
    (tmp_path / "run" / "folder.ckpt").mkdir(parents=True)
    torch.save(content, tmp_path / "run" / "epoch=1-step=10.ckpt")
    cls = families.model_class(framework, "vit", "classifier")
    with pytest.raises(
        CheckpointError, match=r"has no config\.json beside epoch=1-step=10\.ckpt: put it there, or pass"
    ):
        cls.from_pretrained(tmp_path / "run" / "epoch=1-step=10.ckpt")
    model = cls.from_pretrained(tmp_path / "run" / "epoch=1-step=10.ckpt", config=config)
    assert_same(parameters_of(model, tmp_path / "saved"), expected)
    shutil.copy(tmp_path / "own" / "config.json", tmp_path / "run")
    torch.save({"step": 1}, tmp_path / "run" / "optimizer.pt")
    assert_same(parameters_of(cls.from_pretrained(tmp_path / "run"), tmp_path / "saved"), expected)
    torch.save(content, tmp_path / "run" / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"It has epoch=1-step=10\.ckpt, last\.ckpt: give the path of one"):
        cls.from_pretrained(tmp_path / "run")
    torch.save(content, tmp_path / "run" / "pytorch_model.bin")
    assert_same(parameters_of(cls.from_pretrained(tmp_path / "run"), tmp_path / "saved"), expected)


def test_every_way_in_takes_a_file_and_a_folder_of_the_older_classes(tmp_path):
    tiny_checkpoint(tmp_path / "own", "vit", "classifier")
    conversion.convert(tmp_path / "own", tmp_path / "old", target_format="transformers-flax")
    x = np.ones((1, 3, 16, 12), np.float32)
    expected = vit.Forward(tmp_path / "own", "pt")(x).logits
    for path in (tmp_path / "old", tmp_path / "old" / "flax_model.msgpack"):
        np.testing.assert_allclose(vit.Forward(path, "pt")(x).logits, expected, rtol=0, atol=1e-6)
        assert type(vit.AutoModelForImageClassification.from_pretrained(path)) is vit.ViTForImageClassification


def test_prefixed_names_in_safetensors_load(tmp_path):
    from safetensors.numpy import save_file

    tiny_checkpoint(tmp_path, "beit", "classifier")
    expected = arrays_of(tmp_path)
    save_file({f"module.{name}": array for name, array in expected.items()}, tmp_path / "model.safetensors")
    assert_same(arrays_of(tmp_path), expected)


def test_a_folder_without_a_configuration_loads_with_one_that_is_given(tmp_path):
    config = tiny_checkpoint(tmp_path, "vit", "classifier")
    (tmp_path / "config.json").unlink()
    model = vit.ViTForImageClassification.from_pretrained(tmp_path, config=config)
    assert model.config.replace(dtype=None) == config.replace(dtype=None)
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        vit.ViTForImageClassification.from_pretrained(tmp_path)


def test_an_adapter_is_told_from_the_file_of_a_training(tmp_path):
    config = tiny_checkpoint(tmp_path, "vit", "classifier")
    (tmp_path / "model.safetensors").rename(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "config.json").unlink()
    for load in (
        lambda: vit.ViTForImageClassification.from_pretrained(tmp_path, config=config),
        lambda: vit.ViTForImageClassification.from_pretrained(tmp_path),
        lambda: vit.TFAutoModel.from_pretrained(tmp_path),
        lambda: vit.FlaxAutoModelForImageClassification.from_pretrained(str(tmp_path)),
        lambda: vit.AutoConfig.from_pretrained(tmp_path),
    ):
        with pytest.raises(CheckpointError, match="is an adapter: load its base model, then merge it: peft"):
            load()


def test_the_file_of_another_format_is_refused_with_the_command_that_converts_it(tmp_path):
    shutil.copy(FIXTURES / "timm_vit.safetensors", tmp_path)
    tiny_checkpoint(tmp_path / "own", "vit", "classifier")
    shutil.copy(tmp_path / "own" / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"names of the format timm, not of hf.*'vit convert'"):
        vit.ViTForImageClassification.from_pretrained(tmp_path / "timm_vit.safetensors")


def test_where_a_model_came_from_is_known_and_not_written(tmp_path):
    tiny_checkpoint(tmp_path / "own", "vit", "classifier")
    model = vit.ViTForImageClassification.from_pretrained(tmp_path / "own")
    assert model.name_or_path == model.config.name_or_path == str(tmp_path / "own")
    assert model.config._commit_hash is None
    assert vit.ViTConfig.from_pretrained(tmp_path / "own").name_or_path == str(tmp_path / "own")
    model.save_pretrained(tmp_path / "saved")
    assert not [key for key in json.loads((tmp_path / "saved" / "config.json").read_text()) if key.startswith("_")]
