"""The reference checkpoints of the families, in tests/reference/families: what their makers' code computed, we compute.

A row is a checkpoint, the class that reads it, what it is called with, and which recorded array each output must equal.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest

import vit
from vit.families.beit import relative_position_index

FOLDER = Path(__file__).parent / "reference" / "families"
TOLERANCE = 1e-5  # absolute; hidden states of up to 8 are allowed twice as much
FRAMEWORKS = ("pt", "tf", "flax")
EVERYTHING = {"output_hidden_states": True, "output_attentions": True}
INTERPOLATED = {"interpolate_pos_encoding": True}
NONE: Mapping[str, Any] = MappingProxyType({})


class Row(NamedTuple):
    """A checkpoint and what it computes.

    Attributes:
        cls: the class in PyTorch.
        outputs: what it must give, by the names of the recording.
        inputs: input -> its name in expected.npz; pixel_values where they are called otherwise.
        call: what is passed besides the tensors.
        overrides: of the configuration.
        prefix: of the names of the recording.
    """

    source: str
    cls: str
    outputs: str
    inputs: Mapping[str, str] = NONE
    call: Mapping[str, Any] = NONE
    overrides: Mapping[str, Any] = NONE
    prefix: str = ""


NOISE = {"noise": "noise"}
BIG, SMALL, MASKED = (
    {"pixel_values": "big_pixels"},
    {"pixel_values": "small_pixels"},
    {"bool_masked_pos": "bool_masked_pos"},
)
LABELS = {"labels": "labels"}
MAE, DINOV2, REGISTERS = "ViTMAEForPreTraining", "Dinov2Model", "Dinov2WithRegistersModel"

BEIT, TEACHER, TOKENS = "BeitModel", "DeiTForImageClassificationWithTeacher", "BeitForMaskedImageModeling"

ROWS = {
    "DeiT": Row("hf_deit", "DeiTModel", "last_hidden_state pooler_output hidden_states attentions", call=EVERYTHING),
    "DeiT, larger": Row("hf_deit", "DeiTModel", "last_hidden_state pooler_output", BIG, INTERPOLATED, prefix="big_"),
    "DeiT's classifier": Row("hf_deit_cls", "DeiTForImageClassification", "loss logits", LABELS),
    "DeiT with its teacher": Row("hf_deit_teacher", TEACHER, "logits cls_logits distillation_logits"),
    "DeiT with its teacher, larger": Row("hf_deit_teacher", TEACHER, "logits", BIG, INTERPOLATED, prefix="big_"),
    "DeiT's masked patches": Row(
        "hf_deit_mim", "DeiTForMaskedImageModeling", "loss reconstruction", MASKED, prefix="patch_"),
    "BEiT": Row("hf_beit", BEIT, "last_hidden_state pooler_output hidden_states attentions", call=EVERYTHING),
    "BEiT, larger": Row("hf_beit", BEIT, "last_hidden_state pooler_output", BIG, prefix="big_"),
    "BEiT, smaller": Row("hf_beit", BEIT, "last_hidden_state pooler_output", SMALL, prefix="small_"),
    "BEiT, its flags the other way": Row(
        "hf_beit_flags", BEIT, "last_hidden_state pooler_output hidden_states attentions", call=EVERYTHING),
    "BEiT, its flags the other way, masked": Row("hf_beit_flags", BEIT, "last_hidden_state", MASKED, prefix="masked_"),
    "BEiT, its flags the other way, larger": Row("hf_beit_flags", BEIT, "last_hidden_state", BIG, prefix="big_"),
    "BEiT's classifier": Row("hf_beit_cls", "BeitForImageClassification", "loss logits", LABELS),
    "BEiT's classifier, larger": Row("hf_beit_cls", "BeitForImageClassification", "logits", BIG, prefix="big_"),
    "BEiT's visual tokens": Row("hf_beit_mim", TOKENS, "loss logits", {**MASKED, "labels": "visual_tokens"}),
    "BEiT's visual tokens, nothing masked": Row("hf_beit_mim", TOKENS, "logits", prefix="unmasked_"),
    "MAE": Row("hf_mae", MAE, "loss logits mask ids_restore hidden_states attentions", NOISE, EVERYTHING),
    "MAE as transformers 5 writes it": Row("hf_mae_v5", MAE, "loss logits", NOISE),
    "MAE, larger, the decoder's positions along one axis": Row(
        "hf_mae", MAE, "loss logits mask ids_restore", {**BIG, "noise": "big_noise"}, INTERPOLATED,
        {"decoder_interpolation": "1d"}, "big_"),
    "MAE's encoder": Row("hf_mae_model", "ViTMAEModel", "last_hidden_state mask ids_restore", NOISE),
    "MAE's encoder, all patches": Row(
        "hf_mae_model", "ViTMAEModel", "last_hidden_state ids_restore", NOISE, NONE, {"mask_ratio": 0.0}, "all_"),
    "DINOv2": Row("hf_dinov2", DINOV2, "last_hidden_state pooler_output hidden_states attentions", call=EVERYTHING),
    "DINOv2, masked": Row("hf_dinov2", DINOV2, "last_hidden_state", MASKED, prefix="masked_"),
    "DINOv2, larger": Row("hf_dinov2", DINOV2, "last_hidden_state", BIG, prefix="big_"),
    "DINOv2, smaller": Row("hf_dinov2", DINOV2, "last_hidden_state", SMALL, prefix="small_"),
    "DINOv2's classifier": Row("hf_dinov2_cls", "Dinov2ForImageClassification", "loss logits", LABELS),
    "DINOv2's classifier, larger": Row("hf_dinov2_cls", "Dinov2ForImageClassification", "logits", BIG, prefix="big_"),
    "DINOv2 with gated MLPs": Row("hf_dinov2_swiglu", DINOV2, "last_hidden_state"),
    "DINOv2 with gated MLPs, larger": Row("hf_dinov2_swiglu", DINOV2, "last_hidden_state", BIG, prefix="big_"),
    "DINOv2 with registers": Row(
        "hf_dinov2_reg", REGISTERS, "last_hidden_state pooler_output hidden_states attentions", call=EVERYTHING),
    "DINOv2 with registers, masked": Row("hf_dinov2_reg", REGISTERS, "last_hidden_state", MASKED, prefix="masked_"),
    "DINOv2 with registers, larger": Row("hf_dinov2_reg", REGISTERS, "last_hidden_state", BIG, prefix="big_"),
    "DINOv2 with registers, smaller": Row("hf_dinov2_reg", REGISTERS, "last_hidden_state", SMALL, prefix="small_"),
    "DINOv2's classifier with registers": Row(
        "hf_dinov2_reg_cls", "Dinov2WithRegistersForImageClassification", "loss logits", LABELS),
    "DINOv2's classifier with registers, larger": Row(
        "hf_dinov2_reg_cls", "Dinov2WithRegistersForImageClassification", "logits", BIG, prefix="big_"),
}  # fmt: skip


@cache
def expected() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "expected.npz") as arrays:
        return dict(arrays)


def outputs_of(
    framework: str,
    cls: str,
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    call: Mapping[str, Any] = NONE,
    **options: Any,
) -> dict[str, np.ndarray]:
    """What a checkpoint computes in a framework; hidden states and attentions are numbered."""
    if framework == "pt":
        import torch

        model = getattr(vit, cls).from_pretrained(folder, **options)
        with torch.no_grad():
            output = model(**{name: torch.from_numpy(value) for name, value in tensors.items()}, **call)
    else:
        model = getattr(vit, {"tf": "TF", "flax": "Flax"}[framework] + cls).from_pretrained(folder, **options)
        output = model(**tensors, **call)
    found = {}
    for name, value in output.items():
        if isinstance(value, tuple):
            found |= {f"{name}_{i}": np.asarray(part) for i, part in enumerate(value)}
        else:
            found[name] = np.asarray(value)
    return found


def check(row: Row, found: Mapping[str, np.ndarray]) -> None:
    recorded = expected()
    for output in row.outputs.split():
        names = [name for name in found if name.rpartition("_")[0] == output or name == output]
        assert names, output
        for name in names:
            value = recorded[f"{row.source.removesuffix('_v5')}/{row.prefix}{name}"]
            tolerance = TOLERANCE * (1 + name.startswith("hidden_states"))
            assert found[name].shape == value.shape, name
            assert np.abs(found[name] - value).max() <= tolerance, f"{name}: {np.abs(found[name] - value).max():.3g}"


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", ROWS)
def test_a_checkpoint_gives_what_its_makers_code_gave(name: str, framework: str):
    row = ROWS[name]
    tensors = {input: expected()[stored] for input, stored in {"pixel_values": "pixel_values", **row.inputs}.items()}
    check(row, outputs_of(framework, row.cls, FOLDER / row.source, tensors, row.call, **row.overrides))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_mae_compares_with_normalised_pixels_of_unbiased_variance(framework: str):
    tensors = {name: expected()[name] for name in ("pixel_values", "noise")}
    found = outputs_of(framework, "ViTMAEForPreTraining", FOLDER / "hf_mae", tensors, norm_pix_loss=True)
    assert abs(found["loss"] - expected()["hf_mae/norm_pix_loss"]) <= TOLERANCE


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_encoder_of_mae_without_masking_is_that_of_vit(framework: str):
    pixels = expected()["pixel_values"]
    in_order = np.tile(np.arange(16, dtype=np.float32), (len(pixels), 1))
    tensors = {"pixel_values": pixels, "noise": in_order}
    found = outputs_of(framework, "ViTMAEModel", FOLDER / "hf_mae", tensors, mask_ratio=0)
    assert np.abs(found["last_hidden_state"] - expected()["hf_mae/vit_last_hidden_state"]).max() <= TOLERANCE


def test_mae_starts_from_the_fixed_positions_of_the_original():
    config = vit.ViTMAEConfig(
        hidden_size=28,
        num_attention_heads=4,
        decoder_hidden_size=24,
        decoder_num_attention_heads=3,
        image_size=24,
        patch_size=6,
    )
    for width, name in ((28, "encoder"), (24, "decoder")):
        recorded = expected()[f"mae_sincos/{name}"]
        assert np.abs(config.positions(width).reshape(recorded.shape) - recorded).max() < 1e-7


FOLDERS = sorted({(row.source, row.cls) for row in ROWS.values()})


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("source", "cls"), FOLDERS)
def test_what_is_saved_again_is_bit_identical(source: str, cls: str, framework: str, tmp_path: Path):
    from safetensors.numpy import load_file

    prefix = {"pt": "", "tf": "TF", "flax": "Flax"}[framework]
    getattr(vit, prefix + cls).from_pretrained(FOLDER / source).save_pretrained(tmp_path)
    before, after = (load_file(folder / "model.safetensors") for folder in (FOLDER / source, tmp_path))
    before = {
        name.replace("decoder.decoder_encoder.layer.", "decoder.decoder_layers."): v for name, v in before.items()
    }
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype, name
        assert np.array_equal(value, after[name]), name


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_index_buffers_of_published_beits_are_compared_and_left_out(framework: str, tmp_path: Path):
    source = FOLDER / "hf_beit_cls_published"
    found = outputs_of(framework, "BeitForImageClassification", source, {"pixel_values": expected()["pixel_values"]})
    assert np.abs(found["logits"] - expected()["hf_beit_cls/logits"]).max() <= TOLERANCE
    shutil.copytree(source, tmp_path / "other")
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "image_size": [12, 48]}))
    with pytest.raises(vit.CheckpointError, match=r"relative_position_index.* window of 2 x 8 patches"):
        outputs_of(framework, "BeitForImageClassification", tmp_path / "other", {})


def test_the_index_of_a_window_is_that_of_the_original():
    recorded = expected()["hf_beit_cls/relative_position_index"]
    assert np.array_equal(relative_position_index((4, 4)), recorded)


@pytest.mark.parametrize(("source", "cls", "fits"), [
    ("hf_deit_teacher", "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"),
    ("hf_deit_cls", "DeiTForImageClassificationWithTeacher", "DeiTForImageClassification"),
])  # fmt: skip
def test_a_deit_with_other_heads_is_refused_with_the_class_that_has_them(source: str, cls: str, fits: str):
    with pytest.raises(vit.CheckpointError, match=rf"classifier.weight: load it with {fits}, TF"):
        getattr(vit, cls).from_pretrained(FOLDER / source)
    with pytest.warns(UserWarning, match="freshly initialised"):
        getattr(vit, cls).from_pretrained(FOLDER / source, num_labels=3)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_visual_tokens_need_a_mask_and_one_label_for_each_masked_patch(framework: str):
    tensors = {name: expected()[name] for name in ("pixel_values", "bool_masked_pos")}
    labels = expected()["visual_tokens"]
    folder = FOLDER / "hf_beit_mim"
    for wrong, message in (
        ({**tensors, "labels": labels[:-1]}, r"labels has the shape \(\d+,\); expected \(\d+,\)"),
        ({"pixel_values": tensors["pixel_values"], "labels": labels}, "pass bool_masked_pos, too"),
        ({**tensors, "labels": labels + 100}, "labels holds"),
        ({**tensors, "bool_masked_pos": tensors["bool_masked_pos"][:, 1:]}, r"expected \(2, 16\)"),
        ({"pixel_values": tensors["pixel_values"][..., :5]}, "smaller than one patch of 6 x 6"),
    ):
        with pytest.raises(vit.InputError, match=message):
            outputs_of(framework, TOKENS, folder, wrong)
