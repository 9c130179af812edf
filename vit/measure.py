"""What timing needs: the machine by name, its rate of large matrix products, and work in processes of their own.

Each framework brings thread pools, allocators and, on a GPU, the wish to own the memory. So whatever is compared runs
in a `Worker`, a process of its own that holds it ready and runs it when asked, while the others wait.
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from . import errors

ROOT = Path(__file__).parents[1]


class WorkerError(RuntimeError):
    """Work that failed in another process: the message is in one line, `traceback` has the rest."""

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback


class Worker:
    """A process that holds something ready and times it when asked; a context manager that ends the process.

    Args:
        path: folders in which modules are looked for first.
        environment: variables that are set in the process, beside those of this one.
    """

    def __init__(self, path: list[str] | None = None, environment: Mapping[str, str] | None = None) -> None:
        inherited = os.environ.get("PYTHONPATH")
        folders = [*(path or []), str(ROOT), *([inherited] if inherited else [])]
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # what it logs is shown if it dies
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from vit.measure import serve; serve()"],
            env={**os.environ, **(environment or {}), "PYTHONPATH": os.pathsep.join(folders)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )

    def prepare(self, function: str, **options: Any) -> Any:
        """Call `function`, "module:name", with JSON-able options, in the process.

        Returns:
            what it returns, JSON-able; if that is a pair of a function without arguments and something JSON-able, the
            first is kept there for `run`, in the place of an earlier one, and the second is returned.

        Raises:
            WorkerError: it raised, or the process died. Errors of `vit.errors`, and ValueError, ImportError and OSError
                come as themselves.
        """
        return self._ask({"prepare": function, "options": options})

    def run(self, seconds: float = 0.0, least: int = 1) -> list[float]:
        """Run what was prepared, again and again for so many seconds, and `least` times at least.

        Returns:
            the seconds of each time.

        Raises:
            WorkerError: it raised, or the process died.
        """
        return self._ask({"run": [seconds, least]})

    def peak_memory(self, reset: bool = False) -> int:
        """The most bytes of main memory that the process has held at once; `reset` forgets them then."""
        return self._ask({"memory": True, "reset": reset})

    def _ask(self, question: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise self._obituary()
        answer = json.loads(line)
        if "error" not in answer:
            return answer["value"]
        name, message, trace = answer["error"]
        if name in _PASSED_ON:
            raise _PASSED_ON[name](message)
        raise WorkerError(f"{name}: {' '.join(message.split())}", trace)

    def _obituary(self) -> WorkerError:
        status = self._process.wait()
        self._stderr.seek(0)
        log = self._stderr.read().decode(errors="replace").strip()
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        why = " (out of memory, most likely)" if status == -9 else ""
        return WorkerError(f"its process {how}{why}{': ' * bool(log)}{log[-300:].splitlines()[-1] if log else ''}", log)

    def close(self) -> None:
        """End the process; nothing happens if it has ended."""
        self._process.kill()
        self._process.communicate()
        self._stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


_PASSED_ON: dict[str, type[Exception]] = {
    **{name: value for name, value in vars(errors).items() if isinstance(value, type)},
    **{name: getattr(builtins, name) for name in ("ValueError", "ImportError", "ModuleNotFoundError", "OSError")},
}


def serve() -> None:
    """What a worker's process does: answer the questions on stdin until it closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    run: Callable[[], Any] | None = None
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if "prepare" in question:
                module, _, name = question["prepare"].partition(":")
                value = getattr(importlib.import_module(module), name)(**question["options"])
                if isinstance(value, tuple) and len(value) == 2 and callable(value[0]):
                    run, value = value
            elif "run" in question:
                if run is None:
                    raise RuntimeError("there is nothing to run; prepare it first")
                value = repeat(run, *question["run"])
            else:
                value = peak_memory(question["reset"])
            answer = {"value": value}
        except Exception as error:
            answer = {"error": [type(error).__name__, str(error), traceback.format_exc()]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    os._exit(0)  # nothing to say goodbye to; frameworks take up to a second for it


def seconds(call: Callable[[], Any]) -> float:
    """The time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def repeat(call: Callable[[], Any], enough: float, least: int = 1) -> list[float]:
    """The seconds of each of the calls that fill `enough` seconds, `least` at least."""
    times: list[float] = []
    end = time.perf_counter() + enough
    while len(times) < least or time.perf_counter() < end:
        times.append(seconds(call))
    return times


def peak_memory(reset: bool = False) -> int:
    """The most bytes of main memory that this process has held at once.

    Args:
        reset: forget it then, so that the next answer is of what comes after; on Linux alone.
    """
    try:  # of this program alone: getrusage also knows of the one that it was started from
        peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak


# === The machine ===


def machine() -> dict[str, Any]:
    """The processor's name, how many of its cores this process may use, bytes of memory, system and Python."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return {
        "cpu": cpu,
        "cores": cores,
        "memory": memory,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def busy(seconds: float = 0.1) -> float:
    """The share of the processors' time that other programs take, 0 to 1, seen while this one waits."""

    def times() -> tuple[int, int]:
        user, nice, system, idle, wait, *rest = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
        return user + nice + system + sum(rest), idle + wait

    try:
        used, unused = times()
        time.sleep(seconds)
        used, unused = (after - before for after, before in zip(times(), (used, unused), strict=True))
        return used / max(used + unused, 1)
    except OSError:  # not Linux: the last minute's average
        return min(os.getloadavg()[0] / (os.cpu_count() or 1), 1.0) if hasattr(os, "getloadavg") else 0.0


def matrix_rate(framework: str, dtype: str, device: str | None = None, enough: float = 1.0) -> float:
    """Operations per second of a large square matrix product: what the model's operations are held against.

    Args:
        framework: "pt", "tf" or "flax"; the products are its own.
        dtype: float32, bfloat16, float16, float64; or int8 in PyTorch, whose products add up in int32.
        device: as `from_pretrained` takes it; None for the framework's default.
        enough: seconds for which it is repeated; the best time counts.
    """
    product, size = {"pt": _product_pt, "tf": _product_tf, "flax": _product_flax}[framework](dtype, device)
    product()
    return 2 * size**3 / min(repeat(product, enough))


CPU_SIZE, GPU_SIZE = 2048, 8192  # large enough for the best rate, small enough to take milliseconds


def _product_pt(dtype: str, device: str | None) -> tuple[Callable[[], Any], int]:
    import torch

    where = torch.device(device or "cpu")
    size = CPU_SIZE if where.type == "cpu" else GPU_SIZE
    if dtype == "int8":
        matrix = torch.randint(-127, 127, (size, size), dtype=torch.int8, device=where)
        multiply: Any = torch._int_mm
    else:
        matrix = torch.randn(size, size, device=where).to(getattr(torch, dtype))
        multiply = torch.mm

    @torch.inference_mode()
    def product() -> None:
        multiply(matrix, matrix)
        if where.type != "cpu":
            torch.accelerator.synchronize(where)

    return product, size


def _product_tf(dtype: str, device: str | None) -> tuple[Callable[[], Any], int]:
    import tensorflow as tf

    on_gpu = bool(tf.config.list_physical_devices("GPU")) and not (device or "").lower().startswith("cpu")
    size = GPU_SIZE if on_gpu else CPU_SIZE
    with tf.device(device or ("GPU:0" if on_gpu else "CPU:0")):
        matrix = tf.cast(tf.random.normal((size, size)), dtype)
    return lambda: tf.linalg.matmul(matrix, matrix)[0, 0].numpy(), size  # a number of it waits for all of it


def _product_flax(dtype: str, device: str | None) -> tuple[Callable[[], Any], int]:
    import jax

    platform, _, index = (device or jax.default_backend()).lower().partition(":")
    where = jax.devices(platform)[int(index or 0)]
    size = CPU_SIZE if where.platform == "cpu" else GPU_SIZE
    matrix = jax.device_put(jax.random.normal(jax.random.key(0), (size, size)).astype(dtype), where)
    multiply = jax.jit(lambda x: x @ x)
    return lambda: multiply(matrix).block_until_ready(), size
