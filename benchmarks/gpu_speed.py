"""How fast on a GPU: the parts of `python -m benchmarks gpu` that measure, each in a process that `gpu.py` starts.

A task is a generator of rows. A row with "table" is measured; "note" says what was left out; an exception ends the
task, and is its last row.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import math
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vit import ViTConfig, measure
from vit.flops import forward_flops, training_flops
from vit.measure import repeat, seconds

from .harness import random_checkpoint, ratio, take_turns
from .peers import images, model_flax, model_pt

Row = dict[str, Any]
Call = Callable[[], Any]


@dataclass
class Work:
    """What a task is given.

    Attributes:
        folder: for checkpoints and the like; all tasks of a run share it.
        device: "gpu", or "cpu" in a rehearsal.
        small: whether sizes are those of a rehearsal.
        end: of its time, as `time.time()` has it.
    """

    folder: str
    device: str
    small: bool
    end: float

    def left(self, share: float = 1.0) -> float:
        """Seconds until its end, or a share of them."""
        return (self.end - time.time()) * share

    @property
    def config(self) -> ViTConfig:
        """ViT-B/16; in a rehearsal a small one."""
        if not self.small:
            return ViTConfig.variant("B/16", num_labels=1000)
        return ViTConfig.variant("Ti/16", image_size=32, num_hidden_layers=2, num_labels=10)

    @property
    def checkpoint(self) -> str:
        """Its folder, written when it is first asked for."""
        folder = Path(self.folder, "checkpoint")
        if not (folder / "config.json").exists():
            random_checkpoint(folder, self.config)
        return str(folder)

    def enough(self, most: float, share: float) -> float:
        """Seconds for one measurement: a share of what is left, `most` at most."""
        return 0.01 if self.small else min(most, self.left(share))

    def sizes(self, *sizes: int) -> tuple[int, ...]:
        """Batch sizes; in a rehearsal two small ones."""
        return tuple(sorted({min(size, 3) for size in sizes}, reverse=sizes[0] > sizes[-1])) if self.small else sizes

    @property
    def place(self) -> str:
        """What PyTorch calls the device."""
        return {"gpu": "cuda"}.get(self.device, self.device)


# === The process ===


def serve() -> None:
    """Run the task that the argument names, and write its rows to stdout as they come."""
    told = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no row
    faulthandler.enable(all_threads=False)  # a process that is ended says where it was
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(3)), daemon=True).start()  # whoever asked has gone
    module, _, name = told["function"].partition(":")
    try:
        for row in getattr(importlib.import_module(module), name)(Work(**told["work"])):
            answers.write(json.dumps(finite(row), default=float) + "\n")
            answers.flush()
    except Exception as error:
        import traceback

        traceback.print_exc()
        where = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{type(error).__name__}: {one_line(error)} ({Path(where.filename).name}:{where.lineno})"
        answers.write(json.dumps({"error": message}) + "\n")
        answers.flush()
    os._exit(0)


def finite(value: Any) -> Any:
    """The same without NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return str(value) if isinstance(value, float | np.floating) and not math.isfinite(value) else value


def one_line(error: BaseException) -> str:
    """The message of an error, short."""
    return " ".join(str(error).split())[:300]


def out_of_memory(error: BaseException) -> bool:
    """Whether a framework says that the GPU's memory is full."""
    text = f"{type(error).__name__} {error}".lower()
    return any(words in text for words in ("out of memory", "outofmemory", "resource_exhausted", "memoryerror"))


def largest_that_fits(sizes: Sequence[int], attempt: Callable[[int], Any], what: str) -> tuple[int, Any, list[Row]]:
    """The first size whose attempt does not run out of memory, what it gave, and a note for each that did.

    Raises:
        MemoryError: none fits.
    """
    notes: list[Row] = []
    for size, smaller in zip(sizes, [*sizes[1:], None], strict=True):
        try:
            return size, attempt(size), notes
        except Exception as error:
            if not out_of_memory(error):
                raise
            instead = f"batch {smaller} is taken" if smaller else "nothing smaller is left"
            notes.append({"note": f"{what}: the GPU's memory is too little for batch {size}; {instead}"})
        gc.collect()
    raise MemoryError("; ".join(note["note"] for note in notes))


# === Machine ===


def machine_pt(work: Work) -> Iterator[Row]:
    """PyTorch's GPU."""
    import torch

    version = f"PyTorch {torch.__version__}"
    if work.device == "cpu":
        yield {"gpu": "CPU", "version": f"{version}{_peers()}"}
    elif not torch.backends.cuda.is_built():
        yield {"without": f"{version} is a build without CUDA"}
    elif not torch.cuda.is_available():
        yield {"without": f"{version} (CUDA {torch.version.cuda}) sees no GPU"}
    else:
        torch.ones(8, 8, device="cuda").sum().item()  # it also computes
        found = torch.cuda.get_device_properties(0)
        version += f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
        yield {"gpu": found.name, "version": f"{version}{_peers()}",
               "GiB": found.total_memory / 2**30, "capability": f"{found.major}.{found.minor}"}  # fmt: skip


def _peers() -> str:
    from importlib.metadata import PackageNotFoundError, version

    found = ""
    for name in ("transformers", "timm"):
        with suppress(PackageNotFoundError):
            found += f", {name} {version(name)}"
    return found


def machine_flax(work: Work) -> Iterator[Row]:
    """JAX's GPU."""
    import flax
    import jax

    version = f"JAX {jax.__version__}, Flax {flax.__version__}"
    try:
        device = jax.devices(work.device)[0]
    except RuntimeError as error:
        yield {"without": f"{version} sees no GPU: {one_line(error)}"}
        return
    jax.numpy.ones((8, 8), device=device).sum().block_until_ready()
    yield {"gpu": device.device_kind, "version": version}


def machine_tf(work: Work) -> Iterator[Row]:
    """TensorFlow's GPU."""
    import keras
    import tensorflow as tf

    version = f"TensorFlow {tf.__version__}, Keras {keras.__version__}"
    if work.device == "gpu" and not (found := tf.config.list_physical_devices("GPU")):
        yield {"without": f"{version} sees no GPU"}
    else:
        details = tf.config.experimental.get_device_details(found[0]) if work.device == "gpu" else {}
        yield {"gpu": details.get("device_name", work.device.upper()), "version": version}


# === Timing ===


TURN, ROW = 0.03, 0.08  # seconds of calls waited for each time; of calls that are enqueued behind each other


def wait_for(value: Any) -> None:
    """Until it is there: a JAX array, or whatever PyTorch has begun."""
    if hasattr(value, "block_until_ready"):
        value.block_until_ready()
    elif (torch := sys.modules.get("torch")) and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def waited(call: Call) -> float:
    """Seconds of a call, waited for: the median of a row of them."""
    return statistics.median(repeat(lambda: wait_for(call()), TURN, least=3))


def streamed(call: Call) -> float:
    """Seconds of a call among others that are enqueued behind each other, and waited for at the end."""
    once = seconds(lambda: wait_for(call()))
    calls = max(1, min(50, round(ROW / once)))

    def row() -> None:
        value = None
        for _ in range(calls):
            value = call()
        wait_for(value)

    return seconds(row) / calls


def enqueued(call: Call) -> float:
    """Seconds until a call returns, whatever the GPU still does: the median of a few."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        value = call()
        times.append(time.perf_counter() - start)
        wait_for(value)
    return statistics.median(times)


def turns(calls: Mapping[str, Call], time_of: Callable[[Call], float], enough: float) -> dict[str, list[float]]:
    """The seconds of each call in each round, in turns."""
    runs = {name: (lambda call=call: time_of(call)) for name, call in calls.items()}
    return take_turns(runs, enough, least=5, most=30)


def spread(values: Sequence[float], factor: float = 1.0) -> list[float]:
    """Median, and the quarters below and above."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return [float(f"{factor * value:.4g}") for value in (median, low, high)]


def quotient(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """As `harness.ratio`."""
    return [float(f"{value:.4g}") for value in ratio(above, below)]


def ready(calls: dict[str, Call], name: str, build: Callable[[], Call], work: Work, need: float) -> Iterator[Row]:
    """Put a call that has been built, and has run, into `calls`; or a note why not."""
    if work.left() < need and not work.small:
        yield {"note": f"{name}: left out, {work.left():.0f} s are left"}
        return
    try:
        call = build()
        for _ in range(3):
            wait_for(call())
        calls[name] = call
    except Exception as error:
        yield {"note": f"{name}: {type(error).__name__}: {one_line(error)}"}


# === Where time goes ===


def profile_pt(call: Call, times: int = 3) -> Row:
    """Kernels of a call, their milliseconds, and the largest; on a CPU of PyTorch's operations."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    on_gpu = torch.cuda.is_available()
    wait_for(call())
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as found:
        for _ in range(times):
            value = call()
        wait_for(value)
    if on_gpu:
        events = [(event.name, event.time_range.elapsed_us()) for event in kernels_of(found)]
    else:
        events = [(each.key, each.self_cpu_time_total / each.count) for each in found.key_averages()
                  for _ in range(each.count)]  # fmt: skip
    return largest(events, times)


def kernels_of(found: Any) -> list[Any]:
    """What ran on the GPU of a profile: kernels and copies."""
    events = [event for event in found.events() if event.device_type.name == "CUDA"]
    return [event for event in events if not getattr(event, "is_user_annotation", False)]


def profile_flax(call: Call, times: int = 3) -> Row:
    """As `profile_pt`, of JAX; on a CPU of nothing, for its profile has no device."""
    import jax

    wait_for(call())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(times):
                value = call()
            wait_for(value)
        (file,) = Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(file)).planes
        events = [(event.name, event.duration_ns / 1e3) for plane in planes if plane.name.startswith("/device:GPU")
                  for line in plane.lines if line.name.startswith("Stream") for event in line.events]  # fmt: skip
    return largest(events, times)


def largest(events: Sequence[tuple[str, float]], times: int) -> Row:
    """The row of events of (name, microseconds): how many a call, together, and which take most."""
    if not events:
        return {"kernels": None, "their ms": None, "the largest": "the profiler saw none"}
    total, by_name = sum(length for _, length in events), dict[str, float]()
    for name, length in events:
        by_name[name] = by_name.get(name, 0.0) + length
    most = sorted(by_name.items(), key=lambda item: -item[1])[:4]
    names = "; ".join(f"{name[:60]} {length / max(total, 1e-9):.0%}" for name, length in most)
    return {"kernels": round(len(events) / times), "their ms": total / times / 1e3, "the largest": names}


def where_time_goes(what: Row, call: Call, profile: Callable[[Call], Row]) -> Row:
    """The row that says what limits a call."""
    try:
        seen = profile(call)
    except Exception as error:  # a machine may forbid its profiler
        seen = {"the largest": f"the profiler failed: {one_line(error)}"}
    times = [seconds(lambda: wait_for(call())) for _ in range(5)]
    return {"table": "Where its time goes", **what, "ms": 1e3 * statistics.median(times),
            "enqueued after ms": 1e3 * enqueued(call), **seen}  # fmt: skip


# === PyTorch ===

Model = Callable[[Any], Any]


def calls_pt(work: Work, library: str, dtype: str, attention: str | None) -> tuple[Any, Callable[[int], Call]]:
    """A model, and what makes a call of a batch size, which gives logits."""
    import torch

    model = model_pt(library, work.checkpoint, dtype, work.device, attention)

    def make(batch: int, run: Model = model) -> Call:
        x = torch.from_numpy(images(work.config, batch)).to(work.place, getattr(torch, dtype))

        @torch.inference_mode()
        def call() -> Any:
            outputs = run(x)
            return getattr(outputs, "logits", outputs)

        return call

    return model, make


def libraries(work: Work, *more: str) -> list[str]:
    """trivit, and who else is installed."""
    from importlib.util import find_spec

    return ["trivit", *(name for name in ("transformers", *more) if find_spec(name))]


PUBLISHED = {"eager": {1: 7, 2: 8, 4: 8, 8: 8}, "sdpa": {1: 6, 2: 6, 4: 6, 8: 6}}
"""Milliseconds on an A100 in float32, of transformers' page of the Vision Transformer."""


def table_pt(work: Work) -> Iterator[Row]:
    """Batch 1 to 8, eager and sdpa, beside transformers."""
    for dtype in ("float32", "float16"):
        for attention in ("eager", "sdpa"):
            made = {library: calls_pt(work, library, dtype, attention)[1] for library in libraries(work)}
            for batch in work.sizes(1, 2, 4, 8):
                if work.left() < 3 and not work.small:
                    yield {"note": f"{dtype} {attention} from batch {batch} on: left out, its time is over"}
                    break
                calls = {library: make(batch) for library, make in made.items()}
                logits = {library: call().float().cpu() for library, call in calls.items()}
                found = turns(calls, waited, work.enough(1.0, 0.02))
                row = {"table": "Milliseconds", "dtype": dtype, "attention": attention, "batch": batch}
                row |= {f"{library} ms": spread(times, 1e3) for library, times in found.items()}
                if "transformers" in found:
                    row["trivit's speed over it"] = quotient(found["transformers"], found["trivit"])
                    off = (logits["trivit"] - logits["transformers"]).abs().max() / logits["trivit"].abs().max()
                    row["logits apart by"] = float(off)
                yield {**row, "published ms": PUBLISHED[attention].get(batch) if dtype == "float32" else None}
                if batch in (1, 8):
                    for library, call in calls.items():
                        what = {"what": f"{library} {attention}", "dtype": dtype, "batch": batch}
                        yield where_time_goes(what, call, profile_pt)


def captured(call: Call) -> Call:
    """The kernels of a call in a CUDA graph, played again at each call."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        output = call()

    def replay() -> Any:
        graph.replay()
        return output

    return replay


def compiled(work: Work, model: Model) -> Model:
    """By torch.compile, with CUDA graphs; in a rehearsal without the C++ compiler."""
    import torch

    options: dict[str, Any] = {"backend": "aot_eager"} if work.small else {"mode": "reduce-overhead"}
    return torch.compile(model, dynamic=False, **options)


def latency_pt(work: Work) -> Iterator[Row]:
    """Batch 1, in each way to call it."""
    for dtype in ("float16", "float32"):
        calls: dict[str, Call] = {}
        for library in libraries(work, "timm"):
            made: dict[str, Any] = {}

            def load(library: str = library, made: dict[str, Any] = made, dtype: str = dtype) -> Call:
                made["model"], made["make"] = calls_pt(work, library, dtype, None if library == "timm" else "sdpa")
                return made["make"](1)

            yield from ready(calls, f"{library}, as called", load, work, 5)
            if "make" in made:
                yield from ready(calls, f"{library}, in a CUDA graph", lambda m=made: captured(m["make"](1)), work, 5)
                # Compiling takes half a minute: of timm, and in float32, only where the time is there.
                need = {"trivit": 25, "transformers": 30}.get(library, 40) + 10 * (dtype == "float32")
                compile_it = lambda m=made: m["make"](1, compiled(work, m["model"]))  # noqa: E731
                yield from ready(calls, f"{library}, compiled", compile_it, work, need)
        found = turns(calls, waited, work.enough(1.0, 0.2 / len(calls)))
        theirs = found.get("transformers, as called")
        for name, times in found.items():
            row: Row = {"table": "Milliseconds at batch 1", "what": name, "dtype": dtype, "ms": spread(times, 1e3)}
            if theirs:
                row["speed over transformers as called"] = quotient(theirs, times)
            same_way = found.get(name.replace("trivit", "transformers"))
            if name.startswith("trivit") and same_way:
                row["trivit's speed over it"] = quotient(same_way, times)
            yield row
        for name in ("trivit, as called", "trivit, compiled"):
            if name in calls:
                yield where_time_goes({"what": name, "dtype": dtype, "batch": 1}, calls[name], profile_pt)
        calls.clear()


def rate_of(work: Work, framework: str, dtype: str) -> tuple[float, Row]:
    """The rate of a large matrix product, now, and its row."""
    if work.small:
        measure.CPU_SIZE = 128  # half precisions are slow on CPUs
    device = work.place if framework == "pt" else "/GPU:0" if work.device == "gpu" else work.device
    device = {"flax": work.device}.get(framework, device)
    rate = measure.matrix_rate(framework, dtype, device, 0.05 if work.small else 0.5)
    return rate, {"table": "Large matrix products", "dtype": dtype, "TFLOP/s": rate / 1e12}


def throughput_pt(work: Work) -> Iterator[Row]:
    """Batch 256 to 1, as called beside transformers, in both dtypes; the largest compiled, and more as time is left."""
    first, *others = work.sizes(256, 128, 64, 32, 16, 8, 4, 2, 1)
    rates: dict[str, float] = {}
    made: dict[tuple[str, str], Any] = {}
    for dtype in ("bfloat16", "float16"):
        rates[dtype], row = rate_of(work, "pt", dtype)
        yield row
        for library in libraries(work):
            made[library, dtype] = calls_pt(work, library, dtype, "sdpa")
        yield from _as_called(work, dtype, [first], made, rates[dtype])
        for library in libraries(work) if dtype == "bfloat16" else ("trivit",):
            yield from _compiled(work, library, dtype, first, made, rates[dtype])
        yield from _as_called(work, dtype, others, made, rates[dtype])
    for batch in () if work.small else (1, 8, 64):
        yield from _compiled(work, "trivit", "bfloat16", batch, made, rates["bfloat16"])


def _as_called(
    work: Work, dtype: str, sizes: Sequence[int], made: Mapping[tuple[str, str], Any], rate: float
) -> Iterator[Row]:
    import torch

    flops = forward_flops(work.config)
    for batch in sizes:
        if work.left() < 3 and not work.small:
            yield {"note": f"{dtype}, as called, from batch {batch} on: left out, its time is over"}
            return
        calls: dict[str, Call] = {}
        try:
            calls = {library: make(batch) for (library, of), (_, make) in made.items() if of == dtype}
            found = turns(calls, streamed, work.enough(0.5, 0.01))
        except Exception as error:
            if not out_of_memory(error):
                raise
            calls.clear()
            yield {"note": f"{dtype}: the GPU's memory is too little for batch {batch}"}
            torch.cuda.empty_cache()
            continue
        row = {"table": "Images a second", "how": "as called", "dtype": dtype, "batch": batch}
        row |= {f"{library} images/s": batch / statistics.median(times) for library, times in found.items()}
        row["MFU"] = batch * flops / statistics.median(found["trivit"]) / rate
        if "transformers" in found:
            row["trivit's speed over it"] = quotient(found["transformers"], found["trivit"])
        yield row
        if batch in (256, 8, 3):
            yield where_time_goes({"what": "trivit", "dtype": dtype, "batch": batch}, calls["trivit"], profile_pt)


def _compiled(
    work: Work, library: str, dtype: str, batch: int, made: Mapping[tuple[str, str], Any], rate: float
) -> Iterator[Row]:
    model, make = made[library, dtype]
    calls: dict[str, Call] = {}
    build = lambda: make(batch, compiled(work, model))  # noqa: E731
    yield from ready(calls, f"{library}, compiled, {dtype}, batch {batch}", build, work, 20)
    for call in calls.values():
        each = statistics.median(streamed(call) for _ in range(5))
        row = {"table": "Images a second", "how": "compiled", "dtype": dtype, "batch": batch}
        row[f"{library} images/s"] = batch / each
        yield row | ({"MFU": batch * forward_flops(work.config) / each / rate} if library == "trivit" else {})
        if library == "trivit" and batch in (256, 3):
            yield where_time_goes({"what": "trivit, compiled", "dtype": dtype, "batch": batch}, call, profile_pt)


def training_pt(work: Work) -> Iterator[Row]:
    """A step of batch 64, with and without gradient checkpointing, beside transformers."""
    import torch

    from .training import step

    rate, row = rate_of(work, "pt", "bfloat16")
    yield row
    flops = training_flops(work.config)
    for recompute in (False, True):
        if work.left() < 8 and not work.small:
            yield {"note": f"gradient checkpointing {recompute}: left out, its time is over"}
            return
        memory: dict[str, float] = {}

        def build(batch: int, recompute: bool = recompute, memory: dict[str, float] = memory) -> dict[str, Any]:
            built = {}
            for library in libraries(work):
                before = _allocated(reset=True)
                built[library] = step(library, "pt", work.checkpoint, "bfloat16", batch, work.device, recompute)
                memory[library] = (_allocated(peak=True) - before) / 1e9
            return built

        batch, built, notes = largest_that_fits(work.sizes(64, 32, 16, 8), build, "a training step")
        yield from notes
        calls = {library: run for library, (run, _) in built.items()}
        found = turns(calls, seconds, work.enough(3.0, 0.1))
        for library, times in found.items():
            row = {"table": "A step", "what": library, "dtype": "bfloat16", "batch": batch,
                   "gradient checkpointing": recompute, "ms": spread(times, 1e3),
                   "MFU": batch * flops / statistics.median(times) / rate, "GB": memory[library]}  # fmt: skip
            if library != "trivit":
                row["trivit's speed over it"] = quotient(times, found["trivit"])
                row["its memory over trivit's"] = memory[library] / memory["trivit"] if memory["trivit"] else None
            yield row | {"first losses": ", ".join(f"{loss:.4g}" for loss in built[library][1])}
        what = {"what": f"trivit, checkpointing {recompute}", "dtype": "bfloat16", "batch": batch}
        yield where_time_goes(what, calls["trivit"], profile_pt)
        del calls, built
        gc.collect()
        torch._dynamo.reset()


def _allocated(peak: bool = False, reset: bool = False) -> int:
    import torch

    if not torch.cuda.is_available():
        return 0
    torch.cuda.synchronize()
    if reset:
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()


# === Flax ===


def forward_flax(work: Work, dtype: str, attention: str | None = None) -> Callable[[int], Call]:
    """What makes a call of a batch size, under jax.jit; `attention` is an implementation of JAX's."""
    import jax

    state, function = model_flax("trivit", work.checkpoint, dtype)
    device = jax.devices(work.device)[0]
    state = jax.device_put(state, device)
    plain = jax.nn.dot_product_attention
    precision = "highest" if dtype == "float32" else "default"  # no TF32

    def make(batch: int) -> Call:
        x = jax.device_put(images(work.config, batch).astype(dtype), device)
        logits = jax.jit(lambda state, x: function(state, x))  # a function of its own: compiled with its attention
        if attention is not None:
            jax.nn.dot_product_attention = lambda *args, **options: plain(*args, implementation=attention, **options)
        try:
            with jax.default_matmul_precision(precision):
                program = logits.lower(state, x).compile()
        finally:
            jax.nn.dot_product_attention = plain
        return lambda: program(state, x)

    return make


def latency_flax(work: Work) -> Iterator[Row]:
    """Batch 1 under jax.jit."""
    for dtype, need in (("float16", 12), ("float32", 40)):  # XLA tries more kernels for products of float32
        calls: dict[str, Call] = {}
        build = lambda dtype=dtype: forward_flax(work, dtype)(1)  # noqa: E731
        yield from ready(calls, f"trivit, jax.jit, {dtype}", build, work, need)
        for call in calls.values():
            what = {"what": "trivit, jax.jit", "dtype": dtype}
            times = turns({"": call}, waited, work.enough(0.5, 0.1))[""]
            yield {"table": "Milliseconds at batch 1", **what, "ms": spread(times, 1e3)}
            yield where_time_goes({**what, "batch": 1}, call, profile_flax)


def throughput_flax(work: Work) -> Iterator[Row]:
    """Batch 256 to 1 under jax.jit, with JAX's attention and cuDNN's."""
    flops = forward_flops(work.config)
    for dtype, sizes in (("bfloat16", (256, 64, 1, 8, 128, 32, 16, 4, 2)), ("float16", (256, 1, 64))):
        rate, row = rate_of(work, "flax", dtype)
        yield row
        slowest = 10.0
        makers = {name: forward_flax(work, dtype, name) for name in (None, "cudnn")}
        for batch in work.sizes(*sizes):
            for attention, make in makers.items():
                name = f"{dtype}, batch {batch}, attention of {attention or 'JAX (default)'}"
                calls: dict[str, Call] = {}
                start = time.perf_counter()
                yield from ready(calls, name, lambda make=make, batch=batch: make(batch), work, 1.3 * slowest)
                took = time.perf_counter() - start
                for call in calls.values():
                    slowest = max(slowest, took)
                    each = statistics.median(streamed(call) for _ in range(5))
                    yield {"table": "Images a second", "how": f"jax.jit, attention: {attention or 'default'}",
                           "dtype": dtype, "batch": batch, "trivit images/s": batch / each,
                           "MFU": batch * flops / each / rate, "compiled in s": took}  # fmt: skip
                    if batch in (max(sizes), 3):
                        what = {"what": f"trivit, attention: {attention or 'default'}", "dtype": dtype, "batch": batch}
                        yield where_time_goes(what, call, profile_flax)


def throughput_tf(work: Work) -> Iterator[Row]:
    """Batch 256, 64, 8 and 1 by tf.function."""
    from .peers import forward

    rate, row = rate_of(work, "tf", "bfloat16")
    yield row
    for batch in work.sizes(256, 64, 8, 1):
        calls: dict[str, Call] = {}
        arguments = ("trivit", "tf", work.checkpoint, "bfloat16", batch, work.device)
        yield from ready(calls, f"batch {batch}", lambda arguments=arguments: forward(*arguments), work, 8)
        for call in calls.values():
            each = statistics.median(repeat(call, 0.3, least=3))
            yield {"table": "Images a second", "how": "tf.function", "dtype": "bfloat16", "batch": batch,
                   "trivit images/s": batch / each,
                   "MFU": batch * forward_flops(work.config) / each / rate}  # fmt: skip


def training_flax(work: Work) -> Iterator[Row]:
    """A step of batch 64; with gradient checkpointing first, because JAX's peak of memory cannot be reset."""
    from .training import device_memory, step

    rate, row = rate_of(work, "flax", "bfloat16")
    yield row
    for recompute in (True, False):
        if work.left() < 15 and not work.small:
            yield {"note": f"gradient checkpointing {recompute}: left out, its time is over"}
            return
        build = lambda batch, recompute=recompute: step(  # noqa: E731
            "trivit", "flax", work.checkpoint, "bfloat16", batch, work.device, recompute)  # fmt: skip
        batch, (run, losses), notes = largest_that_fits(work.sizes(64, 32, 16, 8), build, "a training step")
        yield from notes
        times = turns({"trivit": run}, seconds, work.enough(1.5, 0.1))["trivit"]
        memory = None
        with suppress(RuntimeError, TypeError, KeyError):  # a CPU keeps no count
            memory = device_memory("flax") / 1e9
        yield {"table": "A step", "what": "trivit", "dtype": "bfloat16", "batch": batch,
               "gradient checkpointing": recompute, "ms": spread(times, 1e3),
               "MFU": batch * training_flops(work.config) / statistics.median(times) / rate, "GB": memory,
               "first losses": ", ".join(f"{loss:.4g}" for loss in losses)}  # fmt: skip
        what = {"what": f"trivit, checkpointing {recompute}", "dtype": "bfloat16", "batch": batch}
        yield where_time_goes(what, run, profile_flax)
        del run
        gc.collect()


# === Files to answers ===


def write_jpegs(folder: Path, count: int) -> list[Path]:
    """JPEGs of 500 x 375, smooth with a little noise, no two the same; those that are there are left."""
    from PIL import Image

    folder.mkdir(exist_ok=True)

    def write(i: int) -> Path:
        path = folder / f"{i:05}.jpg"
        if not path.exists():
            rng = np.random.default_rng(i)
            smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(
                (500, 375), Image.Resampling.BICUBIC
            )
            noisy = np.asarray(smooth, np.int16) + rng.integers(-9, 10, (375, 500, 1), np.int16)
            part = path.with_suffix(".part")
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(part, "JPEG", quality=90)
            part.rename(path)
        return path

    with ThreadPoolExecutor() as pool:
        return list(pool.map(write, range(count)))


def pipeline_pt(work: Work) -> Iterator[Row]:
    """Images a second with PyTorch, and how long its GPU has nothing to do."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    together: dict[str, Call] = {}
    yield from _pipeline(work, "pt", together)
    if not torch.cuda.is_available():
        yield {"note": "whether the GPU is idle: there is none"}
        return
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        start = time.perf_counter()
        together["call"]()
        wait_for(None)
        took = time.perf_counter() - start
    ranges = sorted((event.time_range.start, event.time_range.end) for event in kernels_of(found))
    if not ranges:
        yield {"note": "whether the GPU is idle: the profiler saw no kernel; compare the lines above"}
        return
    busy, gap, until = 0.0, 0.0, ranges[0][0]
    for begin, end in ranges:  # they overlap: copies beside kernels
        gap = max(gap, begin - until)
        busy += max(0.0, end - max(begin, until))
        until = max(until, end)
    yield {"table": "Is the GPU ever idle?", "seconds": took, "kernels and copies": len(ranges), "busy s": busy / 1e6,
           "idle": f"{1 - busy / 1e6 / took:.0%}", "longest gap ms": gap / 1e3}  # fmt: skip


def pipeline_flax(work: Work) -> Iterator[Row]:
    """Images a second with Flax."""
    yield from _pipeline(work, "flax", {})


def _pipeline(work: Work, framework: str, together: dict[str, Call]) -> Iterator[Row]:
    from vit import ViTImageProcessor
    from vit.inference import Forward
    from vit.measure import machine as host
    from vit.pipeline import default_batch_size

    from .pipeline import TWO
    from .pipeline import Work as Halves

    count = 8 if work.small else 2000
    files = write_jpegs(Path(work.folder, "jpegs"), count)
    device = work.place if framework == "pt" else work.device
    forward = Forward(work.checkpoint, framework, device=device, dtype="float32" if work.small else "bfloat16")
    batch = 4 if work.small else default_batch_size(forward)
    size = work.config.image_size
    halves = Halves(files, count // batch * batch, forward, ViTImageProcessor(size=size), batch)
    Halves(files, 2 * batch, forward, halves.processor, batch).together()  # compiled, and warm
    together["call"] = halves.together
    calls = {"vit.predict": halves.together, "reading alone": halves.reading, "model alone": halves.model,
             TWO: lambda: halves.model(2)}  # fmt: skip
    for what, call in calls.items():
        if work.left() < 4 and not work.small:
            yield {"note": f"{what}: left out, its time is over"}
            continue
        took = seconds(call)
        yield {"table": "Images a second from files", "what": what, "batch": batch, "cores": host()["cores"],
               "images": halves.count, "images/s": halves.count / took}  # fmt: skip


if __name__ == "__main__":
    from benchmarks.gpu_speed import serve as of_the_module  # not of this copy, __main__

    of_the_module()
