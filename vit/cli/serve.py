"""`vit serve`: models over HTTP."""

from __future__ import annotations

import logging
import os
import re
import threading
import warnings
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError, shown
from .frameworks import DIGITS, choose_one, import_quietly
from .options import CacheDir, Device, DType, Framework, Quiet, Revision, Token

KEY = "VIT_API_KEY"


def command(
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", metavar="NAME",
            help="A checkpoint folder, a model on the hub, an .onnx file; NAME=MODEL names it; repeatable. "
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
    sources = named(models or [f"digits={DIGITS}"])
    api_key = read_key(api_key_file)
    extra = None
    if any(not source.endswith(".onnx") for source in sources.values()):
        extra = choose_one(framework, "vit serve")
        if dtype == "float64" and extra == "flax":
            os.environ["JAX_ENABLE_X64"] = "1"
        threading.Thread(target=_import, args=(extra,), daemon=True).start()  # beside the server's own imports

    from ..serving import Limits, create_app
    from ..serving.server import listen, run

    logging.basicConfig(format="vit: %(message)s", level=logging.ERROR if quiet else logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="PIL")  # odd images are answered, not logged
    limits = Limits(
        max_batch_size=max_batch_size, max_delay_ms=max_delay_ms, max_queue=max_queue,
        max_body=round(max_body_mb * 2**20), max_pixels=max_pixels, deadline=deadline,
    )  # fmt: skip
    environment = os.environ
    vertex = None
    if "AIP_HTTP_PORT" in environment:  # a container of Vertex AI, which calls it from outside
        host, port = host or "0.0.0.0", port if port is not None else int(environment["AIP_HTTP_PORT"])
        vertex = (environment.get("AIP_HEALTH_ROUTE", "/health/ready"), environment.get("AIP_PREDICT_ROUTE", "/predict"))
    app = create_app(
        sources, extra, limits=limits, api_key=api_key, vertex=vertex, wait=False, device=device, dtype=dtype,
        revision=revision, token=token, cache_dir=cache_dir,
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
            model = given
            name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(os.path.abspath(given)).name.removesuffix(".onnx")).lstrip("._-")
        if name in found:
            raise InputError(f"Two models are called {shown(name)}; name them with -m NAME=MODEL.")
        found[name or "model"] = model
    return found


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
