"""What requests carry: their bodies within limits, JSON, and images in the forms that the protocols give them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import ClientDisconnect, Request

from ..errors import quoted
from .models import Given
from .refusals import Refusal, busy, expected
from .service import Service

LONG = 256 * 1024
"""Bytes of JSON that are read in a thread: the event loop would stand still."""


@asynccontextmanager
async def body_of(request: Request, service: Service) -> AsyncIterator[bytes]:
    """The body of a request, counted among those of all requests until the request is answered.

    Raises:
        Refusal: it is too large, compressed, too slow, or there is no room for it or for an image.
    """
    limits = service.limits
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise Refusal(415, f"The request's Content-Encoding is {quoted(encoding, 60)}; expected none.")
    declared = request.headers.get("content-length", "0")
    if not (declared.isascii() and declared.isdigit()):
        raise Refusal(400, f"The request's Content-Length is {quoted(declared, 60)}; expected a number.")
    if int(declared) > limits.max_body:
        raise _too_long(service)
    service.check_room()
    taken = 0
    parts = []
    try:
        try:
            async with asyncio.timeout(limits.body_seconds):
                async for part in request.stream():
                    if taken + len(part) > limits.max_body:
                        raise _too_long(service)
                    if service.bodies + len(part) > limits.max_bodies:
                        raise busy("Other requests take all the room that there is; try again later.")
                    taken += len(part)
                    service.bodies += len(part)
                    parts.append(part)
        except TimeoutError:
            seconds = f"{limits.body_seconds:g} seconds"
            raise Refusal(408, f"The request's body did not arrive within {seconds}.", CLOSE) from None
        except ClientDisconnect:
            raise Refusal(499, "The client left.") from None
        body = b"".join(parts)
        parts.clear()
        yield body
    finally:
        service.bodies -= taken


CLOSE = {"Connection": "close"}
"""Of an answer to a request whose body is not read to its end."""


def _too_long(service: Service) -> Refusal:
    return Refusal(413, f"The request's body is too large; expected at most {service.limits.max_body:,} bytes.", CLOSE)


def leaves(request: Request) -> Callable[[], Awaitable[None]]:
    """What returns when the client of a request, whose body has been read, waits no longer."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            continue

    return watch


# === JSON ===


async def json_of(body: bytes, service: Service) -> dict[str, Any]:
    """The JSON object that a body is.

    Raises:
        Refusal: it is something else, or names a key twice.
    """
    return await service.in_thread(parse, body) if len(body) > LONG else parse(body)


def parse(body: bytes) -> dict[str, Any]:
    """`json_of`, on this thread."""
    try:
        found = json.loads(body, object_pairs_hook=_once, parse_constant=_constant)
    except Refusal:
        raise
    except RecursionError:
        raise Refusal(400, "The request's JSON is nested too deeply.") from None
    except UnicodeDecodeError:
        raise Refusal(400, "The request's body is no JSON: it is not in UTF-8.") from None
    except ValueError as error:
        raise Refusal(400, f"The request's body is no JSON: {_where(error)}.") from None
    if not isinstance(found, dict):
        raise Refusal(400, f"The request's body is {_kind(found)} in JSON; expected an object.")
    return found


def _where(error: ValueError) -> str:
    return (
        f"{error.msg} at character {error.pos}" if isinstance(error, json.JSONDecodeError) else "a number is too long"
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Refusal(400, f"The request's JSON has the key {quoted(twice, 60)} twice.")
    return found


def _constant(name: str) -> float:
    raise Refusal(400, f"The request's JSON holds {name}, which is no JSON.")


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")


# === Options ===


def check_query(request: Request, known: Collection[str]) -> None:
    """Refuse options that a protocol does not have in the query, before they are waited for in vain.

    Raises:
        Refusal: there is another one, or one twice.
    """
    names = [name for name, _ in request.query_params.multi_items()]
    if unknown := sorted(set(names) - set(known)):
        more = f"; {expected(known)}" if known else ", where this protocol has none: they are parameters of the body."
        raise Refusal(400, f"There is no option {quoted(unknown[0], 60)} in the query{more}")
    if len(set(names)) < len(names):
        raise Refusal(400, f"{quoted(next(n for n in names if names.count(n) > 1), 60)} is given twice.")


def number(value: Any, name: str, least: int, most: int | None = None) -> int:
    """An int, as a number or as text.

    Raises:
        Refusal: it is none, or out of range.
    """
    wanted = f"an int of at least {least}" if most is None else f"an int of {least} to {most}"
    is_text = isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,9}", value)
    found = int(value) if is_text else value
    if not isinstance(found, int) or isinstance(found, bool) or found < least or (most is not None and found > most):
        raise Refusal(400, f"{name} is {quoted(value, 60)}; expected {wanted}.")
    return found


def share(value: Any, name: str) -> float:
    """A number of 0 to 1, as such or as text.

    Raises:
        Refusal: it is none.
    """
    try:
        found = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if not 0 <= found <= 1:
        raise Refusal(400, f"{name} is {quoted(value, 60)}; expected a number of 0 to 1.")
    return found


def choice(value: Any, name: str, allowed: Mapping[str, Any]) -> Any:
    """What a word stands for.

    Raises:
        Refusal: another word.
    """
    if not isinstance(value, str) or value not in allowed:
        raise Refusal(400, f"{name} is {quoted(value, 60)}; {expected(allowed)}")
    return allowed[value]


# === Images in JSON ===

KINDS = {"image_bytes": "encoded", "string_input": "encoded", "image_uint8": "pixels", "pixel_values": "values"}
"""Name of an input -> the kind of image that it holds; as exported models call them."""


def image_in(value: Any, name: str | None = None) -> Given:
    """An image in JSON: `{"b64": ...}`, base64 as such, or numbers; or an object of one input of `KINDS` that is one.

    Args:
        value: the JSON.
        name: of the input; None where the protocol gives it none.

    Raises:
        Refusal: it is no image.
    """
    if isinstance(value, dict) and "b64" not in value:
        if name is not None or len(value) != 1:
            found = quoted(sorted(map(str, value))[:9], 100)
            raise Refusal(400, f"An image is an object of {found}; expected b64, or one of {', '.join(KINDS)}.")
        ((name, value),) = value.items()
    if name is not None and name not in KINDS:
        raise Refusal(400, f"There is no input {quoted(name, 60)}; {expected(KINDS)}")
    kind = KINDS[name] if name else None
    if isinstance(value, dict):
        if set(value) != {"b64"}:
            raise Refusal(400, "An image in base64 is an object of b64 alone.")
        value = value["b64"]
        if not isinstance(value, str):
            raise Refusal(400, f"b64 is {_kind(value)}; expected a string.")
    if isinstance(value, str):
        if kind not in (None, "encoded"):
            raise Refusal(400, f"{name} is a string; expected numbers.")
        return Given("encoded", base64_in(value))
    if isinstance(value, list):
        if kind == "encoded":
            raise Refusal(400, f"{name} is a list; expected base64 of an image file.")
        return Given(kind or "numbers", value)
    raise Refusal(400, f"An image is {_kind(value)}; expected base64 of an image file, or numbers.")


def base64_in(text: str) -> bytes:
    """The bytes of base64, of either alphabet (RFC 4648, Sections 4 and 5), padded or not.

    Raises:
        Refusal: it is none.
    """
    plain = text.translate({ord("-"): "+", ord("_"): "/", ord("\n"): None, ord("\r"): None})
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(400, "An image is no base64.") from None
