"""Tests run in a fork of a process that has imported the frameworks once: `Runner`, for the campaign of mutants.

The process imports nothing of the project, so each fork sees the files as they are then. Which lines a test runs is
what coverage.py sees in its process; a test that starts another one is marked, for its lines are not all known.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

FRAMEWORKS = ("numpy", "torch", "tensorflow", "jax", "flax.nnx", "transformers", "matplotlib.figure", "pyarrow.parquet",
              "PIL.Image", "h5py", "safetensors.numpy", "huggingface_hub", "hypothesis", "rich.progress", "typer",
              "skimage.data", "sklearn.decomposition", "optax", "coverage")  # fmt: skip


IDLE = 30
"""Seconds without any use of the CPU after which tests are taken to wait for ever."""


class Runner:
    """Runs tests of a copy of the project.

    Args:
        copy: the copy's folder.
        warm: modules that are imported once, before the forks.
    """

    def __init__(self, copy: Path, warm: Sequence[str] = FRAMEWORKS) -> None:
        from . import conftest  # noqa: F401  (sets what frameworks read when they are imported)

        environment = os.environ | {"PYTHONPATH": str(copy)}
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(copy), *warm], cwd=copy, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def _ask(self, **message: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def measure(self, file: str, sources: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Run a file of tests, and say of each that passes what it takes.

        Args:
            file: relative to the copy.
            sources: folders of the copy whose lines are wanted.

        Returns:
            {test: {"seconds": of CPU, "starts": whether it starts a process, "lines": {source: [line, ...]}}}.
        """
        return self._ask(files=[file], sources=list(sources), seconds=3600)["measured"]

    def verdict(self, tests: Sequence[str], known: Sequence[str], seconds: float) -> str:
        """Run tests in an order until one fails.

        Args:
            tests: as pytest names them; those of a file run together.
            known: others that are not run. A test that is in neither, as a parameter has another name now, is run
                beside those of its function.
            seconds: of CPU and, tenfold, of waiting that they may take.

        Returns:
            "passed", "slow" or "failed: " and the test.
        """
        files = list(dict.fromkeys(test.split("::")[0] for test in tests))
        return self._ask(files=files, tests=list(tests), known=list(known), seconds=seconds)["verdict"]

    def close(self) -> None:
        self._process.communicate()  # the end of its stdin is its end

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


# === In the other process ===


class _Chosen:
    """Runs the chosen tests, in their order, and remembers the first that fails."""

    def __init__(self, tests: list[str], known: list[str]) -> None:
        self.places = {test: place for place, test in enumerate(tests)}
        self.functions = {test.split("[")[0]: place for test, place in reversed(self.places.items())}
        self.others = set(known) - self.places.keys()
        self.verdict = "failed: nothing was found to run"

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        def place(item: pytest.Item) -> int | None:
            if item.nodeid in self.others:
                return None
            return self.places.get(item.nodeid, self.functions.get(item.nodeid.split("[")[0]))

        chosen = [(found, i) for i, item in enumerate(items) if (found := place(item)) is not None]
        items[:] = [items[i] for _, i in sorted(chosen)]
        if items:
            self.verdict = "passed"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.verdict == "passed":
            self.verdict = f"failed: {report.nodeid}"

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.verdict = f"failed: {report.nodeid} cannot be imported"


class _Measured:
    """Notes what each test takes."""

    def __init__(self, sources: list[str]) -> None:
        import coverage

        self.tests: dict[str, dict[str, Any]] = {}
        self.current: dict[str, Any] = {}
        self.coverage = coverage.Coverage(data_file=None, include=[f"{os.path.abspath(each)}/*" for each in sources])
        self.coverage.start()
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: Any) -> None:
        if event in ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.exec", "os.system"):
            self.current["starts"] = True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        begun = sum(os.times()[:4])
        self.current = self.tests[item.nodeid] = {"starts": False, "lines": {}, "passed": True}
        self.coverage.switch_context(item.nodeid)
        result = yield
        self.coverage.switch_context("")
        self.current["seconds"] = round(sum(os.times()[:4]) - begun, 3)
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self.tests[report.nodeid]["passed"] = False

    def answer(self) -> dict[str, Any]:
        self.coverage.stop()
        data = self.coverage.get_data()
        for file in data.measured_files():
            for line, tests in data.contexts_by_lineno(file).items():
                for test in filter(None, tests):
                    self.tests[test]["lines"].setdefault(os.path.relpath(file), []).append(line)
        return {name: test for name, test in self.tests.items() if test.pop("passed")}


def _child(message: dict[str, Any], output: int, report: str) -> None:
    """Never returns."""
    try:
        os.setsid()
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        limit = int(message["seconds"]) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        measures = "sources" in message
        sys.dont_write_bytecode = not measures
        plugin: Any = _Measured(message["sources"]) if measures else _Chosen(message["tests"], message["known"])
        options = ["-p", "no:cacheprovider", "--tb=short" if measures else "--tb=line", *([] if measures else ["-x"])]
        pytest.main([*options, *message["files"]], plugins=[plugin])
        answer = {"measured": plugin.answer()} if measures else {"verdict": plugin.verdict}
        with open(report, "w") as file:
            json.dump(answer, file)
    finally:
        os._exit(0)


def _ticks(session: int) -> int:
    """What the processes of a session have used of the CPU."""
    found = 0
    for process in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # gone meanwhile
            fields = process.read_text().rpartition(")")[2].split()
            found += int(fields[11]) + int(fields[12]) if int(fields[3]) == session else 0
    return found


def _main(warm: list[str]) -> None:
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != str(Path(__file__).parent)]
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for name in warm:
        with suppress(ImportError):
            importlib.import_module(name)
    for line in sys.stdin:
        message = json.loads(line)
        with tempfile.NamedTemporaryFile() as report, tempfile.TemporaryFile() as output:
            pid = os.fork()
            if not pid:
                _child(message, output.fileno(), report.name)
            ended, used, begun = 0, 0, time.monotonic()
            deadline = begun + 10 * message["seconds"] + 30
            while not ended and time.monotonic() < min(deadline, begun + IDLE):
                ended, _ = os.waitpid(pid, os.WNOHANG)
                if (now := _ticks(pid)) != used:
                    used, begun = now, time.monotonic()
                time.sleep(0.1)
            with suppress(ProcessLookupError):  # and whatever it started
                os.killpg(pid, signal.SIGKILL)
            if not ended:
                os.waitpid(pid, 0)
            answer = report.read().decode()
            if "sources" in message and os.environ.get("FORKED_OUTPUT"):
                output.seek(0)
                with open(os.environ["FORKED_OUTPUT"], "ab") as kept:
                    kept.write(output.read())
        out.write((answer or json.dumps({"verdict": "slow", "measured": {}})) + "\n")


if __name__ == "__main__":
    _main(sys.argv[2:])
