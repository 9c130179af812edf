"""LiteRT (TensorFlow Lite): one .tflite file, for phones and small machines.

Behind the model in the file is a zip archive of what is known about it, as TensorFlow Lite's own metadata have it: a
reader of the one looks at the beginning, of the other at the end.
"""

from __future__ import annotations

import json
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Lock

import numpy as np

from ..budgets import JSON
from ..errors import CheckpointError, shown
from .formats import NAME, Artifact, Job, parse


def write(job: Job, path: Path) -> None:
    """Write the model: float16 halves the weights, int8 quantises what its kernels take, with scales of real images."""
    import tensorflow as tf

    from ..tf.export import served, signatures

    model = job.model("tf", dtype="float32")
    (function,) = signatures(served(model, job.task, job.pool), job.image).values()
    module = tf.Module()
    module.parameters = [each.value for each in model.variables]

    def examples() -> Iterator[dict[str, np.ndarray]]:
        for pixel_values in job.calibration():
            yield {"pixel_values": pixel_values}

    with tempfile.TemporaryDirectory() as temporary:
        tf.saved_model.save(module, temporary, {"serving_default": function})
        converter = tf.lite.TFLiteConverter.from_saved_model(temporary, signature_keys=["serving_default"])
        if job.int8 or job.dtype == "float16":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if job.int8:
            converter.representative_dataset = examples
        elif job.dtype == "float16":
            converter.target_spec.supported_types = [tf.float16]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an interpreter that the calibration uses
            path.write_bytes(converter.convert())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{NAME}.json", json.dumps(job.metadata(tensorflow=tf.__version__)))


def load(path: Path) -> Artifact:
    """Load it in LiteRT's interpreter, on the CPU; one call at a time."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(f"{NAME}.json").file_size > JSON:
                raise CheckpointError(f"{shown(path)} says more about itself than {JSON:,} bytes hold.")
            metadata = parse(archive.read(f"{NAME}.json"), path)
    except (zipfile.BadZipFile, KeyError):
        raise CheckpointError(f"{shown(path)} does not say what it is; expected what 'vit export' wrote.") from None
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=str(path)).get_signature_runner("serving_default")
    lock = Lock()

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with lock:
            return runner(**inputs)

    return Artifact("litert", path, metadata, run)
