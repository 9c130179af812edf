"""Loading a checkpoint, its time and its memory: `python -m benchmarks load`.

Every figure is that of a process of its own, in which the framework and the class are imported before the clock starts.
The file is in the page cache.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vit.measure import WorkerError, peak_memory

from .harness import Bar, Options, bars, color, process, ratio, say, table, take_turns
from .peers import CLASSES, FLOATS, Peer

SETTINGS: dict[bool, dict[str, Any]] = {
    True: {"dtypes": ("float32",), "seconds": 1.0, "least": 1},
    False: {"dtypes": ("float32", "bfloat16"), "seconds": 40.0, "least": 5},
}
"""What is measured unless the command line says otherwise, quick or not."""

EXPLANATION = """From `from_pretrained` to a model; then until every page of its weights has been touched, by which a
mapped file comes into memory. Memory is the peak of that beyond what the process held before; the classes are imported
by then. The floor is reading the file once into new memory, and the memory of the weights."""


def run(options: Options) -> str:
    """Measure, and give the section of the results."""
    settings = SETTINGS[options.quick]
    blocks, panels = [], {}
    file = Path(options.checkpoint, "model.safetensors")
    for dtype in [each for each in options.dtypes or settings["dtypes"] if each in FLOATS]:
        found: dict[Peer, list[dict[str, float]]] = {}
        for framework in CLASSES:
            peers = [peer for peer in options.present() if peer.framework == framework and dtype in peer.dtypes
                     and (peer.library, dtype) != ("transformers", "bfloat16" if framework == "tf" else "")
                     and peer.library in ("trivit", "transformers")]  # fmt: skip
            if not peers:
                continue
            say(f"{dtype}: {', '.join(peer.name for peer in peers)}")
            runs = {peer: partial(load_in_a_process, options, peer, dtype) for peer in peers}
            found |= take_turns(runs, options.seconds or settings["seconds"], settings["least"], most=10,
                                warm=not options.quick, absent=options.absent)  # fmt: skip
        size = file.stat().st_size * {"float32": 4, "bfloat16": 2, "float16": 2}[dtype] // 4
        read = statistics.median(read_seconds(file) for _ in range(5))
        title = f"{file.stat().st_size / 1e6:,.0f} MB of float32, as {dtype}"
        blocks += [f"### {title}", show(found, read, size)]
        panels[f"{title}: seconds to touched weights"] = [
            Bar(peer.name, [(median, color(peer.library))], f"{median:.2f}") for peer, samples in found.items()
            for median in [statistics.median(sample["touched"] for sample in samples)]]  # fmt: skip
        panels[f"{title}: peak memory in multiples of the weights"] = [
            Bar(peer.name, [(median, color(peer.library))], f"{median:.2f}") for peer, samples in found.items()
            for median in [statistics.median(sample["memory"] for sample in samples) / size]]  # fmt: skip
    picture = bars(options.plot("load"), f"ViT-{options.variant}: loading a checkpoint", panels)
    return "\n\n".join(["## Loading", EXPLANATION, *blocks, picture]).strip()


def load_in_a_process(options: Options, peer: Peer, dtype: str) -> dict[str, float]:
    """Seconds to a model and to its touched weights, and bytes of peak memory, of a process of its own."""
    with process(peer) as worker:
        try:
            return worker.prepare("benchmarks.load:load", library=peer.library, framework=peer.framework,
                                  checkpoint=options.checkpoint, dtype=dtype)  # fmt: skip
        except (ValueError, ImportError, OSError) as error:
            raise WorkerError(str(error)) from error


def read_seconds(file: Path) -> float:
    """Seconds of reading a file into new memory."""
    start = time.perf_counter()
    np.fromfile(file, np.uint8)
    return time.perf_counter() - start


def show(found: dict[Peer, list[dict[str, float]]], read: float, size: int) -> str:
    """The table of a dtype."""
    header = ["", "seconds to a model", "to touched weights", "trivit's time over it", "peak memory / weights",
              "trivit's memory over it"]  # fmt: skip
    rows: list[list[object]] = []
    for peer, samples in found.items():
        values = {key: [sample[key] for sample in samples] for key in samples[0]}
        ours = next((own for other, own in found.items()
                     if other.library == "trivit" and other.framework == peer.framework), samples)  # fmt: skip
        beside: list[object] = ["", ""]
        if ours is not samples:
            quotients = ([[sample[key] for sample in ours], values[key]] for key in ("touched", "memory"))
            beside = [ratio(*pair) for pair in quotients]
        rows.append([peer.name, f"{statistics.median(values['loaded']):.2f}",
                     f"{statistics.median(values['touched']):.2f}", beside[0],
                     f"{statistics.median(values['memory']) / size:.2f}", beside[1]])  # fmt: skip
    return table(header, [*rows, ["the floor", "", f"{read:.2f}", "", "1.00", ""]])


# === In the peer's process ===


def load(library: str, framework: str, checkpoint: str, dtype: str) -> dict[str, float]:
    """Load a classifier, whose class has been imported before."""
    import importlib

    module = importlib.import_module("vit" if library == "trivit" else library)
    cls = getattr(module, CLASSES[framework])  # imports the framework
    options: dict[str, Any] = {"dtype": dtype}
    if library == "transformers" and framework == "pt":
        import torch

        options = {"dtype": getattr(torch, dtype)}
    elif library == "transformers":
        options = {"from_pt": True} if framework == "tf" else {"dtype": dtype}
    before = _held()
    peak_memory(reset=True)
    start = time.perf_counter()
    model = cls.from_pretrained(checkpoint, **options)
    if library == "transformers" and framework == "flax" and dtype == "bfloat16":
        model.params = model.to_bf16(model.params)
    loaded = time.perf_counter() - start
    _touch(model, framework)
    touched = time.perf_counter() - start
    return {"loaded": loaded, "touched": touched, "memory": float(peak_memory() - before)}


def _held() -> int:
    """Bytes of memory that this process holds now."""
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) * 1024


def _touch(model: Any, framework: str) -> None:
    if framework == "pt":
        arrays = [parameter.detach().view(-1).view(dtype=_bytes()).numpy() for parameter in model.parameters()]
    elif framework == "tf":
        arrays = [np.asarray(variable).reshape(-1).view(np.uint8) for variable in model.weights]
    else:
        import jax

        leaves = jax.tree.leaves(model.params if hasattr(model, "params") else _state(model))
        arrays = [np.asarray(leaf).reshape(-1).view(np.uint8) for leaf in leaves]
    assert sum(int(array[::1024].sum()) for array in arrays) > 0


def _bytes() -> Any:
    import torch

    return torch.uint8


def _state(model: Any) -> Any:
    from flax import nnx

    return nnx.state(model, nnx.Param)


if __name__ == "__main__":
    from .__main__ import main

    main(["load"])
