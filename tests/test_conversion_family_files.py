"""What the files of the families say, and say wrongly: hub folders, buffers, factors, pickles, no config.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import conversion
from vit import CheckpointError, checkpoint, families
from vit.cli import main

from .test_family_references import FOLDER, FRAMEWORKS, MASKED, NOISE, TOLERANCE, expected, outputs_of
from .tiny import HEADS, tiny_checkpoint, tiny_family

SAID = {"num_attention_heads": 4}


def logits_of(folder: Path, cls: str, framework: str = "pt", **more: str) -> np.ndarray:
    tensors = {"pixel_values": expected()["pixel_values"], **{name: expected()[key] for name, key in more.items()}}
    return outputs_of(framework, cls, folder, tensors)["logits"]


def run(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(list(map(str, arguments)))
    return int(exit_.value.code or 0)


# === timm's hub folders ===


def hub_folder(folder: Path, source: Path, architecture: str, **values: Any) -> Path:
    folder.mkdir()
    shutil.copyfile(source, folder / "model.safetensors")
    pretrained = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "crop_pct": 0.9}
    (folder / "config.json").write_text(
        json.dumps({"architecture": architecture, "num_classes": 7, "pretrained_cfg": pretrained, **values})
    )
    return folder


def test_a_hub_folder_of_beit_pools_by_averaging_or_by_its_token(tmp_path: Path):
    beit = FOLDER / "beit_timm.safetensors"
    folder = hub_folder(tmp_path / "avg", beit, "beit_base_patch16_224", global_pool="avg")
    report = conversion.convert(folder, tmp_path / "avg-hf", **SAID)
    assert report.config.use_mean_pooling
    recorded = expected()["beit_timm/logits"]
    assert np.abs(logits_of(tmp_path / "avg-hf", "BeitForImageClassification") - recorded).max() <= TOLERANCE
    conversion.convert(FOLDER / "beit_original_abs.pth", tmp_path / "abs", **SAID)
    conversion.convert(tmp_path / "abs", tmp_path / "token.safetensors", target_format="timm")
    arguments = {"model_args": {"use_abs_pos_emb": True, "use_rel_pos_bias": False}, "global_pool": "token"}
    folder = hub_folder(tmp_path / "token", tmp_path / "token.safetensors", "beit_base_patch16_224", **arguments)
    report = conversion.convert(folder, tmp_path / "token-hf", **SAID)
    assert not report.config.use_mean_pooling
    recorded = expected()["beit_original_abs/logits"]
    assert np.abs(logits_of(tmp_path / "token-hf", "BeitForImageClassification") - recorded).max() <= TOLERANCE
    for name, source, pool in (("a", beit, "token"), ("b", tmp_path / "token.safetensors", "avg"),
                               ("c", beit, "map"), ("d", FOLDER / "mae_timm.safetensors", "avg")):  # fmt: skip
        folder = hub_folder(tmp_path / name, source, "beit_base_patch16_224", global_pool=pool)
        with pytest.raises(CheckpointError, match=rf"pools with global_pool='{pool}'; expected '(avg|token)', as it"):
            conversion.convert(folder, tmp_path / "refused", **SAID)
    assert not (tmp_path / "refused").exists()


def test_a_hub_folder_of_a_vit_that_averages_becomes_a_beit_that_computes_the_same(tmp_path: Path):
    import torch

    state = torch.load(FOLDER / "mae_original_finetuned.pth", weights_only=True)["model"]  # timm's names, and its sum
    save_file({name: value.numpy() for name, value in state.items()}, tmp_path / "vit.safetensors")
    arguments = {"model_args": {"num_heads": 4}, "global_pool": "avg"}
    folder = hub_folder(tmp_path / "hub", tmp_path / "vit.safetensors", "vit_tiny_patch16_224", **arguments)
    for source, said in ((folder, {}), (tmp_path / "vit.safetensors", SAID)):
        report = conversion.convert(source, tmp_path / f"{source.stem}-hf", **said)
        assert report.source_format == "timm"
        assert len(report.ignored) == report.config.num_hidden_layers
        assert all(name.endswith("attn.qkv.bias (2 of 3)") for name in report.ignored)
        found = logits_of(report.target, "BeitForImageClassification")
        assert np.abs(found - expected()["mae_original_finetuned/logits"]).max() <= TOLERANCE


# === Factors that Flax multiplies twice ===


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_factors_of_flax_are_those_it_computes_with(framework: str, tmp_path: Path):
    """transformers' Flax class multiplies its factors by layerscale_value, PyTorch's does not."""
    import transformers

    shutil.copytree(FOLDER / "hf_dinov2_cls_flax_msgpack", tmp_path / "flax")
    config = checkpoint.read_json(tmp_path / "flax" / "config.json")
    (tmp_path / "flax" / "config.json").write_text(json.dumps({**config, "layerscale_value": 0.3}))
    pixels = expected()["pixel_values"]
    theirs = transformers.FlaxDinov2ForImageClassification.from_pretrained(tmp_path / "flax")(pixels).logits
    report = conversion.convert(tmp_path / "flax", tmp_path / "hf")
    assert report.verified
    found = logits_of(tmp_path / "hf", "Dinov2ForImageClassification", framework)
    assert np.abs(found - np.asarray(theirs)).max() <= TOLERANCE
    assert np.abs(found - expected()["hf_dinov2_cls/logits"]).max() > 0.01
    report = conversion.convert(tmp_path / "hf", tmp_path / "again", target_format="transformers-flax")
    assert report.config.layerscale_value == 1.0
    assert any("layerscale_value 1.0 is written" in line for line in report.said)
    theirs = transformers.FlaxDinov2ForImageClassification.from_pretrained(tmp_path / "again")(pixels).logits
    assert np.abs(found - np.asarray(theirs)).max() <= TOLERANCE
    conversion.convert(tmp_path / "again", tmp_path / "back")
    first, last = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "back"))
    assert all(np.array_equal(first[name], last[name]) for name in first)


# === The index of BEiT's window ===


def test_an_index_that_disagrees_with_the_window_is_named(tmp_path: Path):
    import torch

    shutil.copytree(FOLDER / "hf_beit_cls_published", tmp_path / "bin")
    tensors = torch.load(tmp_path / "bin" / "pytorch_model.bin", weights_only=True)
    index = next(name for name in tensors if name.endswith("relative_position_index"))
    tensors[index] = tensors[index].flip(0)
    torch.save(tensors, tmp_path / "bin" / "pytorch_model.bin")
    shutil.copytree(tmp_path / "bin", tmp_path / "published")
    (tmp_path / "published" / "pytorch_model.bin").unlink()
    save_file({name: value.numpy() for name, value in tensors.items()}, tmp_path / "published" / "model.safetensors")
    original = torch.load(FOLDER / "beit_original_cls.pth", weights_only=True)
    name = next(name for name in original["model"] if name.endswith("relative_position_index"))
    original["model"][name] = original["model"][name][:-1]
    torch.save(original, tmp_path / "original.pth")
    for source in ("published", "bin", "original.pth"):
        message = r"relative_position_index, of the shape .* is not the index of a window of 4 x 4 patches"
        with pytest.raises(CheckpointError, match=message):
            conversion.convert(tmp_path / source, tmp_path / "out", **({} if (tmp_path / source).is_dir() else SAID))
        assert not (tmp_path / "out").exists()
    for framework in families.PREFIXES:
        for folder in ("published", "bin"):
            with pytest.raises(CheckpointError, match=message):
                families.model_class(framework, "beit", "classifier").from_pretrained(tmp_path / folder)


# === PyTorch's own files ===


@pytest.mark.parametrize(("source", "cls", "more"), [
    ("hf_mae", "ViTMAEForPreTraining", NOISE), ("hf_mae_v5", "ViTMAEForPreTraining", NOISE),
    ("hf_dinov2_cls", "Dinov2ForImageClassification", {}),
    ("hf_dinov2_reg_cls", "Dinov2WithRegistersForImageClassification", {}),
    ("hf_deit_teacher", "DeiTForImageClassificationWithTeacher", {}),
    ("hf_beit_mim", "BeitForMaskedImageModeling", MASKED),
])  # fmt: skip
def test_pytorchs_own_files_are_loaded_and_converted(source: str, cls: str, more: dict[str, str], tmp_path: Path):
    import torch

    (tmp_path / "bin").mkdir()
    shutil.copyfile(FOLDER / source / "config.json", tmp_path / "bin" / "config.json")
    tensors = load_file(FOLDER / source / "model.safetensors")
    torch.save({name: torch.from_numpy(each) for name, each in tensors.items()}, tmp_path / "bin/pytorch_model.bin")
    report = conversion.convert(tmp_path / "bin", tmp_path / "hf")
    assert report.source_format == "transformers-pt"
    recorded = expected()[f"{source.removesuffix('_v5')}/logits"]
    assert np.abs(logits_of(tmp_path / "hf", cls, **more) - recorded).max() <= TOLERANCE
    for framework in FRAMEWORKS:
        assert np.abs(logits_of(tmp_path / "bin", cls, framework, **more) - recorded).max() <= TOLERANCE, framework


# === Files without a configuration ===


@pytest.mark.parametrize(("model_type", "head"), HEADS)
@pytest.mark.parametrize("target", ["hf", "orbax", "transformers-flax", "transformers-tf"])
def test_without_a_config_json_shapes_tell_the_family_and_its_sizes(model_type, head, target, tmp_path):
    config = tiny_checkpoint(tmp_path / "hf", model_type, head, image_size=16)
    file = {"transformers-flax": "flax_model.msgpack", "transformers-tf": "tf_model.h5"}.get(target)
    try:
        conversion.convert(tmp_path / "hf", tmp_path / "out", target_format=target)
    except CheckpointError as error:
        assert "has no form" in str(error)  # noqa: PT017
        return
    if (model_type, head) == ("vit", "decoder") and target.startswith("transformers"):
        return  # its decoder has no place there, which the report says
    (tmp_path / "out" / "config.json").unlink()
    source = tmp_path / "out" if target == "orbax" else tmp_path / "out" / (file or "model.safetensors")
    if head is None and model_type == "vit_mae":  # its encoder has the names of a plain ViT
        found = conversion.open_source(source, **SAID)
        assert found.config.model_type == "vit"
        return
    said = {**SAID, "decoder_num_attention_heads": 2, "layer_norm_eps": config.layer_norm_eps}
    opened = conversion.open_source(source, **said)
    assert opened.architecture == config.heads[head].name
    grid = ("grid_size",) if config.grid_parameters else ()  # nothing of DINOv3 follows from it
    for key in ("hidden_size", "intermediate_size", *grid, "num_hidden_layers", "num_labels"):
        if key != "num_labels" or "ForImageClassification" in opened.architecture:
            assert getattr(opened.config, key) == getattr(config, key), key
    before, after = (checkpoint.Checkpoint(tmp_path / "hf"), opened)
    for name in after.shapes:
        stored = config.model_name(name, head)
        assert np.array_equal(before.read(stored), after.read(name)), name


# === What `vit inspect`, `vit verify` and `vit convert` say ===


@pytest.mark.parametrize(("model_type", "variant"), [
    (model_type, name) for model_type in families.CONFIGS for name in families.config_class(model_type).variants
])  # fmt: skip
def test_published_sizes_of_each_family_have_their_names(model_type: str, variant: str):
    from conversion.inspection import variant as name_of

    config = families.config_class(model_type).variant(f"{variant}/14", image_size=224)
    assert name_of(config) == f"{variant}/14 at 224"
    assert name_of(tiny_family(model_type)).startswith("custom/")


def test_the_heads_of_a_masked_autoencoders_decoder_are_said_or_32_wide(tmp_path: Path, capsys: Any):
    source = FOLDER / "mae_original.pth"
    assert run("convert", source, tmp_path / "hf", "--num-attention-heads", 4, "--decoder-num-attention-heads", 3) == 0
    assert checkpoint.read_config(tmp_path / "hf").decoder_num_attention_heads == 3
    recorded = expected()["mae_original/pred"]
    found = logits_of(tmp_path / "hf", "ViTMAEForPreTraining", **NOISE)
    assert np.abs(found - recorded).max() <= TOLERANCE
    for command in ("inspect", "verify"):
        heads = ("--num-attention-heads", 4, "--decoder-num-attention-heads", 5)
        more = () if command == "inspect" else ("-f", "pt", "-f", "flax")
        assert run(command, source, *heads, *more) != 0
        told = capsys.readouterr()
        assert "decoder_num_attention_heads 5" in told.out + told.err
    assert run("verify", source, "--num-attention-heads", 4, "--decoder-num-attention-heads", 3, "-f", "pt", "-f",
               "flax") == 0  # fmt: skip
    capsys.readouterr()
