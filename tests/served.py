"""A server to test: the application without a socket, or `vit serve` in a process of its own."""

from __future__ import annotations

import asyncio
import io
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
from PIL import Image

from vit.config import PreTrainedConfig, to_pair

from .tiny import tiny_checkpoint

T = TypeVar("T")


def checkpoint(folder: Path, model_type: str = "vit", head: str | None = "classifier", **options: Any) -> Path:
    """A small checkpoint with its image processor."""
    config = tiny_checkpoint(folder, model_type, head, **options)
    write_processor(folder, config)
    return folder


def write_processor(folder: Path, config: PreTrainedConfig) -> None:
    height, width = to_pair(config.image_size)
    values = {"image_processor_type": "ViTImageProcessor", "size": {"height": height, "width": width}}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def picture(seed: int = 0, format: str = "png", size: tuple[int, int] = (24, 32), **options: Any) -> bytes:
    """The bytes of an image file of (height, width)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


class Client:
    """Calls an application without a socket; its event loop runs in a thread of its own."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def __enter__(self) -> Client:
        self._thread.start()
        self._lifespan = self.app.router.lifespan_context(self.app)
        self.run(self._lifespan.__aenter__())
        return self

    def __exit__(self, *error: Any) -> None:
        self.run(self._lifespan.__aexit__(None, None, None))
        self.run(self._client.aclose())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.run(self._client.request(method, path, **options))

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)

    def at_once(self, *requests: tuple[str, str, dict[str, Any]]) -> list[httpx.Response]:
        """Several requests at the same time."""

        async def all_of_them() -> list[httpx.Response]:
            calls = (self._client.request(method, path, **options) for method, path, options in requests)
            return list(await asyncio.gather(*calls))

        return self.run(all_of_them())


class Process:
    """`vit serve` on a free port of loopback.

    Attributes:
        address: (host, port).
        said: its log so far.
    """

    def __init__(self, *arguments: str, **environment: str) -> None:
        command = [sys.executable, "-m", "vit", "serve", "--port", "0", *arguments]
        root = str(Path(__file__).parents[1])
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root, **environment}
        )
        self.said: list[str] = []
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()
        found = re.search(r"http://(\S+):(\d+)", self.waits_for("Ready on"))
        assert found
        self.address = (found[1], int(found[2]))
        self.url = f"http://{found[1]}:{found[2]}"

    def _listen(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.said.append(line)
            self._lines.put(line)
        self._lines.put("")

    def waits_for(self, text: str) -> str:
        """The next line of its log with a text."""
        while line := self._lines.get(timeout=120):
            if text in line:
                return line
        raise AssertionError(f"it ended without {text!r}: {self.said}")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def memory(self) -> int:
        """Bytes that it holds."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[Process]:
    """`Process`, ended at the end."""
    started = Process(*arguments, **environment)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
        started.process.wait()
