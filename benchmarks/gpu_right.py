"""Is what a GPU computes right? The first part of `python -m benchmarks gpu`: rows of `tests/equivalence.py`, there.

PyTorch's process computes the reference, on the CPU in float64, and leaves it for the others. ViT-B/16 shows rounding
at full size, the small odd cases that every path computes the same function.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vit.errors import FRAMEWORKS, installed_frameworks

from .gpu import ROOT
from .gpu_speed import Row, Work, one_line

Results = dict[str, np.ndarray]
FULL = "ViT-B/16"
ALLOWED = {"float64": 1e-10, "float32": 1e-4, "float16": 0.02, "bfloat16": 0.1}
"""How far outputs and gradients may be, as a share of the largest."""
ODD = {"float64": ("eager", 1e-10), "float32": ("sdpa", 1e-5)}
"""Of the odd cases: the attention, and what is allowed."""


@cache
def suite() -> Any:
    """`tests/equivalence.py`, by its place: a module named tests may be somebody else's."""
    spec = importlib.util.spec_from_file_location("trivit_equivalence", ROOT / "tests/equivalence.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_float64(is_on: bool) -> Any:
    """A context in which JAX has float64, where it is asked for."""
    if not is_on:
        return nullcontext()
    import jax

    return jax.enable_x64(True)


class Bench:
    """The cases, their checkpoints and references, in the folder that all tasks share."""

    def __init__(self, work: Work) -> None:
        full = suite().Case("classifier", labels=np.array([3, 7]), call={"output_hidden_states": True})
        larger = suite().Case("classifier", call={"interpolate_pos_encoding": True}, batch=1,
                              image_size=(48, 32) if work.small else (160, 288))  # fmt: skip
        self.work = work
        names = list(suite().CASES)
        self.odd = names[:: len(names) // 3] if work.small else names
        self.cases = {FULL: full, f"{FULL}, interpolated": larger, **{name: suite().CASES[name] for name in self.odd}}

    def config(self, name: str) -> Any:
        """Of a case."""
        return self.work.config if name.startswith(FULL) else suite().tiny_config(**self.cases[name].config)

    def folder(self, name: str) -> Path:
        """The checkpoint of a case, in which every parameter is random; written when it is first asked for."""
        case = self.cases[name]
        place = Path(self.work.folder, "right", re.sub(r"\W+", "-", FULL if name.startswith(FULL) else name))
        if not (place / "config.json").exists():
            suite().random_checkpoint(place, self.config(name), case.head, **case.parts)
        return place

    def run(self, framework: str, name: str, dtype: str, attention: str, device: str, **options: Any) -> Any:
        """(outputs, gradients) of a case."""
        case = self.cases[name]
        inputs = suite().inputs_of(case, self.config(name), "float64" if dtype == "float64" else "float32")
        return suite().RUN[framework](
            self.folder(name), case, inputs, device=device, dtype=dtype, attn_implementation=attention, **options
        )

    def reference(self, name: str) -> tuple[Results, Results]:
        """What PyTorch, or else another framework, computes on the CPU in float64; by whoever needs it first."""
        framework = installed_frameworks()[0]

        def compute() -> tuple[Results, Results]:
            with in_float64(framework == "flax"):
                return self.run(framework, name, "float64", "eager", "cpu")

        return self.kept(name, "reference", compute)

    def kept(self, name: str, kind: str, compute: Callable[[], tuple[Results, Results]]) -> tuple[Results, Results]:
        """(outputs, gradients), computed once and then read."""
        file = self.folder(name) / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}-{kind}.npz"
        if not file.exists():
            outputs, gradients = compute()
            arrays = {f"{i} {key}": value for i, part in enumerate((outputs, gradients)) for key, value in part.items()}
            with file.with_suffix(".part").open("wb") as part:
                np.savez(part, **arrays)
            file.with_suffix(".part").rename(file)
            return outputs, gradients
        with np.load(file) as arrays:
            found: tuple[Results, Results] = ({}, {})
            for key in arrays.files:
                found[int(key[0])][key[2:]] = arrays[key]
        return found


def apart(actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], together: bool = False) -> float:
    """The largest difference over the largest value, of each array or of all together; one that is missing is zero."""
    worst, largest = 0.0, [np.abs(np.asarray(value, np.float64)).max(initial=0) for value in expected.values()]
    for name in actual.keys() | expected.keys():
        a, b = (np.asarray(which.get(name, 0.0), np.float64) for which in (actual, expected))
        scale = max(largest, default=0.0) if together else np.abs(b).max(initial=0)
        difference = np.abs(a - b).max(initial=0) / (scale or 1.0)
        worst = float(difference) if not difference <= worst else worst  # NaN stays
    return worst


def differences(found: tuple[Results, Results], expected: tuple[Results, Results]) -> tuple[float, float]:
    """(of outputs, of gradients)."""
    return apart(found[0], expected[0]), apart(found[1], expected[1], together=True)


def check(what: str, dtype: str, off: tuple[float, ...], allowed: float, of: int = 1, **more: Any) -> Row:
    """The row of a comparison: outputs, and gradients where there are any."""
    missed = sum(not each <= allowed for each in off) > 0
    row = {"table": "Against the CPU in float64", "what": what, "dtype": dtype, "outputs off by": off[0]}
    return {**row, "gradients off by": off[1] if len(off) > 1 else None, "allowed": allowed, "cases": of,
            "misses": int(missed), **more}  # fmt: skip


def compare(bench: Bench, framework: str, name: str, dtype: str, attention: str, what: str, **options: Any) -> Row:
    """The row of a case at full size; of one that fails, its error, which is a miss."""
    try:
        found = bench.run(framework, name, dtype, attention, bench.work.device, **options)
    except Exception as error:
        row = check(what, dtype, (float("nan"),), ALLOWED[dtype])
        return {**row, "worst": f"{type(error).__name__}: {one_line(error)}"}
    return check(what, dtype, differences(found, bench.reference(name)), ALLOWED[dtype])


def odd_cases(bench: Bench, framework: str, dtype: str, threads: int) -> Iterator[Row]:
    """The row of all odd cases; and of another framework on this device, against PyTorch."""
    attention, allowed = ODD[dtype]

    def one(name: str) -> tuple[str, list[tuple[float, ...]] | str | None]:
        if bench.work.left() < 5 and not bench.work.small:
            return name, None
        try:
            with in_float64(framework == "flax" and dtype == "float64"):
                run = lambda: bench.run(framework, name, dtype, attention, bench.work.device)  # noqa: E731
                found = bench.kept(name, f"{framework}-{dtype}", run)
            pairs = [differences(found, bench.reference(name))]
            if framework != "pt" and (theirs := next(bench.folder(name).glob(f"*-pt-{dtype}.npz"), None)):
                assert theirs  # PyTorch has been there
                pairs.append(differences(found, bench.kept(name, f"pt-{dtype}", lambda: found)))
            return name, pairs
        except Exception as error:
            return name, f"{type(error).__name__}: {one_line(error)}"

    for name in bench.odd:  # one at a time: they write
        bench.reference(name)
    with ThreadPoolExecutor(threads) as pool:
        results = dict(pool.map(one, bench.odd))
    failed = {name: value for name, value in results.items() if isinstance(value, str)}
    for i, against in enumerate(("", " against PyTorch's on this device")):
        done = {name: value[i] for name, value in results.items() if isinstance(value, list) and len(value) > i}
        if not done:
            continue
        worst = max(done, key=lambda name: max(map(_or_infinity, done[name])))
        missed = [name for name, off in done.items() if not all(each <= allowed for each in off)]
        off = tuple(max((each[k] for each in done.values()), key=_or_infinity) for k in (0, 1))
        row = check(f"odd cases, {attention}{against}", dtype, off, allowed, len(done), worst=worst)
        yield {**row, "misses": len(missed) + len(failed) * (i == 0)}
        for name in missed:
            yield {"note": f"{FRAMEWORKS[framework][1]} {dtype} misses{against}: {name}, off by {done[name]}"}
    for name, message in failed.items():
        yield {"note": f"{FRAMEWORKS[framework][1]} {dtype} misses: {name}: {message}"}
    if late := [name for name, value in results.items() if value is None]:
        yield {"note": f"{FRAMEWORKS[framework][1]} {dtype}: {len(late)} odd cases left out, its time was over"}


def _or_infinity(value: float) -> float:
    return value if value == value else float("inf")


# === PyTorch ===


def right_pt(work: Work) -> Iterator[Row]:
    """Every dtype, both attentions, the odd cases, what changes how it is computed, dropout and the fast processor."""
    import torch

    bench = Bench(work)
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        for attention in ("sdpa", "eager"):
            yield compare(bench, "pt", FULL, dtype, attention, f"{FULL}, {attention}")
    yield compare(bench, "pt", f"{FULL}, interpolated", "float32", "sdpa", f"{FULL}, interpolated")
    for dtype in ODD:
        yield from odd_cases(bench, "pt", dtype, 1)

    def checkpointing(model: Any) -> None:
        model.gradient_checkpointing_enable()

    def compiled(model: Any) -> Any:
        return torch.compile(model, dynamic=False, **({"backend": "aot_eager"} if work.small else {}))

    yield compare(bench, "pt", FULL, "float32", "sdpa", f"{FULL}, gradient checkpointing", change=checkpointing)
    yield from _dropout_pt(bench, checkpointing)
    yield from _fast_processor(work)
    if work.left() > 25 or work.small:
        yield compare(bench, "pt", FULL, "float32", "sdpa", f"{FULL}, torch.compile", change=compiled)
        yield compare(bench, "pt", FULL, "bfloat16", "sdpa", f"{FULL}, torch.compile", change=compiled)
    else:
        yield {"note": f"torch.compile: left out, {work.left():.0f} s are left"}


DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


def _dropout_pt(bench: Bench, checkpointing: Callable[[Any], None]) -> Iterator[Row]:
    import torch

    def run(seed: int, change: Any = None) -> Any:
        torch.manual_seed(seed)
        return bench.run("pt", FULL, "float32", "sdpa", bench.work.device, change=change, **DROPOUT)

    first = run(0)
    yield check("dropout: the same seed again", "float32", differences(run(0), first), ALLOWED["float32"])
    off = differences(run(0, checkpointing), first)
    yield check("dropout: the same seed, gradient checkpointing", "float32", off, ALLOWED["float32"])
    yield check(
        "dropout: another seed differs (1 if it does not)", "float32", (float(apart(run(1)[0], first[0]) < 1e-3),), 0.5
    )


def _fast_processor(work: Work) -> Iterator[Row]:
    if importlib.util.find_spec("PIL") is None:
        yield {"note": "the fast processor: pillow is not installed"}
        return
    from vit import ViTImageProcessorFast

    rng = np.random.default_rng(0)
    shapes = ((480, 640, 3), (33, 47, 3), (224, 224, 3), (300, 200, 3))
    pictures = [rng.integers(0, 256, shape, np.uint8) for shape in shapes]
    for name, resample in (("bilinear", 2), ("bicubic", 3), ("nearest", 0)):
        processor = ViTImageProcessorFast(size=32 if work.small else 224, resample=resample, do_normalize=False)
        gpu, cpu = (processor(pictures, return_tensors="pt", device=device).pixel_values.cpu() * 255
                    for device in (work.place, "cpu"))  # fmt: skip
        steps = (gpu - cpu).abs()
        row = check(f"fast processor, {name}: steps of 255 against the CPU", "uint8", (float(steps.max()),), 1.001)
        yield {**row, "worst": f"{float((steps > 0.5).float().mean()):.2%} of the values differ"}


# === Flax and TensorFlow ===


def right_flax(work: Work) -> Iterator[Row]:
    """Every dtype, the odd cases, gradient checkpointing and dropout, compiled by several threads at a time."""
    bench = Bench(work)
    threads = 2 if work.small else 8

    def full(dtype: str, attention: str, what: str = "", **options: Any) -> Row:
        with in_float64(dtype == "float64"):
            return compare(bench, "flax", FULL, dtype, attention, f"{FULL}, {what or attention}", **options)

    def checkpointing(model: Any) -> None:
        model.gradient_checkpointing_enable()

    bench.reference(FULL)
    with ThreadPoolExecutor(threads) as pool:
        rows = [pool.submit(full, dtype, attention) for dtype, attention in (
            ("float32", "sdpa"), ("float64", "eager"), ("float16", "sdpa"), ("bfloat16", "sdpa"))]  # fmt: skip
        rows.append(pool.submit(full, "float32", "sdpa", "gradient checkpointing", change=checkpointing))
        for row in rows:
            yield row.result()
    for dtype in ODD:
        yield from odd_cases(bench, "flax", dtype, threads)
    if work.left() > 15 or work.small:
        name = f"{FULL}, interpolated"
        yield compare(bench, "flax", name, "float32", "sdpa", name)
        yield from _dropout_flax(bench)


def _dropout_flax(bench: Bench) -> Iterator[Row]:
    import jax
    from flax import nnx

    from vit import FlaxViTForImageClassification

    model = FlaxViTForImageClassification.from_pretrained(bench.folder(FULL), device=bench.work.device, **DROPOUT)
    model.train()
    graphdef, state = nnx.split(model)
    x = suite().inputs_of(bench.cases[FULL], bench.config(FULL), "float32")["pixel_values"]

    @jax.jit
    def logits(state: Any, key: Any) -> Any:
        return nnx.merge(graphdef, state)(x, rngs=nnx.Rngs(dropout=key)).logits

    first, again, other = ({"logits": np.asarray(logits(state, jax.random.key(seed)))} for seed in (0, 0, 1))
    yield check("dropout: the same key again", "float32", (apart(again, first),), 1e-6)
    yield check("dropout: another key differs (1 if it does not)", "float32", (float(apart(other, first) < 1e-3),), 0.5)


def right_tf(work: Work) -> Iterator[Row]:
    """Every dtype, and the odd cases."""
    bench = Bench(work)
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        yield compare(bench, "tf", FULL, dtype, "sdpa", f"{FULL}, sdpa")
    for dtype in ODD:
        yield from odd_cases(bench, "tf", dtype, 1)
