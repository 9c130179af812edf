"""What a SavedModel and a LiteRT file have beside what every export has: signatures, files, warm-up requests."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import tensorflow as tf
from PIL import Image

from vit import InputError, ViTImageProcessor
from vit.exporting import Artifact, engine, export, load
from vit.inference import Forward

from .tiny import tiny_checkpoint

CAT = Image.fromarray(skimage.data.chelsea()[20:220, 60:360])
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 16, "width": 12},
    "resample": 3,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.3, 0.4],
}


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    with io.BytesIO() as file:
        image.save(file, format, **options)
        return file.getvalue()


@pytest.fixture(scope="module", autouse=True)
def hurry() -> Iterator[None]:
    """What is timed is not measured here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_checkpoint(folder, "vit", "classifier", num_hidden_layers=1)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    target = tmp_path_factory.mktemp("served") / "vit"
    report = export(model, target, to="saved-model", images=True)
    assert (report.passed, report.agreement) == (True, 1.0)
    assert report.difference <= 1e-5 * max(1, report.largest)
    return load(target)


def test_files_of_several_kinds_and_sizes_in_a_batch_are_answered_as_the_processor_and_the_model_do(served, model):
    orientation = Image.Exif()
    orientation[0x0112] = 6
    files = [
        encoded(CAT, "JPEG", quality=90),
        encoded(CAT.resize((90, 70)), "PNG"),
        encoded(CAT.convert("L"), "PNG"),
        encoded(CAT.convert("RGBA"), "PNG"),
        encoded(CAT.quantize(64), "GIF"),
        encoded(CAT, "BMP"),
        encoded(CAT, "JPEG", exif=orientation),
    ]
    pixel_values = ViTImageProcessor.from_pretrained(model)(files, return_tensors="np").pixel_values
    logits = Forward(model, "tf")(pixel_values).logits
    found = served({"image_bytes": np.array(files, object)})
    np.testing.assert_allclose(found["logits"], logits, atol=1e-5)
    names = served.metadata["labels"]
    assert [label.decode() for label in found["labels"]] == [names[i] for i in logits.argmax(1)]
    safe = np.array([base64.urlsafe_b64encode(file).rstrip(b"=") for file in files], object)
    np.testing.assert_array_equal(served({"string_input": safe})["logits"], found["logits"])


def test_pixels_and_pixel_values_have_signatures_of_their_own(served, model):
    array = np.stack([np.asarray(CAT), np.asarray(CAT)[::-1]])
    pixel_values = ViTImageProcessor.from_pretrained(model)(array, return_tensors="np").pixel_values
    found = served({"image_uint8": array})
    np.testing.assert_allclose(served({"pixel_values": pixel_values})["logits"], found["logits"], atol=1e-6)


def test_files_that_are_no_images_are_refused(served):
    for file, why in (
        (b"", "The file is no JPEG, PNG, GIF or BMP."),
        (encoded(CAT.convert("CMYK"), "JPEG"), "The JPEG file is in CMYK, or of another kind than grey and RGB."),
        (encoded(CAT, "JPEG")[:200], "jpeg::Uncompress failed. Invalid JPEG data or crop window."),
        (encoded(CAT, "PNG")[:2000], "Invalid PNG data, size 2000."),
    ):
        with pytest.raises(InputError) as error:
            served({"image_bytes": np.array([encoded(CAT, "BMP"), file], object)})
        assert str(error.value) == f"{served.path} cannot use image_bytes: {why}"


def test_the_folder_is_laid_out_for_tensorflow_serving(served, model, tmp_path):
    loaded = tf.saved_model.load(str(served.path / "1"))
    names = {"image_bytes", "string_input", "image_uint8", "pixel_values"}
    assert loaded.signatures.keys() == {"serving_default", *names}
    inputs = {name: set(each.structured_input_signature[1]) for name, each in loaded.signatures.items()}
    assert inputs == {"serving_default": {"image_bytes"}, **{name: {name} for name in names}}
    outputs = loaded.signatures["serving_default"].structured_outputs
    assert {name: (each.dtype, each.shape.as_list()) for name, each in outputs.items()} == {
        "logits": (tf.float32, [None, 5]), "probabilities": (tf.float32, [None, 5]), "labels": (tf.string, [None]),
    }  # fmt: skip
    export(model, tmp_path / "plain", to="saved-model", verify=False)
    plain = tf.saved_model.load(str(tmp_path / "plain" / "1")).signatures
    assert plain.keys() == {"serving_default", "pixel_values"}
    assert set(plain["serving_default"].structured_input_signature[1]) == {"pixel_values"}


def message(pool: Any, name: str, /, **fields: Any) -> None:
    """Add a message of tensorflow/serving's protocol, of fields (number, type), to a pool."""
    from google.protobuf import descriptor_pb2

    file = descriptor_pb2.FileDescriptorProto(name=f"{name}.proto", package="serving", syntax="proto3")
    file.message_type.add(name=name)
    for field, (number, kind, repeated) in fields.items():
        added = file.message_type[0].field.add(name=field, number=number, label=3 if repeated else 1)
        if kind in ("string", "bytes"):
            added.type = 9 if kind == "string" else 12
        else:
            added.type, added.type_name = 11, f".serving.{kind}"
            file.dependency.append(f"{kind}.proto")
    pool.Add(file)


def test_the_warm_up_requests_are_what_tensorflow_serving_reads_and_the_signatures_answer(served):
    from google.protobuf import descriptor_pool, message_factory

    pool = descriptor_pool.DescriptorPool()
    message(pool, "ModelSpec", name=(1, "string", False), signature_name=(3, "string", False))
    message(pool, "InputsEntry", key=(1, "string", False), value=(2, "bytes", False))  # a map, as it is on the wire
    message(pool, "PredictRequest", model_spec=(1, "ModelSpec", False), inputs=(2, "InputsEntry", True))
    message(pool, "PredictLog", request=(1, "PredictRequest", False))
    message(pool, "PredictionLog", predict_log=(6, "PredictLog", False))
    log_class = message_factory.GetMessageClass(pool.FindMessageTypeByName("serving.PredictionLog"))
    signatures = tf.saved_model.load(str(served.path / "1")).signatures
    seen = []
    file = served.path / "1" / "assets.extra" / "tf_serving_warmup_requests"
    for record in tf.data.TFRecordDataset(str(file)):
        log = log_class.FromString(record.numpy())
        assert log.SerializeToString() == record.numpy()  # no field that is not known
        request = log.predict_log.request
        (entry,) = request.inputs
        tensor = tf.make_ndarray(type(tf.make_tensor_proto(0)).FromString(entry.value))
        found = signatures[request.model_spec.signature_name](**{entry.key: tf.constant(tensor)})
        seen.append((request.model_spec.signature_name, entry.key, len(found["logits"])))
    kinds = ["image_bytes", "string_input", "image_uint8", "pixel_values"]
    assert seen == [(name, name, size) for name in kinds for size in (1, 8)]


def test_a_litert_file_runs_from_any_threads(model, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    export(model, tmp_path / "vit.tflite", verify=False)
    artifact = load(tmp_path / "vit.tflite")
    batches = [np.random.default_rng(i).standard_normal((i % 3 + 1, 3, 16, 12), np.float32) for i in range(12)]
    forward = Forward(model, "tf")
    expected = [forward(batch).logits for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: artifact({"pixel_values": batch})["logits"], batches))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
