"""The GPU run, rehearsed on the CPU: every task with small sizes, and what becomes of those that fail."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, gpu_right, gpu_speed
from benchmarks.gpu import PARTS, Part, Task
from benchmarks.gpu_speed import Work, largest_that_fits

TASKS = [pytest.param(part, task, id=task.function.partition(":")[2]) for part in PARTS for task in PARTS[part].tasks]
Run = Callable[..., tuple[str, str]]


# === Every task ===


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the tasks of a run share."""
    return str(tmp_path_factory.mktemp("gpu"))


@pytest.fixture
def work(scratch: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    """Of a rehearsal with time enough."""
    import jax

    from vit import measure

    monkeypatch.setattr(gpu_speed, "ROW", 0.001)
    monkeypatch.setattr(gpu_speed, "TURN", 0.001)
    monkeypatch.setattr(measure, "CPU_SIZE", measure.CPU_SIZE)  # the rehearsal sets it
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)  # compiling is what takes the time here
    yield Work(scratch, "cpu", True, time.time() + 600)
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.parametrize(("part", "task"), TASKS)
def test_every_task_measures_on_a_cpu_with_small_sizes(part: str, task: Task, work: Work) -> None:
    module, _, name = task.function.partition(":")
    rows = list(getattr(importlib.import_module(module), name)(work))
    measured = [row for row in rows if "table" in row]
    assert measured
    assert all(gpu.as_line({"framework": task.framework, **row}) for row in rows)
    json.dumps(gpu_speed.finite(rows), allow_nan=False, default=float)
    assert sum(row.get("misses", 0) for row in rows) == 0
    expected = ("in a CUDA graph", "attention of cudnn", "whether the GPU is idle")  # which a CPU has not
    assert not [row for row in rows if "note" in row and not any(each in row["note"] for each in expected)]
    if part in ("table", "latency", "throughput", "training") and task.framework == "pt":
        assert any("trivit's speed over it" in row for row in measured)
    if part == "right":
        assert {row["dtype"] for row in measured} >= {"float32", "float64", "float16", "bfloat16"}
        assert any(row["what"].startswith("odd cases") and row["cases"] >= 3 for row in measured)


def test_a_framework_that_computes_something_else_is_a_miss(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = gpu_right.Bench(work)
    run = gpu_right.suite().RUN["pt"]

    def off(*arguments: Any, **options: Any) -> Any:
        outputs, gradients = run(*arguments, **options)
        return outputs, {name: 1.01 * value for name, value in gradients.items()}

    assert gpu_right.compare(bench, "pt", gpu_right.FULL, "float32", "sdpa", "all is well")["misses"] == 0
    monkeypatch.setitem(gpu_right.suite().RUN, "pt", off)
    row = gpu_right.compare(bench, "pt", gpu_right.FULL, "float32", "sdpa", "gradients are off")
    assert row["misses"] == 1
    assert row["gradients off by"] == pytest.approx(0.01, rel=0.1)
    monkeypatch.setitem(gpu_right.suite().RUN, "pt", lambda *_, **__: 1 / 0)
    assert gpu_right.compare(bench, "pt", gpu_right.FULL, "float32", "sdpa", "it fails")["misses"] == 1
    assert gpu_right.check("NaN is never right", "float32", (float("nan"),), 1.0)["misses"] == 1


# === Too little memory ===


def test_the_next_smaller_size_is_taken_and_named_where_memory_is_too_little() -> None:
    def attempt(batch: int) -> str:
        if batch > 16:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return f"trained {batch}"

    size, found, notes = largest_that_fits((64, 32, 16, 8), attempt, "a step")
    assert (size, found) == (16, "trained 16")
    assert [note["note"] for note in notes] == [
        "a step: the GPU's memory is too little for batch 64; batch 32 is taken",
        "a step: the GPU's memory is too little for batch 32; batch 16 is taken",
    ]
    with pytest.raises(MemoryError, match="batch 32; nothing smaller is left"):
        largest_that_fits((64, 32), attempt, "a step")
    with pytest.raises(ZeroDivisionError):  # that is another matter
        largest_that_fits((64, 32), lambda batch: 1 / 0, "a step")


def test_throughput_goes_on_with_smaller_batches(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    turns = gpu_speed.turns

    def too_large_once(calls: Any, *arguments: Any) -> Any:
        if calls["trivit"]().shape[0] == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return turns(calls, *arguments)

    monkeypatch.setattr(gpu_speed, "turns", too_large_once)
    monkeypatch.setattr(gpu_speed, "libraries", lambda work, *more: ["trivit"])
    rows = list(gpu_speed.throughput_pt(work))
    assert "bfloat16: the GPU's memory is too little for batch 3" in [row.get("note") for row in rows]
    assert {row["batch"] for row in rows if row.get("how") == "as called"} == {1, 2}


# === The command ===

FAKES = """
import os, sys, time

def sees(work):
    print("libraries print what they like")
    yield {"gpu": "Fake 9000", "version": "Frame 1.0"}

def blind(work):
    yield {"without": "Frame 1.0 is a build without CUDA"}

def good(work):
    yield {"table": "Speeds", "what": "one", "dtype": "float32", "ms": [1.5, 1.25, 2.0]}
    yield {"table": "Speeds", "what": "two", "dtype": "float32", "ms": float("nan"), "more": 12345.6}
    yield {"note": "something was left out"}

def wrong(work):
    yield {"table": "Checks", "what": "all", "dtype": "float32", "misses": 2}

def raises(work):
    yield {"table": "Speeds", "what": "before it failed", "dtype": "float32", "ms": 3.0}
    raise RuntimeError("no kernel image is available")

def dies(work):
    yield {"table": "Speeds", "what": "before it died", "dtype": "float32", "ms": 4.0}
    print("Fatal: the driver is gone", file=sys.stderr, flush=True)
    os._exit(7)

def hangs(work):
    yield {"table": "Speeds", "what": "before it hung", "dtype": "float32", "ms": 5.0}
    stuck()

def stuck():
    while True:
        time.sleep(0.01)
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command with fake tasks; gives what it printed, and how it ended."""
    (tmp_path / "fakes.py").write_text(FAKES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)

    def command(*arguments: str, sees: str = "sees blind", **parts: str) -> tuple[str, str]:
        tasks = {name: [Task(f"fakes:{each}", framework, 8 if each == "hangs" else 60)
                        for each, framework in zip(text.split(), ("pt", "flax"), strict=False)]
                 for name, text in {"probes": sees, **parts}.items()}  # fmt: skip
        monkeypatch.setattr(gpu, "PROBES", tuple(tasks.pop("probes")))
        monkeypatch.setattr(gpu, "PARTS", {name: Part(name.title(), tuple(of), "Why.") for name, of in tasks.items()})
        end = ""
        try:
            gpu.main(["--output", str(tmp_path / "out"), *arguments])
        except SystemExit as error:
            end = str(error.code)
        return capsys.readouterr().out, end

    return command


def kept(tmp_path: Path) -> list[dict[str, Any]]:
    return gpu.read(tmp_path / "out/gpu-results.jsonl")


def test_a_part_that_fails_dies_or_hangs_has_its_error_as_result_and_the_others_go_on(run: Run, tmp_path: Path) -> None:
    parts = {"first": "good", "second": "raises", "third": "dies", "fourth": "hangs", "fifth": "wrong", "last": "good"}
    out, end = run(**parts)
    assert end == "Failed or missed: second, third, fourth, fifth"
    rows = kept(tmp_path)
    errors = {row["part"]: row["error"] for row in rows if "error" in row}
    assert errors["second"].startswith("RuntimeError: no kernel image is available (fakes.py:")
    assert errors["third"] == "its process ended with status 7: Fatal: the driver is gone"
    assert errors["fourth"].startswith("not done after 8 s, and ended: File")
    assert errors["fourth"].endswith("in stuck")
    assert [row["what"] for row in rows if row.get("what", "").startswith("before")] == [
        "before it failed", "before it died", "before it hung"]  # fmt: skip
    assert [row["part"] for row in rows if row.get("what") == "two"] == ["first", "last"]
    text = (tmp_path / "out/RESULTS.md").read_text()
    for line in ("<!-- section: gpu gpu -->", "### 6. Last", "| PyTorch | one | float32 | 1.5 (1.25 to 2) |  |",
                 "| PyTorch | two | float32 | nan | 12,346 |", "- something was left out", "Fake 9000",
                 "- PyTorch FAILED: RuntimeError: no kernel image", "right: 2 misses"):  # fmt: skip
        assert line in text
    assert "no GPU was there" not in text
    assert "Frame 1.0 is a build without CUDA" in out
    assert not list((tmp_path / "out").glob(".*"))  # nothing half-written


def test_a_run_begins_at_a_part_or_does_one_alone_and_what_was_measured_stays(run: Run, tmp_path: Path) -> None:
    parts = {"first": "good", "second": "good", "third": "good"}

    def done() -> list[str]:
        rows = kept(tmp_path)
        return list(dict.fromkeys(row["part"] for row in rows if row["run"] == rows[-1]["run"]))

    assert run("--from", "second", **parts)[1] == ""
    assert done() == ["machine", "second", "third"]
    run("--only", "first", **parts)
    assert done() == ["machine", "first"]
    with (tmp_path / "out/gpu-results.jsonl").open("a") as file:
        file.write('{"run": "cut off')  # of a run that was killed
        file.write("\n")
    run("--only", "third", **{**parts, "third": "raises"})
    text = (tmp_path / "out/RESULTS.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("### ")] == [
        "### 1. First", "### 2. Second", "### 3. Third", "### The goals"]  # fmt: skip
    assert "before it failed" in text  # the third part is that of the last run
    for arguments in (["--from", "nowhere"], ["--from", "first", "--only", "third"], ["--budget", "0"]):
        assert run(*arguments, **parts)[1] == "2"


def test_parts_that_the_budget_has_no_time_for_are_left_out_with_a_line(run: Run, tmp_path: Path) -> None:
    _, end = run("--budget", "20", first="hangs", second="good", third="good")
    assert end == "Failed or missed: first"
    notes = [row["note"] for row in kept(tmp_path) if "note" in row]
    assert len(notes) == 2
    assert all(note.startswith("PyTorch left out: ") and note.endswith("s of the budget are left") for note in notes)


def test_without_a_gpu_each_part_says_so_and_nothing_is_written(run: Run, tmp_path: Path) -> None:
    out, end = run(sees="blind blind", first="good good", second="good")
    assert end == "Nothing was measured: the lines above say why."
    assert out.count("left out: Frame 1.0 is a build without CUDA") == 3
    assert not (tmp_path / "out").exists()


def test_a_framework_without_cuda_is_left_out_with_a_line_and_the_other_goes_on(run: Run, tmp_path: Path) -> None:
    run(sees="blind sees", first="good good")
    rows = [row for row in kept(tmp_path) if row["part"] == "first"]
    assert rows[0]["note"] == "left out: Frame 1.0 is a build without CUDA"
    assert {row["framework"] for row in rows if "table" in row} == {"flax"}


def test_wheels_that_are_missing_are_named_with_what_they_would_bring(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_there = gpu._is_there
    monkeypatch.setattr(gpu, "_is_there", lambda name: name not in ("PIL", "timm", "torch") and is_there(name))
    parts = {"first": Part("First", (Task("fakes:good", "pt", 4, ("PIL",)), Task("fakes:good", "flax", 4)), "Why.")}
    out, _ = run(sees="sees sees", first="good good")
    missing = "the image processors and the pipeline: pip install pillow"
    assert f"missing for {missing}" in out
    assert missing in out.strip().splitlines()[-1]
    assert "the comparison with timm: pip install timm torchvision" in out.strip().splitlines()[-1]
    assert "PyTorch: torch is not installed" in out
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(gpu, "_is_there", lambda name: name != "PIL" and is_there(name))
    gpu.main(["--output", str(tmp_path / "out")])
    assert {"PyTorch left out: the image processors and the pipeline: pip install pillow"} <= {
        row.get("note") for row in kept(tmp_path)
    }
    monkeypatch.setattr(gpu, "_is_there", lambda name: name != "numpy")
    with pytest.raises(SystemExit, match="Nothing runs without numpy: pip install numpy"):
        gpu.main([])


def test_a_rehearsal_wants_a_folder_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        gpu.main(["--rehearse"])
    assert "--rehearse needs --output" in capsys.readouterr().err


def test_goals_are_read_from_the_rows() -> None:
    fast = {"part": "latency", "framework": "pt", "table": "", "dtype": "float16", "what": "trivit, compiled",
            "speed over transformers as called": [2.5, 2, 3], "trivit's speed over it": [0.9, 0.8, 1]}  # fmt: skip
    busy = {"part": "throughput", "framework": "flax", "table": "", "dtype": "bfloat16", "batch": 256, "MFU": 0.61}
    lines = gpu.goals([fast, busy])
    assert lines[1] == "batch 1 in float16: 2.50 times as quick as transformers' sdpa as called (goal: 2)"
    assert lines[3] == "batch 256 in bfloat16, Flax: MFU 61% (goal: 55%)"
    assert lines[4].startswith("slower than transformers 5: 1 of 1 lines; PyTorch dtype float16, what trivit, comp")


# === A bare machine ===


def test_make_takes_the_python_that_is_there_and_installs_nothing() -> None:
    outer = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHON")  # of the make that runs the tests
    environment = {name: value for name, value in gpu.os.environ.items() if name not in outer}
    for given, python in (([], "python3"), (["PYTHON=/opt/python"], "/opt/python")):
        command = ["make", "--dry-run", "bench-gpu", "ARGS=--from latency", *given]
        done = subprocess.run(command, cwd=gpu.ROOT, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.split("\n") == [f"{python} -m benchmarks gpu --from latency", ""]


BARE = """
import sys
from importlib.machinery import PathFinder

HIDDEN = {hidden}

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Bare if each is PathFinder else each for each in sys.meta_path]
"""
LUXURY = {"typer", "tensorflow", "keras", "tf_keras", "matplotlib", "timm", "torchvision", "h5py", "pyarrow", "pytest",
          "sklearn", "skimage", "trivit", "PIL", "triton"}  # fmt: skip


@pytest.mark.parametrize(("models", "hidden"), [
    ("ViTForImageClassification, ViTModel", {*LUXURY, "rich", "jax", "flax"}),
    ("FlaxViTForImageClassification, FlaxViTModel", {*LUXURY, "torch"}),  # Flax itself needs rich
])  # fmt: skip
def test_models_need_a_framework_numpy_and_safetensors_alone(models: str, hidden: set[str], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BARE.format(hidden=hidden))
    environment = {**gpu.os.environ, "PYTHONPATH": f"{tmp_path}:{gpu.ROOT}"}
    code = f"from vit import ViTConfig, {models}; import sys; print(sorted(set(sys.modules) & {hidden!r}))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_the_command_itself_runs_on_a_bare_machine(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BARE.format(hidden={*LUXURY, "rich", "jax", "flax", "transformers"}))
    environment = {**gpu.os.environ, "PYTHONPATH": str(tmp_path)}
    command = ["-m", "benchmarks", "gpu", "--rehearse", "--output", str(tmp_path / "out"), "--only", "table",
               "--only", "pipeline"]  # fmt: skip
    done = subprocess.run([sys.executable, *command], env=environment, cwd=gpu.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = kept(tmp_path)
    assert {row["batch"] for row in rows if row.get("table") == "Milliseconds"} == {1, 2, 3}
    assert "PyTorch left out: the image processors and the pipeline: pip install pillow" in [
        row.get("note") for row in rows
    ]
    last = done.stdout.strip().splitlines()[-1]
    for what in ("Flax: pip install 'jax[cuda13]'", "TensorFlow: ", "the comparison with transformers: ", "pillow"):
        assert what in last
    assert "Rehearsed on a CPU" in (tmp_path / "out/RESULTS.md").read_text()
