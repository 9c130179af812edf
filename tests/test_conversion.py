"""Every format in and out: the recorded outputs, and the same bits on the way back."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import conversion
import vit
from vit import budgets, checkpoint
from vit.errors import CheckpointError
from vit.families.vit import ViTConfig

FIXTURES = Path(__file__).parent / "fixtures" / "conversion"
HEADS = {"num_attention_heads": 4}  # 12 wide, so that only the JAX files and configurations tell

# file -> (the format that auto finds, the recorded output, the output's name, class)
PLAIN = {
    "google_vit.npz": ("google", "google_vit/logits", "logits"),
    "timm_vit.safetensors": ("timm", "timm_vit/logits", "logits"),
    "timm_vit_noqkvbias.safetensors": ("timm", "timm_vit_noqkvbias/logits", "logits"),
    "torchvision_vit.pth": ("torchvision", "torchvision_vit/logits", "logits"),
    "hf_tf_h5": ("transformers-tf", "hf_torch/logits", "logits"),
    "hf_flax_msgpack": ("transformers-flax", "hf_torch/logits", "logits"),
    "hf_torch": ("hf", "hf_torch/logits", "logits"),
    "hf_torch_bin": ("transformers-pt", "hf_torch/logits", "logits"),
    "hf_torch_sharded": ("hf", "hf_torch/logits", "logits"),
    "google_vit_in21k.npz": ("google", "google_vit_in21k/logits", "pooler_output"),
    "dino_backbone.pth": ("dino", "dino_backbone/cls", "last_hidden_state"),
    "dino_full.pth": ("dino", "dino_backbone/cls", "last_hidden_state"),
    "hf_torch_base": ("hf", "hf_torch_base/pooler_output", "pooler_output"),
    "hf_torch_mim": ("hf", "hf_torch_mim/reconstruction", "reconstruction"),
}
PREFIXES = {"pt": "", "tf": "TF", "flax": "Flax"}


@pytest.fixture(scope="session")
def find(reference: Path) -> Callable[[str], Path]:
    """The path of a reference file, of this project's own format or foreign."""
    return lambda name: FIXTURES / name if (FIXTURES / name).exists() else reference / name


@pytest.fixture(scope="session")
def converted(find: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The canonical folder of a reference file, converted once."""
    root, reports = tmp_path_factory.mktemp("converted"), {}

    def convert(name: str) -> Path:
        if name not in reports:
            reports[name] = conversion.convert(find(name), root / Path(name).stem, **HEADS)
        return reports[name].target

    return convert


def run(framework: str, folder: Path, pixel_values: np.ndarray, **call: Any) -> dict[str, np.ndarray]:
    """The outputs of a checkpoint's own class in one framework, as arrays."""
    (architecture,) = checkpoint.read_config(folder).architectures
    options = {}
    if architecture == "ViTModel":
        stored = checkpoint.Checkpoint(folder).tensors
        options["add_pooling_layer"] = any("pooler" in name for name in stored)
    model = getattr(vit, PREFIXES[framework] + architecture).from_pretrained(folder, **options)
    if framework == "pt":
        import torch

        with torch.no_grad():
            outputs = model(torch.from_numpy(pixel_values), **{k: torch.from_numpy(v) for k, v in call.items()})
    else:
        outputs = model(pixel_values, **call)
    return {key: np.asarray(value) for key, value in outputs.items() if not isinstance(value, tuple)}


def tensors_of(path: Path, **options: Any) -> dict[str, np.ndarray]:
    """Every canonical tensor of a checkpoint of any format."""
    source = conversion.open_source(path, **options)
    return {name: source.read(name) for name in source.shapes}


def assert_same_bits(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert np.ascontiguousarray(found[name]).tobytes() == np.ascontiguousarray(array).tobytes(), name


# === In ===


@pytest.mark.parametrize("framework", ["pt", "tf", "flax"])
@pytest.mark.parametrize("name", PLAIN)
def test_a_converted_checkpoint_computes_what_its_source_computed(name, framework, converted, find, reference):
    expected = np.load(FIXTURES / "expected.npz")
    _, recorded, field = PLAIN[name]
    call = {"bool_masked_pos": expected["hf_torch_mim/bool_masked_pos"]} if field == "reconstruction" else {}
    output = run(framework, converted(name), expected["pixel_values"], **call)[field]
    if field == "last_hidden_state":
        output = output[:, 0]  # the CLS token
    if recorded == "google_vit_in21k/logits":  # the head that reads the pooler, which the conversion names as ignored
        source = np.load(find(name))
        output = output @ source["head/kernel"] + source["head/bias"]
    np.testing.assert_allclose(output, expected[recorded], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PLAIN)
def test_the_format_is_found_from_the_file(name, find):
    assert conversion.open_source(find(name), **HEADS).format.name == PLAIN[name][0]


def test_the_last_attention_of_dino_is_reproduced(converted, reference):
    import torch

    expected = np.load(FIXTURES / "expected.npz")
    model = vit.ViTModel.from_pretrained(converted("dino_backbone.pth"), add_pooling_layer=False)
    with torch.no_grad():
        outputs = model(torch.from_numpy(expected["pixel_values"]), output_attentions=True)
    np.testing.assert_allclose(outputs.attentions[-1], expected["dino_backbone/last_attention"], rtol=0, atol=1e-5)


def test_the_whole_sequence_of_timm_is_reproduced(converted, reference):
    import torch

    expected = np.load(FIXTURES / "expected.npz")
    model = vit.ViTModel.from_pretrained(converted("timm_vit.safetensors"), add_pooling_layer=False)
    with torch.no_grad():
        output = model(torch.from_numpy(expected["pixel_values"])).last_hidden_state
    np.testing.assert_allclose(output, expected["timm_vit/last_hidden_state"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "family"),
    [("timm_vit_registers.safetensors", "register tokens.*reg_token")],
)
def test_another_family_is_refused_by_name(name, family, tmp_path):
    with pytest.raises(CheckpointError, match=family):
        conversion.convert(FIXTURES / name, tmp_path / "out", **HEADS)
    assert not list(tmp_path.iterdir())


def test_the_defaults_are_those_of_the_source_and_the_published_ones_an_option(tmp_path):
    faithful = conversion.convert(FIXTURES / "google_vit.npz", tmp_path / "faithful")
    assert (faithful.config.hidden_act, faithful.config.layer_norm_eps) == ("gelu_new", 1e-6)
    assert any("gelu_new" in line for line in faithful.said)
    published = conversion.convert(FIXTURES / "google_vit.npz", tmp_path / "published", published_config=True)
    assert (published.config.hidden_act, published.config.layer_norm_eps) == ("gelu", 1e-12)
    chosen = conversion.convert(
        FIXTURES / "google_vit.npz", tmp_path / "chosen", hidden_act="relu", layer_norm_eps=1e-5
    )
    assert (chosen.config.hidden_act, chosen.config.layer_norm_eps) == ("relu", 1e-5)


def test_sizes_are_read_from_shapes():
    config = conversion.open_source(FIXTURES / "google_vit_in21k.npz").config
    expected = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96,
                "image_size": 32, "patch_size": 8, "num_channels": 3, "qkv_bias": True,
                "pooler_output_size": 48}  # fmt: skip
    assert {key: getattr(config, key) for key in expected} == expected
    assert not conversion.open_source(FIXTURES / "timm_vit_noqkvbias.safetensors", **HEADS).config.qkv_bias


def test_tensors_that_are_left_out_are_named_with_the_reason(tmp_path):
    ignored = conversion.convert(FIXTURES / "dino_full.pth", tmp_path / "dino", **HEADS).ignored
    assert "training" in ignored["epoch"]
    assert sum(name.startswith("student/") for name in ignored) == 42
    ignored = conversion.convert(FIXTURES / "google_vit_in21k.npz", tmp_path / "google").ignored
    assert ignored.keys() == {"head/kernel", "head/bias"}
    assert "pooler" in ignored["head/kernel"]


def test_images_are_prepared_as_the_source_expects(tmp_path):
    for name, mean in (("google_vit.npz", 0.5), ("torchvision_vit.pth", 0.485)):
        folder = conversion.convert(FIXTURES / name, tmp_path / Path(name).stem, **HEADS).target
        values = checkpoint.read_json(folder / "preprocessor_config.json")
        assert values["image_mean"][0] == mean
        assert values["size"] == {"height": 32, "width": 32}


def test_labels_come_from_the_data_that_ships_from_a_file_or_from_the_caller(tmp_path, tiny_config, random_checkpoint):
    big = random_checkpoint(tmp_path / "big", tiny_config(num_labels=1000), "classifier")
    conversion.convert(big, tmp_path / "big.npz", target_format="google")
    labelled = conversion.convert(tmp_path / "big.npz", tmp_path / "labelled", labels="imagenet-1k").config
    assert labelled.id2label[0] == "tench, Tinca tinca"
    assert labelled.id2label[999] == "toilet tissue, toilet paper, bathroom tissue"
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\ne\nf\ng\n")
    (tmp_path / "names.json").write_text('{"0": "a", "1": "b", "2": "c", "3": "d", "4": "e", "5": "f", "6": "g"}')
    for labels in (tmp_path / "names.txt", tmp_path / "names.json", list("abcdefg")):
        assert conversion.open_source(FIXTURES / "google_vit.npz", labels=labels).config.id2label[6] == "g"
    assert conversion.open_source(FIXTURES / "google_vit.npz").config.id2label[6] == "LABEL_6"
    with pytest.raises(CheckpointError, match="7 labels, but 2 label names"):
        conversion.open_source(FIXTURES / "google_vit.npz", labels=["a", "b"])


# === Out and in again ===

TARGETS = {
    "hf": "out",
    "timm": "out.safetensors",
    "timm-pth": "out.pth",
    "torchvision": "out.pth",
    "torchvision-safetensors": "out.safetensors",
    "google": "out.npz",
    "transformers-tf": "out",
    "transformers-flax": "out",
    "keras": "out.keras",
    "keras-h5": "out.weights.h5",
    "orbax": "out",
}
NO_PLACE = {  # the parameters that a target's own code has no place for
    "timm": ("vit.pooler.", "vit.embeddings.mask_token", "decoder."),
    "torchvision": ("vit.embeddings.mask_token", "decoder."),
    "google": ("vit.embeddings.mask_token", "decoder."),
    "transformers-tf": ("decoder.",),
    "transformers-flax": ("vit.embeddings.mask_token", "decoder."),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("head", ["classifier", None, "decoder"])
def test_out_and_in_again_gives_the_same_bits(target, dtype, head, tmp_path, tiny_config, random_checkpoint):
    format_ = target.removesuffix("-pth").removesuffix("-safetensors").removesuffix("-h5")
    config = tiny_config(pooler_output_size=24) if head is None else tiny_config(qkv_bias=format_ != "google")
    source = random_checkpoint(tmp_path / "in", config, head, dtype=dtype)
    report = conversion.convert(source, tmp_path / TARGETS[target], target_format=format_)
    back = conversion.convert(report.target, tmp_path / "back", **HEADS)
    assert back.source_format == ("dino" if target == "timm-pth" and head != "classifier" else format_)
    no_place = NO_PLACE.get(format_, ())
    expected = {name: array for name, array in tensors_of(source).items() if not name.startswith(no_place)}
    assert len(report.ignored) == len(tensors_of(source)) - len(expected)
    assert_same_bits(tensors_of(tmp_path / "back"), expected)


@pytest.mark.parametrize("name", ["google_vit.npz", "timm_vit.safetensors", "timm_vit_noqkvbias.safetensors",
                                  "torchvision_vit.pth", "hf_tf_h5", "hf_flax_msgpack"])  # fmt: skip
def test_a_reference_file_comes_back_with_its_own_names_shapes_and_bits(name, converted, tmp_path):
    format_ = PLAIN[name][0]
    target = tmp_path / name
    conversion.convert(converted(name), target, target_format=format_)
    theirs, ours = (conversion.open_source(path, **HEADS).store for path in (FIXTURES / name, target))
    # Newer flax counts the parts of a block otherwise than the published files do.
    newer = {"MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0", "LayerNorm_2": "LayerNorm_1",
             "MlpBlock_3": "MlpBlock_0"}  # fmt: skip

    def renamed(stored: str) -> str:
        for old, new in newer.items():
            stored = stored.replace(old, new)
        return stored

    assert_same_bits({renamed(n): ours.read(n) for n in ours.tensors}, {n: theirs.read(n) for n in theirs.tensors})


def test_a_dtype_is_cast_on_the_way(tmp_path):
    conversion.convert(FIXTURES / "google_vit.npz", tmp_path / "half", dtype="bfloat16")
    config, found = checkpoint.read_config(tmp_path / "half"), tensors_of(tmp_path / "half")
    assert config.dtype == "bfloat16"
    kernel = np.load(FIXTURES / "google_vit.npz")["head/kernel"].T
    assert_same_bits({"w": found["classifier.weight"]}, {"w": kernel.astype(checkpoint.dtype_of("bfloat16"))})


def test_non_square_images_and_patches_survive(tmp_path, tiny_config, random_checkpoint):
    config = tiny_config(image_size=(12, 24), patch_size=(3, 6), num_channels=1)
    source = random_checkpoint(tmp_path / "in", config, "classifier")
    conversion.convert(source, tmp_path / "out.safetensors", target_format="timm")
    back = conversion.open_source(tmp_path / "out.safetensors", image_size=(12, 24), **HEADS)
    assert (back.config.patch_size, back.config.num_channels) == ((3, 6), 1)
    assert_same_bits({n: back.read(n) for n in back.shapes}, tensors_of(source))
    wide = random_checkpoint(tmp_path / "wide", tiny_config(image_size=(8, 16)), "classifier")
    conversion.convert(wide, tmp_path / "wide.safetensors", target_format="timm")
    with pytest.raises(CheckpointError, match=r"no square grid.*--image-size"):
        conversion.open_source(tmp_path / "wide.safetensors", **HEADS)


# === Read by the formats' own code ===


def test_keras_and_orbax_files_of_this_projects_own_models_are_read(tmp_path, reference):
    import orbax.checkpoint as ocp
    from flax import nnx

    for name, architecture in (("hf_torch", "ViTForImageClassification"), ("hf_torch_base", "ViTModel"),
                               ("hf_torch_mim", "ViTForMaskedImageModeling")):  # fmt: skip
        expected = tensors_of(reference / name)
        keras_model = getattr(vit, "TF" + architecture).from_pretrained(reference / name)
        keras_model.save(tmp_path / f"{name}.keras")
        keras_model.save_weights(tmp_path / f"{name}.weights.h5")
        state = nnx.state(getattr(vit, "Flax" + architecture).from_pretrained(reference / name))
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / f"{name}-state", state)
            checkpointer.save(tmp_path / f"{name}-dict", nnx.to_pure_dict(state))
        for file in (f"{name}.keras", f"{name}.weights.h5", f"{name}-state", f"{name}-dict"):
            assert_same_bits(tensors_of(tmp_path / file, **HEADS), expected)


@pytest.mark.parametrize("name", ["hf_torch", "hf_torch_base", "hf_torch_mim"])
def test_keras_loads_what_is_written(name, tmp_path, reference):
    import keras

    expected = np.load(FIXTURES / "expected.npz")
    field = {"hf_torch": "logits", "hf_torch_base": "pooler_output", "hf_torch_mim": "reconstruction"}[name]
    masked = {"bool_masked_pos": expected["hf_torch_mim/bool_masked_pos"]} if name == "hf_torch_mim" else {}
    conversion.convert(reference / name, tmp_path / "model.keras", target_format="keras")
    conversion.convert(reference / name, tmp_path / "model.weights.h5", target_format="keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    output = model(expected["pixel_values"], **masked)[field]
    np.testing.assert_allclose(output, expected[f"{name}/{field}"], rtol=0, atol=1e-5)
    fresh = type(model)(ViTConfig.from_dict(model.config.to_dict()))
    fresh.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(fresh(expected["pixel_values"], **masked)[field], output, rtol=0, atol=0)


def test_orbax_restores_what_is_written(tmp_path, reference):
    import jax
    import orbax.checkpoint as ocp
    from flax import nnx

    conversion.convert(reference / "hf_torch", tmp_path / "orbax", target_format="orbax")
    model = vit.FlaxViTForImageClassification.from_pretrained(reference / "hf_torch")
    expected = nnx.to_pure_dict(nnx.state(model))
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "orbax", jax.eval_shape(lambda: expected))
    jax.tree.map(np.testing.assert_array_equal, restored, expected)
    with ocp.PyTreeCheckpointer() as checkpointer:
        plain = checkpointer.restore(tmp_path / "orbax")
    np.testing.assert_array_equal(plain["classifier"]["kernel"], expected["classifier"]["kernel"])


def test_a_piece_of_an_orbax_array_is_no_larger_than_any_file_may_become(tmp_path, reference, monkeypatch):
    conversion.convert(reference / "hf_torch", tmp_path / "orbax", target_format="orbax")
    store = conversion.open_source(tmp_path / "orbax").store
    largest = max(math.prod(each.shape) * each.dtype.itemsize for each in store.tensors.values())
    for allowed, match in ((largest, None), (largest - 1, "lies in 1 pieces")):
        monkeypatch.setattr(budgets, "allowance", lambda size, allowed=allowed: allowed + 16 * size)
        with pytest.raises(CheckpointError, match=match) if match else nullcontext():
            conversion.open_source(tmp_path / "orbax")


@pytest.mark.parametrize("name", ["hf_torch", "hf_torch_base"])
def test_transformers_reads_what_is_written(name, tmp_path, reference):
    import torch
    import transformers

    expected = np.load(FIXTURES / "expected.npz")
    pixel_values, field = expected["pixel_values"], "logits" if name == "hf_torch" else "pooler_output"
    architecture = "ViTForImageClassification" if name == "hf_torch" else "ViTModel"
    for format_ in ("hf", "transformers-tf", "transformers-flax"):
        conversion.convert(reference / name, tmp_path / format_, target_format=format_)
    pt = getattr(transformers, architecture).from_pretrained(tmp_path / "hf")
    with torch.no_grad():
        outputs = {"hf": getattr(pt(torch.from_numpy(pixel_values)), field).numpy()}
    # What a class cannot find it initialises at random, with a warning alone: the outputs tell.
    tf = getattr(transformers, "TF" + architecture).from_pretrained(tmp_path / "transformers-tf")
    outputs["transformers-tf"] = getattr(tf(pixel_values), field).numpy()
    flax = getattr(transformers, "Flax" + architecture).from_pretrained(tmp_path / "transformers-flax")
    outputs["transformers-flax"] = np.asarray(getattr(flax(pixel_values), field))
    for format_, output in outputs.items():
        np.testing.assert_allclose(output, expected[f"{name}/{field}"], rtol=0, atol=1e-5, err_msg=format_)


def test_transformers_5_reads_what_is_written(converted):
    folder, expected = converted("google_vit.npz"), np.load(FIXTURES / "expected.npz")
    elsewhere = Path(sys.prefix) / "transformers5"
    assert elsewhere.is_dir(), "make test installs transformers 5 there"
    code = (
        "import sys, numpy as np, torch, transformers\n"
        "model = transformers.ViTForImageClassification.from_pretrained(sys.argv[1])\n"
        "with torch.no_grad():\n    logits = model(torch.from_numpy(np.load(sys.argv[2])['pixel_values'])).logits\n"
        "print(transformers.__version__, *logits.flatten().tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(FIXTURES / "expected.npz")],
        env={**os.environ, "PYTHONPATH": str(elsewhere)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    version, *logits = done.stdout.split()
    assert version.startswith("5.")
    np.testing.assert_allclose(np.array(logits, float), expected["google_vit/logits"].ravel(), rtol=0, atol=1e-5)


def test_a_timm_hub_folder_says_heads_size_and_labels_itself(tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    shutil.copy(FIXTURES / "timm_vit.safetensors", folder / "model.safetensors")
    described = (
        '{"architecture": "vit_tiny_patch8_32", "num_classes": 7, "global_pool": "%s", "model_args": {"num_heads": 4}, '
        '"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear"}, '
        '"label_names": ["a", "b", "c", "d", "e", "f", "g"]}'
    )
    (folder / "config.json").write_text(described % "token")
    report = conversion.convert(folder, tmp_path / "out")
    assert (report.config.num_attention_heads, report.config.id2label[2]) == (4, "c")
    assert checkpoint.read_json(tmp_path / "out" / "preprocessor_config.json")["image_mean"] == [0.5, 0.5, 0.5]
    (folder / "config.json").write_text(described % "avg")
    with pytest.raises(CheckpointError, match="global_pool='avg'"):
        conversion.convert(folder, tmp_path / "other")
    for key, numbers, match in (
        ("mean", "0, 0, 0", None), ("mean", "0, 1e6, 0", "has the mean"), ("std", "1, 0, 1", "has the std")
    ):  # fmt: skip
        text = (described % "token").replace(f'"{key}": [0.5, 0.5, 0.5]', f'"{key}": [{numbers}]')
        (folder / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=match) if match else nullcontext():
            conversion.convert(folder, tmp_path / "again", force=True)


# === What files in the wild look like ===


def wrapped(prefix: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {prefix + name: value for name, value in state.items()}


def renamed(*pairs: tuple[str, str]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def rename(state: dict[str, Any]) -> dict[str, Any]:
        for old, new in pairs:
            state = {name.replace(old, new): value for name, value in state.items()}
        return state

    return rename


@pytest.mark.parametrize(
    ("name", "change", "format_"),
    [("timm_vit.safetensors", wrapped("module."), "timm"), ("dino_backbone.pth", wrapped("_orig_mod.module."), "dino"),
     ("timm_vit.safetensors", renamed(("head.", "fc.")), "timm"),
     ("timm_vit.safetensors", lambda state: {"model": state}, "deit"),
     ("timm_vit.safetensors", lambda state: {"model": wrapped("module.")(state), "epoch": 3}, "deit"),
     ("timm_vit.safetensors", lambda state: {"state_dict": {n: v + 1 for n, v in state.items()}, "epoch": 3,
                                             "state_dict_ema": wrapped("module.")(state)}, "timm"),
     ("torchvision_vit.pth", renamed(("mlp.0", "mlp.linear_1"), ("mlp.3", "mlp.linear_2")), "torchvision"),
     ("torchvision_vit.pth", lambda state: {"model": state, "optimizer": {"lr": 1}}, "torchvision"),
     ("dino_backbone.pth", lambda state: {"student": wrapped("module.backbone.")(state)}, "dino")],
)  # fmt: skip
def test_prefixes_wrappers_and_older_names_are_understood(name, change, format_, tmp_path):
    import torch
    from safetensors.torch import load_file

    file = FIXTURES / name
    state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    torch.save(change(state), tmp_path / "changed.pth")
    changed = conversion.open_source(tmp_path / "changed.pth", **HEADS)
    assert changed.format.name == format_
    assert_same_bits({n: changed.read(n) for n in changed.shapes}, tensors_of(file, **HEADS))


@pytest.mark.parametrize("prefix", ["opt/target/", "params/"])
def test_the_prefixes_of_jax_training_checkpoints_are_understood(prefix, tmp_path):
    arrays = {prefix + name: value for name, value in np.load(FIXTURES / "google_vit.npz").items()}
    np.savez(tmp_path / "x.npz", **arrays, **{"opt/state/step": np.int64(3)})
    source = conversion.open_source(tmp_path / "x.npz")
    assert "training" in source.ignored["opt/state/step"]
    assert_same_bits({n: source.read(n) for n in source.shapes}, tensors_of(FIXTURES / "google_vit.npz"))


def test_the_pre_logits_of_old_timm_files_are_the_pooler(tmp_path):
    from safetensors.numpy import load_file, save_file

    state = load_file(FIXTURES / "timm_vit.safetensors")
    state |= {"pre_logits.fc.weight": np.eye(48, dtype=np.float32), "pre_logits.fc.bias": np.ones(48, np.float32)}
    save_file(state, tmp_path / "in21k.safetensors")
    report = conversion.convert(tmp_path / "in21k.safetensors", tmp_path / "out", **HEADS)
    assert report.config.architectures == ("ViTModel",)
    assert report.ignored.keys() == {"head.weight", "head.bias"}
    assert tensors_of(tmp_path / "out")["vit.pooler.dense.bias"][0] == 1


def test_npz_files_may_be_compressed_and_in_fortran_order(tmp_path):
    arrays = {name: np.asfortranarray(value) for name, value in np.load(FIXTURES / "google_vit.npz").items()}
    np.savez(tmp_path / "fortran.npz", **arrays)
    np.savez_compressed(tmp_path / "small.npz", **arrays)
    expected = tensors_of(FIXTURES / "google_vit.npz")
    assert_same_bits(tensors_of(tmp_path / "fortran.npz"), expected)
    assert_same_bits(tensors_of(tmp_path / "small.npz"), expected)


def test_pytorch_files_may_be_old_or_hold_views(tmp_path):
    import torch

    state = torch.load(FIXTURES / "torchvision_vit.pth", weights_only=True)
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    wide = torch.zeros(7, 100)
    wide[:, 30:78] = state["heads.head.weight"]
    views = {**state, "heads.head.weight": wide[:, 30:78]}
    key = "encoder.layers.encoder_layer_1.mlp.0.weight"
    views[key] = state[key].T.contiguous().T
    torch.save(views, tmp_path / "views.pth")
    expected = tensors_of(FIXTURES / "torchvision_vit.pth", **HEADS)
    assert_same_bits(tensors_of(tmp_path / "old.pth", **HEADS), expected)
    assert_same_bits(tensors_of(tmp_path / "views.pth", **HEADS), expected)


def test_sharded_pytorch_files_are_read(tmp_path, reference):
    import json

    import torch

    folder = tmp_path / "sharded"
    folder.mkdir()
    shutil.copy(reference / "hf_torch_bin" / "config.json", folder)
    state = torch.load(reference / "hf_torch_bin" / "pytorch_model.bin", weights_only=True)
    weight_map = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(state)}
    for file in set(weight_map.values()):
        torch.save({name: state[name] for name in state if weight_map[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    source = conversion.open_source(folder)
    assert source.format.name == "transformers-pt"
    assert_same_bits({n: source.read(n) for n in source.shapes}, tensors_of(reference / "hf_torch"))


def test_labels_can_be_dropped(tmp_path, random_checkpoint, tiny_config):
    source = random_checkpoint(tmp_path / "in", tiny_config(id2label={0: "cat", 1: "dog"}), "classifier")
    assert conversion.open_source(source).config.id2label == {0: "cat", 1: "dog"}
    assert conversion.open_source(source, labels="none").config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert conversion.open_source(FIXTURES / "google_vit.npz", labels="none").config.id2label[6] == "LABEL_6"
