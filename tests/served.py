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

from vit import ViTImageProcessor
from vit.config import PreTrainedConfig, to_pair

from .tiny import tiny_checkpoint

T = TypeVar("T")

LABELS = ("ant", "bee", "cat")


def onnx_file(path: Path, task: str = "classify", vector: tuple[int, ...] = (3,)) -> Path:
    """A model of one step, as `vit export` writes them: the means of the colours, as logits or as a vector, of whose
    shape it says whatever it is told to."""
    import onnx
    from onnx import TensorProto, helper

    nodes = [helper.make_node("GlobalAveragePool", ["pixel_values"], ["means"]),
             helper.make_node("Flatten", ["means"], ["logits" if task == "classify" else "embedding"])]  # fmt: skip
    outputs = {"logits": (TensorProto.FLOAT, ["n", 3]), "probabilities": (TensorProto.FLOAT, ["n", 3]),
               "labels": (TensorProto.INT64, ["n"])}  # fmt: skip
    about: dict[str, Any] = {"labels": list(LABELS), "problem_type": "single_label_classification"}
    if task == "embed":
        outputs, about = {"embedding": (TensorProto.FLOAT, ["n", 3])}, {"pool": "mean"}
    else:
        nodes += [helper.make_node("Softmax", ["logits"], ["probabilities"]),
                  helper.make_node("ArgMax", ["logits"], ["labels"], axis=1, keepdims=0)]  # fmt: skip
    shapes = {name: [None, *vector] if name == "embedding" else [None, 3][: len(shape)]
              for name, (_, shape) in outputs.items()}  # fmt: skip
    graph = helper.make_graph(
        nodes, "means", [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["n", 3, 16, 12])],
        [helper.make_tensor_value_info(name, *each) for name, each in outputs.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    processor = ViTImageProcessor(size={"height": 16, "width": 12})
    about |= {"trivit": "0.1.0", "format": "onnx", "task": task, "preprocessing": processor.to_dict(),
              "inputs": {"pixel_values": {"shape": [None, 3, 16, 12], "dtype": "float32"}},
              "outputs": {name: {"shape": shape, "dtype": "float32"} for name, shape in shapes.items()}}  # fmt: skip
    helper.set_model_props(model, {"trivit": json.dumps(about)})
    onnx.save(model, path)
    return path


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


BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {without!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
from vit.cli import main
main({arguments!r})
"""


class Process:
    """`vit serve` on a free port of loopback, where the modules `without` cannot be imported.

    Attributes:
        address: (host, port).
        said: its log so far.
    """

    def __init__(self, *arguments: str, without: tuple[str, ...] = (), **environment: str) -> None:
        code = BLOCKED.format(without=without, arguments=["serve", "--port", "0", *arguments])
        command = [sys.executable, "-c", code]
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
def process(*arguments: str, without: tuple[str, ...] = (), **environment: str) -> Iterator[Process]:
    """`Process`, ended at the end."""
    started = Process(*arguments, without=without, **environment)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
        started.process.wait()
