"""How much the server takes on: every number with a default that keeps memory bounded and answers soon."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError, quoted

MB = 2**20


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server takes.

    Args:
        max_batch_size: images that the model gets at a time; chosen for the device when None.
        max_delay_ms: how long an image that is ready waits for others to fill a batch.
        max_queue: images that are accepted and not answered; past it the answer is 503.
        max_body: bytes of a request.
        max_bodies: bytes of all requests that are not answered; past it the answer is 503.
        max_pixels: of an image.
        deadline: seconds after which a request is answered 503 if its images are not done.
        body_seconds: how long a request's body may take to arrive.
        header_seconds: how long a request's line and headers may take.
        max_header: bytes of a request's line and headers.
        max_connections: clients at a time; more wait for one that leaves.
    """

    max_batch_size: int | None = None
    max_delay_ms: float = 5.0
    max_queue: int = 128
    max_body: int = 32 * MB
    max_bodies: int = 256 * MB
    max_pixels: int = 64_000_000
    deadline: float = 30.0
    body_seconds: float = 20.0
    header_seconds: float = 10.0
    max_header: int = 32 * 1024
    max_connections: int = 1000

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if name == "max_batch_size" and value is None:
                continue
            least = 0 if name == "max_delay_ms" else 0.001 if isinstance(value, float) else 1
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < float("inf"):
                raise ConfigError(f"{name} is {quoted(value)}; expected a number of at least {least}.")
