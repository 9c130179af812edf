"""`vit serve`: models over HTTP."""

from __future__ import annotations

import logging
import os
import re
import threading
import warnings
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from ..errors import InputError, quoted, shown
from .frameworks import DIGITS, choose_one, import_quietly
from .options import CacheDir, Device, DType, Framework, Quiet, Revision, Token

KEY = "VIT_API_KEY"


def command(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="A checkpoint folder, a model on the hub, or an export; NAME=MODEL names it; repeatable. "
            "[default: the bundled digits]",
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(metavar="NAME", help="Where to listen. [default: 127.0.0.1]")] = None,
    port: Annotated[
        int | None, typer.Option(metavar="N", min=0, max=65535, help="0 for any that is free. [default: 8000]")
    ] = None,
    max_batch_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Images that the model gets at a time. [default: chosen]")
    ] = None,
    max_delay_ms: Annotated[
        float, typer.Option(metavar="N", min=0, help="How long an image waits for others to fill a batch.")
    ] = 5.0,
    max_queue: Annotated[
        int, typer.Option(metavar="N", min=1, help="Images accepted and not answered; past it the answer is 503.")
    ] = 128,
    max_body_mb: Annotated[float, typer.Option(metavar="N", min=0.001, help="Size of a request.")] = 32.0,
    max_pixels: Annotated[int, typer.Option(metavar="N", min=1, help="Of an image.")] = 64_000_000,
    deadline: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.001, help="After which a request is answered 503.")
    ] = 30.0,
    drain_seconds: Annotated[
        float, typer.Option(metavar="N", min=0, help="How long new requests are answered after SIGTERM.")
    ] = 1.0,
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=f"Holds the key that clients must send. [default: the variable {KEY}]"),
    ] = None,
    revision: Revision = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    framework: Framework = None,
    device: Device = None,
    dtype: DType = None,
    quiet: Quiet = False,
) -> int:
    """Serve models over HTTP.

    POST an image to /classify, /embed or /attention. TF Serving's REST, the Open Inference Protocol and Vertex AI's
    containers are spoken too; /docs lists the routes. SIGTERM finishes what was accepted; SIGHUP takes up checkpoints
    that changed. Vertex AI's AIP_HTTP_PORT, AIP_HEALTH_ROUTE and AIP_PREDICT_ROUTE are followed.
    """
    from ..exporting.formats import is_export

    sources = named(model or [f"digits={DIGITS}"])
    api_key = read_key(api_key_file)
    extra = None  # an image of `deploy/` always names one, whatever it is to serve
    if not all(map(is_export, sources.values())):
        extra = choose_one(framework, "vit serve")
        if dtype == "float64" and extra == "flax":
            os.environ["JAX_ENABLE_X64"] = "1"
        threading.Thread(target=_import, args=(extra,), daemon=True).start()  # beside the server's own imports

    from ..serving import Limits, create_app
    from ..serving.server import listen, run

    logging.basicConfig(format="vit: %(message)s", level=logging.ERROR if quiet else logging.WARNING)
    logging.getLogger("vit").setLevel(logging.ERROR if quiet else logging.INFO)  # of others, what is wrong
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="PIL")  # odd images are answered, not logged
    limits = Limits(
        max_batch_size=max_batch_size, max_delay_ms=max_delay_ms, max_queue=max_queue,
        max_body=round(max_body_mb * 2**20), max_pixels=max_pixels, deadline=deadline,
    )  # fmt: skip
    vertex = vertex_ai()
    if vertex:
        host, port = host or "0.0.0.0", port if port is not None else vertex.port  # it is called from outside
    app = create_app(
        sources, extra, limits=limits, api_key=api_key, vertex=vertex and vertex.routes, wait=False, device=device,
        dtype=dtype, revision=revision, token=token, cache_dir=cache_dir,
    )  # fmt: skip
    listener = listen(host or "127.0.0.1", 8000 if port is None else port)
    return run(app, listener, drain_seconds=drain_seconds)


def named(models: list[str]) -> dict[str, str]:
    """{name: model} of what -m says; a model without a name is called as the last part of its path is.

    Raises:
        InputError: two of one name.
    """
    found: dict[str, str] = {}
    for given in models:
        name, equals, model = given.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z0-9._-]+", name) or os.path.exists(given):
            model, last = given, Path(os.path.abspath(given)).name.removesuffix(".onnx")
            name = re.sub(r"[^A-Za-z0-9._-]+", "-", last).lstrip("._-")
        if name in found:
            raise InputError(f"Two models are called {shown(name)}; name them with -m NAME=MODEL.")
        found[name or "model"] = model
    return found


class Vertex(NamedTuple):
    """What Vertex AI asks of a container: the port, and the routes of its health check and of predictions."""

    port: int
    routes: tuple[str, str]


def vertex_ai() -> Vertex | None:
    """What the environment says; None outside Vertex AI.

    Raises:
        InputError: it is no port, or no route.
    """
    given = {name: os.environ.get(f"AIP_{name}") for name in ("HTTP_PORT", "HEALTH_ROUTE", "PREDICT_ROUTE")}
    port = given["HTTP_PORT"]
    if port is None:
        return None
    if not (port.isascii() and port.isdigit() and 0 < int(port[:9]) < 2**16):
        raise InputError(f"AIP_HTTP_PORT is {quoted(port)}; expected a port, 1 to 65535.")
    routes = given["HEALTH_ROUTE"] or "/health", given["PREDICT_ROUTE"] or "/predict"
    for route in routes:
        if not re.fullmatch(r"(/[A-Za-z0-9._~:-]+)+", route):
            raise InputError(f"A route of Vertex AI is {quoted(route)}; expected one such as /predict.")
    return Vertex(int(port), routes)


def read_key(path: Path | None) -> str | None:
    """The key of a file or of the environment; None where neither has one.

    Raises:
        InputError: it cannot be read, or holds nothing that can be sent.
    """
    if path is None:
        key, where = os.environ.get(KEY), KEY
        if key is None:
            return None
    else:
        where = shown(path)
        try:
            key = path.read_text(encoding="utf-8")[:10_000]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{where} cannot be read: {getattr(error, 'strerror', 'it is no text')}.") from None
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(f"{where} holds no API key; expected printable ASCII characters without spaces.")
    return key


def _import(extra: str) -> None:
    try:
        import_quietly(extra)
    except Exception:
        return  # loading the model says why
