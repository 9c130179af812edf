"""ONNX: one file, which ONNX Runtime, OpenVINO and many others run."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, InputError, quoted, shown
from .formats import NAME, Artifact, Job, parse, quiet

OPSET = 20
"""Of ONNX's own operators: the first with gelu."""
MOST = 2**31 - 2**24
"""Bytes that the weights of one file may have, as protobuf takes 2 GiB."""


def write(job: Job, path: Path) -> None:
    """Write the model, its weights in the same file.

    Raises:
        InputError: they are too many for one.
    """
    from onnxscript import ir

    model = graph(job)
    size = sum(each.const_value.nbytes for each in model.graph.initializers.values())
    if size > MOST:
        raise InputError(
            f"The weights have {size:,} bytes, and a file of the format onnx holds {MOST:,}. Pass dtype='float16', or "
            "take another format, such as openvino."
        )
    ir.save(model, path)
    if job.int8:
        _quantize(path, job)
    _describe(path, job)


def graph(job: Job, **options: Any) -> Any:
    """The model of a job as one of `onnxscript.ir`, without what PyTorch keeps in it for itself.

    Args:
        job: what is to be exported.
        **options: of `from_pretrained`.
    """
    import torch

    from ..pt.export import exported

    with quiet():
        program = torch.onnx.export(
            exported(job, attn_implementation="eager", **options), opset_version=OPSET, dynamo=True, verbose=False,
            input_names=list(job.inputs), output_names=list(job.outputs),
            custom_translation_table={torch.ops.aten.sort.stable: _sort},
        )  # fmt: skip
    assert program is not None
    model = program.model
    nodes = list(model.graph)
    values = [
        *model.graph.inputs,
        *model.graph.initializers.values(),
        *(each for node in nodes for each in node.outputs),
    ]
    for each in (model, model.graph, *nodes, *values):  # where in which file of this machine it comes from
        each.metadata_props.clear()
        each.doc_string = None
    return model


def _sort(values: Any, *, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """A sort in ONNX, of numbers of which no two are the same."""
    from onnxscript.function_libs.torch_lib.ops.core import aten_sort

    return aten_sort(values, dim, descending)


def _quantize(path: Path, job: Job) -> None:
    """Round what linear layers and convolutions multiply: weights with a scale a channel, activations with one each."""
    import onnxruntime.quantization as onnxq

    class Images(onnxq.CalibrationDataReader):
        def __init__(self) -> None:
            self.images = job.calibration()

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.images, None)
            return None if image is None else dict.fromkeys(job.inputs, image)

    whole = path.with_name(f"{path.name}.float32")
    os.rename(path, whole)
    with quiet():
        onnxq.quantize_static(
            whole, path, Images(), quant_format=onnxq.QuantFormat.QDQ, per_channel=True,
            op_types_to_quantize=["MatMul", "Gemm", "Conv"], activation_type=onnxq.QuantType.QUInt8,
            weight_type=onnxq.QuantType.QInt8, extra_options={"MatMulConstBOnly": True},
        )  # fmt: skip
    whole.unlink()


def _describe(path: Path, job: Job) -> None:
    """Add what is known about a model."""
    import onnx

    model = onnx.load(path)
    opset = next(each.version for each in model.opset_import if not each.domain)
    onnx.helper.set_model_props(model, {NAME: json.dumps(job.metadata(opset=opset, ir_version=model.ir_version))})
    onnx.save(model, path)


def load(path: Path) -> Artifact:
    """Load it in ONNX Runtime, on the CPU; what refers to other files or has operators of others is refused."""
    import onnxruntime

    _check(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    metadata = parse(session.get_modelmeta().custom_metadata_map.get(NAME), path)
    names = [each.name for each in session.get_outputs()]

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return Artifact("onnx", path, metadata, run)


# === What a file may hold ===

TENSOR: dict[int, Any] = {13: "elsewhere", 14: "elsewhere"}
ATTRIBUTE: dict[int, Any] = {5: TENSOR, 10: TENSOR, 22: "sparse", 23: "sparse"}
GRAPH: dict[int, Any] = {1: {5: ATTRIBUTE, 7: "domain"}, 5: TENSOR, 15: "sparse"}
ATTRIBUTE |= {6: GRAPH, 11: GRAPH}
MODEL = {7: GRAPH, 25: "functions"}
"""The fields of a ModelProto that are looked at (onnx.proto): nodes with what is in them, weights, functions."""
REASONS = {
    "elsewhere": "weights that lie in another file",
    "functions": "functions of its own",
    "sparse": "sparse weights",
}
DEPTH = 16
"""How deep graphs may lie in each other."""


def _check(path: Path) -> None:
    """Refuse a file whose weights lie in another one, wherever that is, or whose operators are not ONNX's own.

    Raises:
        CheckpointError: it is such a file, or none.
    """
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        memoryview(data) as view,
    ):
        try:
            for what, value in _fields(view, 0, len(view), MODEL, 0):
                if what != "domain":
                    raise CheckpointError(f"{shown(path)} holds {REASONS[what]}; nothing of it was loaded.")
                if value not in (b"", b"ai.onnx"):
                    name = quoted(value.decode("utf-8", "replace"), 60)
                    raise CheckpointError(f"{shown(path)} has operators of {name}; expected ONNX's own.")
        except (IndexError, RecursionError):
            raise CheckpointError(f"{shown(path)} is damaged: it is no ONNX file.") from None


def _fields(data: memoryview, at: int, end: int, known: Mapping[int, Any], depth: int) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of the fields of a protocol buffer that are known, and of those in the messages in it."""
    if depth > 2 * DEPTH:
        raise RecursionError
    while at < end:
        tag, at = _varint(data, at)
        kind, inner = tag & 7, known.get(tag >> 3)
        size = 0
        if kind == 0:
            size, at = _varint(data, at)
            if inner == "elsewhere" and size:
                yield inner, b""
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise IndexError
        if at + size > end:
            raise IndexError
        if isinstance(inner, str):
            yield inner, bytes(data[at : at + min(size, 1000)])
        elif inner is not None and kind == 2:
            yield from _fields(data, at, at + size, inner, depth + 1)
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """(number, where it ends)."""
    value = shift = 0
    while True:
        byte = data[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise IndexError
