"""TF Serving's REST API, so that its clients change nothing but the address, and Vertex AI's, which is a part of it.

Sources: the RESTful API guide of TensorFlow Serving; the custom container requirements of Vertex AI.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from ..errors import quoted
from ..outputs import ModelOutput
from . import openapi
from .models import Given, Model, Task
from .payloads import KINDS, body_of, check_query, image_in, json_of, leaves, number
from .refusals import Refusal, expected
from .service import Service

SIGNATURES = ("serving_default", "classify", "embed", *KINDS)
"""What `signature_name` may be: a task, or an input by its name, of the task that the model does by default."""

TOP_K = 5
TYPES = {"image_bytes": "DT_STRING", "string_input": "DT_STRING", "image_uint8": "DT_UINT8",
         "pixel_values": "DT_FLOAT", "labels": "DT_STRING", "probabilities": "DT_FLOAT",
         "embedding": "DT_FLOAT"}  # fmt: skip


def router(service: Service) -> APIRouter:
    """The routes of TF Serving."""
    routes = APIRouter(tags=["TF Serving"])

    async def status(name: str, version: str | None = None) -> Response:
        model = service.model(name, version)
        fine = {"error_code": "OK", "error_message": ""}
        found = {"version": str(model.version), "state": "AVAILABLE", "status": fine}
        return JSONResponse({"model_version_status": [found]})

    async def metadata(name: str, version: str | None = None) -> Response:
        return JSONResponse(_metadata(service.model(name, version)))

    async def predict(request: Request, name: str, version: str | None = None) -> Response:
        async with body_of(request, service) as body:
            model = service.model(name, version)
            check_query(request, {"top_k"})
            given = await json_of(body, service)
            return JSONResponse(await _predict(service, model, given, _top_k(request.query_params), leaves(request)))

    takes = openapi.json_body("signature_name, and instances (row format) or inputs (column format).")
    for prefix in ("/v1/models/{name}", "/v1/models/{name}/versions/{version}"):
        routes.add_api_route(f"{prefix}/metadata", metadata, summary="The signatures of a model")
        routes.add_api_route(
            f"{prefix}:predict", predict, methods=["POST"], summary="Classify or embed images", openapi_extra=takes
        )
        routes.add_api_route(prefix, status, summary="Whether a model is there")
    return routes


def vertex(service: Service, health: str, predict: str) -> APIRouter:
    """The routes of Vertex AI, which says in the environment what they are called.

    Args:
        health: the route of the health check.
        predict: the route of predictions.
    """
    routes = APIRouter(tags=["Vertex AI"])

    @routes.get(health, summary="200 where requests are taken")
    async def is_healthy() -> Response:
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    takes = openapi.json_body("instances, and parameters: top_k, signature_name.")

    @routes.post(predict, summary="Classify or embed images", openapi_extra=takes)
    async def handle(request: Request) -> Response:
        async with body_of(request, service) as body:
            given = await json_of(body, service)
            parameters = given.pop("parameters", None) or {}
            if not isinstance(parameters, dict):
                raise Refusal(400, "parameters is no object in JSON.")
            if "inputs" in given or "instances" not in given:
                raise Refusal(400, "The request has no instances.")
            if unknown := sorted(parameters.keys() - {"top_k", "signature_name", "model"}):
                raise Refusal(400, f"There is no parameter {quoted(unknown[0], 60)}.")
            given |= {key: value for key, value in parameters.items() if key == "signature_name"}
            model = service.model(parameters.get("model"))
            top_k = number(parameters.get("top_k", TOP_K), "top_k", 1)
            return JSONResponse(await _predict(service, model, given, top_k, leaves(request)))

    return routes


# === Predictions ===


async def _predict(
    service: Service, model: Model, given: dict[str, Any], top_k: int, watch: Callable[[], Awaitable[None]]
) -> dict[str, Any]:
    signature = given.get("signature_name") or "serving_default"
    if signature not in SIGNATURES:
        raise Refusal(400, f"signature_name is {quoted(signature, 60)}; {expected(SIGNATURES)}")
    if ("instances" in given) == ("inputs" in given):
        raise Refusal(400, "The request has both instances and inputs, or neither; expected one of them.")
    if unknown := sorted(given.keys() - {"signature_name", "instances", "inputs"}):
        raise Refusal(400, f"There is no key {quoted(unknown[0], 60)}; expected signature_name, instances or inputs.")
    wanted = signature if signature in KINDS else None
    images = _rows(given["instances"], wanted) if "instances" in given else _columns(given["inputs"], wanted)
    task, row = _outputs(model, signature, top_k)
    found = await service.answer(task, images, row, watch)
    alone = len(found[0]) == 1  # TF Serving does not name an output that is the only one
    if "instances" in given:
        return {"predictions": [next(iter(each.values())) if alone else each for each in found]}
    columns = {name: [each[name] for each in found] for name in found[0]}
    return {"outputs": next(iter(columns.values())) if alone else columns}


def _outputs(model: Model, signature: str, top_k: int) -> tuple[Task, Callable[[ModelOutput, int], dict[str, Any]]]:
    name = signature if signature in ("classify", "embed") else model.default
    if name == "classify":
        return model.task(name), lambda outputs, row: model.labels(outputs, row, top_k)
    return model.task(name), lambda outputs, row: {"embedding": model.embedding(outputs, row, model.pool).tolist()}


def _rows(instances: Any, name: str | None) -> list[Given]:
    if not isinstance(instances, list):
        raise Refusal(400, "instances is no list.")
    return [_image(each, name) for each in instances]


def _columns(inputs: Any, name: str | None) -> list[Given]:
    if isinstance(inputs, dict) and "b64" not in inputs:
        if len(inputs) != 1:
            raise Refusal(400, f"inputs has {len(inputs)} names; expected one of {', '.join(KINDS)}.")
        ((given, inputs),) = inputs.items()
        if name not in (None, given):
            raise Refusal(400, f"inputs has {quoted(given, 60)}; the signature takes {name}.")
        name = given
    if not isinstance(inputs, list):
        inputs = [inputs]
    return [image_in(each, name) for each in inputs]


def _image(value: Any, name: str | None) -> Given:
    if name and isinstance(value, dict) and "b64" not in value:
        if set(value) != {name}:
            raise Refusal(
                400, f"An instance has {quoted(sorted(map(str, value))[:9], 100)}; the signature takes {name}."
            )
        value = value[name]
    return image_in(value, name)


def _top_k(query: Mapping[str, str]) -> int:
    return number(query.get("top_k", TOP_K), "top_k", 1)


# === What a model is ===


def _metadata(model: Model) -> dict[str, Any]:
    shapes: dict[str, Sequence[int]] = {
        "image_bytes": (-1,), "string_input": (-1,), "image_uint8": (-1, -1, -1, model.shape[0]),
        "pixel_values": (-1, *model.shape), "labels": (-1, -1), "probabilities": (-1, -1),
        "embedding": (-1, *model.vector),
    }  # fmt: skip

    def tensors(signature: str, *names: str) -> dict[str, Any]:
        return {
            name: {
                "name": f"{signature}_{name}:0", "dtype": TYPES[name],
                "tensor_shape": {
                    "dim": [{"size": str(size), "name": ""} for size in shapes[name]], "unknown_rank": False,
                },
            }
            for name in names
        }  # fmt: skip

    signatures = {}
    for signature in SIGNATURES:
        if signature in ("classify", "embed") and signature not in model.tasks:
            continue
        task = signature if signature in ("classify", "embed") else model.default
        outputs = ("labels", "probabilities") if task == "classify" else ("embedding",)
        signatures[signature] = {
            "inputs": tensors(signature, signature if signature in KINDS else "image_bytes"),
            "outputs": tensors("StatefulPartitionedCall", *outputs),
            "method_name": "tensorflow/serving/predict",
        }
    return {
        "model_spec": {"name": model.name, "signature_name": "", "version": str(model.version)},
        "metadata": {"signature_def": {"signature_def": signatures}},
    }
