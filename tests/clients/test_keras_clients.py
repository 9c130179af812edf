"""The libraries and callbacks that Keras's users bring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vit

from .common import needs, pixels, targets


def compiled(folder: Path, **options: Any) -> Any:
    """A model that trains with its own loss."""
    model = vit.TFViTForImageClassification.from_pretrained(folder)
    model.compile(optimizer="adam", **options)
    return model


def data(count: int = 8) -> Any:
    """Batches of random pixels with labels."""
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(({"pixel_values": pixels(count)}, targets(count))).batch(4)


def test_keras_callbacks_keep_the_best_stop_early_and_log(folder: Path, tmp_path: Path):
    import keras

    model = compiled(folder)
    best = str(tmp_path / "best.keras")
    callbacks = [
        keras.callbacks.ModelCheckpoint(best, monitor="loss", save_best_only=True),
        keras.callbacks.ModelCheckpoint(str(tmp_path / "{epoch}.weights.h5"), save_weights_only=True),
        keras.callbacks.EarlyStopping(monitor="loss", min_delta=100.0, patience=1, restore_best_weights=True),
        keras.callbacks.CSVLogger(str(tmp_path / "log.csv")),
        keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=1),
        keras.callbacks.TerminateOnNaN(),
        keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: None),
    ]
    history = model.fit(data(), validation_data=data(4), epochs=9, verbose=0, callbacks=callbacks).history
    assert len(history["loss"]) == 2  # nothing gets better by a hundred
    again = keras.saving.load_model(best)
    assert again(pixels()).logits.shape == (4, 3)
    fresh = vit.TFViTForImageClassification.from_pretrained(folder)
    fresh.load_weights(tmp_path / "2.weights.h5")
    assert (tmp_path / "log.csv").read_text().count("\n") == 3


@needs("tensorboard")
def test_tensorboard_shows_losses_graph_and_weights(folder: Path, tmp_path: Path):
    import keras
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = compiled(folder)
    callback = keras.callbacks.TensorBoard(str(tmp_path), histogram_freq=1, write_graph=True, update_freq="batch")
    model.fit(data(), epochs=1, verbose=0, callbacks=[callback])
    (run,) = [path.parent for path in tmp_path.rglob("events.out*") if path.parent.name == "train"]
    events = EventAccumulator(str(run))
    events.Reload()
    assert "epoch_loss" in events.Tags()["tensors"]


def test_a_run_that_was_interrupted_goes_on_where_it_was(folder: Path, tmp_path: Path):
    import keras

    class Stop(Exception):
        pass

    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 2:
                raise Stop

    whole = compiled(folder)
    whole.fit(data(), epochs=4, verbose=0)
    backup = str(tmp_path / "backup")
    with pytest.raises(Stop):
        compiled(folder).fit(
            data(), epochs=4, verbose=0, callbacks=[keras.callbacks.BackupAndRestore(backup), Interrupt()]
        )
    resumed = compiled(folder)
    history = resumed.fit(data(), epochs=4, verbose=0, callbacks=[keras.callbacks.BackupAndRestore(backup)])
    assert len(history.history["loss"]) == 2
    np.testing.assert_allclose(resumed(pixels()).logits, whole(pixels()).logits, atol=1e-5)


@needs("datasets")
def test_a_dataset_of_pictures_is_prepared_batched_and_trained_on(folder: Path, images: Path):
    import datasets

    processor = vit.ViTImageProcessor.from_pretrained(folder)
    pictures = datasets.load_dataset("imagefolder", data_dir=str(images), split="train")

    def prepared(batch: dict[str, Any]) -> dict[str, Any]:
        return {"pixel_values": processor(batch["image"], return_tensors="np").pixel_values, "label": batch["label"]}

    kinds = {
        "mapped": pictures.map(prepared, batched=True, remove_columns=["image"]),
        "transformed": pictures.with_transform(prepared),  # images are read when they are asked for
    }
    kinds["in NumPy"] = kinds["mapped"].with_format("numpy")
    kinds["shuffled and cut"] = kinds["mapped"].shuffle(seed=0).select(range(10))
    model = vit.TFViTForImageClassification.from_pretrained(folder)
    for name, dataset in kinds.items():
        data = model.prepare_tf_dataset(dataset, batch_size=4, shuffle=False)
        count = len(dataset)
        assert len(data) == -(-count // 4), name
        rows = [dataset[i] for i in range(count)]
        found, labels = (np.concatenate(each) for each in zip(*data.as_numpy_iterator(), strict=True))
        np.testing.assert_array_equal(found, [np.asarray(row["pixel_values"], np.float32) for row in rows], name)
        assert labels.tolist() == [int(row["label"]) for row in rows], name
    model.compile("adam")
    history = model.fit(model.prepare_tf_dataset(kinds["transformed"], batch_size=4), epochs=2, verbose=0).history[
        "loss"
    ]
    assert history[1] < history[0]


@needs("keras_tuner")
def test_keras_tuner_searches(folder: Path, tmp_path: Path):
    import keras
    import keras_tuner

    def build(hp: Any) -> Any:
        model = vit.TFViTForImageClassification.from_pretrained(folder)
        model.compile(optimizer=keras.optimizers.Adam(hp.Choice("learning_rate", [1e-5, 1e-2])))
        return model

    tuner = keras_tuner.RandomSearch(build, objective="loss", max_trials=2, directory=str(tmp_path), seed=0)
    tuner.search(data(), epochs=2, verbose=0)
    (best,) = tuner.get_best_models(1)
    assert best(pixels()).logits.shape == (4, 3)
    assert tuner.get_best_hyperparameters(1)[0].get("learning_rate") == 1e-2


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("way", ["from_keras_model", "from_saved_model"])
def test_tflite_has_the_same_numbers(way: str, quantised: bool, folder: Path, tmp_path: Path):
    import tensorflow as tf

    model = vit.TFViTForImageClassification.from_pretrained(folder)
    expected = model(pixels()).logits
    if way == "from_saved_model":
        model.export(str(tmp_path / "exported"), verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "exported"))
    else:
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if quantised:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    interpreter = tf.lite.Interpreter(model_content=converter.convert())
    (inputs,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(inputs["index"], pixels().shape)  # any batch
    interpreter.allocate_tensors()
    interpreter.set_tensor(inputs["index"], pixels())
    interpreter.invoke()
    (outputs,) = interpreter.get_output_details()
    found = interpreter.get_tensor(outputs["index"])
    np.testing.assert_allclose(found, expected, atol=0.2 if quantised else 1e-5)
