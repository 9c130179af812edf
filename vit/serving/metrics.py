"""What the server counts, for Prometheus: requests, how long they take, batches, the queue."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
NO_ROUTE = "none"
"""The route of a request that leads nowhere: paths are the client's to choose, and would be counters without end."""
TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The counters of one application.

    Args:
        queue: how many images are accepted and not answered.
        ready: whether the server is ready.
    """

    def __init__(self, queue: Callable[[], int], ready: Callable[[], bool]) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "vit_requests", "Requests answered", ("route", "method", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "vit_request_seconds", "From the headers of a request to the end of its answer", ("route",),
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._batches = Histogram(
            "vit_batch_size", "Images of a batch", ("model", "task"), buckets=SIZES, registry=self.registry
        )
        self._computing = Histogram(
            "vit_batch_seconds", "What the model takes for a batch", ("model", "task"), buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        length = Gauge("vit_queue_length", "Images accepted and not answered", registry=self.registry)
        length.set_function(lambda: float(queue()))
        is_ready = Gauge("vit_ready", "1 where requests are taken, 0 while loading and ending", registry=self.registry)
        is_ready.set_function(lambda: float(ready()))

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(route, method if method in ("GET", "POST") else "other", str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, model: str, task: str, size: int, seconds: float) -> None:
        """Count a batch that was computed."""
        self._batches.labels(model, task).observe(size)
        self._computing.labels(model, task).observe(seconds)

    def text(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self.registry)
