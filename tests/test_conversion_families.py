"""What other code wrote of MAE and DINOv2 becomes a checkpoint that computes what that code computed, and back.

The files of tests/reference/families, in the layouts of facebookresearch/mae, facebookresearch/dinov2, timm and
transformers.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import conversion
from conversion.dinov2 import _ratio
from vit import CheckpointError, checkpoint
from vit.families.dinov2 import Dinov2Config

from .test_family_references import BIG, FOLDER, FRAMEWORKS, MASKED, NOISE, NONE, SMALL, TOLERANCE, expected, outputs_of
from .test_family_references import ROWS as FOLDER_ROWS
from .tiny import tiny_checkpoint

HEADS = {"num_attention_heads": 4}
INTERPOLATED = {"interpolate_pos_encoding": True}


class Row(NamedTuple):
    """A file, the options that its conversion needs, and what the class it is gives for recorded inputs.

    Attributes:
        outputs: name of the recording -> how it is taken from the outputs.
        options: of `conversion.convert`.
    """

    source: str
    cls: str
    outputs: Mapping[str, Any]
    inputs: Mapping[str, str] = NONE
    options: Mapping[str, Any] = MappingProxyType(HEADS)
    call: Mapping[str, Any] = NONE


def tokens(first: int, last: int | None = None) -> Any:
    return lambda output: output["last_hidden_state"][:, first:last]


def whole(name: str) -> Any:
    return lambda output: output[name]


def dinov2(registers: int, prefix: str = "") -> dict[str, Any]:
    cls = {f"{prefix}cls": whole("pooler_output"), f"{prefix}patches": tokens(1 + registers)}
    return cls if prefix or not registers else {**cls, "registers": tokens(1, 1 + registers)}


LINEAR = {**HEADS, "linear_head": FOLDER / "dinov2_linear_head.pth"}
MAE = {**HEADS, "decoder_num_attention_heads": 3}
TIMM = {"last_hidden_state": whole("last_hidden_state")}
TEACHER, BEIT, VISUAL = (
    "DeiTForImageClassificationWithTeacher",
    "BeitForImageClassification",
    "BeitForMaskedImageModeling",
)
ROWS = {
    "mae": Row("mae_original.pth", "ViTMAEForPreTraining", {
        "pred": whole("logits"), "mask": whole("mask"), "ids_restore": whole("ids_restore"), "loss": whole("loss"),
    }, NOISE, MAE),
    "mae, the encoder alone": Row(
        "mae_original_encoder.pth", "ViTModel", {"cls": lambda output: output["last_hidden_state"][:, 0]}),
    "mae, fine-tuned": Row("mae_original_finetuned.pth", BEIT, {"logits": whole("logits")}),
    "mae, fine-tuned, without its head": Row(
        "mae_original_finetuned.pth", "BeitModel", {"pooled": whole("pooler_output")}),
    "mae, timm": Row("mae_timm.safetensors", "ViTModel", TIMM),
    "dinov2": Row("dinov2_original.pth", "Dinov2Model", dinov2(0)),
    "dinov2, larger": Row("dinov2_original.pth", "Dinov2Model", dinov2(0, "big_"), BIG),
    "dinov2, smaller": Row("dinov2_original.pth", "Dinov2Model", dinov2(0, "small_"), SMALL),
    "dinov2, masked": Row("dinov2_original.pth", "Dinov2Model", {
        "masked_prenorm": lambda output: output["hidden_states_4"]}, MASKED, call={"output_hidden_states": True}),
    "dinov2 with its linear head": Row("dinov2_original.pth", "Dinov2ForImageClassification", {
        "linear_logits": whole("logits")}, options=LINEAR),
    "dinov2, the teacher of a training": Row("dinov2_teacher.pth", "Dinov2Model", {"cls": whole("pooler_output")}),
    "dinov2 with registers": Row("dinov2_reg_original.pth", "Dinov2WithRegistersModel", dinov2(4)),
    "dinov2 with registers, larger": Row(
        "dinov2_reg_original.pth", "Dinov2WithRegistersModel", dinov2(4, "big_"), BIG),
    "dinov2 with registers, smaller": Row(
        "dinov2_reg_original.pth", "Dinov2WithRegistersModel", dinov2(4, "small_"), SMALL),
    "dinov2 with gated MLPs": Row("dinov2_swiglu_original.pth", "Dinov2Model", dinov2(0)),
    "dinov2 with gated MLPs, larger": Row("dinov2_swiglu_original.pth", "Dinov2Model", dinov2(0, "big_"), BIG),
    "dinov2, timm": Row("dinov2_timm.safetensors", "Dinov2Model", TIMM),
    "dinov2 with gated MLPs, timm": Row("dinov2_swiglu_timm.safetensors", "Dinov2Model", TIMM),
    "dinov2 with registers, timm": Row("dinov2_reg_timm.safetensors", "Dinov2WithRegistersModel", TIMM),
    "dinov2 with registers, timm, larger": Row(
        "dinov2_reg_timm.safetensors", "Dinov2WithRegistersModel", {"big_last_hidden_state": tokens(0)}, BIG),
    "dinov2 with registers, timm, smaller": Row(
        "dinov2_reg_timm.safetensors", "Dinov2WithRegistersModel", {"small_last_hidden_state": tokens(0)}, SMALL),
    "deit": Row("deit_original.pth", TEACHER, {"logits": whole("logits")}),
    "deit, timm": Row("deit_timm.safetensors", TEACHER, {"logits": whole("logits")}),
    "beit": Row("beit_original_cls.pth", BEIT, {"logits": whole("logits")}),
    "beit, the first": Row("beit_original_abs.pth", BEIT, {"logits": whole("logits")}),
    "beit v2": Row("beit2_original_cls.pth", BEIT, {"logits": whole("logits")}),
    "beit, timm": Row("beit_timm.safetensors", BEIT, {"logits": whole("logits")}),
    "beit, pre-training": Row("beit_original_mim.pth", VISUAL, {"logits": whole("logits")}, MASKED),
    "beit v2, pre-training": Row("beit2_original_mim.pth", VISUAL, {"logits": whole("logits")}, MASKED),
    "deit, TensorFlow of transformers": Row("hf_deit_teacher_tf_h5", TEACHER, {"logits": whole("logits")}, NONE, NONE),
    "beit, Flax of transformers": Row("hf_beit_cls_flax_msgpack", BEIT, {"logits": whole("logits")}, NONE, NONE),
    "beit, visual tokens, Flax of transformers": Row(
        "hf_beit_mim_flax_msgpack", VISUAL, {"logits": whole("logits")}, MASKED, NONE),
    "beit as published": Row("hf_beit_cls_published", BEIT, {"logits": whole("logits")}, NONE, NONE),
    "mae, TensorFlow of transformers": Row("hf_mae_tf_h5", "ViTMAEForPreTraining", {
        "logits": whole("logits"), "loss": whole("loss")}, NOISE, NONE),
    "dinov2, Flax of transformers": Row("hf_dinov2_cls_flax_msgpack", "Dinov2ForImageClassification", {
        "logits": whole("logits")}, options=NONE),
}  # fmt: skip


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder that a row's conversion gives; each is converted once."""
    done: dict[tuple[str, bool], Path] = {}

    def convert(row: Row) -> Path:
        key = (row.source, "linear_head" in row.options)
        if key not in done:
            done[key] = tmp_path_factory.mktemp("converted") / "hf"
            conversion.convert(FOLDER / row.source, done[key], **row.options)
        return done[key]

    return convert


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", ROWS)
def test_what_is_converted_computes_what_its_source_computed(name: str, framework: str, converted: Any):
    row = ROWS[name]
    tensors = {input: expected()[stored] for input, stored in {"pixel_values": "pixel_values", **row.inputs}.items()}
    found = outputs_of(framework, row.cls, converted(row), tensors, row.call)
    stem = row.source.partition(".")[0].removesuffix("_tf_h5").removesuffix("_flax_msgpack").removesuffix("_published")
    for recorded, take in row.outputs.items():
        actual, value = take(found), expected()[f"{stem}/{recorded}"]
        assert actual.shape == value.shape, recorded
        difference = np.abs(actual - value).max()
        assert difference <= TOLERANCE * (1 + ("prenorm" in recorded)), f"{recorded}: {difference:.3g}"


# === Out and in again ===

OUT = {  # family -> head -> where its checkpoints go besides hf, keras and orbax, where all go
    "deit": {None: "transformers-tf", "classifier": "transformers-tf", "teacher": "timm transformers-tf"},
    "beit": {None: "beit timm transformers-flax", "classifier": "beit timm transformers-flax",
             "lm_head": "beit transformers-flax"},
    "vit_mae": {None: "transformers-tf", "decoder": "mae transformers-tf"},
    "dinov2": {None: "dinov2 timm transformers-flax", "classifier": "dinov2 transformers-flax"},
    "dinov2_with_registers": {None: "dinov2 timm", "classifier": "dinov2"},
}  # fmt: skip
FILES = {"timm": ".safetensors", "mae": ".pth", "dinov2": ".pth", "beit": ".pth", "keras": ".keras"}
NO_PLACE = {  # (family, target) -> what it has no place for
    ("deit", "timm"): ("pooler",),
    ("dinov2", "timm"): ("mask_token",),
    ("dinov2_with_registers", "timm"): ("mask_token",),
}
HEAD_FILES = {"dinov2_linear_head.pth", "dinov2_linear4_head.pth"}
ALIKE = {"beit": "timm", "timm": "beit", "dinov2": "timm"}  # where timm has the names of the original
SOURCES = sorted(
    path.name
    for path in FOLDER.iterdir()
    if path.suffix not in (".npz", ".md") and path.name not in HEAD_FILES and not path.name.startswith("processor_")
)


def options_of(source: str) -> dict[str, Any]:
    """What a file does not tell; a folder tells all."""
    if (FOLDER / source).is_dir():
        return {}
    return dict(MAE) if source == "mae_original.pth" else dict(HEADS)


def test_every_file_of_the_references_is_converted_and_gives_its_outputs():
    rows = {row.source for row in (*ROWS.values(), *FOLDER_ROWS.values())}
    assert rows | {LINEAR["linear_head"].name, "dinov2_linear4_head.pth"} == set(SOURCES) | HEAD_FILES


def test_the_comparison_goes_on_after_what_the_source_has_no_place_for(tmp_path: Path, monkeypatch: Any):
    source, last = "dinov2_reg_timm.safetensors", "patch_embeddings.projection.bias"  # it has no mask token
    write = checkpoint.write_safetensors

    def careless(path: Path, tensors: Any, read: Any, threads: int) -> None:
        write(path, tensors, lambda name: read(name) + np.float32(name.endswith(last)), threads)

    monkeypatch.setattr(checkpoint.writing, "write_safetensors", careless)
    with pytest.raises(CheckpointError, match=f"The comparison failed: .*{last}"):
        conversion.convert(FOLDER / source, tmp_path / "out", **options_of(source))


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_a_decoder_has_the_layers_that_are_stored(layers: int, tmp_path: Path):
    config = tiny_checkpoint(tmp_path / "hf", "vit_mae", "decoder", decoder_num_hidden_layers=layers)
    conversion.convert(tmp_path / "hf", tmp_path / "mae.pth", target_format="mae")
    said = {name: getattr(config, name) for name in (
        "num_attention_heads", "decoder_num_attention_heads", "image_size", "layer_norm_eps")}  # fmt: skip
    assert conversion.open_source(tmp_path / "mae.pth", **said).config.decoder_num_hidden_layers == layers


@pytest.mark.parametrize("source", SOURCES)
def test_out_and_in_again_every_bit_is_the_same(source: str, tmp_path: Path):
    before = conversion.convert(FOLDER / source, tmp_path / "hf", **options_of(source))
    head = conversion.open_source(tmp_path / "hf").head
    others = {} if before.config.model_type == "vit" else OUT[before.config.model_type]
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    for target in ("hf", "keras", "orbax", *others.get(head, "").split()):
        name = tmp_path / f"{target}-out{FILES.get(target, '')}"
        out = conversion.convert(tmp_path / "hf", name, target_format=target)
        # What a file of tensors does not tell is said again; what the code behind it computes with may differ.
        said = {"num_attention_heads": 4, "layer_norm_eps": before.config.layer_norm_eps} if target in FILES else {}
        said |= {"decoder_num_attention_heads": 3} if head == "decoder" and target == "mae" else {}
        report = conversion.convert(name, tmp_path / f"{target}-hf", **({} if target == "keras" else said))
        assert report.source_format in (target, ALIKE.get(target))
        assert report.config.architectures == before.config.architectures, target
        no_place = NO_PLACE.get((before.config.model_type, target), ())
        left_out = {each for each in tensors if any(part in each for part in no_place)}
        assert set(out.ignored) == left_out, target
        again = load_file(tmp_path / f"{target}-hf" / "model.safetensors")
        if left_out and "register" in before.config.model_type:  # timm's registers: see the test after this one
            again = {each: again[each] for each in again if "_token" not in each and "position" not in each}
            left_out = tensors.keys() - again.keys()
        assert again.keys() == tensors.keys() - left_out, target
        for each in again:
            assert again[each].dtype == tensors[each].dtype, f"{target}: {each}"
            assert np.array_equal(again[each], tensors[each]), f"{target}: {each}"
        if target in ("hf", "keras", "orbax"):
            assert report.config == before.config
        shutil.rmtree(tmp_path / f"{target}-hf")


@pytest.mark.parametrize("source", ["dinov2_reg_timm.safetensors", "dinov2_reg_original.pth", "hf_dinov2_reg"])
def test_registers_of_timm_have_the_position_of_cls_in_its_token(source: str, tmp_path: Path):
    conversion.convert(FOLDER / source, tmp_path / "hf", **options_of(source))
    report = conversion.convert(tmp_path / "hf", tmp_path / "timm.safetensors", target_format="timm")
    there = load_file(tmp_path / "timm.safetensors")
    assert there["pos_embed"].shape == (1, 16, 28)
    assert there["reg_token"].shape == (1, 4, 28)
    before = load_file(tmp_path / "hf" / "model.safetensors")
    is_added = bool(np.any(before["embeddings.position_embeddings"][:, 0]))
    assert any("is added to its token" in line for line in report.said) == is_added == ("timm" not in source)
    conversion.convert(tmp_path / "timm.safetensors", tmp_path / "back", **HEADS)
    if "timm" in source:
        again = load_file(tmp_path / "back" / "model.safetensors")
        assert all(np.array_equal(before[name], again[name]) for name in before)
        original = load_file(FOLDER / source)
        assert original.keys() == there.keys()
        assert all(np.array_equal(original[name], there[name]) for name in original)
    tensors = {"pixel_values": expected()["pixel_values"]}
    first, second = (
        outputs_of("pt", "Dinov2WithRegistersModel", tmp_path / folder, tensors) for folder in ("hf", "back")
    )
    assert np.abs(first["last_hidden_state"] - second["last_hidden_state"]).max() <= 1e-6


def test_a_training_checkpoint_says_what_of_it_was_left_out(tmp_path: Path):
    report = conversion.convert(FOLDER / "dinov2_teacher.pth", tmp_path / "hf", **HEADS)
    assert all("dino_head" in name for name in report.ignored)
    assert report.ignored


def test_the_offset_of_the_original_is_kept_as_a_key_of_the_configuration(tmp_path: Path):
    for source, offset in (("dinov2_original.pth", 0.1), ("dinov2_timm.safetensors", 0.0)):
        report = conversion.convert(FOLDER / source, tmp_path / source.partition(".")[0], **HEADS)
        assert report.config.interpolate_offset == offset
        assert report.config.layer_norm_eps == 1e-6


def test_the_second_spelling_of_the_decoder_is_read_and_the_first_is_written(tmp_path: Path):
    conversion.convert(FOLDER / "hf_mae_v5", tmp_path / "hf")
    before, after = load_file(FOLDER / "hf_mae" / "model.safetensors"), load_file(tmp_path / "hf" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_head_on_four_layers_is_refused_by_name(tmp_path: Path):
    head = FOLDER / "dinov2_linear4_head.pth"
    with pytest.raises(CheckpointError, match=r"dinov2_linear4_head\.pth is a linear head on the last four layers"):
        conversion.convert(FOLDER / "dinov2_original.pth", tmp_path / "hf", linear_head=head, **HEADS)
    with pytest.raises(CheckpointError, match=r"dinov2_timm\.safetensors is no linear head of DINOv2"):
        conversion.convert(
            FOLDER / "dinov2_original.pth", tmp_path / "hf", linear_head=FOLDER / "dinov2_timm.safetensors", **HEADS
        )
    assert not (tmp_path / "hf").exists()


def test_a_target_without_a_form_for_the_family_is_refused_by_name(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"timm has no form for a checkpoint of model_type 'vit_mae'"):
        conversion.convert(FOLDER / "hf_mae", tmp_path / "mae.safetensors", target_format="timm")
    with pytest.raises(CheckpointError, match=r"mae has no form .* with BeitForImageClassification"):
        conversion.convert(FOLDER / "hf_beit_cls", tmp_path / "beit.pth", target_format="mae")
    with pytest.raises(CheckpointError, match=r"timm has no form .* with DeiTForImageClassification"):
        conversion.convert(FOLDER / "hf_deit_cls", tmp_path / "deit.pth", target_format="timm")


@pytest.mark.parametrize("gated", [False, True])
def test_the_ratio_of_an_mlp_is_a_whole_number_where_one_leaves_its_width(gated: bool) -> None:
    def width(ratio: float) -> int:
        keys = {"hidden_size": 64, "num_attention_heads": 1, "use_swiglu_ffn": gated, "mlp_ratio": ratio}
        return Dinov2Config(**keys).intermediate_size

    for ratio in (*range(1, 33), 0.5, 1.5625, 33, 40.25):
        found = _ratio({"hidden_size": 64, "intermediate_size": width(ratio)}, gated)
        assert width(found) == width(ratio)
        assert isinstance(found, int) == (ratio in range(1, 33))
    assert _ratio({"hidden_size": 64}, gated) == 0


def test_registers_without_their_configuration_key_are_named(tmp_path: Path):
    shutil.copytree(FOLDER / "hf_dinov2", tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["embeddings.register_tokens"] = np.zeros((1, 4, 28), np.float32)
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    with pytest.raises(CheckpointError, match="register_tokens"):
        conversion.convert(tmp_path / "model", tmp_path / "hf")


def test_the_auxiliary_branch_of_beit_v2_is_left_out_and_said(tmp_path: Path):
    report = conversion.convert(FOLDER / "beit2_original_mim.pth", tmp_path / "hf", **HEADS)
    left = {name for name, why in report.ignored.items() if "auxiliary branch" in why}
    assert left
    assert all(name.split("/")[-1].startswith("cls_pt_layers.") for name in left)
    assert {name for name in report.ignored if name not in left} == {
        name for name in report.ignored if name.endswith("relative_position_index")
    }
    assert report.config.layer_norm_eps == 1e-6
