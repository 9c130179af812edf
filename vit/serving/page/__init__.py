"""The page at `/`: three files without a framework, and the route that tells it which models there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Response
from starlette.responses import JSONResponse

from ..models import Model
from ..service import Service

FILES = {"/": ("index.html", "text/html"), "/page.css": ("page.css", "text/css"),
         "/page.js": ("page.js", "text/javascript")}  # fmt: skip
"""Route -> the file that it answers with, and its type."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["images"])

    def add(path: str, name: str, kind: str) -> None:
        content = (Path(__file__).parent / name).read_bytes()

        @routes.get(path, include_in_schema=False)
        async def file() -> Response:
            return Response(content, headers=HEADERS, media_type=kind)

    for path, (name, kind) in FILES.items():
        add(path, name, kind)

    @routes.get("/models", summary="The models, what each can do, and how much a request may hold")
    async def models() -> Response:
        loaded = [about(service.models[name]) for name in service.sources if name in service.models]
        return JSONResponse({"ready": service.ready, "models": loaded, "max_body": service.limits.max_body})

    return routes


def about(model: Model) -> dict[str, Any]:
    """What clients want to know of a model before they ask it."""
    found = {"name": model.name, "version": model.version, "platform": model.platform, "tasks": list(model.tasks)}
    if "attention" in model.tasks:
        found |= {"layers": model.config.num_hidden_layers, "heads": model.config.num_attention_heads}
    return found
