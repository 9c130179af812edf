"""The ASGI application: the protocols' routes, and what every request passes through."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import __version__
from ..errors import quoted
from . import native, open_inference, openapi, page, tensorflow_serving
from .limits import Limits
from .metrics import NO_ROUTE, TYPE
from .refusals import Refusal, answer
from .service import Service, now

logger = logging.getLogger("vit.serving")

OPEN = {*page.FILES, "/docs", "/openapi.json", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"}
"""What needs no key: nothing of it tells or costs anything."""

Source = str | os.PathLike[str]


def create_app(
    models: Source | Mapping[str, Source],
    framework: str | None = None,
    *,
    limits: Limits | None = None,
    api_key: str | None = None,
    vertex: tuple[str, str] | None = None,
    wait: bool = True,
    **options: Any,
) -> FastAPI:
    """An ASGI application that serves models over HTTP: classification, vectors, attention.

    The models are loaded when it is started (ASGI's lifespan).

    Args:
        models: a checkpoint folder, a name on the hub or what `vit export` wrote, which is called "default"; or
            {name: one of these}.
        framework: "pt", "tf" or "flax"; None for the first that is installed.
        limits: how much it takes on.
        api_key: what clients have to send, as `Authorization: Bearer KEY` or `X-API-Key: KEY`.
        vertex: the routes of Vertex AI's health check and predictions.
        wait: whether starting ends when the models are loaded; else it ends at once, and `app.state.loading` when they
            are.
        **options: of the loading: dtype, device, revision, token, cache_dir, ...

    Raises:
        InputError: no model, or an impossible name.
    """
    sources = models if isinstance(models, Mapping) else {"default": models}
    service = Service(sources, {"framework": framework, **options}, limits or Limits())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.loading = asyncio.create_task(service.start())
        if wait:
            await app.state.loading
        yield
        if not app.state.loading.done():
            app.state.loading.cancel()
        await service.stop()

    app = FastAPI(
        title="trivit", version=__version__, description="Labels, vectors and attention of images.",
        lifespan=lifespan, docs_url=None, redoc_url=None, responses=openapi.RESPONSES,
        exception_handlers={Refusal: _refuse, HTTPException: _no_route, RequestValidationError: _invalid},
    )  # fmt: skip
    app.state.service = service
    app.include_router(native.router(service))
    app.include_router(tensorflow_serving.router(service))
    app.include_router(open_inference.router(service))
    if vertex is not None:
        app.include_router(tensorflow_serving.vertex(service, *vertex))
    app.include_router(page.router(service))

    @app.get("/health/live", tags=["server"], summary="200 where the process lives")
    async def live() -> Response:
        return JSONResponse({"live": True})

    @app.get("/health/ready", tags=["server"], summary="200 where requests are taken; 503 while loading and ending")
    async def ready() -> Response:
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    @app.get("/metrics", tags=["server"], summary="Counters, for Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.text(), headers={"Content-Type": TYPE})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(openapi.page(app.openapi()))

    free = OPEN | ({vertex[0]} if vertex else set())
    app.add_middleware(_Door, service=service, api_key=api_key, free=free)
    return app


class _Door:
    """What every request passes through: the key, errors that nobody expected, and counting."""

    def __init__(self, app: ASGIApp, service: Service, api_key: str | None, free: set[str]) -> None:
        self.app, self.service, self.free = app, service, free
        self.key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status = now(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.service.draining:
                    message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        try:
            if (refusal := self._locked(scope)) is not None:
                await answer(refusal)(scope, receive, sending)
            else:
                await self.app(scope, receive, sending)
        except Exception:
            logger.exception("A request failed")
            if status:  # the answer has begun, and cannot be taken back
                raise
            await answer(Refusal(500, "The server failed; its log says why."))(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", NO_ROUTE)
            self.service.metrics.request(route, scope["method"], status, now() - begin)

    def _locked(self, scope: Scope) -> Refusal | None:
        if self.key is None or scope["path"] in self.free:
            return None
        given = [value for name, value in scope["headers"] if name in (b"authorization", b"x-api-key")]
        if len(given) == 1:
            scheme, _, rest = given[0].partition(b" ")
            if hmac.compare_digest(rest.strip() if scheme.lower() == b"bearer" else given[0], self.key):
                return None
        wrong = "has more than one API key" if len(given) > 1 else "has a wrong API key" if given else "has no API key"
        message = f"The request {wrong}; expected Authorization: Bearer KEY, or X-API-Key: KEY."
        return Refusal(401, message, {"WWW-Authenticate": "Bearer"})


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return answer(error)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = quoted(request.scope["path"], 100)
    allowed = (error.headers or {}).get("Allow", "another method")
    message = {404: f"There is no {path}; /docs lists what there is.",
               405: f"{path} takes no {request.method}; expected {allowed}."}  # fmt: skip
    return answer(Refusal(error.status_code, message.get(error.status_code, str(error.detail)), error.headers))


async def _invalid(request: Request, error: Exception) -> Response:
    return answer(Refusal(400, "The request's query is not as /docs says."))
