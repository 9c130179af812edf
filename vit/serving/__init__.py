"""A server of models over HTTP: our own protocol, TF Serving's, the Open Inference Protocol's and Vertex AI's.

`create_app` gives an ASGI application; `vit serve` runs it.
"""

from __future__ import annotations

from ..errors import MissingFrameworkError, install_line

try:
    import fastapi  # noqa: F401
    import prometheus_client  # noqa: F401
    import python_multipart  # noqa: F401
except ImportError as error:
    raise MissingFrameworkError(f"vit.serving needs {error.name}. Install it with: {install_line('serve')}") from None

from .app import create_app
from .limits import Limits

__all__ = ["Limits", "create_app"]
