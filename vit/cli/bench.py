"""`vit bench`: how fast a checkpoint runs on this machine, and how near that is to what the machine can do."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import picture
from ..errors import FRAMEWORKS, InputError, install_line, quoted
from .frameworks import BUSY, DIGITS, busy_line, choose, import_quietly, open_model, version
from .options import CacheDir, Device, DTypes, Force, Frameworks, Json, Model, Quiet, Revision, Token

if TYPE_CHECKING:
    from rich.console import Console

    from ..inference import Forward


def command(
    model: Model = None,
    revision: Revision = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    framework: Frameworks = None,
    dtype: DTypes = None,
    attn_implementation: Annotated[
        list[str] | None, typer.Option(metavar="sdpa|eager", help="The attention; repeatable. [default: checkpoint's]")
    ] = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option("--batch-size", "-b", metavar="N", min=1, help="Images a step; repeatable. [default: 1, 8, 32]"),
    ] = None,
    device: Device = None,
    seconds: Annotated[float, typer.Option(metavar="X", min=0.01, help="How long each line is measured.")] = 2.0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Draw it, as a .png, .svg or .pdf file.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Measure latency and throughput on this machine.

    Every framework, dtype, attention and batch size that is asked for, each framework in a process of its own. Times
    are from an array of images to an array of answers, copies to and from a GPU included. They stand beside the rate at
    which this machine multiplies large matrices of that dtype. The exit status is 1 when a line could not be measured.
    """
    frameworks = choose(framework, "vit bench")
    if output is not None:
        picture.require("--output of vit bench")
        picture.check_output(output, force)

    from rich.console import Console

    with open(os.dup(2), "w") as stderr, Console(file=stderr, quiet=quiet).status("Starting") as status:
        results = measure(
            model, frameworks, dtype or [None], attn_implementation or [None], batch_size or [1, 8, 32], device,
            seconds, report=status.update, skip_broken=not framework,
            hub={"revision": revision, "token": token, "cache_dir": cache_dir},
        )  # fmt: skip
        if output is not None:
            status.update("Drawing")
            draw(output, results)
    if as_json:
        typer.echo(json.dumps(results.to_dict(), indent=2))
    elif not quiet:
        console = Console(highlight=False)
        show(results, console if console.is_terminal else Console(highlight=False, width=140))
        if output is not None:
            console.print(f"Picture: {output}", markup=False, soft_wrap=True)
    return 1 if any(row.error for row in results.rows) else 0


@dataclass
class Row:
    """One line: what was measured, and of what."""

    framework: str
    dtype: str | None  # None: the checkpoint's, until it is loaded
    attn_implementation: str | None
    batch_size: int
    device: str = ""
    load_seconds: float = 0.0  # of the weights, without the framework's import; 0 where an earlier line loaded them
    first_call_seconds: float = 0.0  # compiling included
    seconds: list[float] = field(default_factory=list)  # of each call
    error: str | None = None

    @property
    def latency(self) -> float:
        """The median of the seconds."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Seconds that a quarter of the calls stayed below, and that a quarter exceeded."""
        low, _, high = statistics.quantiles(self.seconds, method="inclusive")
        return low, high

    @property
    def throughput(self) -> float:
        """Images a second."""
        return self.batch_size / self.latency

    @property
    def name(self) -> str:
        """What tells it from the others of its batch size."""
        return " ".join(filter(None, (FRAMEWORKS[self.framework][1], self.dtype, self.attn_implementation)))


@dataclass
class Results:
    """The lines, and what they are held against."""

    model: str
    flops: int  # of a forward pass of one image
    machine: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)  # of frameworks
    rates: dict[tuple[str, str], float] = field(default_factory=dict)  # (device, dtype) -> operations/s, the best
    rows: list[Row] = field(default_factory=list)
    busy: float = 0.0  # the largest share of the processors that other programs had before a line was measured
    broken: dict[str, str] = field(default_factory=dict)  # framework -> why it could not be imported
    missing: dict[str, str] = field(default_factory=dict)  # framework -> the command that installs it

    def ceiling(self, row: Row) -> float | None:
        """Images a second if every operation ran at the rate of a large matrix product; None where no rate is known."""
        rate = self.rates.get((row.device, row.dtype or ""))
        return rate and rate / self.flops

    def share(self, row: Row) -> float | None:
        """The part of that ceiling that a line reaches."""
        ceiling = self.ceiling(row)
        return ceiling and row.throughput / ceiling

    def to_dict(self) -> dict[str, Any]:
        """What --json prints."""
        rows: list[dict[str, Any]] = []
        for row in self.rows:
            keys = ("framework", "dtype", "attn_implementation", "batch_size")
            rows.append({key: getattr(row, key) for key in keys})
            if row.error:
                rows[-1]["error"] = row.error
                continue
            rows[-1] |= {
                "device": row.device,
                "load_seconds": row.load_seconds,
                "first_call_seconds": row.first_call_seconds,
                "calls": len(row.seconds),
                "seconds": row.latency,
                "seconds_quartiles": list(row.quartiles),
                "images_per_second": row.throughput,
                "flops_per_second": row.throughput * self.flops,
                "share_of_matrix_rate": self.share(row),
            }
        rates = [{"device": device, "dtype": dtype, "flops_per_second": rate}
                 for (device, dtype), rate in self.rates.items()]  # fmt: skip
        return {
            "model": self.model,
            "flops_per_image": self.flops,
            "machine": self.machine,
            "versions": self.versions,
            "matrix_rates": rates,
            "busy": self.busy,
            "rows": rows,
            "missing": self.missing,
            "broken": self.broken,
        }


def measure(
    model: str | None,
    frameworks: list[str],
    dtypes: Sequence[str | None],
    attn_implementations: Sequence[str | None],
    batch_sizes: Sequence[int],
    device: str | None,
    seconds: float,
    report: Callable[[str], object] = lambda text: None,
    skip_broken: bool = False,
    hub: Mapping[str, Any] | None = None,
) -> Results:
    """Measure every combination.

    Args:
        model: a checkpoint; None for the bundled digits.
        frameworks: some of "pt", "tf", "flax".
        dtypes: names; None for the checkpoint's.
        attn_implementations: "sdpa", "eager"; None for the checkpoint's.
        batch_sizes: images a call.
        device: for `open_model`.
        seconds: how long each is repeated, five times at least.
        report: called with what is about to be done.
        skip_broken: go on without a framework that cannot be imported, if another can.
        hub: options of `vit.hub.resolve`.

    Raises:
        CheckpointError, ConfigError, InputError: a model, dtype, attention or device that there is not.
        ImportError: a framework that cannot be imported.
    """
    from ..checkpoint import Checkpoint, head_of, parts_of
    from ..config import ATTENTION_IMPLEMENTATIONS, DTYPES
    from ..flops import forward_flops
    from ..hub import resolve
    from ..measure import Worker, WorkerError, busy, machine

    choices = {"dtype": (dtypes, DTYPES), "attn-implementation": (attn_implementations, ATTENTION_IMPLEMENTATIONS)}
    for option, (given, allowed) in choices.items():
        if unknown := [value for value in given if value not in (None, *allowed)]:
            raise InputError(f"--{option} is {quoted(unknown[0])}; expected {', '.join(allowed)}.")
    folder = resolve(model or DIGITS, **(hub or {}))
    opened = Checkpoint(folder)
    head = head_of(opened)
    config = opened.config if head else opened.config.replace(**opened.config.seeing_all)
    flops = forward_flops(config, head, **({} if head else parts_of(opened)))
    results = Results(model or "digits", flops, machine())
    for framework, dtype, attention in product(frameworks, dict.fromkeys(dtypes), dict.fromkeys(attn_implementations)):
        if framework in results.broken:
            continue
        environment = {"JAX_ENABLE_X64": "1"} if dtype == "float64" else {}
        worker = Worker(environment=environment)
        try:
            for batch_size in sorted(set(batch_sizes)):
                row = Row(framework, dtype, attention, batch_size)
                report(f"{FRAMEWORKS[framework][1]} {dtype or ''} {attention or ''} batch {batch_size}")
                try:
                    found = worker.prepare(
                        "vit.cli.bench:prepare", model=str(folder), framework=framework, dtype=dtype,
                        batch_size=batch_size, attn_implementation=attention, device=device,
                    )  # fmt: skip
                    results.versions[framework] = found.pop("version")
                    for name, value in found.items():
                        setattr(row, name, value)
                    worker.run(seconds / 4, least=2)  # to get warm
                    results.busy = max(results.busy, busy())
                    row.seconds = worker.run(seconds, least=5)
                    rate = worker.prepare("vit.cli.bench:rate", framework=framework, dtype=row.dtype, device=device)
                    key = (row.device, row.dtype or "")
                    results.rates[key] = max(rate, results.rates.get(key, 0))
                except WorkerError as error:
                    row.error = str(error)
                    worker.close()
                    worker = Worker(environment=environment)
                except ImportError as error:  # it is there, but itself or what it needs is not whole
                    results.broken[framework] = str(error)
                    if not skip_broken or len(results.broken) == len(frameworks):
                        raise
                    break
                results.rows.append(row)
        finally:
            worker.close()
    if skip_broken:
        results.missing = {extra: install_line(extra) for extra in FRAMEWORKS if extra not in frameworks}
    return results


# === In the worker's process ===


def prepare(
    model: str | None,
    framework: str,
    dtype: str | None,
    attn_implementation: str | None,
    batch_size: int,
    device: str | None,
) -> tuple[Callable[[], Any], dict[str, Any]]:
    """A model's forward pass of a batch, and what is known of it."""
    import numpy as np

    from ..config import to_pair
    from ..measure import seconds as clock

    import_quietly(framework)  # whose time is not the model's
    loaded = _load.cache_info().misses
    start = time.perf_counter()
    forward = _load(model, framework, dtype, attn_implementation, device)
    load_seconds = time.perf_counter() - start if _load.cache_info().misses > loaded else 0.0
    config = forward.config
    shape = (batch_size, config.num_channels, *to_pair(config.image_size))
    pixel_values = np.random.default_rng(0).standard_normal(shape, np.float32)
    first_call_seconds = clock(partial(forward, pixel_values))
    return partial(forward, pixel_values), {
        "dtype": config.dtype,
        "attn_implementation": config.attn_implementation,
        "device": _device_name(forward),
        "version": version(framework),
        "load_seconds": load_seconds,
        "first_call_seconds": first_call_seconds,
    }


@lru_cache(maxsize=1)
def _load(
    model: str | None, framework: str, dtype: str | None, attn_implementation: str | None, device: str | None
) -> Forward:
    return open_model(model, framework, device=device, dtype=dtype, attn_implementation=attn_implementation)


@lru_cache
def rate(framework: str, dtype: str, device: str | None) -> float:
    """`matrix_rate` of the worker's framework, measured once."""
    from ..inference import device_name
    from ..measure import matrix_rate

    return matrix_rate(framework, dtype, None if device is None else device_name(device, framework))


def _device_name(forward: Forward) -> str:
    """ "cpu", or what the maker calls the accelerator that a model is on."""
    model = forward.model
    if forward.framework == "pt":
        import torch

        return torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type
    if forward.framework == "tf":
        import tensorflow as tf

        *_, kind, index = model.weights[0].value.device.split(":")  # /job:localhost/replica:0/task:0/device:GPU:0
        if kind == "CPU":
            return "cpu"
        details = tf.config.experimental.get_device_details(tf.config.list_physical_devices(kind)[int(index)])
        return details.get("device_name", kind.lower())
    import jax
    from flax import nnx

    (device,) = jax.tree.leaves(nnx.state(model))[0].devices()
    return "cpu" if device.platform == "cpu" else device.device_kind


# === What is shown ===


def show(results: Results, console: Console) -> None:
    """Print the lines as a table, below what they are held against."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    for line in headlines(results):
        console.print(line, markup=False, soft_wrap=True)
    table = Table(box=box.SIMPLE, header_style=None)
    for name in ("framework", "dtype", "attention"):
        table.add_column(name, no_wrap=True)
    for name in ("batch", "load s", "first call s", "ms", "quartiles", "images/s", "GFLOP/s", "of matrix products"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in results.rows:
        if row.error:
            continue
        cells = [FRAMEWORKS[row.framework][1], row.dtype, row.attn_implementation, str(row.batch_size)]
        low, high = row.quartiles
        share = results.share(row)
        table.add_row(
            *cells, f"{row.load_seconds:.2f}" if row.load_seconds else "", f"{row.first_call_seconds:.2f}",
            milliseconds(row.latency), f"{milliseconds(low)} .. {milliseconds(high)}", f"{row.throughput:,.1f}",
            f"{row.throughput * results.flops / 1e9:,.1f}", "" if share is None else f"{share:.0%}",
        )  # fmt: skip
    if table.row_count:
        console.print(table)
    for row in results.rows:
        if row.error:
            console.print(Text(f"{row.name} batch {row.batch_size}: {row.error}", "red"), soft_wrap=True)
    for extra, reason in results.broken.items():
        console.print(f"{FRAMEWORKS[extra][1]} is installed but cannot be imported: {reason}", markup=False)
    for extra, line in results.missing.items():
        console.print(f"{FRAMEWORKS[extra][1]} is not installed. Install it with: {line}", markup=False)


def milliseconds(seconds: float) -> str:
    """As many digits as mean something: 0.047, 4.71, 471, 4,710."""
    time = seconds * 1e3
    return f"{time:,.{min(3, max(0, 2 - math.floor(math.log10(time))))}f}" if time > 0 else "0"


def headlines(results: Results) -> list[str]:
    """What was measured, where, and what it is held against."""
    machine = results.machine
    versions = ", ".join(f"{FRAMEWORKS[extra][1]} {version}" for extra, version in results.versions.items())
    products = [f"{dtype} {rate / 1e9:,.0f} GFLOP/s{'' if device == 'cpu' else f' ({device})'}"
                for (device, dtype), rate in results.rates.items()]  # fmt: skip
    return [
        f"{results.model}: {results.flops / 1e9:.3g} GFLOP an image",
        f"{machine['cpu']}, {machine['cores']} cores; Python {machine['python']}" + (versions and f", {versions}"),
        f"large matrix products: {', '.join(products)}" if products else "nothing could be measured",
        *([f"{busy_line(results.busy)}: these figures say little"] if results.busy > BUSY else []),
    ]


COLORS = {"pt": "#f0883e", "tf": "#e3c34b", "flax": "#58a6ff"}
LINE, LABEL = 0.36, 3.6  # inches: the height of a bar and its distance to the next, and the width of its name


def draw(path: Path, results: Results) -> None:
    """Draw images a second as bars on one scale, a block for each batch size.

    Raises:
        InputError: the file cannot be written.
    """
    sizes = sorted({row.batch_size for row in results.rows})
    blocks = {size: [row for row in results.rows if row.batch_size == size] for size in sizes}
    heights = {size: 0.75 + LINE * len(rows) for size, rows in blocks.items()}
    slide = picture.Slide(2.1 + sum(heights.values()) + 0.5)
    first, *rest = headlines(results)
    whole, left = picture.WIDTH - 2 * picture.MARGIN, picture.MARGIN + LABEL
    slide.write(picture.MARGIN, 0.9, f"Images a second, {first}", most=whole, fontsize=23, weight="bold")
    for i, line in enumerate(rest):
        slide.write(picture.MARGIN, 1.35 + 0.32 * i, line, most=whole, fontsize=13, color=picture.MUTED)
    most = max((row.throughput for row in results.rows if not row.error), default=1.0)
    top, longest = 2.1, whole - LABEL - 5.2  # what stands behind the longest bar needs the rest
    for size, rows in blocks.items():
        slide.write(picture.MARGIN, top + 0.45, f"batch of {size}", fontsize=15, weight="bold")
        for i, row in enumerate(rows):
            base = top + 0.75 + LINE * i
            slide.write(picture.MARGIN, base + 0.2, row.name, most=LABEL - 0.15, fontsize=13, color=picture.MUTED)
            if row.error:
                slide.write(left, base + 0.2, row.error, most=whole - LABEL, fontsize=12, color=picture.WRONG)
                continue
            length = longest * row.throughput / most
            slide.panel(left, base, max(length, 0.01), LINE * 0.72).set_axis_on()
            _paint(slide.figure.axes[-1], COLORS[row.framework])
            share = results.share(row)
            behind = f"{row.throughput:,.1f} images/s    {milliseconds(row.latency)} ms"
            behind += "" if share is None else f"    {share:.0%} of matrix products"
            slide.write(left + length + 0.12, base + 0.2, behind, fontsize=13)
        top += heights[size]
    slide.save(path)


def _paint(axes: Any, color: str) -> None:
    axes.set(facecolor=color, xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
