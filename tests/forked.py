"""Tests run in a fork of a process that has imported the frameworks once: `Runner`, for the campaign of mutants.

The process imports nothing of the project, so each fork sees the files as they are then. Which lines a test runs is
what coverage.py sees in its process; a test that starts another one is marked, for its lines are not all known.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

FRAMEWORKS = ("numpy", "torch", "tensorflow", "jax", "flax.nnx", "transformers", "matplotlib.figure", "pyarrow.parquet",
              "PIL.Image", "h5py", "safetensors.numpy", "huggingface_hub", "hypothesis", "rich.progress", "typer",
              "skimage.data", "sklearn.decomposition", "optax", "coverage", "torch._dynamo", "torch.export",
              "torch.onnx", "torchao.quantization", "onnxruntime", "onnxscript", "openvino", "grain", "fastapi",
              "fastapi.testclient", "uvicorn", "prometheus_client", "orbax.checkpoint", "ml_dtypes", "msgpack",
              "transformers.models.vit.modeling_vit", "transformers.models.vit.modeling_flax_vit",
              "_hypothesis_pytestplugin", "xdist.plugin", "xdist.looponfail", "anyio.pytest_plugin",
              "_pytest.assertion.rewrite")  # fmt: skip
"""What the tests import of others, and what pytest itself does."""

ENOUGH = 1.0
"""Seconds of CPU that a test of many parameters is measured for; its other parameters are taken to be alike."""

STAGES = (12, 48)
"""So many tests run before the files of the others are imported; of each stage those of a file run together."""

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

        The parameters that are left when those of a test have taken ENOUGH are not run, and said to be as the last was.

        Args:
            file: relative to the copy.
            sources: folders of the copy whose lines are wanted.

        Returns:
            {test: {"seconds": of CPU, "starts": whether it starts a process, "lines": {source: [line, ...]}}}.
        """
        return self._ask(files=[file], sources=list(sources), seconds=3600)["measured"]

    def compile(self, files: Sequence[str]) -> None:
        """Import files of tests once, so that what was compiled of them and of the project is there for all forks."""
        self._ask(files=list(files), compiles=True, seconds=3600)

    def verdict(self, tests: Sequence[str], known: Sequence[str], seconds: float) -> str:
        """Run tests in an order until one fails.

        Args:
            tests: as pytest names them. The files of the first few are imported before the others'.
            known: others that are not run. A test that is in neither, as a parameter has another name now, is run
                beside those of its function.
            seconds: of CPU and, tenfold, of waiting that they may take.

        Returns:
            "passed", "slow" or "failed: " and the test.
        """
        return self._ask(tests=list(tests), known=list(known), seconds=seconds)["verdict"]

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
        self.spent: dict[str, float] = {}  # by each test of all its parameters
        self.alike: dict[str, str] = {}  # {what was not run: the parameter of it that was, last}
        self.last: dict[str, str] = {}
        self.coverage = coverage.Coverage(data_file=None, include=[f"{os.path.abspath(each)}/*" for each in sources])
        self.coverage.start()
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: Any) -> None:
        if event in ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.exec", "os.system"):
            self.current["starts"] = True

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        function = item.nodeid.split("[")[0]
        if self.spent.get(function, 0) > ENOUGH:
            self.alike[item.nodeid] = self.last[function]
            return True
        begun = sum(os.times()[:4])
        self.current = self.tests[item.nodeid] = {"starts": False, "lines": {}, "passed": True}
        self.last[function] = item.nodeid
        self.coverage.switch_context(item.nodeid)
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        runtestprotocol(item, nextitem=nextitem)
        self.coverage.switch_context("")
        self.current["seconds"] = round(sum(os.times()[:4]) - begun, 3)
        self.spent[function] = self.spent.get(function, 0) + self.current["seconds"]
        return True

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
        self.tests |= {name: dict(self.tests[other]) for name, other in self.alike.items()}
        return {name: test for name, test in self.tests.items() if test.pop("passed")}


def _child(message: dict[str, Any], output: int, report: str) -> None:
    """Never returns."""
    try:
        os.setsid()
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        limit = int(message["seconds"]) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        sys.dont_write_bytecode = "tests" in message
        options = ["-p", "no:cacheprovider"]
        answer: dict[str, Any] = {}
        if "compiles" in message:
            pytest.main([*options, "--collect-only", "-qq", *message["files"]])
        elif "sources" in message:
            measured = _Measured(message["sources"])
            pytest.main([*options, "--tb=short", *message["files"]], plugins=[measured])
            answer = {"measured": measured.answer()}
        else:
            tests, known = message["tests"], message["known"]
            for begin, end in pairwise((0, *STAGES, None)):
                if not (some := tests[begin:end]):
                    continue
                files = list(dict.fromkeys(test.split("::")[0] for test in some))
                some.sort(key=lambda test, files=files: files.index(test.split("::")[0]))
                chosen = _Chosen(some, [*known, *(set(tests) - set(some))])
                pytest.main([*options, "--tb=line", "-x", *files], plugins=[chosen])
                answer = {"verdict": chosen.verdict}
                if chosen.verdict != "passed":
                    break
        with open(report, "w") as file:
            json.dump(answer, file)
    finally:
        os._exit(0)


def _ticks(session: int) -> int:
    """What the processes of a session have used of the CPU."""
    found = 0
    for process in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):  # gone meanwhile
            fields = Path("/proc", process, "stat").read_text().rpartition(")")[2].split()
            found += int(fields[11]) + int(fields[12]) if int(fields[3]) == session else 0
    return found


def _main(warm: list[str]) -> None:
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != str(Path(__file__).parent)]
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for name in warm:
        with suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a fork's collections leave these pages to be shared
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
