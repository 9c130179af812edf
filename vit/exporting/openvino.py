"""OpenVINO's intermediate representation: a folder of model.xml and model.bin."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .formats import NAME, Artifact, Job, parse, quiet
from .onnx import graph

FILE = "model.xml"


def write(job: Job, path: Path) -> None:
    """Write the model, by way of ONNX; float16 is that of the stored weights."""
    openvino = _openvino()

    from onnxscript import ir

    path.mkdir()
    passing = path / "model.onnx", path / "model.onnx.data"  # beside it weights may have more than 2 GB
    ir.save(graph(job, dtype="float32"), passing[0], external_data=passing[1].name)
    model = openvino.convert_model(passing[0])
    if job.int8:
        import nncf

        with quiet():
            model = nncf.quantize(model, nncf.Dataset(list(job.calibration())), model_type=nncf.ModelType.TRANSFORMER)
    model.set_rt_info(json.dumps(job.metadata(openvino=openvino.__version__)), [NAME])
    openvino.save_model(model, path / FILE, compress_to_fp16=job.dtype == "float16")
    del model
    for file in passing:
        file.unlink(missing_ok=True)


def _openvino() -> Any:
    """The package, which reports nothing to anybody: without openvino_telemetry neither it nor nncf does."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def load(path: Path) -> Artifact:
    """Compile it for the CPU, computing in float32."""
    openvino = _openvino()
    core = openvino.Core()
    model = core.read_model(path / FILE)
    metadata = parse(model.get_rt_info([NAME]).value if model.has_rt_info([NAME]) else None, path)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [port.get_any_name() for port in compiled.outputs]

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = compiled.infer_new_request(dict(inputs))  # one for each call, as threads may not share it
        return {name: np.array(found[i]) for i, name in enumerate(names)}

    return Artifact("openvino", path, metadata, run)
