"""The TensorFlow models are native Keras 3; that their numbers are right, tests/test_equivalence.py shows."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from vit import (
    InputError,
    ModelOutput,
    TFViTForImageClassification,
    TFViTForMaskedImageModeling,
    TFViTModel,
    weights,
)

MODELS = [TFViTModel, TFViTForImageClassification, TFViTForMaskedImageModeling]
LABELS = np.array([0, 1, 4, 2])
Load = Callable[..., Any]


@pytest.fixture(scope="module")
def load(tiny_config: Any, random_checkpoint: Any, tmp_path_factory: Any) -> Load:
    """A loader of models of one layer in which every parameter is random; patches and images are not square."""

    def make(cls: type = TFViTForImageClassification, options: dict[str, Any] | None = None, **overrides: Any) -> Any:
        config = tiny_config(**{"num_hidden_layers": 1, "image_size": (12, 8), "patch_size": (4, 2), **overrides})
        folder = random_checkpoint(tmp_path_factory.mktemp("checkpoint"), config, cls.head)
        return cls.from_pretrained(folder, **(options or {}))

    return make


@pytest.fixture(scope="module")
def model(load: Load) -> TFViTForImageClassification:
    """A model not to be changed."""
    return load()


@pytest.fixture
def mixed_bfloat16_policy() -> Iterator[None]:
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy("float32")


def images(batch: int = 4, height: int = 12, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, height, width), dtype=np.float32)


def masks(batch: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((batch, 12)) > 0.5


def inputs_of(cls: type) -> dict[str, np.ndarray]:
    """Inputs with which a model computes a loss (a base model its outputs)."""
    extra = {"classifier": {"labels": LABELS}, "decoder": {"bool_masked_pos": masks()}}
    return {"pixel_values": images(), **extra.get(cls.head, {})}


def assert_close(actual: Any, expected: Any, atol: float = 1e-5) -> None:
    """The same structure and keys, and numbers within `atol`."""
    keras.tree.assert_same_structure(actual, expected)
    for a, b in zip(keras.tree.flatten(actual), keras.tree.flatten(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=0, atol=atol)


def values_of(model: Any) -> list[np.ndarray]:
    return [variable.numpy() for variable in model.weights]


def gradients(model: Any, inputs: dict[str, Any], **options: Any) -> tuple[tf.Tensor, list[tf.Tensor]]:
    with tf.GradientTape() as tape:
        loss = model(**inputs, **options).loss
    return loss, tape.gradient(loss, model.trainable_variables)


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


def test_label_out_of_range_is_named_and_gives_nan_in_a_graph(model: Any) -> None:
    for label in (5, -1):
        labels = np.array([0, label, 1, 2])
        with pytest.raises(InputError, match=rf"labels holds {label}; expected 0 to 4 \(num_labels is 5\)"):
            model(images(), labels=labels)
        assert np.isnan(tf.function(lambda y: model(images(), labels=y).loss)(tf.constant(labels)))


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


# === compile, fit, evaluate, predict ===


@pytest.mark.parametrize(
    ("problem_type", "labels", "metric"),
    [
        ("single_label_classification", LABELS, "accuracy"),
        ("multi_label_classification", np.eye(5, dtype=np.int32)[:4] + np.eye(5, k=1, dtype=np.int32)[:4], "mse"),
        ("regression", np.arange(20, dtype=np.float32).reshape(4, 5) / 10, "mse"),
    ],
)
def test_fits_and_evaluates_with_its_own_loss(load: Load, problem_type: str, labels: np.ndarray, metric: str) -> None:
    model = load(problem_type=problem_type)
    model.compile(keras.optimizers.SGD(0.05), metrics=[metric], run_eagerly=True)
    logits = np.asarray(model(images()).logits, np.float64)
    shifted = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = {
        "single_label_classification": lambda: -shifted[np.arange(4), labels].mean(),
        "multi_label_classification": lambda: np.log1p(np.exp(np.where(labels == 1, -logits, logits))).mean(),
        "regression": lambda: ((logits - labels) ** 2).mean(),
    }[problem_type]()
    right = (logits.argmax(-1) == labels).mean() if metric == "accuracy" else ((logits - labels) ** 2).mean()
    before = model.evaluate(images(), labels, batch_size=3, return_dict=True, verbose=0)
    assert before["loss"] == pytest.approx(expected, abs=1e-5)
    assert before[metric] == pytest.approx(right, abs=1e-5)
    history = model.fit(images(), labels, epochs=4, verbose=0).history
    assert history["loss"][0] == pytest.approx(expected, abs=1e-5)
    assert history["loss"][-1] < 0.95 * expected


@pytest.mark.parametrize("jit_compile", [False, True])
def test_overfits_a_small_batch_in_a_compiled_step(load: Load, jit_compile: bool) -> None:
    model, reference = load(), load()
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), metrics=["accuracy"], jit_compile=jit_compile)
    reference.compile(keras.optimizers.SGD(0.1, momentum=0.9), run_eagerly=True)
    losses = [each.fit(images(), LABELS, epochs=2, verbose=0).history["loss"] for each in (model, reference)]
    assert_close(*losses)
    assert_close(values_of(model), values_of(reference))
    history = model.fit(images(), LABELS, epochs=30, verbose=0).history
    assert history["loss"][-1] < 0.05 < losses[0][0]
    assert history["accuracy"][-1] == 1


@pytest.mark.parametrize("as_dict", [False, True])
def test_loss_of_keras_sees_the_logits_and_equals_the_own_loss(load: Load, as_dict: bool) -> None:
    data = ({"pixel_values": images(), "labels": LABELS},) if as_dict else (images(), LABELS)
    results = []
    for loss in (None, keras.losses.SparseCategoricalCrossentropy(from_logits=True)):
        model = load()
        model.compile(keras.optimizers.SGD(0.1), loss=loss, metrics=["accuracy"], run_eagerly=True)
        model.fit(*data, epochs=2, verbose=0)
        results.append(model.evaluate(*data, verbose=0))
    assert_close(*results)


def test_compiling_again_without_a_loss_returns_to_the_own_loss(load: Load) -> None:
    model = load()
    model.compile("sgd", loss=lambda y, logits: 0.0 * logits[:, 0] + 7.0, run_eagerly=True)
    assert model.evaluate(images(), LABELS, verbose=0) == pytest.approx(7)
    model.compile("sgd", run_eagerly=True)
    assert model.evaluate(images(), LABELS, verbose=0) == pytest.approx(
        float(model(images(), labels=LABELS).loss), abs=1e-5
    )


def test_own_loss_refuses_sample_weights_that_it_would_ignore(load: Load) -> None:
    model = load()
    model.compile("sgd", run_eagerly=True)
    with pytest.raises(InputError, match="no weights for samples or classes; pass a loss to compile"):
        model.fit(images(), LABELS, sample_weight=np.ones(4), verbose=0)


def test_base_model_without_a_loss_says_what_to_do(load: Load) -> None:
    model = load(TFViTModel)
    model.compile("sgd", run_eagerly=True)
    with pytest.raises(InputError, match="TFViTModel has no loss of its own for these inputs; pass a loss to compile"):
        model.fit(images(), np.zeros((4, 13, 32)), verbose=0)


def test_fits_masked_image_modeling_from_a_dict(load: Load) -> None:
    model = load(TFViTForMaskedImageModeling)
    batch = inputs_of(type(model))
    model.compile(keras.optimizers.Adam(1e-2), run_eagerly=True)
    expected = float(model(**batch).loss)
    history = model.fit(batch, epochs=6, verbose=0).history["loss"]
    assert history[0] == pytest.approx(expected, abs=1e-5)
    assert history[-1] < 0.95 * expected
    assert model.evaluate(batch, verbose=0) == pytest.approx(float(model(**batch).loss), abs=1e-5)
    outputs = model.predict(batch, verbose=0)
    assert_close(outputs.reconstruction, model(**batch).reconstruction)


def test_fits_and_predicts_from_a_tf_data_dataset(load: Load) -> None:
    model = load()
    pairs = tf.data.Dataset.from_tensor_slices((images(6), np.arange(6) % 5)).batch(4)
    dicts = pairs.map(lambda x, y: {"pixel_values": x, "labels": y})
    model.compile(keras.optimizers.SGD(0.1), metrics=["accuracy"], jit_compile=False)
    assert_close(model.evaluate(pairs, verbose=0), model.evaluate(images(6), np.arange(6) % 5, verbose=0))
    assert_close(model.evaluate(pairs, verbose=0), model.evaluate(dicts, verbose=0))
    before = model.evaluate(pairs, verbose=0)[0]
    model.fit(pairs, epochs=5, verbose=0)
    assert model.evaluate(pairs, verbose=0)[0] < before
    assert_close(model.predict(pairs, verbose=0).logits, model(images(6)).logits)


def test_predict_gives_a_model_output_of_numpy_arrays_over_all_batches(load: Load) -> None:
    model = load(output_hidden_states=True, output_attentions=True)
    outputs = model.predict(images(5), batch_size=2, verbose=0)
    assert type(outputs) is ModelOutput
    assert list(outputs) == ["logits", "hidden_states", "attentions"]
    assert {type(value) for value in keras.tree.flatten(outputs)} == {np.ndarray}
    assert_close(outputs, model(images(5)))


def test_frozen_backbone_trains_the_head_alone(load: Load) -> None:
    model = load()
    model.vit.trainable = False
    assert [variable.name for variable in model.trainable_variables] == ["kernel", "bias"]
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    backbone, kernel = values_of(model.vit), model.classifier.kernel.numpy()
    model.fit(images(), LABELS, verbose=0)
    assert_close(values_of(model.vit), backbone, atol=0)
    assert np.abs(model.classifier.kernel.numpy() - kernel).max() > 1e-4


@pytest.mark.parametrize("place", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_is_on_in_training_only(load: Load, place: str) -> None:
    model, without = load(**{place: 0.4}), load()(images())
    for options in ({}, {"training": False}):
        assert_close(model(images(), **options), without)
    first, second = (model(images(), training=True).logits for _ in range(2))
    assert float(np.abs(first - second).max()) > 0.01
    assert_close(model.predict(images(), verbose=0), without)


def _with_seeds(model: Any, seed: int = 7) -> Any:
    for variable in model.non_trainable_variables:  # the states of the dropouts
        variable.assign(np.full(variable.shape, seed, variable.dtype))
    return model


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_gradient_checkpointing_recomputes_each_layer_and_keeps_the_gradients(load: Load, mode: str) -> None:
    model, calls = load(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3), []
    inputs = inputs_of(type(model))
    intermediate = model.vit.encoder.layer[0].intermediate
    original = intermediate.call
    intermediate.call = lambda x: calls.append("call") or original(x)

    def step() -> Any:
        calls.clear()
        compute = lambda: gradients(model, inputs, training=True)  # noqa: E731
        result = compute() if mode == "eager" else tf.function(compute, jit_compile=mode == "xla")()
        return result, [variable.numpy() for variable in model.non_trainable_variables]

    _with_seeds(model)
    expected = step()
    assert len(calls) == 1
    model.gradient_checkpointing_enable()
    _with_seeds(model)
    actual = step()
    assert len(calls) == 2
    assert_close(actual, expected, atol=1e-6)  # and the dropouts' states have advanced as far
    model.gradient_checkpointing_disable()
    step()
    assert len(calls) == 1


def test_gradient_checkpointing_fits_and_returns_attentions(load: Load) -> None:
    model = load(output_attentions=True)
    reference = load()
    model.gradient_checkpointing_enable()
    for each in (model, reference):
        each.compile(keras.optimizers.SGD(0.1), jit_compile=False, run_eagerly=each is reference)
        each.fit(images(), LABELS, epochs=2, verbose=0)
    assert_close(values_of(model), values_of(reference))
    assert model(images(), training=True).attentions[0].shape == (4, 4, 13, 13)


def test_distribution_strategy_trains_as_one_device(load: Load, tmp_path: Path) -> None:
    load().save_pretrained(tmp_path)
    code = """
        import sys
        import keras, numpy as np, tensorflow as tf
        from vit import TFViTForImageClassification
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        assert strategy.num_replicas_in_sync == 2
        with strategy.scope():
            model = TFViTForImageClassification.from_pretrained(sys.argv[1])
            model.compile(keras.optimizers.SGD(0.1), metrics=["accuracy"], jit_compile=False)
        x = np.random.default_rng(0).standard_normal((4, 3, 12, 8), dtype=np.float32)
        history = model.fit(x, np.array([0, 1, 4, 2]), epochs=2, shuffle=False, verbose=0).history
        np.savez(sys.argv[1] + "/result.npz", loss=history["loss"], logits=model.predict(x, verbose=0).logits)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], check=True, env=environment)
    result = np.load(tmp_path / "result.npz")
    model = load()
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    history = model.fit(images(), LABELS, epochs=2, shuffle=False, verbose=0).history
    assert_close(list(result["loss"]), history["loss"])
    assert_close(result["logits"], model(images()).logits.numpy())


# === Saving and exporting ===


@pytest.mark.parametrize("cls", MODELS)
def test_keras_file_gives_the_same_model(load: Load, tmp_path: Path, cls: type) -> None:
    model = load(cls, hidden_act="quick_gelu")
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again) is cls
    assert again.config == model.config
    assert_close(again(**inputs_of(cls)), model(**inputs_of(cls)), atol=1e-6)


def test_keras_file_of_a_compiled_model_goes_on_training(load: Load, tmp_path: Path) -> None:
    model = load()
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), metrics=["accuracy"], run_eagerly=True)
    model.fit(images(), LABELS, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert int(again.optimizer.iterations.numpy()) == 2
    for each in (model, again):
        each.fit(images(), LABELS, verbose=0)
    assert_close(values_of(again), values_of(model), atol=1e-6)
    assert_close(again.evaluate(images(), LABELS, verbose=0), model.evaluate(images(), LABELS, verbose=0))


def test_keras_file_keeps_the_options_and_the_policy_of_a_model(load: Load, tmp_path: Path) -> None:
    config = load().config
    model = TFViTModel(config, add_pooling_layer=False, use_mask_token=True, dtype="mixed_bfloat16", name="backbone")
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert (again.name, again.dtype_policy.name, again.pooler) == ("backbone", "mixed_bfloat16", None)
    assert_close(again(images(), bool_masked_pos=masks()), model(images(), bool_masked_pos=masks()), atol=1e-6)


def test_weights_file_fills_a_fresh_model(load: Load, tmp_path: Path) -> None:
    model = load()
    model.save_weights(tmp_path / "model.weights.h5")
    other = TFViTForImageClassification(model.config)
    other.load_weights(tmp_path / "model.weights.h5")
    assert_close(values_of(other), values_of(model), atol=0)


def test_model_can_be_copied_cloned_and_pickled(load: Load) -> None:
    model = load(hidden_act="quick_gelu")
    expected = model(images())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_close(other(images()), expected, atol=1e-6)
        other.classifier.bias.assign_add(np.ones(5))
        assert_close(other(images()).logits, expected.logits + 1)
    clone = keras.models.clone_model(model)
    assert [variable.shape for variable in clone.weights] == [variable.shape for variable in model.weights]
    assert_close(model(images()), expected, atol=0)


@pytest.mark.parametrize("called", [False, True])
def test_exports_a_saved_model_that_serves_any_batch_size(load: Load, tmp_path: Path, called: bool) -> None:
    model = load()
    if called:
        model.predict(images(2), verbose=0)
    model.export(tmp_path / "export", verbose=False)
    served = tf.saved_model.load(tmp_path / "export")
    for batch in (1, 3):
        expected = model(images(batch))
        outputs = served.serve(tf.constant(images(batch)))
        assert_close(outputs["logits"], expected.logits)
        outputs = served.signatures["serving_default"](pixel_values=tf.constant(images(batch)))
        assert_close(outputs["logits"], expected.logits)


def test_exports_with_another_signature(load: Load, tmp_path: Path) -> None:
    model = load(TFViTForMaskedImageModeling)
    signature = [
        {
            "pixel_values": keras.InputSpec(dtype="float32", shape=(None, 3, 12, 8), name="pixel_values"),
            "bool_masked_pos": keras.InputSpec(dtype="bool", shape=(None, 12), name="bool_masked_pos"),
        }
    ]
    model.export(tmp_path / "export", verbose=False, input_signature=signature)
    inputs = {name: tf.constant(value) for name, value in inputs_of(type(model)).items()}
    served = tf.saved_model.load(tmp_path / "export")
    outputs = served.serve(inputs)
    expected = model(**inputs)
    assert_close((outputs["loss"], outputs["reconstruction"]), (expected.loss, expected.reconstruction))


# === Parameters and dtypes ===


@pytest.mark.parametrize("cls", MODELS)
def test_weights_exist_from_the_start_under_the_canonical_names(load: Load, cls: type) -> None:
    model = cls(load(cls).config)
    parts = {"add_pooling_layer": cls.head is None, "use_mask_token": cls.head == "decoder"}
    shapes = weights.parameter_shapes(model.config, head=cls.head, **parts)
    assert model.built
    assert len(model.weights) == len(model.trainable_variables) == len(shapes)
    assert model.count_params() == sum(np.prod(shape) for shape in shapes.values())
    lines: list[str] = []
    model.summary(print_fn=lambda line, **_: lines.append(line))
    assert f"Total params: {model.count_params():,}" in "\n".join(lines)
    for name, shape in shapes.items():
        assert weights.from_local(model._parameter(name).numpy(), shape, "tf").shape == shape


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


@pytest.mark.parametrize("enabled", [True, False])
def test_loading_pauses_the_garbage_collector_even_if_it_fails(
    load: Load, monkeypatch: pytest.MonkeyPatch, enabled: bool
) -> None:
    during = []

    def build(self: Any, input_shape: Any) -> None:
        during.append(gc.isenabled())
        raise MemoryError

    try:
        (gc.enable if enabled else gc.disable)()
        load()
        assert gc.isenabled() is enabled
        monkeypatch.setattr(TFViTForImageClassification, "build", build)
        with pytest.raises(MemoryError):
            load()
        assert (during, gc.isenabled()) == ([False], enabled)
    finally:
        gc.enable()


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
    for name in weights.parameter_shapes(config, head="classifier"):
        value, kind = model._parameter(name).numpy(), weights.initial_value(name)
        if kind == "truncated_normal":
            assert np.abs(value).max() <= 0.1, name
            assert value.size < 1000 or 0.04 < value.std() < 0.05, name  # 0.88 * 0.05
        else:
            np.testing.assert_array_equal(value, {"zeros": 0.0, "ones": 1.0}[kind], err_msg=name)


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


def test_label_of_minus_100_is_left_out_of_the_loss(model: Any) -> None:
    expected = model(images()[:3], labels=LABELS[:3]).loss
    assert_close(model(images(), labels=np.array([*LABELS[:3], -100])).loss, expected)
