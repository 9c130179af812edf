"""What the routes' descriptions share, and the page that shows them: no script, and nothing of another host."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

ERROR = {
    "description": "One sentence.",
    "content": {
        "application/json": {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}},
    },
}
STATUSES = {
    400: "an impossible argument", 401: "no key, or a wrong one", 404: "no such model", 413: "too large",
    415: "another type of content", 422: "an image that cannot be used", 503: "no room, or not ready; see Retry-After",
}  # fmt: skip
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {**ERROR, "description": meaning[0].upper() + meaning[1:]} for status, meaning in STATUSES.items()
}
"""The answers that every route may give besides its own."""

_FILE = {"type": "string", "format": "binary"}


def images(options: Mapping[str, str]) -> dict[str, Any]:
    """A route that takes images in its body, and options in the query."""
    form = {"type": "object", "properties": {"image": {"type": "array", "items": _FILE}}}
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "description": meaning, "schema": {"type": "string"}}
            for name, meaning in options.items()
        ],
        "requestBody": {
            "required": True,
            "content": {"image/*": {"schema": _FILE}, "multipart/form-data": {"schema": form}},
        },
    }


def json_body(description: str) -> dict[str, Any]:
    """A route that takes a JSON object."""
    return {
        "requestBody": {
            "required": True, "description": description,
            "content": {"application/json": {"schema": {"type": "object"}}},
        }
    }  # fmt: skip


STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem }
section { border-top: 1px solid; padding: .5rem 0 }
code { font-family: ui-monospace, monospace; overflow-wrap: anywhere }
h2 code:first-child { font-weight: normal; opacity: .7 }
h2 { font-size: 1.1rem }
dt { float: left; clear: left; min-width: 8rem }
dd { margin-left: 8rem }
"""


def page(described: Mapping[str, Any]) -> str:
    """The description of an application as a page.

    Args:
        described: its openapi.json.
    """
    parts = []
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            head = f"<h2><code>{method.upper()}</code> <code>{escape(path)}</code></h2>"
            text = escape(operation.get("description") or operation.get("summary", ""))
            parameters = "".join(
                f"<dt><code>{escape(each['name'])}</code></dt><dd>{escape(each.get('description', each['in']))}</dd>"
                for each in operation.get("parameters", ())
            )
            types = ", ".join(operation.get("requestBody", {}).get("content", ()))
            body = f"<p>Body: {escape(types)}. {escape(operation.get('requestBody', {}).get('description', ''))}</p>"
            parts.append(
                f"<section>{head}<p>{text}</p>{body if types else ''}{f'<dl>{parameters}</dl>' if parameters else ''}"
                "</section>"
            )
    meanings = "".join(f"<dt>{status}</dt><dd>{escape(meaning)}</dd>" for status, meaning in STATUSES.items())
    title = escape(f"{described['info']['title']} {described['info']['version']}")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body><h1>{title}</h1>'
        f'<p>{escape(described["info"].get("description", ""))} For programs: <a href="openapi.json">openapi.json</a>.'
        f"</p><main>{''.join(parts)}</main><h2>Errors</h2><p>Every error is <code>{{&quot;error&quot;: "
        f"sentence}}</code>.</p><dl>{meanings}</dl></body></html>"
    )
