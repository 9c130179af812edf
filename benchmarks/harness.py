"""What the suites share: who is there, taking turns, ratios, the floor, tables, pictures, and the file of results."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vit import ViTConfig, checkpoint
from vit.config import PreTrainedConfig
from vit.families.vit import VARIANTS
from vit.measure import Worker, WorkerError, machine

from . import SUITES
from .peers import PEERS, Peer

ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_OFFLINE": "1",
    "KERAS_BACKEND": "tensorflow",
    # float32 means float32 on accelerators too, for everyone
    "NVIDIA_TF32_OVERRIDE": "0",
    "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    # memory as it is needed, for the processes that share a GPU
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
}


@dataclass
class Options:
    """What the command line says, and what every suite needs.

    Attributes:
        folder: for checkpoints and whatever else is made.
        plots: where pictures go.
        device: "cpu" or "gpu".
        quick: whether smaller and fewer measurements are enough.
        variant: the size that is measured, such as "B/16".
        frameworks, dtypes, batch_sizes, peers: those asked for; None for the suite's own.
        seconds: how long each peer is measured at each setting; None for the suite's own.
        rates: dtype -> (operations/s of a large matrix product, the framework that reached it).
        absent: peers that are not there, and why, in the order they were noticed.
    """

    folder: Path
    plots: Path
    variant: str = "B/16"
    device: str = "cpu"
    quick: bool = False
    frameworks: Sequence[str] | None = None
    dtypes: Sequence[str] | None = None
    batch_sizes: Sequence[int] | None = None
    peers: Sequence[str] | None = None
    seconds: float | None = None
    rates: dict[str, tuple[float, str]] = field(default_factory=dict)
    absent: dict[str, None] = field(default_factory=dict)

    def present(self) -> list[Peer]:
        """The peers that were asked for and are installed; the others are noted."""
        wanted = [
            peer
            for peer in PEERS
            if (self.frameworks is None or peer.framework in self.frameworks)
            and (self.peers is None or peer.name.startswith(("trivit", *self.peers)))
        ]
        if self.quick and self.peers is None:
            rivals = {peer.framework: peer for peer in reversed(wanted) if peer.library != "trivit"}
            wanted = [peer for peer in wanted if peer.library == "trivit" or peer == rivals[peer.framework]]
            self.absent["all but one peer of each framework, to be quick"] = None
        for peer in wanted:
            if peer.found() is None:
                self.absent[peer.missing] = None
        return [peer for peer in wanted if peer.found() is not None]

    @property
    def config(self) -> ViTConfig:
        """Of the variant."""
        return ViTConfig.variant(self.variant, num_labels=1000)

    @property
    def checkpoint(self) -> str:
        """The folder of random weights in the shape of the variant, written when it is first asked for."""
        folder = self.folder / self.variant.replace("/", "-")
        if not (folder / "config.json").exists():
            random_checkpoint(folder, self.config)
        return str(folder)

    def plot(self, suite: str) -> Path:
        """Where the picture of a suite goes."""
        return self.plots / f"{suite}-{self.device}-{self.variant.replace('/', '-')}.png"

    def measure_rates(self, dtypes: Iterable[str]) -> None:
        """Measure `rates`: each dtype's best over the frameworks that are there, and over the times it is asked for.

        Suites ask before and after what they measure: a machine that was slowed the first time gives too low a floor.
        """
        ours = [peer.framework for peer in PEERS if peer.library == "trivit" and peer.found() is not None]
        for dtype in dtypes:
            for framework in ours:
                if dtype == "int8" and framework != "pt":  # of the three, it alone has such a product
                    continue
                with Worker(environment=ENVIRONMENT) as worker:
                    device = {"pt": "cuda"}.get(framework, "gpu") if self.device == "gpu" else self.device
                    arguments = {"framework": framework, "dtype": dtype, "device": device}
                    try:
                        rate = worker.prepare("vit.measure:matrix_rate", **arguments)
                    except (WorkerError, ImportError, ValueError, OSError) as error:
                        self.absent[f"matrix products of {framework} in {dtype}: {error}"] = None
                        continue
                    self.rates[dtype] = max(self.rates.get(dtype, (0.0, "")), (rate, framework))


def random_checkpoint(
    folder: str | os.PathLike[str], config: PreTrainedConfig, seed: int = 0, head: str | None = "classifier"
) -> None:
    """Write a checkpoint of random weights, of the class that a head has."""
    rng = np.random.default_rng(seed)
    shapes = config.parameter_shapes(head=head, **config.heads[head].parts)
    stored = {config.model_name(name, head): shape for name, shape in shapes.items()}
    tensors = {name: (shape, np.dtype(np.float32)) for name, shape in stored.items()}

    def values(name: str) -> np.ndarray:
        return 0.02 * rng.standard_normal(stored[name], np.float32) + np.float32("norm" in name)

    checkpoint.write(folder, config.replace(architectures=(config.heads[head].name,)), tensors, values)


# === Measuring ===

PAUSE = 0.05  # seconds, after which the threads of the process that ran before have stopped waiting for more work
TURN = 0.3  # seconds that a turn lasts at least


def turn(worker: Worker) -> float:
    """Seconds of what a worker holds ready, as in a row of calls.

    Where a call is short, the first of a turn does not count: it finds the caches as the others left them.
    """
    time.sleep(PAUSE)
    times = worker.run(TURN)
    return statistics.median(times[1:] or times)


def process(peer: Peer, variables: Mapping[str, str] | None = None) -> Worker:
    """A process in which a peer is found, with variables of its own beside everybody's."""
    return Worker(peer.path, {**ENVIRONMENT, **peer.environment, **(variables or {})})


def take_turns(
    runs: Mapping[Any, Callable[[], Any]],
    seconds: float,
    least: int = 5,
    most: int = 40,
    warm: bool = True,
    absent: dict[str, None] | None = None,
) -> dict[Any, list[Any]]:
    """What each of several runs gives, again and again, in turns: A B C, C B A, A B C, ...

    Args:
        runs: name -> a run.
        seconds: how long each of them is repeated.
        least: rounds, whatever they take.
        most: rounds, however short they are.
        warm: whether a round that does not count comes before.
        absent: where it is noted why a run failed, which the others go on without; None raises the WorkerError.

    Returns:
        {name: what it gave in each round}.
    """
    runs = dict(runs)
    found: dict[Any, list[Any]] = {name: [] for name in runs}
    rounds, slowest = (-1 if warm else 0), 0.0
    while runs and (rounds < least or (rounds < most and rounds * slowest < seconds)):
        for name in list(runs)[:: 1 if rounds % 2 == 0 else -1]:
            start = time.perf_counter()
            try:
                found[name].append(runs[name]())
            except WorkerError as error:
                if absent is None:
                    raise
                absent[f"{getattr(name, 'name', name)}: {error}"] = None
                del runs[name], found[name]
            slowest = max(slowest, time.perf_counter() - start)
        if rounds < 0:
            found, slowest = {name: [] for name in runs}, 0.0
        rounds += 1
    return found


class Ratio(NamedTuple):
    """How a quantity compares, round by round."""

    median: float
    low: float  # a quarter of the rounds is below
    high: float  # a quarter is above

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """The quotients of what was measured in the same rounds."""
    quotients = [a / b for a, b in zip(above, below, strict=True)]
    low, median, high = (
        statistics.quantiles(quotients, n=4, method="inclusive") if len(quotients) > 1 else quotients * 3
    )
    return Ratio(median, low, high)


def say(text: str) -> None:
    """Tell on stderr what is going on."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


# === Showing ===


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, whose columns but the first are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines)


class Bar(NamedTuple):
    """One bar of a picture: parts of (length, colour) one behind the other, a name before and a text behind."""

    name: str
    parts: Sequence[tuple[float, str]]
    text: str


COLORS = {"trivit": "#0969da", "peer": "#afb8c1", "products": "#8ddb8c", "floor": "#1a7f37"}
"""Of a bar."""


def color(library: str) -> str:
    """trivit's, or that of everybody else."""
    return COLORS["trivit" if library == "trivit" else "peer"]


STAGES = ("#54aeff", "#0969da", "#8250df", "#bf3989", "#fb8f44")


def bars(path: Path, title: str, panels: Mapping[str, Sequence[Bar]], legend: Mapping[str, str] | None = None) -> str:
    """Draw panels of horizontal bars, each panel on a scale of its own.

    Args:
        path: a .png file; its folder is made.
        title: of the picture.
        panels: what stands above a panel -> its bars, from the top.
        legend: what a colour means -> the colour.

    Returns:
        the Markdown that shows it; "" without matplotlib, or without a bar.
    """
    panels = {name: found for name, found in panels.items() if found}
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError:
        return ""
    if not panels:
        return ""
    line, head = 0.27, 0.5
    heights = [head + line * len(found) for found in panels.values()]
    top = 0.9 if legend else 0.6
    height = top + sum(heights) + 0.1
    figure = Figure(figsize=(10, height), dpi=110, facecolor="white")
    figure.text(0.02, 1 - 0.35 / height, title, fontsize=13, weight="bold")
    if legend:
        handles = [Patch(color=color, label=name) for name, color in legend.items()]
        figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.01, 1 - 0.45 / height), ncols=len(legend),
                      frameon=False, fontsize=9)  # fmt: skip
    for (name, found), tall in zip(panels.items(), heights, strict=True):
        figure.text(0.02, 1 - (top + 0.3) / height, name, fontsize=10.5, weight="bold")
        left, width = 0.3, 0.45
        axes = figure.add_axes((left, 1 - (top + tall) / height, width, (tall - head) / height))
        longest = max(sum(length for length, _ in bar.parts) for bar in found)
        axes.set(xlim=(0, longest), ylim=(len(found) - 0.5, -0.5))
        axes.set_axis_off()
        for i, bar in enumerate(found):
            start = 0.0
            for length, color in bar.parts:
                axes.barh(i, length, left=start, color=color, height=0.72)
                start += length
            axes.text(-0.02 * longest, i, bar.name, ha="right", va="center", fontsize=9)
            axes.text(start + 0.015 * longest, i, bar.text, va="center", fontsize=9)
        top += tall
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    return f"![{title}]({path.parent.name}/{path.name})"


# === The file ===

INTRODUCTION = """# Measured

Written by `python -m benchmarks`, which measures trivit and its peers side by side: each in a process of its own, one
at a time, in turns (A B C, C B A, ...). A figure is the median of its rounds. A ratio is the median of the quotients of
the rounds, so what slows the machine for a while slows both sides of it; the range behind it holds the middle half of
them. The floor is what the machine could do if every floating-point operation of the model ran at the rate of its large
matrix products in that dtype, the best of the frameworks: see `vit/flops.py`.

Weights are random, images too; peers that load checkpoints hold the same weights, and their logits are compared before
they are timed. Each section says where, when and with what it was measured; sections of other days stay as they were.
"""
WAITING = """## On a GPU

Not measured: no GPU was there. `make bench-gpu` measures all that matters there in nine minutes, `python -m benchmarks
--device gpu` the suites above, and both add their sections here. No figure of this file is carried over to a GPU.
"""


def heading(options: Options, command: str, versions: Iterable[str]) -> str:
    """Where, when and with what a section was measured."""
    found = machine()
    memory = f", {found['memory'] / 2**30:.0f} GiB" if found["memory"] else ""
    where = f"{found['cpu']}, {found['cores']} cores{memory}; {found['system']}, Python {found['python']}"
    accelerator = f"{gpu_name()}; " if options.device == "gpu" else ""
    rates = ", ".join(f"{dtype} {rate / 1e9:,.0f} GFLOP/s ({framework})" for dtype, (rate, framework) in
                      options.rates.items())  # fmt: skip
    lines = [
        f"`{command}` on {date.today().isoformat()}; {accelerator}{where}; {', '.join(versions)}.",
        f"Large matrix products: {rates}." if rates else "",
        "".join(f"\n- Left out: {line}" for line in options.absent),
    ]
    return "\n".join(line for line in lines if line)


def gpu_name() -> str:
    """What the first GPU is called."""
    with Worker(environment=ENVIRONMENT) as worker:
        return worker.prepare("benchmarks.harness:_gpu_name")


def _gpu_name() -> str:
    try:
        import torch

        return torch.cuda.get_device_name(0)
    except (ImportError, RuntimeError, AssertionError):
        import jax

        return jax.devices("gpu")[0].device_kind


def versions() -> list[str]:
    """The frameworks and peers that are there, with their versions."""
    from importlib.metadata import PackageNotFoundError, version

    names = {"torch": "PyTorch", "tensorflow": "TensorFlow", "tensorflow-cpu": "TensorFlow", "keras": "Keras",
             "jax": "JAX", "flax": "Flax"}  # fmt: skip
    found: dict[str, None] = {}
    for name, shown in names.items():
        try:
            found[f"{shown} {version(name)}"] = None
        except PackageNotFoundError:
            continue
    for peer in PEERS:
        if peer.library != "trivit" and (number := peer.found()) is not None:
            found[f"{peer.library} {number}"] = None
    return list(found)


def write_results(path: Path, key: Sequence[str], section: str) -> None:
    """Put a section into the file of results, in the place of the one with the same key.

    Args:
        path: the file; made if it is not there.
        key: suite and device, and the size of the model where the suite takes one.
        section: Markdown.
    """
    found = {tuple(key): section}
    if path.exists():
        for part in path.read_text().split("<!-- section: ")[1:]:
            name, _, text = part.partition(" -->\n")
            found.setdefault(tuple(name.split()), text.partition("<!-- end -->")[0].strip())

    def place(key: tuple[str, ...]) -> tuple[bool, int, list[tuple[int, int]]]:
        suite, device, *variants = key
        split = [variant.split("/") for variant in variants]
        sizes = [(list(VARIANTS).index(size), int(patch)) for size, patch in split]
        return device != "cpu", SUITES.index(suite) if suite in SUITES else len(SUITES), sizes

    keys = sorted(found, key=place)
    parts = [f"<!-- section: {' '.join(key)} -->\n{found[key]}\n<!-- end -->\n" for key in keys]
    waiting = [] if any(device == "gpu" for _, device, *_ in keys) else [WAITING]
    whole = path.with_name(f".{path.name}.{os.getpid()}")  # whoever is killed here leaves the old file
    whole.write_text("\n".join([INTRODUCTION, *parts, *waiting]))
    whole.replace(path)
