"""The Open Inference Protocol, version 2, as KServe and Triton speak it, with Triton's binary tensor data extension.

Sources: the protocol's specification (kserve/open-inference-protocol); Triton's document of the extension.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from .. import __version__
from ..errors import quoted
from ..outputs import ModelOutput
from . import openapi
from .models import Given, Model
from .payloads import KINDS, base64_in, body_of, check_query, json_of, leaves, number, parse
from .refusals import Refusal, expected
from .service import Service

DTYPES = {"FP32": "<f4", "FP64": "<f8", "FP16": "<f2", "UINT8": "|u1", "INT8": "|i1", "UINT16": "<u2", "INT16": "<i2",
          "UINT32": "<u4", "INT32": "<i4", "UINT64": "<u8", "INT64": "<i8"}  # fmt: skip
"""The protocol's name of a datatype -> NumPy's, in the order of bytes that the binary extension has."""

INPUTS = {name: kind for name, kind in KINDS.items() if name != "string_input"}
OUTPUTS = {"labels": "classify", "probabilities": "classify", "logits": "classify", "embedding": "embed"}
"""Output -> the task that gives it."""

PARAMETERS = {"top_k", "binary_data_output", "content_type", "headers", "priority", "timeout", "sequence_id",
              "sequence_start", "sequence_end", "triton_enable_empty_final_response"}  # fmt: skip
"""Of a request: ours, and those that clients of Triton and MLServer send and that change no answer here."""
OF_OUTPUTS = {"binary_data", "content_type"}
"""The same of an output that is asked for. Triton's "classification" and shared memory would change the answer."""

HEADER = "Inference-Header-Content-Length"
TOP_K = 5


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

    @routes.get("", summary="What the server is")
    async def server() -> Response:
        return JSONResponse({"name": "trivit", "version": __version__, "extensions": ["binary_tensor_data"]})

    @routes.get("/health/live", summary="200 where the process lives")
    async def live() -> Response:
        return JSONResponse({"live": True})

    @routes.get("/health/ready", summary="200 where requests are taken")
    async def ready() -> Response:
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    async def metadata(name: str, version: str | None = None) -> Response:
        return JSONResponse(_metadata(service.model(name, version)))

    async def model_ready(name: str, version: str | None = None) -> Response:
        model = service.model(name, version)
        is_ready = not service.draining
        return JSONResponse({"name": model.name, "ready": is_ready}, 200 if is_ready else 503)

    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        async with body_of(request, service) as body:
            model = service.model(name, version)
            check_query(request, set())
            given, rest = await _parts(request, body, service)
            return await _infer(service, model, given, rest, leaves(request))

    takes = openapi.json_body(f"inputs, outputs, id and parameters; tensors may follow as binary data ({HEADER}).")
    for prefix in ("/models/{name}", "/models/{name}/versions/{version}"):
        routes.add_api_route(f"{prefix}/ready", model_ready, summary="200 where a model takes requests")
        routes.add_api_route(
            f"{prefix}/infer", infer, methods=["POST"], summary="Classify or embed images", openapi_extra=takes
        )
        routes.add_api_route(prefix, metadata, summary="The inputs and outputs of a model")
    return routes


def _metadata(model: Model) -> dict[str, Any]:
    channels, height, width = model.shape
    inputs = [("image_bytes", "BYTES", [-1]), ("image_uint8", "UINT8", [-1, -1, -1, channels]),
              ("pixel_values", "FP32", [-1, channels, height, width])]  # fmt: skip
    outputs = [("embedding", "FP32", [-1, *model.vector])] if "embed" in model.tasks else []
    if "classify" in model.tasks:
        labels = model.config.num_labels
        outputs = [("labels", "BYTES", [-1, -1]), ("probabilities", "FP32", [-1, -1]),
                   ("logits", "FP32", [-1, labels]), *outputs]  # fmt: skip
    return {
        "name": model.name, "versions": [str(model.version)], "platform": f"trivit_{model.platform}",
        "inputs": [dict(zip(("name", "datatype", "shape"), each, strict=True)) for each in inputs],
        "outputs": [dict(zip(("name", "datatype", "shape"), each, strict=True)) for each in outputs],
    }  # fmt: skip


# === Inference ===


async def _infer(
    service: Service, model: Model, given: dict[str, Any], rest: memoryview, watch: Callable[[], Awaitable[None]]
) -> Response:
    parameters = _parameters(given)
    if unknown := sorted(parameters.keys() - PARAMETERS):
        raise Refusal(400, f"There is no parameter {quoted(unknown[0], 60)}; expected top_k or binary_data_output.")
    top_k = number(parameters.get("top_k", TOP_K), "top_k", 1)
    images = _images(given, rest)
    if not isinstance(identity := given.get("id", ""), str):
        raise Refusal(400, f"id is {quoted(identity, 60)}; expected a string.")
    wanted = _wanted(given, model, parameters.get("binary_data_output") is True)
    tasks = {OUTPUTS[name] for name in wanted}
    found: dict[str, list[Any]] = {}
    for task in sorted(tasks):  # one pass of the model each

        def row(outputs: ModelOutput, row: int, task: str = task) -> dict[str, Any]:
            if task == "embed":
                return {"embedding": model.embedding(outputs, row, model.pool)}
            return {**model.labels(outputs, row, top_k), "logits": model.logits(outputs, row)}

        for each in await service.answer(model.task(task), images, row, watch):
            for name, value in each.items():
                found.setdefault(name, []).append(value)
    tensors, blobs = [], []
    for name, binary in wanted.items():
        tensor, blob = _tensor(name, found[name], binary)
        tensors.append(tensor)
        blobs.append(blob)
    answer = {"model_name": model.name, "model_version": str(model.version), "outputs": tensors}
    if "id" in given:
        answer["id"] = identity
    head = json.dumps(answer, ensure_ascii=False).encode()
    if not any(wanted.values()):
        return Response(head, media_type="application/json")
    return Response(b"".join([head, *blobs]), 200, {HEADER: str(len(head))}, "application/octet-stream")


def _parameters(given: dict[str, Any]) -> dict[str, Any]:
    found = given.get("parameters", {})
    if not isinstance(found, dict):
        raise Refusal(400, "parameters is no object in JSON.")
    return found


def _wanted(given: dict[str, Any], model: Model, binary: bool) -> dict[str, bool]:
    """{output: whether as binary data}, as asked for; what the model does by default where nothing is."""
    outputs = given.get("outputs")
    if not outputs:
        return {name: binary for name, task in OUTPUTS.items() if task == model.default and name != "logits"}
    if not isinstance(outputs, list):
        raise Refusal(400, "outputs is no list.")
    found: dict[str, bool] = {}
    for each in outputs:
        name = each.get("name") if isinstance(each, dict) else None
        known = [name for name, task in OUTPUTS.items() if task in model.tasks]
        if name not in known:
            raise Refusal(400, f"There is no output {quoted(name, 60)}; {expected(known)}")
        if name in found:
            raise Refusal(400, f"The output {name} is asked for twice.")
        if unknown := sorted(_parameters(each).keys() - OF_OUTPUTS):
            raise Refusal(400, f"Outputs have no parameter {quoted(unknown[0], 60)}; expected binary_data.")
        found[name] = _parameters(each).get("binary_data", binary) is True
    return found


def _tensor(name: str, rows: list[Any], binary: bool) -> tuple[dict[str, Any], bytes]:
    if name == "labels":
        datatype, shape = "BYTES", [len(rows), len(rows[0])]
        flat = [label for row in rows for label in row]
        blob = b"".join(struct.pack("<I", len(data)) + data for data in (label.encode() for label in flat))
    else:
        array = np.asarray(rows, "<f4")
        datatype, shape, flat = "FP32", list(array.shape), [] if binary else array.ravel().tolist()
        blob = array.tobytes()
    tensor = {"name": name, "datatype": datatype, "shape": shape}
    if binary:
        return {**tensor, "parameters": {"binary_data_size": len(blob)}}, blob
    return {**tensor, "data": flat}, b""


# === What is sent ===


async def _parts(request: Request, body: bytes, service: Service) -> tuple[dict[str, Any], memoryview]:
    """The JSON of a request, and the binary data behind it."""
    length = request.headers.get(HEADER)
    if length is None:
        return await json_of(body, service), memoryview(b"")
    if not (length.isascii() and length.isdigit() and len(length) < 12 and int(length) <= len(body)):
        raise Refusal(400, f"{HEADER} is {quoted(length, 60)}; expected at most {len(body)}, the bytes of the body.")
    return parse(body[: int(length)]), memoryview(body)[int(length) :]


def _images(given: dict[str, Any], rest: memoryview) -> list[Given]:
    inputs = given.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Refusal(400, f"inputs is no list of one tensor, which is one of {', '.join(INPUTS)}.")
    (tensor,) = inputs
    name, shape, datatype = (tensor.get(key) for key in ("name", "shape", "datatype"))
    if not isinstance(name, str) or name not in INPUTS:
        raise Refusal(400, f"There is no input {quoted(name, 60)}; {expected(INPUTS)}")
    if not (
        isinstance(shape, list) and shape and len(shape) <= 4
        and all(isinstance(size, int) and not isinstance(size, bool) and 0 < size < 2**31 for size in shape)
    ):  # fmt: skip
        raise Refusal(400, f"The shape of {name} is {quoted(shape, 60)}; expected ints of at least 1.")
    count = math.prod(shape)
    size = _parameters(tensor).get("binary_data_size")
    if size is None:
        if len(rest):
            raise Refusal(400, f"{len(rest)} bytes follow the JSON, and no binary_data_size says of what.")
        data = tensor.get("data")
    else:
        if number(size, "binary_data_size", 0) != len(rest):
            raise Refusal(400, f"binary_data_size is {size}, and {len(rest)} bytes follow the JSON.")
        if "data" in tensor:
            raise Refusal(400, f"{name} has both data and binary_data_size; expected one of them.")
        data = rest
    if name == "image_bytes":
        if datatype != "BYTES":
            raise Refusal(400, f"The datatype of image_bytes is {quoted(datatype, 60)}; expected BYTES.")
        elements = list(_elements(data) if isinstance(data, memoryview) else _strings(data))
        if len(elements) != count:
            raise Refusal(400, f"image_bytes has {len(elements)} elements; its shape says {count}.")
        return [Given("encoded", each) for each in elements]
    known = [each for each in DTYPES if name != "pixel_values" or each.startswith("FP")]
    if not isinstance(datatype, str) or datatype not in known:
        raise Refusal(400, f"The datatype of {name} is {quoted(datatype, 60)}; {expected(known)}")
    if len(shape) < 2:
        raise Refusal(400, f"The shape of {name} is {shape}; expected the number of images first.")
    return [Given(INPUTS[name], each) for each in _array(name, data, datatype, shape)]


def _array(name: str, data: Any, datatype: str, shape: list[int]) -> np.ndarray:
    dtype = np.dtype(DTYPES[datatype])
    count = math.prod(shape)
    if isinstance(data, memoryview):
        if len(data) != count * dtype.itemsize:
            wanted = count * dtype.itemsize
            raise Refusal(400, f"{name} has {len(data)} bytes; its shape and datatype say {wanted}.")
        return np.frombuffer(data, dtype).reshape(shape)
    if not isinstance(data, list):
        raise Refusal(400, f"The data of {name} is no list of numbers.")
    try:
        array = np.asarray(data)
        if array.dtype.kind not in "iuf":
            raise ValueError
        if dtype.kind in "iu" and (array.dtype.kind == "f" or array.min() < np.iinfo(dtype).min
                                   or array.max() > np.iinfo(dtype).max):  # fmt: skip
            raise ValueError
    except (ValueError, TypeError, OverflowError):
        raise Refusal(400, f"The data of {name} is no list of numbers of {datatype}.") from None
    if array.size != count:
        raise Refusal(400, f"{name} has {array.size} numbers; its shape says {count}.")
    if array.ndim > 1 and [size for size in array.shape if size > 1] != [size for size in shape if size > 1]:
        raise Refusal(400, f"The data of {name} are lists of the shape {list(array.shape)}; its shape says {shape}.")
    return array.astype(dtype).reshape(shape)


def _strings(data: Any) -> Iterator[bytes]:
    """The elements of a list, or of lists in it: the protocol takes a tensor flat or nested."""
    for each in data if isinstance(data, list) else [None]:
        if isinstance(each, list):
            yield from _strings(each)
        elif isinstance(each, str):
            yield base64_in(each)
        else:
            raise Refusal(400, "The data of image_bytes is no list of strings, which are base64 of image files.")


def _elements(data: memoryview) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        size = struct.unpack_from("<I", data, at)[0] if at + 4 <= len(data) else len(data)
        if at + 4 + size > len(data):
            raise Refusal(400, "The binary data of image_bytes ends within an element.")
        yield bytes(data[at + 4 : at + 4 + size])
        at += 4 + size
