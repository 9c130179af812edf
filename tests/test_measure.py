"""Work in processes of its own, and the machine that it is held against."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vit import InputError, measure
from vit.measure import Worker, WorkerError


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A process that finds the functions of this module's `WORK`."""
    folder = tmp_path_factory.mktemp("path")
    (folder / "work.py").write_text(WORK)
    with Worker([str(folder)], {"WORK_VARIABLE": "here"}) as started:
        yield started


WORK = """
import os, subprocess, sys, time
from vit.errors import InputError

def counter(start):
    calls = [start]
    def run():
        calls[0] += 1
        time.sleep(0.01)
    counter.calls = calls
    return run, {"start": start}

def count(): return counter.calls[0]
def nothing_to_run(): return counter.calls[0]
def variable(name): return os.environ.get(name)
def noise():
    print("printed"); subprocess.run(["echo", "printed by a child"]); sys.stderr.write("logged")
    return "answer"
def refuse(): raise InputError("of two\\nlines")
def broken(): raise ZeroDivisionError("by nothing")
def hold(size):
    held = bytearray(size)
    held[::4096] = b"x" * len(held[::4096])
"""


def test_what_was_prepared_runs_as_often_as_asked_and_says_how_long_each_took(worker: Worker) -> None:
    assert worker.prepare("work:counter", start=3) == {"start": 3}
    assert len(worker.run()) == 1
    times = worker.run(least=4)
    assert worker.prepare("work:count") == 3 + 1 + 4
    assert all(0.01 <= taken < 1 for taken in times)


def test_it_runs_for_the_time_that_is_asked(worker: Worker) -> None:
    worker.prepare("work:counter", start=0)
    start = time.perf_counter()
    times = worker.run(0.2)
    assert 0.2 <= time.perf_counter() - start < 5
    assert 1 < len(times) <= 20


def test_a_function_that_only_answers_leaves_what_runs_in_its_place(worker: Worker) -> None:
    worker.prepare("work:counter", start=0)
    worker.prepare("work:noise")
    assert len(worker.run()) == 1
    assert worker.prepare("work:count") == 1


def test_running_before_anything_is_prepared_is_an_error() -> None:
    with Worker() as fresh, pytest.raises(WorkerError, match="nothing to run"):
        fresh.run()


def test_variables_and_folders_are_its_own(worker: Worker) -> None:
    assert worker.prepare("work:variable", name="WORK_VARIABLE") == "here"
    assert "WORK_VARIABLE" not in os.environ
    assert "work" not in sys.modules


def test_what_libraries_print_is_no_answer(worker: Worker) -> None:
    assert worker.prepare("work:noise") == "answer"


def test_errors_of_the_package_come_as_themselves_and_others_in_a_line_with_their_trace(worker: Worker) -> None:
    with pytest.raises(InputError, match=r"^of two\nlines$"):
        worker.prepare("work:refuse")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        worker.prepare("no_such_module:function")
    with pytest.raises(WorkerError, match=r"^ZeroDivisionError: by nothing$") as error:
        worker.prepare("work:broken")
    assert "in broken" in error.value.traceback
    assert worker.prepare("work:noise") == "answer"  # it lives on


@pytest.mark.parametrize(
    ("function", "options", "how"),
    [("os:_exit", {"status": 3}, "ended with status 3"), ("os:abort", {}, "was ended by signal 6")],
)
def test_a_process_that_dies_is_an_error_that_says_how(function: str, options: dict[str, int], how: str) -> None:
    with Worker() as mortal:
        with pytest.raises(WorkerError, match=how):
            mortal.prepare(function, **options)
        with pytest.raises(WorkerError, match=how):
            mortal.run()


def test_closing_ends_the_process_even_while_it_works(tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text("import time\ndef build(): return lambda: time.sleep(60), None\n")
    with Worker([str(tmp_path)]) as sleeper:
        sleeper.prepare("sleeper:build")
        sleeper._process.stdin.write('{"run": [0, 1]}\n')
        sleeper._process.stdin.flush()
        start = time.perf_counter()
    assert time.perf_counter() - start < 5
    assert sleeper._process.returncode == -9
    sleeper.close()  # and again


def test_peak_memory_holds_what_was_held_at_once() -> None:
    with Worker() as small:
        before = small.peak_memory()
        assert 2**20 < before < 2**30  # not that of this process, which started it
    ballast = np.ones(2**27)  # a GiB here
    with Worker() as second:
        assert second.peak_memory() < ballast.nbytes


def test_peak_memory_grows_with_what_is_held(worker: Worker) -> None:
    before = worker.peak_memory()
    worker.prepare("work:hold", size=2**28)
    assert 2**28 * 0.95 < worker.peak_memory(reset=True) - before < 2**28 * 1.5
    if sys.platform == "linux":
        assert worker.peak_memory() < before + 2**27  # what is no longer held is forgotten


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_the_systems_where_there_is_no_proc(
    platform: str, unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "Path", lambda name: Path("/no/such/folder"))
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr("resource.getrusage", lambda whose: SimpleNamespace(ru_maxrss=3000))
    assert measure.peak_memory() == measure.peak_memory(reset=True) == 3000 * unit


# === The machine ===


def test_the_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measure.machine()
    assert found["cpu"]
    assert 1 <= found["cores"] <= (os.cpu_count() or 1)
    assert found["memory"] > 2**30
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))


@pytest.mark.parametrize(
    ("framework", "dtype"),
    [(framework, dtype) for framework in ("pt", "tf", "flax") for dtype in ("float32", "bfloat16")] + [("pt", "int8")],
)
def test_the_rate_is_the_operations_of_a_product_over_its_best_time(
    framework: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def repeat(product: Callable[[], Any], enough: float) -> list[float]:
        product()
        return [0.5, 0.25, enough]

    monkeypatch.setattr(measure, "CPU_SIZE", 64)
    monkeypatch.setattr(measure, "repeat", repeat)
    assert measure.matrix_rate(framework, dtype, "cpu") == 2 * 64**3 / 0.25


def test_what_other_programs_use_of_the_processors_is_seen():
    spin = [sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(spin) for _ in range(os.cpu_count() or 1)]
    try:
        assert measure.busy(0.5) > 0.5
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_without_the_systems_count_the_last_minutes_average_stands_for_it(monkeypatch):
    monkeypatch.setattr(measure.Path, "read_text", lambda path: (_ for _ in ()).throw(FileNotFoundError(path)))
    monkeypatch.setattr(measure.os, "getloadavg", lambda: (3.0, 0.0, 0.0))
    monkeypatch.setattr(measure.os, "cpu_count", lambda: 4)
    assert measure.busy(0) == 0.75
