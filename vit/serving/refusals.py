"""What the server does not do, as every protocol says it: a status, and `{"error": ...}` with one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from starlette.responses import Response

from ..errors import shown

MESSAGE = 500
"""The most characters of a sentence."""


class Refusal(Exception):
    """An answer that is no result.

    Args:
        status: of HTTP.
        message: one sentence for the client: what was given, what was expected.
        headers: besides the usual ones.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})


def busy(message: str, seconds: float = 1) -> Refusal:
    """503: later it may be done."""
    return Refusal(503, message, {"Retry-After": f"{max(1, round(seconds))}"})


def answer(refusal: Refusal) -> Response:
    """The response: TF Serving's, the Open Inference Protocol's and our own form are the same."""
    body = json.dumps({"error": shown(refusal.message, MESSAGE)}, ensure_ascii=False)
    return Response(body, refusal.status, refusal.headers, "application/json")


def expected(names: Iterable[str]) -> str:
    """How a message lists what would have been right."""
    return f"expected {', '.join(names) or 'none'}."
