"""The TensorFlow models are native Keras 3; that their numbers are right, tests/test_equivalence.py shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from vit import InputError, ModelOutput, TFViTForImageClassification, TFViTForMaskedImageModeling, TFViTModel, weights

from ..common import LABELS, Load, images, inputs_of, masks
from .common import MODELS, assert_close, gradients, values_of


@pytest.fixture
def mixed_bfloat16_policy() -> Iterator[None]:
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy("float32")


# === Graphs ===


@pytest.mark.parametrize("cls", MODELS)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_tf_function_and_xla_give_the_numbers_of_eager(load: Load, cls: type, jit_compile: bool) -> None:
    model = load(cls)
    inputs = {name: tf.constant(value) for name, value in inputs_of(cls).items()}
    forward = tf.function(
        lambda inputs: model(**inputs, output_hidden_states=True, output_attentions=True), jit_compile=jit_compile
    )
    outputs = forward(inputs)
    assert isinstance(outputs, ModelOutput)
    expected = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert list(outputs) == list(expected)
    assert_close(outputs, expected)


def test_one_graph_takes_any_batch_size(model: Any) -> None:
    forward = tf.function(lambda x: model(x).logits, input_signature=[tf.TensorSpec((None, 3, None, None))])
    for batch in (1, 3):
        assert_close(forward(tf.constant(images(batch))), model(images(batch)).logits)
    assert forward.experimental_get_tracing_count() == 1


def test_graph_interpolates_to_another_image_size(model: Any) -> None:
    forward = tf.function(lambda x: model(x, interpolate_pos_encoding=True), jit_compile=True)
    x = images(2, 16, 10)
    assert_close(forward(tf.constant(x)), model(x, interpolate_pos_encoding=True))


def test_gradients_in_a_graph_are_those_of_eager(load: Load) -> None:
    model, inputs = load(), inputs_of(TFViTForImageClassification)
    expected = gradients(model, inputs)
    assert_close(tf.function(lambda: gradients(model, inputs))(), expected)
    names = [variable.path for variable in model.trainable_variables]
    for name, gradient in zip(names, expected[1], strict=True):
        if "key/bias" not in name:  # softmax does not see what all keys share
            assert float(np.abs(gradient).max()) > 1e-7, name


def test_wrong_input_is_the_same_error_in_a_graph_as_in_eager(model: Any) -> None:
    for call in (model, tf.function(model), tf.function(lambda x: model(x)), lambda x: model(keras.Input(x.shape[1:]))):
        with pytest.raises(InputError, match="pixel_values is 16 x 10; the model expects 12 x 8"):
            call(images(2, 16, 10))


# === Functional models ===


def test_functional_model_of_the_logits(model: Any) -> None:
    inputs = keras.Input((3, 12, 8))
    functional = keras.Model(inputs, model(inputs).logits)
    assert functional.output_shape == (None, 5)
    assert_close(functional(images()), model(images()).logits)
    assert_close(functional.predict(images(5), batch_size=2, verbose=0), model(images(5)).logits)


def test_functional_model_of_the_whole_output(load: Load) -> None:
    model, inputs = load(), keras.Input((3, 12, 8))
    functional = keras.Model(inputs, model(inputs, output_hidden_states=True))
    expected = model(images(), output_hidden_states=True)
    outputs = functional(images())
    assert type(outputs) is ModelOutput
    assert_close(outputs, expected)
    outputs = functional.predict(images(), batch_size=3, verbose=0)
    assert type(outputs) is ModelOutput
    assert_close(outputs, expected)


def test_functional_model_of_several_inputs(load: Load) -> None:
    model = load(TFViTForMaskedImageModeling)
    pixel_values, mask = keras.Input((3, 12, 8)), keras.Input((12,), dtype="bool")
    outputs = model(pixel_values, bool_masked_pos=mask)
    functional = keras.Model([pixel_values, mask], [outputs.loss, outputs.reconstruction])
    expected = model(images(), bool_masked_pos=masks())
    assert_close(functional([images(), masks()]), [expected.loss, expected.reconstruction])


def test_part_of_a_larger_functional_model_trains_and_survives_saving(load: Load, tmp_path: Path) -> None:
    backbone = load(TFViTModel)
    inputs = keras.Input((12, 8, 3))  # channels last, as images come
    x = keras.layers.Permute((3, 1, 2))(keras.layers.Rescaling(2.0, offset=-1.0)(inputs))
    outputs = keras.layers.Dense(2, name="head")(backbone(x).pooler_output)
    larger = keras.Model(inputs, outputs)
    larger.compile("sgd", "mse", jit_compile=False)
    before = values_of(backbone)
    larger.fit(images().transpose(0, 2, 3, 1), np.ones((4, 2)), verbose=0)
    assert any(np.abs(old - new).max() > 1e-4 for old, new in zip(before, values_of(backbone), strict=True))
    larger.save(tmp_path / "larger.keras")
    again = keras.models.load_model(tmp_path / "larger.keras")
    assert_close(again(images().transpose(0, 2, 3, 1)), larger(images().transpose(0, 2, 3, 1)), atol=1e-6)


# === Parameters and dtypes ===


@pytest.mark.parametrize("cls", MODELS)
def test_weights_exist_from_the_start_under_the_canonical_names(load: Load, cls: type) -> None:
    model = cls(load(cls).config)
    parts = {"add_pooling_layer": cls.head is None, "use_mask_token": cls.head == "decoder"}
    shapes = model.config.parameter_shapes(head=cls.head, **parts)
    assert model.built
    assert len(model.weights) == len(model.trainable_variables) == len(shapes)
    assert model.count_params() == sum(np.prod(shape) for shape in shapes.values())
    lines: list[str] = []
    model.summary(print_fn=lambda line, **_: lines.append(line))
    assert f"Total params: {model.count_params():,}" in "\n".join(lines)
    for name, shape in shapes.items():
        assert weights.from_local(name, model._parameter(name).numpy(), shape, "tf").shape == shape


def test_mixed_precision_computes_in_bfloat16_and_trains_float32_parameters(load: Load, model: Any) -> None:
    mixed, inputs = load(options={"dtype": "mixed_bfloat16"}), inputs_of(type(model))
    assert {variable.dtype for variable in mixed.weights} == {"float32"}
    outputs = mixed(**inputs, output_hidden_states=True)
    assert {value.dtype for value in (outputs.logits, *outputs.hidden_states)} == {tf.bfloat16}
    assert outputs.loss.dtype == tf.float32
    assert_close(outputs.logits, model(**inputs).logits, atol=0.1)
    (loss, actual), (expected_loss, expected) = gradients(mixed, inputs), gradients(model, inputs)
    assert {gradient.dtype for gradient in actual} == {tf.float32}
    assert_close(loss, expected_loss, atol=0.05)
    assert_close(actual, expected, atol=0.05)


@pytest.mark.usefixtures("mixed_bfloat16_policy")
def test_global_policy_sets_the_computation(load: Load, model: Any) -> None:
    loaded = load()
    fresh = TFViTForImageClassification(loaded.config)
    for each in (loaded, fresh):
        assert each.dtype_policy.name == "mixed_bfloat16"
        assert {variable.dtype for variable in each.weights} == {"float32"}
        assert each(images()).logits.dtype == tf.bfloat16
    loaded.compile("sgd", metrics=["accuracy"], run_eagerly=True)
    before = loaded.evaluate(images(), LABELS, verbose=0)[0]
    assert before == pytest.approx(float(model(images(), labels=LABELS).loss), abs=0.05)
    loaded.fit(images(), LABELS, epochs=3, verbose=0)
    assert loaded.evaluate(images(), LABELS, verbose=0)[0] < before


@pytest.mark.parametrize(("dtype", "atol"), [("float16", 0.02), ("bfloat16", 0.15), ("float64", 1e-5)])
@pytest.mark.parametrize("max_shard_size", ["5GB", "10KB"])
def test_each_dtype_computes_saves_and_loads(
    load: Load, model: Any, tmp_path: Path, dtype: str, atol: float, max_shard_size: str
) -> None:
    other = load(options={"dtype": dtype})
    assert {variable.dtype for variable in other.weights} == {dtype}
    outputs, expected = other(images(), labels=LABELS), model(images(), labels=LABELS)
    assert outputs.logits.dtype == dtype
    assert outputs.loss.dtype == ("float64" if dtype == "float64" else "float32")
    assert_close(outputs, expected, atol)
    other.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_size == "10KB")
    again = TFViTForImageClassification.from_pretrained(tmp_path)
    assert again.config.dtype == dtype
    assert_close(values_of(again), values_of(other), atol=0)


def test_constructor_takes_a_dtype(load: Load) -> None:
    model = TFViTForImageClassification(load().config, dtype="float16")
    assert {variable.dtype for variable in model.weights} == {"float16"}
    assert model(images()).logits.dtype == tf.float16


def test_loading_draws_nothing(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    original, drawn = keras.initializers.TruncatedNormal.__call__, []

    def watched(self: Any, shape: Any, dtype: Any = None) -> Any:
        drawn.append(shape)
        return original(self, shape, dtype)

    monkeypatch.setattr(keras.initializers.TruncatedNormal, "__call__", watched)
    models = [load(cls) for cls in MODELS]
    assert drawn == []
    TFViTModel(models[0].config)
    assert len(drawn) > 5


def test_fresh_model_starts_as_published(tiny_config: Any) -> None:
    keras.utils.set_random_seed(0)
    config = tiny_config(hidden_size=64, intermediate_size=256, initializer_range=0.05)
    model = TFViTForImageClassification(config)
    for name in config.parameter_shapes(head="classifier"):
        value, start = model._parameter(name).numpy(), weights.initial_value(name)
        if start is None:
            assert np.abs(value).max() <= 0.1, name
            assert value.size < 1000 or 0.04 < value.std() < 0.05, name  # 0.88 * 0.05
        else:
            np.testing.assert_array_equal(value, start, err_msg=name)


# === Calls and outputs ===


def test_inputs_come_by_position_by_keyword_or_in_a_dict(model: Any) -> None:
    expected = model(images(), labels=LABELS)
    for outputs in (
        model(images(), LABELS),
        model(pixel_values=images(), labels=LABELS),
        model({"pixel_values": images(), "labels": LABELS}),
        model({"pixel_values": tf.constant(images())}, labels=tf.constant(LABELS)),
    ):
        assert_close(outputs, expected, atol=0)
    with pytest.raises(InputError, match="Unknown inputs: label; expected pixel_values, labels"):
        model({"pixel_values": images(), "label": LABELS})
    with pytest.raises(InputError, match="The inputs labels lack pixel_values"):
        model({"labels": LABELS})


@pytest.mark.parametrize("cls", MODELS)
def test_return_dict_false_gives_the_same_values_as_a_tuple(load: Load, cls: type) -> None:
    model = load(cls)
    expected = model(**inputs_of(cls), output_hidden_states=True)
    outputs = model(**inputs_of(cls), output_hidden_states=True, return_dict=False)
    assert type(outputs) is tuple
    assert_close(outputs, expected.to_tuple(), atol=0)


def test_configuration_sets_what_a_call_returns(load: Load) -> None:
    model = load(output_hidden_states=True, output_attentions=True)
    assert list(model(images())) == ["logits", "hidden_states", "attentions"]
    assert list(model(images(), output_hidden_states=False, output_attentions=False)) == ["logits"]
    model = load(return_dict=False)
    assert isinstance(model(images()), tuple)
    assert isinstance(model(images(), return_dict=True), ModelOutput)


def test_output_is_a_structure_of_keras_and_of_tensorflow(model: Any) -> None:
    outputs = model(images(), output_hidden_states=True)
    for map_structure in (keras.tree.map_structure, tf.nest.map_structure):
        doubled = map_structure(lambda value: 2 * value, outputs)
        assert isinstance(doubled, ModelOutput)
        assert list(doubled) == ["logits", "hidden_states"]
        assert_close(doubled.hidden_states[1], 2 * outputs.hidden_states[1], atol=0)
