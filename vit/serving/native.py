"""Our own protocol: images in the body, as they are or as a form, and options in the query.

POST /classify, /embed and /attention; one image or many.
"""

from __future__ import annotations

import io
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import JSONResponse

from ..attention import attention_mask
from ..errors import quoted, shown
from ..outputs import ModelOutput
from ..pipeline import POOLS
from . import openapi
from .models import Given, Model
from .payloads import body_of, choice, leaves, number, share
from .refusals import Refusal, expected
from .service import Service, now

TRUTH = {"true": True, "1": True, "false": False, "0": False}
TOP_K = 5

OPTIONS = {
    "classify": {"model": "Which model.", "top_k": "How many labels."},
    "embed": {"model": "Which model.", "pool": "What the vector is: cls, mean, pooler or patches."},
    "attention": {
        "model": "Which model.", "layer": "From 0, or negative from the last.",
        "head": "One head from 0; the mean of all when left out.",
        "rollout": "true: through the layers up to that one.",
        "threshold": "Also mask the fewest patches that hold this share, 0 to 1.", "top_k": "How many labels.",
        "format": "json, or png for a grey picture of one image's map.",
    },
}  # fmt: skip
"""Route -> its options, in the query or in the form, and what each means."""

Row = Callable[[ModelOutput, int], dict[str, Any]]


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["images"])

    def route(task: str, summary: str, answer: Callable[[Model, Mapping[str, str]], Row]) -> None:
        @routes.post(f"/{task}", summary=summary, name=task, openapi_extra=openapi.images(OPTIONS[task]))
        async def handle(request: Request) -> Response:
            begin = now()
            async with body_of(request, service) as body:
                images, options = await _images(request, body, OPTIONS[task], service)
                model = service.model(options.get("model"))
                computes = model.task(task)
                row = answer(model, options)
                picture = choice(options.get("format", "json"), "format", {"json": False, "png": True})
                if picture and len(images) != 1:
                    raise Refusal(400, f"The request has {len(images)} images; expected 1 for format=png.")
                found = await service.answer(computes, images, row, leaves(request))
            if picture:
                return Response(png(found[0]["map"], model.shape[1:]), media_type="image/png")
            results = []
            for image, result in zip(images, found, strict=True):
                where = {"area": model.area(image.data)} if task == "attention" else {}
                results.append({"name": image.name, **result, **where})
            return JSONResponse({"model": model.name, "results": results, "seconds": now() - begin})

    route("classify", "The most probable labels of images", _classify)
    route("embed", "A vector for each image", _embed)
    route("attention", "Where the model looks in images", _attention)
    return routes


# === Answers ===


def _classify(model: Model, options: Mapping[str, str]) -> Row:
    top_k = number(options.get("top_k", TOP_K), "top_k", 1)
    return lambda outputs, row: model.labels(outputs, row, top_k)


def _embed(model: Model, options: Mapping[str, str]) -> Row:
    pool = options.get("pool", model.pool)
    choice(pool, "pool", POOLS)
    return lambda outputs, row: {"embedding": model.embedding(outputs, row, pool).tolist()}


def _attention(model: Model, options: Mapping[str, str]) -> Row:
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    layer = number(options.get("layer", -1), "layer", -layers, layers - 1) % layers
    head = number(options["head"], "head", 0, heads - 1) if "head" in options else None
    rollout = choice(options.get("rollout", "false"), "rollout", TRUTH)
    threshold = share(options["threshold"], "threshold") if "threshold" in options else None
    top_k = number(options.get("top_k", TOP_K), "top_k", 1)
    if rollout and head is not None:
        raise Refusal(400, "rollout goes through the mean of the heads; expected no head beside it.")

    def row(outputs: ModelOutput, row: int) -> dict[str, Any]:
        heat = model.attention(outputs, row, layer, head, rollout)
        mask = {} if threshold is None else {"mask": attention_mask(heat, threshold).tolist()}
        labels = model.labels(outputs, row, top_k) if "logits" in outputs else {}
        about = {"layer": layer, "layers": layers, "head": head, "heads": heads, "rollout": rollout,
                 "threshold": threshold, "grid": list(model.grid)}  # fmt: skip
        return {**labels, **about, "map": heat.tolist(), **mask}

    return row


def png(heat: Any, size: tuple[int, ...]) -> bytes:
    """A map as a grey picture, white where the attention is strongest.

    Args:
        heat: (rows, columns).
        size: (height, width) of the picture.
    """
    values = np.asarray(heat, np.float64)
    values = values - values.min()
    grey = np.rint(255 * values / (values.max() or 1)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grey).resize((size[1], size[0]), Image.Resampling.BICUBIC).save(file, "png")
    return file.getvalue()


# === Requests ===


async def _images(
    request: Request, body: bytes, known: Mapping[str, str], service: Service
) -> tuple[list[Given], dict[str, str]]:
    """The images and the options of a request."""
    pairs = list(request.query_params.multi_items())
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        images, fields = await _form(request, body, service)
        pairs += fields
    elif kind.startswith("image/") or kind in ("", "application/octet-stream", "application/x-www-form-urlencoded"):
        images = [Given("encoded", body)] if body else []  # curl calls what it sends a form
    else:
        raise Refusal(
            415, f"The request's Content-Type is {quoted(kind, 60)}; expected that of an image, or multipart/form-data."
        )
    options = dict(pairs)
    if len(options) < len(pairs):
        names = [name for name, _ in pairs]
        raise Refusal(400, f"{quoted(next(n for n in names if names.count(n) > 1), 60)} is given twice.")
    if unknown := sorted(options.keys() - known.keys()):
        raise Refusal(400, f"There is no option {quoted(unknown[0], 60)}; {expected(known)}")
    return images, options


async def _form(request: Request, body: bytes, service: Service) -> tuple[list[Given], list[tuple[str, str]]]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    most = service.limits.max_queue
    parser = MultiPartParser(
        request.headers, stream(), max_files=most, max_fields=len(OPTIONS["attention"]),
        max_part_size=1024,
    )  # fmt: skip
    parser.spool_max_size = service.limits.max_body + 1  # nothing is written to disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise Refusal(413, f"The request has too many images; expected at most {most}.") from None
        raise Refusal(400, f"The request's form is broken: {error.message.rstrip('.')}.") from None
    except (KeyError, ValueError):
        raise Refusal(400, "The request's form is broken.") from None
    images: list[Given] = []
    fields: list[tuple[str, str]] = []
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            images.append(Given("encoded", await value.read(), shown(value.filename or "", 200)))
            await value.close()
        else:
            fields.append((name, value))
    return images, fields
