"""Keras: the layers in functional models, flags among a dict of inputs, and data of samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from vit import InputError, families
from vit.tf import beit, dino, dinov2, layers

from ..tiny import HEADS, tiny_family

PIXELS = np.random.default_rng(0).standard_normal((3, 3, 16, 12)).astype(np.float32)
TOKENS = np.random.default_rng(1).standard_normal((3, 13, 32)).astype(np.float32)
LAYERS: dict[str, tuple[type, str, dict[str, Any], np.ndarray]] = {
    "patch embeddings": (layers.ViTPatchEmbeddings, "vit", {}, PIXELS),
    "embeddings": (layers.ViTEmbeddings, "vit", {"use_mask_token": True}, PIXELS),
    "attention": (layers.ViTAttention, "vit", {}, TOKENS),
    "layer": (layers.ViTLayer, "vit", {}, TOKENS),
    "layer that drops": (layers.ViTLayer, "beit", {"drop_path_rate": 0.5}, TOKENS),
    "encoder": (layers.ViTEncoder, "vit", {}, TOKENS),
    "pooler": (layers.ViTPooler, "vit", {}, TOKENS),
    "beit encoder": (beit.BeitEncoder, "beit", {}, TOKENS),
    "dino embeddings": (dino.DinoEmbeddings, "dinov2_with_registers", {}, PIXELS),
    "dinov2 layer": (dinov2.Dinov2Layer, "dinov2", {}, TOKENS),
    "dinov2 encoder": (dinov2.Dinov2Encoder, "dinov2", {}, TOKENS),
}


def leaves(output: Any) -> list[np.ndarray]:
    output = dict(sorted(output.items())) if isinstance(output, dict) else output  # which is a plain one when loaded
    return [np.asarray(each) for each in keras.tree.flatten(output)]


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_part_of_a_functional_model_that_is_saved_and_loaded(name: str, everything: bool, tmp_path: Path):
    cls, model_type, options, array = LAYERS[name]
    flags = {}
    if everything:
        flags = {"output_attentions": True} if "layer" in name or "attention" in name else {}
        flags |= {"output_attentions": True, "output_hidden_states": True} if "encoder" in name else {}
        if not flags:
            return
    layer = cls(tiny_family(model_type), **options)
    inputs = keras.Input(array.shape[1:])
    outputs = layer(inputs, **flags)
    model = keras.Model(inputs, outputs)
    assert all(variable.shape for variable in model.weights)
    found, expected = leaves(model(array)), leaves(layer(array, **flags))
    assert len(found) == len(expected) == len(keras.tree.flatten(outputs))
    model.save(tmp_path / "model.keras")
    again = leaves(keras.models.load_model(tmp_path / "model.keras")(array))
    for one, two, three in zip(found, expected, again, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)
        np.testing.assert_allclose(three, two, atol=1e-6)
    predicted = leaves(model.predict(array, verbose=0))
    assert [each.shape for each in predicted] == [each.shape for each in expected]


@pytest.mark.parametrize(("model_type", "head"), HEADS)
def test_a_dict_of_inputs_may_hold_flags(model_type: str, head: str | None):
    model = families.model_class("tf", model_type, head)(tiny_family(model_type))
    inputs = {"pixel_values": PIXELS, **model.config.fixed_inputs(PIXELS.shape)}
    flags = {"output_attentions": True, "output_hidden_states": True}
    expected = model(**inputs, **flags)
    assert {"attentions", "hidden_states"} <= set(expected)
    for found in (model({**inputs, **flags}), model({**inputs, "output_attentions": True}, output_hidden_states=True)):
        assert list(found) == list(expected)
        np.testing.assert_allclose(found.attentions[0], expected.attentions[0], atol=1e-6)
    assert not isinstance(model({**inputs, "return_dict": False}), dict)
    assert model({**inputs, "output_attentions": None}).attentions is None
    given = {**inputs, **flags}
    predicted = model.predict(given, verbose=0)
    assert list(predicted) == list(expected)
    np.testing.assert_allclose(predicted["attentions"][0], expected.attentions[0], atol=1e-5)
    assert given.keys() == {**inputs, **flags}.keys()
    assert "attentions" not in model.predict(inputs, verbose=0)
    assert "attentions" in model.predict_on_batch(given)
    with pytest.raises(InputError, match="Unknown inputs: output_attention"):
        model({**inputs, "output_attention": PIXELS})


def test_flags_that_nobody_knows_are_refused():
    model = families.model_class("tf", "vit", None)(tiny_family("vit"))
    for call in (model, lambda inputs: model.predict(inputs, verbose=0)):
        with pytest.raises(InputError, match="Unknown inputs: output_attention; expected pixel_values"):
            call({"pixel_values": PIXELS, "output_attention": True})


# === Data ===


class Samples:
    """A sequence that is no list."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]


SAMPLES = [{"pixel_values": PIXELS[i % 3], "label": i % 5, "name": f"image {i}", "path": None} for i in range(7)]


@pytest.mark.parametrize("kind", [list, Samples])
def test_samples_become_batches_to_fit(kind: Any):
    model = families.model_class("tf", "vit", "classifier")(tiny_family("vit"))
    data = model.prepare_tf_dataset(kind(SAMPLES), batch_size=3, shuffle=False)
    batches = list(data)
    assert [batch[0].shape for batch in batches] == [(3, 3, 16, 12), (3, 3, 16, 12), (1, 3, 16, 12)]
    assert len(data) == 3
    np.testing.assert_array_equal(np.concatenate([batch[1] for batch in batches]), [0, 1, 2, 3, 4, 0, 1])
    shuffled = model.prepare_tf_dataset(kind(SAMPLES), batch_size=3)
    assert len(shuffled) == 2  # the last one is left out
    orders = {tuple(np.concatenate([batch[1] for batch in shuffled])) for _ in range(8)}
    assert len(orders) > 1
    model.compile("sgd", metrics=["accuracy"])
    history = model.fit(shuffled, verbose=0).history
    assert np.isfinite(history["loss"][0])


def test_a_collate_function_and_columns_that_a_model_takes():
    model = families.model_class("tf", "vit", "decoder")(tiny_family("vit"))
    seen = []

    def collate(samples: list[Any], scale: float) -> dict[str, np.ndarray]:
        seen.append(len(samples))
        pixels = np.stack([sample["pixel_values"] for sample in samples]) * scale
        return {"pixel_values": pixels, "bool_masked_pos": np.ones((len(samples), 12), bool), "other": pixels}

    data = model.prepare_tf_dataset(
        SAMPLES, batch_size=2, shuffle=False, collate_fn=collate, collate_fn_args={"scale": 2.0}, drop_remainder=True
    )
    batch = next(iter(data))
    assert batch.keys() == {"pixel_values", "bool_masked_pos"}
    np.testing.assert_allclose(batch["pixel_values"], 2 * PIXELS[:2])
    assert len(data) == 3
    assert isinstance(model.prepare_tf_dataset(SAMPLES, prefetch=False), tf.data.Dataset)


def test_a_dataset_without_images_is_refused():
    model = families.model_class("tf", "vit", "classifier")(tiny_family("vit"))
    for samples in ([], [{"label": 1}]):
        with pytest.raises(InputError, match="pixel_values are not in the first"):
            model.prepare_tf_dataset(samples)


# === Names ===


@pytest.mark.parametrize(("model_type", "head"), HEADS)
def test_sizes_are_counted_as_in_pytorch(model_type: str, head: str | None):
    config = tiny_family(model_type)
    model, other = (families.model_class(framework, model_type, head)(config) for framework in ("tf", "pt"))
    for options in ({}, {"only_trainable": True}, {"exclude_embeddings": True}):
        assert model.num_parameters(**options) == other.num_parameters(**options)
    assert model(model.dummy_inputs)[0] is not None
    assert model.framework == "tf"
