"""A GPU, right and fast? One command, nothing installed: `make bench-gpu`, or `python -m benchmarks gpu`.

It takes the PyTorch, JAX and TensorFlow that it finds, at most nine minutes, and needs no network. The parts run in the
order of what matters most. Each framework has a process of its own in each part, so that one that fails, hangs or runs
out of memory costs its own lines only, and its error is the result. Every line is kept as soon as it is measured, in
gpu-results.jsonl, and the section of RESULTS.md is written anew: a run that is cut short has lost nothing, and
`--from PART` goes on. What is missing for more is named at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]
FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
FRAMEWORKS = {"pt": "PyTorch", "flax": "Flax", "tf": "TensorFlow"}


class Task(NamedTuple):
    """What one process does: a function that yields rows.

    Attributes:
        function: "module:name"; it takes a `gpu_speed.Work`.
        framework: that must see a GPU: "pt", "flax" or "tf".
        seconds: after which the process is ended.
        needs: modules besides the framework's.
        environment: variables besides everybody's.
    """

    function: str
    framework: str
    seconds: float
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str] = {}


class Part(NamedTuple):
    """A question, and who answers it."""

    title: str
    tasks: tuple[Task, ...]
    explanation: str


EXACT = {"NVIDIA_TF32_OVERRIDE": "0", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}  # float32 is float32
SOONER = {"XLA_FLAGS": "--xla_gpu_autotune_level=0"}  # many small programs: choosing kernels takes longer than they do
PROBES = tuple(Task(f"benchmarks.gpu_speed:machine_{framework}", framework, 60) for framework in FRAMEWORKS)
PARTS = {
    "right": Part(
        "Is it right?",
        (
            Task("benchmarks.gpu_right:right_pt", "pt", 120, environment=EXACT),
            Task("benchmarks.gpu_right:right_flax", "flax", 120, environment=EXACT | SOONER),
            Task("benchmarks.gpu_right:right_tf", "tf", 45, environment=EXACT),
        ),
        "Outputs and gradients on the GPU against PyTorch's on the CPU in float64, where every parameter is random: "
        "the largest difference over the largest value (of gradients: over the largest of all). TF32 is off. The odd "
        "cases are those of `tests/equivalence.py`, the worst of them counts.",
    ),
    "table": Part(
        "The published table",
        (Task("benchmarks.gpu_speed:table_pt", "pt", 60, environment=EXACT),),
        "Milliseconds of a call as users make it, waited for each time, trivit and transformers in turns in one "
        "process. Until a call returns the host enqueues kernels: where that takes as long as the whole, kernels are "
        "not the limit. Published: on an A100, in float32.",
    ),
    "latency": Part(
        "Latency at batch 1",
        (
            Task("benchmarks.gpu_speed:latency_pt", "pt", 85, environment=EXACT),
            Task("benchmarks.gpu_speed:latency_flax", "flax", 70),
        ),
        "As called; in a captured CUDA graph, which leaves the kernels as they are and the host out; and by "
        '`torch.compile(mode="reduce-overhead")`. Flax under `jax.jit`. All of a framework in turns in one process.',
    ),
    "throughput": Part(
        "Throughput",
        (
            Task("benchmarks.gpu_speed:throughput_pt", "pt", 75),
            Task("benchmarks.gpu_speed:throughput_flax", "flax", 85),
            Task("benchmarks.gpu_speed:throughput_tf", "tf", 30),
        ),
        "Calls one behind the other, waited for at the end. MFU is the share of the rate of a large matrix product in "
        "the same framework and dtype, measured just before (`vit/flops.py` counts the operations).",
    ),
    "training": Part(
        "A training step",
        (
            Task("benchmarks.gpu_speed:training_pt", "pt", 45),
            Task("benchmarks.gpu_speed:training_flax", "flax", 60, ("optax",)),
        ),
        "Forward pass, loss, backward pass and AdamW in bfloat16, with and without gradient checkpointing. Memory is "
        "the most that the framework held on the GPU in a step.",
    ),
    "pipeline": Part(
        "Files to answers",
        (
            Task("benchmarks.gpu_speed:pipeline_pt", "pt", 50, ("PIL",)),
            Task("benchmarks.gpu_speed:pipeline_flax", "flax", 40, ("PIL",)),
        ),
        "`vit.predict` on JPEGs of 500 x 375, beside reading alone and the model alone, on the same images. The GPU is "
        "idle where neither a kernel nor a copy runs.",
    ),
}
"""From the most to the least important."""

BUDGET = 540.0  # seconds
LEAST = 12.0  # seconds, with less of which nothing begins: frameworks take most of them to start
WHEELS = {
    "numpy": ("numpy", "everything"),
    "safetensors": ("safetensors", "everything"),
    "ml_dtypes": ("ml_dtypes", "everything"),
    "torch": ("torch (of CUDA)", "PyTorch, which also gives the reference values"),
    "triton": ("triton", "torch.compile"),
    "jax": ("'jax[cuda13]'", "Flax"),
    "flax": ("flax", "Flax"),
    "optax": ("optax", "Flax's training step"),
    "tensorflow": ("tensorflow keras", "TensorFlow"),
    "transformers": ("'transformers>=5'", "the comparison with transformers"),
    "timm": ("timm torchvision", "the comparison with timm"),
    "PIL": ("pillow", "the image processors and the pipeline"),
}
"""Module -> (what pip takes, what is missing without it)."""
OF_FRAMEWORK = {"pt": ("torch",), "flax": ("jax", "flax"), "tf": ("tensorflow", "keras")}


# === Processes ===


def run_task(task: Task, seconds: float, work: Mapping[str, Any]) -> Iterator[Row]:
    """What a task yields, in a process that is ended after so many seconds; its failure is its last row.

    Args:
        task: what runs.
        seconds: after which it is ended.
        work: the attributes of its `Work` but for `end`.
    """
    from .harness import ENVIRONMENT

    common = {name: value for name, value in ENVIRONMENT.items() if name not in EXACT}
    environment = {**os.environ, **common, **task.environment, "PYTHONPATH": os.pathsep.join(python_path())}
    end = time.time() + seconds
    told = json.dumps({"function": task.function, "work": {**work, "end": end - min(5.0, 0.1 * seconds)}})
    log = tempfile.TemporaryFile()  # noqa: SIM115  # closed below
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu_speed", told],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, cwd=ROOT, process_group=0,
    )  # fmt: skip
    assert process.stdout is not None
    lines: queue.Queue[bytes | None] = queue.Queue()
    reader = threading.Thread(target=lambda: [*map(lines.put, process.stdout), lines.put(None)], daemon=True)
    reader.start()
    try:
        while (line := lines.get(timeout=max(end - time.time(), 0.01))) is not None:
            yield json.loads(line)
        status = process.wait(timeout=10)
        if status:
            how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
            yield {"error": f"its process {how}: {_last_words(log)}"}
    except (queue.Empty, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGABRT)  # the process says where it is
        time.sleep(0.2)
        yield {"error": f"not done after {seconds:.0f} s, and ended: {_last_words(log)}"}
    finally:
        with suppress(ProcessLookupError):  # it has ended, and so has what it started
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join(5)
        for pipe in (process.stdin, process.stdout, log):
            if pipe is not None:
                pipe.close()


def _last_words(log: Any) -> str:
    log.seek(0)
    text = log.read().decode(errors="replace")
    stack = [line.strip() for line in text.partition("(most recent call first):")[2].splitlines() if line.strip()]
    said = stack[:1] or [line.strip() for line in text.splitlines() if line.strip()][-1:]
    return said[0][-300:] if said else "it said nothing"


def python_path() -> list[str]:
    """Where modules are looked for first: transformers 5 where it has a folder of its own, and this checkout."""
    from .peers import PEERS

    own = [folder for peer in PEERS if peer.site in ("transformers5", "timm") for folder in peer.path]
    inherited = os.environ.get("PYTHONPATH")
    return [*own, str(ROOT), *([inherited] if inherited else [])]


# === What is there ===


def missing() -> dict[str, str]:
    """Module -> a line that says which wheel would bring it, and what for; and what torch.compile needs besides."""
    found = {}
    for module, (wheel, what) in WHEELS.items():
        if not _is_there(module):
            found[module] = f"{what}: pip install {wheel}"
    if "torch" not in found:
        header = Path(sysconfig.get_paths()["include"], "Python.h")
        lacking = [name for name, there in (
            ("a C compiler", any(map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang")))),
            (f"Python's headers ({header})", header.exists())) if not there]  # fmt: skip
        if lacking:
            found["cc"] = f"torch.compile: {' and '.join(lacking)}, of the system's packages"
    return found


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def probe(work: Mapping[str, Any], lacking: Mapping[str, str]) -> Iterator[Row]:
    """A row for each framework, all at a time: its GPU, or why it has none."""

    def ask(task: Task) -> list[Row]:
        name = FRAMEWORKS[task.framework]
        if absent := [module for module in OF_FRAMEWORK[task.framework] if not _is_there(module)]:
            return [{"framework": task.framework, "without": f"{name}: {absent[0]} is not installed"}]
        rows = list(run_task(task, task.seconds, work))
        if errors := [row["error"] for row in rows if "error" in row]:
            return [{"framework": task.framework, "without": f"{name}: {errors[0]}"}]
        return [{"framework": task.framework, **row} for row in rows]

    with ThreadPoolExecutor(len(PROBES)) as pool:
        for rows in pool.map(ask, PROBES):
            yield from rows


# === A run ===


class Run:
    """Parts one after the other, each row kept at once.

    Args:
        folder: of gpu-results.jsonl and RESULTS.md.
        budget: seconds for all.
        rehearse: on the CPU and with small sizes, which shows that everything runs.
    """

    def __init__(self, folder: Path, budget: float, rehearse: bool) -> None:
        self.folder, self.rehearse, self.end = folder, rehearse, time.time() + budget
        self.name = datetime.now().isoformat(timespec="milliseconds")
        self.rows: list[Row] = []
        self.file = folder / "gpu-results.jsonl"

    def measure(self, parts: Sequence[str]) -> None:
        """Run parts, and keep what they give."""
        with tempfile.TemporaryDirectory(prefix="trivit-gpu-") as scratch:
            device = "cpu" if self.rehearse else "gpu"
            work = {"folder": scratch, "device": device, "small": self.rehearse}
            lacking = missing()
            for line in lacking.values():
                say(f"missing for {line}")
            found = list(probe(work, lacking))
            for row in found:
                say(row.get("without") or " ".join(f"{key} {value}" for key, value in row.items()))
            without = {row["framework"]: row["without"] for row in found if "without" in row}
            if len(without) < len(found):
                self.keep({"part": "machine", "rehearsed": self.rehearse, "host": host(), "found": found,
                           "missing": lacking})  # fmt: skip
            for part in parts:
                for task in PARTS[part].tasks:
                    if task.framework in without and without[task.framework].endswith("is not installed"):
                        continue  # once is enough
                    for row in self._rows_of(task, work, without, lacking):
                        self.keep({"part": part, "framework": task.framework, **row})

    def _rows_of(
        self, task: Task, work: Mapping[str, Any], without: Mapping[str, str], lacking: Mapping[str, str]
    ) -> Iterator[Row]:
        name, left = FRAMEWORKS[task.framework], self.end - time.time() - 2
        if task.framework in without:
            yield {"note": f"left out: {without[task.framework]}"}
        elif absent := [module for module in task.needs if not _is_there(module)]:
            yield {"note": f"{name} left out: {lacking.get(absent[0], absent[0])}"}
        elif left < (LEAST if not self.rehearse else 0.5):
            yield {"note": f"{name} left out: {max(left, 0):.0f} s of the budget are left"}
        else:
            patience = 4 if self.rehearse else 1  # with a CPU that does other things besides
            yield from run_task(task, min(patience * task.seconds, left), work)

    def keep(self, row: Row) -> None:
        """Show a row, and write it down where anything has been measured."""
        row = {"run": self.name, **row}
        self.rows.append(row)
        if row["part"] != "machine":
            say(f"{row['part']}: {as_line(row)}")
        if self.rows[0]["part"] != "machine":  # no framework has a GPU: what was measured before stays
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        from .harness import write_results

        key = ["gpu", "cpu" if self.rehearse else "gpu"]
        write_results(self.folder / "RESULTS.md", key, section(read(self.file), self.rehearse))


def read(file: Path) -> list[Row]:
    """The rows of a file; a line that was cut off when a run was killed is left out."""
    rows = []
    for line in file.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def say(text: str) -> None:
    """Show a line, at once."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


# === Showing ===


def figure(value: Any) -> str:
    """A number in three digits; of three numbers the median, and between which the middle half lies."""
    if isinstance(value, list):
        return f"{figure(value[0])} ({figure(value[1])} to {figure(value[2])})"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else str(value)


HIDDEN = ("run", "part", "framework", "table", "note", "error")


def as_line(row: Row) -> str:
    """A row for the terminal."""
    name = FRAMEWORKS.get(row.get("framework", ""), "")
    if "error" in row:
        return f"{name} FAILED: {row['error']}"
    if "note" in row:
        return row["note"]
    return f"{name} " + ", ".join(f"{key} {figure(value)}" for key, value in row.items() if key not in HIDDEN)


def section(rows: Iterable[Row], rehearsed: bool = False) -> str:
    """The section of the results: of each part the last run that measured it."""
    runs: dict[str, list[Row]] = {}
    for row in rows:
        runs.setdefault(row["run"], []).append(row)
    machines = {name: next((row for row in own if row["part"] == "machine"), None) for name, own in runs.items()}
    runs = {name: own for name, own in runs.items()
            if (known := machines[name]) and known["rehearsed"] == rehearsed}  # fmt: skip
    chosen = {}
    for part in PARTS:
        having = [name for name, own in runs.items() if any(row["part"] == part for row in own)]
        measured = [name for name in having if any(row["part"] == part and "table" in row for row in runs[name])]
        if having:
            chosen[part] = (measured or having)[-1]
    last = max(runs)
    what = "## Rehearsed on a CPU: figures mean nothing" if rehearsed else "## In one command on a GPU: ViT-B/16"
    blocks = [what, f"`python -m benchmarks gpu` on {last[:10]}; {_machine_line(machines[last])}."]
    of_goals = []
    for i, (part, name) in enumerate(chosen.items(), 1):
        own = [row for row in runs[name] if row["part"] == part]
        of_goals += own
        blocks += [f"### {i}. {PARTS[part].title}", PARTS[part].explanation, *_tables(own)]
        if name != last:
            blocks.append(f"Measured on {name[:10]}; {_machine_line(machines[name])}.")
        lines = [f"- {as_line(row).strip()}" for row in own if "note" in row or "error" in row]
        blocks += ["\n".join(lines)] if lines else []
    blocks += ["### The goals", "\n".join(f"- {line}" for line in goals(of_goals))]
    return "\n\n".join(blocks)


def _machine_line(row: Row | None) -> str:
    found = [each for each in (row or {"found": []})["found"] if "without" not in each]
    gpus = dict.fromkeys(each["gpu"] for each in found)
    return "; ".join([", ".join(gpus), ", ".join(each["version"] for each in found), (row or {"host": ""})["host"]])


def host() -> str:
    """Of the machine that this runs on: processor, cores, system and Python."""
    from .harness import machine

    return "{cpu}, {cores} cores; {system}, Python {python}".format(**machine())


def _tables(rows: Iterable[Row]) -> list[str]:
    from .harness import table

    found: dict[str, list[Row]] = {}
    for row in rows:
        if "table" in row:
            found.setdefault(row["table"], []).append(row)
    blocks = []
    for title, own in found.items():
        columns = list(dict.fromkeys(key for row in own for key in row if key not in HIDDEN))
        lines = [[FRAMEWORKS[row["framework"]], *(figure(row.get(column)) for column in columns)] for row in own]
        blocks += [f"**{title}**", table(["", *columns], lines)]
    return blocks


def goals(rows: Sequence[Row]) -> list[str]:
    """What was to be reached, and what was."""
    tables = [row for row in rows if "table" in row]
    checks = [row for row in tables if "misses" in row]
    misses = sum(row["misses"] for row in checks)
    lines = [f"right: {misses} misses in {len(checks)} lines (goal: none)"] if checks else ["right: not measured"]
    factors = [row["speed over transformers as called"][0] for row in tables
               if row["part"] == "latency" and row["dtype"] == "float16" and row["what"].startswith("trivit")
               and row.get("speed over transformers as called")]  # fmt: skip
    best = f"{max(factors):.2f} times as quick as transformers' sdpa as called" if factors else "not measured"
    lines.append(f"batch 1 in float16: {best} (goal: 2)")
    for framework in ("pt", "flax"):
        shares = [row["MFU"] for row in tables if row["part"] == "throughput" and row["framework"] == framework
                  and row.get("batch") == 256 and row["dtype"] == "bfloat16" and row.get("MFU")]  # fmt: skip
        best = f"MFU {max(shares):.0%}" if shares else "not measured"
        lines.append(f"batch 256 in bfloat16, {FRAMEWORKS[framework]}: {best} (goal: 55%)")
    slower = [as_line(row) for row in tables if (row.get("trivit's speed over it") or [1])[0] < 0.97]
    compared = sum("trivit's speed over it" in row for row in tables)
    lines.append(
        f"slower than transformers 5: {len(slower)} of {compared} lines" + "".join(f"; {line}" for line in slower)
    )
    return lines


# === The command ===


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser("python -m benchmarks gpu", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    names = ", ".join(PARTS)
    parser.add_argument("--from", dest="first", metavar="PART", choices=PARTS, help=f"begin there: {names}")
    parser.add_argument("--only", metavar="PART", choices=PARTS, action="append", help="that part alone; repeatable")
    parser.add_argument(
        "--budget", metavar="SECONDS", type=float, default=BUDGET, help="for all (default: %(default)g)"
    )
    parser.add_argument("--output", metavar="FOLDER", type=Path, default=None,
                        help="of gpu-results.jsonl and RESULTS.md (default: benchmarks)")  # fmt: skip
    parser.add_argument("--rehearse", action="store_true",
                        help="on the CPU with small sizes, to see that all runs; needs --output")  # fmt: skip
    options = parser.parse_args(arguments)
    if options.rehearse and options.output is None:
        parser.error("--rehearse needs --output FOLDER: what it gives is no measurement")
    if options.first and options.only:
        parser.error("--from and --only exclude each other")
    if not options.budget > 0:
        parser.error(f"--budget is {options.budget:g}; expected seconds")
    if lacking := [WHEELS[name][0] for name in ("numpy", "safetensors", "ml_dtypes") if not _is_there(name)]:
        sys.exit(f"Nothing runs without {', '.join(lacking)}: pip install {' '.join(lacking)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended, too
    parts = options.only or list(PARTS)[list(PARTS).index(options.first) if options.first else 0 :]
    run = Run((options.output or FOLDER).resolve(), options.budget, options.rehearse)
    run.measure([part for part in PARTS if part in parts])
    measured = any("table" in row for row in run.rows)
    if measured:
        print("\n" + section(read(run.file), options.rehearse), flush=True)
    lacking_lines = missing().values()
    print("\n" + ("Missing: " + "; ".join(lacking_lines) if lacking_lines else "Nothing is missing."), flush=True)
    if not measured:
        sys.exit("Nothing was measured: the lines above say why.")
    if failed := dict.fromkeys(row["part"] for row in run.rows if "error" in row or row.get("misses")):
        sys.exit(f"Failed or missed: {', '.join(failed)}")
