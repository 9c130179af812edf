"""TensorFlow models are saved, copied and exported as Keras saves, copies and exports its own."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import vit
from vit import TFViTForImageClassification, TFViTForMaskedImageModeling, TFViTModel, families

from ..common import LABELS, Load, images, inputs_of, masks
from ..tiny import HEADS, tiny_family
from .common import MODELS, assert_close, values_of


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


LOADER = """
import sys
from pathlib import Path
{}
import numpy as np
assert "vit.tf" not in sys.modules
for path in sorted(Path(sys.argv[1]).glob(sys.argv[2])):
    model = keras.models.load_model(path)
    assert model.__class__.__name__ == path.stem, path
    pixel_values = np.load("pixel_values.npy")
    outputs = model(pixel_values, **model.config.fixed_inputs(pixel_values.shape))
    np.save(path.with_suffix(".npy"), np.asarray(outputs[model.config.heads[model.head].output]))
"""


@pytest.fixture(scope="module")
def every_class(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of every class as a .keras file and as an .h5 file, and its output for one image."""
    folder = tmp_path_factory.mktemp("models")
    pixel_values = np.random.default_rng(0).standard_normal((2, 3, 16, 12), dtype=np.float32)
    np.save(folder / "pixel_values.npy", pixel_values)
    for model_type, head in HEADS:
        config = tiny_family(model_type)
        model = families.model_class("tf", model_type, head)(config)
        for weight in model.weights:
            if weight.dtype == "float32":
                weight.assign_add(np.random.default_rng(1).standard_normal(weight.shape) * 0.1)
        for ending in ("keras", "h5"):
            model.save(folder / f"{type(model).__name__}.{ending}")
        outputs = model(pixel_values, **config.fixed_inputs(pixel_values.shape))
        np.save(folder / f"{type(model).__name__}.out.npy", outputs[config.heads[head].output])
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("ending", "line"), [("keras", "import keras; import vit"), ("h5", "import vit; import keras")]
)
def test_a_saved_model_of_every_class_is_loaded_by_keras_where_vit_is_imported_alone(every_class, ending, line):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(vit.__file__).parents[1]), *sys.path])}
    command = [sys.executable, "-c", LOADER.format(line), str(every_class), f"*.{ending}"]
    run = subprocess.run(command, cwd=every_class, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    names = [families.config_class(model_type).heads[head].name for model_type, head in HEADS]
    for name in names:
        found, expected = (np.load(every_class / f"TF{name}{end}.npy") for end in ("", ".out"))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5, err_msg=name)
        (every_class / f"TF{name}.npy").unlink()
