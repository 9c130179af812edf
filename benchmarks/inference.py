"""Forward passes of every peer, in every dtype and batch size: `python -m benchmarks inference`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from vit.flops import forward_flops
from vit.measure import Worker, WorkerError

from .harness import COLORS, ENVIRONMENT, Bar, Options, Ratio, bars, color, process, ratio, say, table, take_turns, turn
from .peers import PEERS, RUNTIMES, SAME_WEIGHTS, Peer

TOLERANCE = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.1, "int8": 0.2}
"""How far a peer's logits may be from trivit's float32 ones, as a share of the largest: more is another function."""

SETTINGS = {
    "quick": {"dtypes": ("float32",), "batch_sizes": (1, 8)},
    "cpu": {"dtypes": ("float32", "bfloat16", "int8"), "batch_sizes": (1, 8, 32)},
    "gpu": {"dtypes": ("float32", "bfloat16"), "batch_sizes": (1, 2, 4, 8, 16, 32, 64, 128, 256)},
}
"""What is measured unless the command line says otherwise."""

EXPLANATION = """Behind the images a second, the share of the floor. The column beside says how many times as fast
trivit is in the same framework; for a runtime, trivit's fastest line above. PyTorch runs eagerly under
`inference_mode` (prepacked: after `vit.pt.prepack`; int8: after `vit.pt.quantize`, and in bfloat16 between the integer
products where the CPU multiplies that), TensorFlow under `tf.function`, Flax under `jax.jit`, the runtimes what
trivit's PyTorch model exports; images lie on the device. transformers' TensorFlow computes bfloat16 from float32
weights; keras-hub's ViT has weights of its own. "Its products alone" are the linear layers of trivit's encoder, one
after the other and nothing between; the column beside is then their share of trivit's time."""


@dataclass(frozen=True)
class Subject:
    """A peer in a dtype, built in one of the ways it can be."""

    peer: Peer
    dtype: str
    attention: str | None = None
    compiled: bool = False
    prepacked: bool = False
    products: bool = False  # its linear layers and nothing else

    @property
    def name(self) -> str:
        """As tables have it."""
        ways = {self.attention: self.attention, "compiled": self.compiled, "prepacked": self.prepacked,
                "its products alone": self.products}  # fmt: skip
        return ", ".join([self.peer.name, *(str(way) for way, is_so in ways.items() if is_so)])

    @property
    def is_ours(self) -> bool:
        """Whether it is trivit, and all of it."""
        return self.peer.library == "trivit" and not self.products


class Cell(NamedTuple):
    """What was measured of a subject at a batch size."""

    batch_size: int
    seconds: list[float]
    beside: Ratio | None = None  # the speed of what it is compared with over its own

    @property
    def throughput(self) -> float:
        """Images a second."""
        return self.batch_size / statistics.median(self.seconds)


Cells = dict[Subject, dict[int, Cell]]  # by batch size


def run(options: Options) -> str:
    """Measure, and give the section of the results."""
    settings: dict[str, Any] = SETTINGS["quick" if options.quick else options.device]
    dtypes = options.dtypes or settings["dtypes"]
    batch_sizes = sorted(options.batch_sizes or settings["batch_sizes"])
    seconds = options.seconds or (1.0 if options.quick else 10.0)
    options.measure_rates(dtypes)
    beside_peers = {dtype: compare_peers(options, dtype, batch_sizes, seconds) for dtype in dtypes}
    beside_dtypes = compare_dtypes(options, dtypes, batch_sizes, seconds) if len(dtypes) > 1 else {}
    options.measure_rates(dtypes)
    flops = forward_flops(options.config)
    floors = {dtype: rate / flops for dtype, (rate, _) in options.rates.items()}
    blocks, panels = [], {}
    for dtype, cells in beside_peers.items():
        if cells:
            floor = floors.get(dtype)
            blocks += [f"### {dtype}: images a second",
                       show(cells, batch_sizes, {dtype: floor}, "trivit's speed over it")]  # fmt: skip
            for batch_size in batch_sizes:
                panels[f"{dtype}, batch {batch_size}"] = _bars(cells, batch_size, floor)
    if beside_dtypes:
        blocks += ["### What other dtypes and prepacked weights bring trivit, and cost",
                   show(beside_dtypes, batch_sizes, floors, f"its speed over plain {dtypes[0]}", options)]  # fmt: skip
    title = f"ViT-{options.variant}: images a second, and the floor's share"
    return "\n\n".join(["## Inference", EXPLANATION, *blocks, bars(options.plot("inference"), title, panels)]).strip()


def subjects(options: Options, dtype: str) -> list[Subject]:
    """Who is measured in a dtype: on a GPU, also eager attention and compiled PyTorch; on a CPU, prepacked weights.

    Of trivit also its linear layers alone.
    """
    found = []
    for peer in options.present():
        if dtype not in peer.dtypes:
            continue
        found.append(Subject(peer, dtype))
        if options.device == "gpu" and peer.framework == "pt" and dtype != "int8":
            if peer.library in ("trivit", "transformers"):
                found.append(Subject(peer, dtype, attention="eager"))
            found.append(Subject(peer, dtype, compiled=True))
        if options.device == "cpu" and (peer.library, peer.framework) == ("trivit", "pt") and dtype != "int8":
            found.append(Subject(peer, dtype, prepacked=True))
        if peer.library == "trivit":
            found.append(Subject(peer, dtype, products=True))
    return found


def compare_peers(options: Options, dtype: str, batch_sizes: list[int], seconds: float) -> Cells:
    """Every subject's cells in a dtype, each beside trivit at its best in the same framework.

    Prepacked weights, which only inference can have, are set against the runtimes alone, which pack theirs too.

    A framework's subjects take turns among themselves, then the runtimes with the one of trivit's that was the fastest
    until then: more at once would not fit the memory, and no ratio asks for it.
    """
    everyone, found = subjects(options, dtype), Cells()
    for frameworks in (("pt",), ("tf",), ("flax",), RUNTIMES):
        group = [subject for subject in everyone if subject.peer.framework in frameworks]
        if not group:
            continue
        best = {size: _best(found, size) if frameworks == RUNTIMES else [] for size in batch_sizes}
        races = race(options, {size: best[size] + group for size in batch_sizes}, seconds)
        for batch_size, times in races.items():
            fair = [
                subject for subject in times if subject.is_ours and (frameworks == RUNTIMES or not subject.prepacked)
            ]
            ours = min((times[subject] for subject in fair), key=statistics.median, default=None)
            for subject, own in times.items():
                if subject not in best[batch_size]:
                    beside = None if subject.is_ours or ours is None else ratio(own, ours)
                    found.setdefault(subject, {})[batch_size] = Cell(batch_size, own, beside)
    return found


def compare_dtypes(options: Options, dtypes: Sequence[str], batch_sizes: list[int], seconds: float) -> Cells:
    """trivit's cells in each dtype, beside the first one in the same framework."""
    found = Cells()
    for peer in [peer for peer in options.present() if peer.library == "trivit"]:
        everyone = [subject for dtype in dtypes for subject in subjects(options, dtype) if subject.peer == peer]
        group = [each for each in everyone if not (each.attention or each.compiled or each.products)]
        if len({subject.dtype for subject in group}) < 2 or group[0].dtype != dtypes[0]:
            continue
        for batch_size, times in race(options, dict.fromkeys(batch_sizes, group), seconds).items():
            for subject, own in times.items():
                beside = ratio(times[group[0]], own) if group[0] in times and subject != group[0] else None
                found.setdefault(subject, {})[batch_size] = Cell(batch_size, own, beside)
    return found


def _best(found: Cells, batch_size: int) -> list[Subject]:
    """The fastest of trivit's subjects, if there is one."""
    ours = {s: cells[batch_size] for s, cells in found.items() if s.is_ours and batch_size in cells}
    return sorted(ours, key=lambda subject: -ours[subject].throughput)[:1]


def race(
    options: Options, groups: Mapping[int, list[Subject]], seconds: float
) -> dict[int, dict[Subject, list[float]]]:
    """Seconds of the subjects that can be measured, in turns: {batch size: {subject: seconds of each round}}."""
    workers: dict[Subject, Worker] = {}
    found = {}
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:  # importing and compiling are no measurements
        for batch_size, group in groups.items():
            say(f"batch {batch_size}: {', '.join(f'{each.name} {each.dtype}' for each in group)}")
            for subject in group:
                if subject not in workers:
                    workers[subject] = stack.enter_context(process(subject.peer))
            possible = pool.map(lambda each: prepare(options, each, batch_size, workers[each]), group)  # noqa: B023
            ready = [subject for subject, is_possible in zip(group, possible, strict=True) if is_possible]
            if ready:
                runs = {subject: partial(turn, workers[subject]) for subject in ready}
                found[batch_size] = take_turns(runs, seconds, least=3, absent=options.absent)
    return found


def prepare(options: Options, subject: Subject, batch_size: int, worker: Worker) -> bool:
    """Make a subject's process ready for a batch size; where that is not possible, note why."""
    checkpoint, framework = options.checkpoint, subject.peer.framework
    reason = f"{subject.name} {subject.dtype}"
    try:
        if framework in RUNTIMES:
            _export(subject.peer, checkpoint)
        logits = worker.prepare(
            "benchmarks.peers:inference", library=subject.peer.library, framework=framework, checkpoint=checkpoint,
            dtype=subject.dtype, batch_size=batch_size, device=options.device, attention=subject.attention,
            compiled=subject.compiled, prepacked=subject.prepacked, products=subject.products,
        )  # fmt: skip
    except ImportError as error:
        options.absent[f"{reason}: {error}"] = None
        return False
    except (WorkerError, ValueError, OSError) as error:
        options.absent[f"{reason}, batch {batch_size}: {error}"] = None
        return False
    if subject.peer.library in SAME_WEIGHTS and not subject.products:
        difference = _difference(_expected(checkpoint), logits)
        _DIFFERENCES[checkpoint, subject] = difference
        if not difference <= TOLERANCE[subject.dtype]:
            options.absent[f"{reason}: its logits are off by {difference:.1e} of the largest"] = None
            return False
    return True


_DIFFERENCES: dict[tuple[str, Subject], float] = {}
_LOCK = Lock()


def _difference(expected: list[float], logits: list[float]) -> float:
    return float(np.abs(np.subtract(logits, expected)).max() / np.abs(expected).max())


@cache
def _export(peer: Peer, checkpoint: str) -> None:
    with Worker(peer.path, ENVIRONMENT) as worker:
        worker.prepare("benchmarks.peers:export", framework=peer.framework, checkpoint=checkpoint)


def _expected(checkpoint: str) -> list[float]:
    """The logits of the first image, by the first of trivit's frameworks that is there, in float32 on the CPU."""
    with _LOCK:
        return _compute_expected(checkpoint)


@cache
def _compute_expected(checkpoint: str) -> list[float]:
    ours = next(peer for peer in PEERS if peer.library == "trivit" and peer.found() is not None)
    with Worker(ours.path, ENVIRONMENT) as worker:
        return worker.prepare(
            "benchmarks.peers:inference", library="trivit", framework=ours.framework, checkpoint=checkpoint,
            dtype="float32", batch_size=1, device="cpu",
        )  # fmt: skip


def show(
    cells: Cells,
    batch_sizes: list[int],
    floors: Mapping[str, float | None],
    beside: str,
    options: Options | None = None,
) -> str:
    """The table of cells; with `options`, the dtypes and what they cost stand in it."""
    header = ["", *(["dtype", "logits off by"] if options else [])]
    header += [name for batch_size in batch_sizes for name in (f"batch {batch_size}", beside)]
    rows: list[list[object]] = []
    for subject, by_batch in cells.items():
        rows.append([subject.name])
        if options:
            difference = _DIFFERENCES[options.checkpoint, subject]
            rows[-1] += [subject.dtype, f"{difference:.1e}" if subject.dtype != "float32" else ""]
        for batch_size in batch_sizes:
            cell = by_batch.get(batch_size)
            rows[-1] += [_figure(cell, floors.get(subject.dtype)), cell.beside or ""] if cell else ["", ""]
    for dtype, floor in floors.items():
        if floor:
            name = ["the floor", *([dtype, ""] if options else [])]
            rows.append([*name, *[f"{floor:,.3g}", ""] * len(batch_sizes)])
    return table(header, rows)


def _figure(cell: Cell, floor: float | None) -> str:
    share = f" · {cell.throughput / floor:.0%}" if floor else ""
    return f"{cell.throughput:,.0f}{share}" if cell.throughput >= 100 else f"{cell.throughput:#.3g}{share}"


def _bars(cells: Cells, batch_size: int, floor: float | None) -> list[Bar]:
    found = []
    for subject, by_batch in cells.items():
        if cell := by_batch.get(batch_size):
            fill = COLORS["products"] if subject.products else color(subject.peer.library)
            found.append(Bar(subject.name, [(cell.throughput, fill)], _figure(cell, floor)))
    if floor and found:
        found.append(Bar("the floor", [(floor, COLORS["floor"])], f"{floor:.3g}"))
    return found


if __name__ == "__main__":
    from .__main__ import main

    main(["inference"])
