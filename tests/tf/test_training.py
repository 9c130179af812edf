"""The TensorFlow models train as Keras models do; that their gradients are right, tests/test_equivalence.py shows."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from vit import InputError, ModelOutput, TFViTForMaskedImageModeling, TFViTModel

from ..common import LABELS, Load, images, inputs_of
from .common import assert_close, gradients, values_of


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


def test_distribution_strategy_trains_as_one_device_and_a_trainer_on_its_models(load: Load, tmp_path: Path) -> None:
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

        # One that lies on a device is trained there, and so is all that its steps carry.
        from vit.tf.training import Trainer
        from vit.training import Recipe
        model = TFViTForImageClassification.from_pretrained(sys.argv[1], device="CPU:1")
        trainer = Trainer(model, Recipe(batch_size=4, ema=0.9))
        loss = trainer.step({"pixel_values": x, "targets": np.eye(5, dtype=np.float32)[[0, 1, 4, 2]]}, 0, 1e-3)
        places = [loss.device, *(each.device for each in trainer._variables().values())]
        assert len(places) > 50 and {place[-5:] for place in places} == {"CPU:1"}, places
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], check=True, env=environment)
    result = np.load(tmp_path / "result.npz")
    model = load()
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    history = model.fit(images(), LABELS, epochs=2, shuffle=False, verbose=0).history
    assert_close(list(result["loss"]), history["loss"])
    assert_close(result["logits"], model(images()).logits.numpy())


def test_label_out_of_range_is_named_and_gives_nan_in_a_graph(model: Any) -> None:
    for label in (5, -1):
        labels = np.array([0, label, 1, 2])
        with pytest.raises(InputError, match=rf"labels holds {label}; expected 0 to 4 \(num_labels is 5\)"):
            model(images(), labels=labels)
        assert np.isnan(tf.function(lambda y: model(images(), labels=y).loss)(tf.constant(labels)))


def test_label_of_minus_100_is_left_out_of_the_loss(model: Any) -> None:
    expected = model(images()[:3], labels=LABELS[:3]).loss
    assert_close(model(images(), labels=np.array([*LABELS[:3], -100])).loss, expected)
