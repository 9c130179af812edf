"""Every class of every family between the canonical folder and Keras's own files, in both directions, every bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import conversion
from conversion import keras
from vit import ConfigError, checkpoint, families

from .tiny import HEADS, tiny_checkpoint, tiny_family

CLASSES = pytest.mark.parametrize(("model_type", "head"), HEADS)
SAID = {"num_attention_heads": 4, "decoder_num_attention_heads": 2}  # what no file of weights alone tells
FLAGS = {  # what a BEiT has besides, and lacks
    "positions alone": {"use_absolute_position_embeddings": True, "use_mask_token": False,
                        "use_relative_position_bias": False, "layer_scale_init_value": 0.0, "use_mean_pooling": False},
    "shared biases alone": {"use_mask_token": False, "use_relative_position_bias": False,
                            "use_shared_relative_position_bias": True},
    "everything": {"use_absolute_position_embeddings": True, "use_shared_relative_position_bias": True},
}  # fmt: skip
OTHERS = [
    *[("beit", head, options) for head in (None, "classifier") for options in FLAGS.values()],
    ("dinov2", "classifier", {"use_swiglu_ffn": True, "use_mask_token": False}),
    ("dinov2_with_registers", None, {"num_register_tokens": 1}),
    ("vit", "classifier", {"num_hidden_layers": 12}),
]


def tensors_of(path: Path, **options: Any) -> tuple[str, dict[str, np.ndarray]]:
    source = conversion.open_source(path, **options)
    return source.architecture, {name: source.read(name) for name in source.shapes}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert np.ascontiguousarray(found[name]).tobytes() == np.ascontiguousarray(array).tobytes(), name


def load(folder: Path, model_type: str, head: str | None) -> Any:
    """The Keras model of a folder, with the parts that it holds."""
    parts = {} if head else checkpoint.parts_of(checkpoint.Checkpoint(folder))
    return families.model_class("tf", model_type, head).from_pretrained(folder, **parts)


def outputs_of(model: Any) -> dict[str, np.ndarray]:
    pixels = np.random.default_rng(0).standard_normal((2, 3, 16, 16), dtype=np.float32)
    return {name: np.asarray(value) for name, value in model(pixels, **model.config.fixed_inputs(pixels.shape)).items()}


@pytest.mark.parametrize(("model_type", "head", "options"), [*((*each, {}) for each in HEADS), *OTHERS])
def test_what_keras_saves_is_read_and_what_is_written_it_loads(model_type, head, options, tmp_path):
    import keras

    tiny_checkpoint(tmp_path / "hf", model_type, head, image_size=16, **options)
    architecture, expected = tensors_of(tmp_path / "hf")
    model = load(tmp_path / "hf", model_type, head)
    model.compile(optimizer="adam", loss="mse")
    model.optimizer.build(model.trainable_variables)
    for name in ("saved.keras", "saved.weights.h5"):
        model.save(tmp_path / name) if name.endswith(".keras") else model.save_weights(tmp_path / name)
        report = conversion.convert(tmp_path / name, tmp_path / f"{name}-hf", **({} if ".keras" in name else SAID))
        assert report.source_format == "keras"
        found_architecture, found = tensors_of(tmp_path / f"{name}-hf")
        assert_same(found, expected)
        if name.endswith(".keras"):
            assert found_architecture == architecture
            assert report.config == checkpoint.read_config(tmp_path / "hf")
        else:  # the encoder of a masked autoencoder has the weights of a plain ViT, and no more
            assert found_architecture == architecture.replace("ViTMAEModel", "ViTModel")
            doubted = (model_type, head) == ("vit_mae", None)
            assert doubted == any(line.startswith("model_type vit: ") for line in report.said)
            if doubted:
                told = tensors_of(tmp_path / name, model_type="vit_mae", **SAID)
                assert told[0] == architecture
                assert_same(told[1], expected)
    outputs = outputs_of(model)
    for name in ("written.keras", "written.weights.h5"):
        conversion.convert(tmp_path / "hf", tmp_path / name, target_format="keras")
        if name.endswith(".keras"):
            again = keras.saving.load_model(tmp_path / name)
            assert type(again) is type(model)
            assert again.config == model.config
        else:
            again = type(model).from_config(model.get_config())
            again.load_weights(tmp_path / name)
        for key, value in outputs_of(again).items():
            np.testing.assert_array_equal(value, outputs[key], err_msg=f"{name} {key}")


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
@CLASSES
def test_out_and_in_again_gives_the_same_bits_in_half_precision(model_type, head, name, tmp_path):
    tiny_checkpoint(tmp_path / "hf", model_type, head, image_size=16)
    conversion.convert(tmp_path / "hf", tmp_path / name, target_format="keras", dtype="bfloat16")
    conversion.convert(tmp_path / name, tmp_path / "back", **(SAID if name.endswith(".h5") else {}))
    conversion.convert(tmp_path / "hf", tmp_path / "half", dtype="bfloat16")
    assert_same(tensors_of(tmp_path / "back")[1], tensors_of(tmp_path / "half")[1])


def test_weights_alone_of_another_shape_are_told_by_what_is_said(tmp_path):
    tiny_checkpoint(tmp_path / "hf", "beit", "classifier", image_size=(16, 12))
    conversion.convert(tmp_path / "hf", tmp_path / "model.weights.h5", target_format="keras")
    report = conversion.convert(tmp_path / "model.weights.h5", tmp_path / "back", image_size=(16, 12), **SAID)
    assert report.config.grid_size == tiny_family("beit").grid_size
    assert_same(tensors_of(tmp_path / "back")[1], tensors_of(tmp_path / "hf")[1])


def test_a_family_that_is_said_and_that_nobody_knows_is_refused_with_those_there_are(tmp_path):
    tiny_checkpoint(tmp_path / "hf", "vit", None, image_size=16)
    conversion.convert(tmp_path / "hf", tmp_path / "model.weights.h5", target_format="keras")
    with pytest.raises(ConfigError, match=r"model_type is 'mae'; expected one of 'vit', .*'vit_mae'"):
        conversion.open_source(tmp_path / "model.weights.h5", model_type="mae", **SAID)


@pytest.mark.parametrize(("family", "tokens", "positions"), [
    ("vit", 1, 17), ("vit", 1, 7), ("vit", 2, 17), ("vit", 2, 7), ("deit", 2, 18), ("deit", 3, 18), ("deit", 3, 8),
    ("vit", 0, 17),
])  # fmt: skip
def test_tokens_tell_a_deit_from_a_vit(family, tokens, positions):
    shapes = {f"embeddings/vars/{i}": (1, 1, 8) for i in range(tokens)}
    assert keras._family({**shapes, f"embeddings/vars/{tokens}": (1, positions, 8)}) == family
