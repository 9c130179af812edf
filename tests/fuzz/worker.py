"""A process that reads inputs, one a line of its input, and says what came of each: replaced when it dies or hangs.

The limits are held from outside (the time) and measured from inside (the peak of the memory, which Linux resets on
demand): a limit of the address space would be met by the frameworks' own reservations.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 10.0
MEMORY = 2**30
"""What an input below 1 MB may take: seconds, and bytes over what the process had before."""


COMMAND = [sys.executable, "-m", "tests.fuzz.worker"]


@dataclass
class Verdict:
    """What came of an input.

    Args:
        kind: "read", "refused" (one of the project's errors), or what is wrong: "other error", "crash", "hang",
            "memory", "wrong".
        detail: the error, or what differs.
        seconds: CPU time that reading took.
        memory: bytes over what the process had before.
        checked: whether an independent reader read the same.
    """

    kind: str
    detail: str = ""
    seconds: float = 0.0
    memory: int = 0
    checked: bool = False

    @property
    def failed(self) -> bool:
        """Whether this is a fault of the project."""
        return self.kind not in ("read", "refused")


class Worker:
    """A process with the readers; it starts when it is first asked.

    Args:
        folder: where the readers' seeds are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def judge(self, reader: str, path: Path) -> Verdict:
        """Let the process read one input."""
        process = self.process or self._start()
        # On a busy machine a process waits: its CPU time counts, unless it waits for what never comes.
        used, end = _cpu(process.pid), time.monotonic() + 6 * SECONDS
        process.stdin.write(json.dumps([reader, os.fspath(path)]).encode() + b"\n")
        process.stdin.flush()
        while not select.select([process.stdout], [], [], 0.25)[0]:
            if _cpu(process.pid) - used > SECONDS or time.monotonic() > end:
                self.close()
                return Verdict("hang")
        line = process.stdout.readline()
        if not line:
            self.process = None
            return Verdict("crash", f"exit status {process.wait()}")
        return Verdict(**json.loads(line))

    def _start(self) -> Any:
        root = Path(__file__).parents[2]
        env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore",
               "TF_CPP_MIN_LOG_LEVEL": "3"}  # fmt: skip
        self.process = subprocess.Popen(
            [*COMMAND, str(self.folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root, env=env,
        )  # fmt: skip
        self.process.stdout.readline()  # it is ready
        return self.process

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _cpu(pid: int) -> float:
    """Seconds of CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# === In the process ===


def _memory(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def judge(reader: Any, path: Path) -> Verdict:
    """Read one input, and say what came of it."""
    from vit.errors import CheckpointError, ConfigError, InputError

    from .readers import differences

    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
    before, begin = _memory("VmRSS"), time.process_time()
    found = None
    try:
        found = reader.read(path)
        verdict = Verdict("read")
    except (CheckpointError, ConfigError, InputError) as error:
        verdict = Verdict("refused", str(error)[:300])
        if len(str(error)) > 4000 or not str(error).isprintable():
            verdict = Verdict("other error", f"a message that a terminal should not get: {str(error)[:300]!r}")
    except BaseException as error:  # also what ends a process
        import traceback

        last = traceback.extract_tb(error.__traceback__)[-1]
        verdict = Verdict(
            "other error", f"{type(error).__name__}: {str(error)[:200]!r} ({last.filename}:{last.lineno})"
        )
    verdict.seconds, verdict.memory = time.process_time() - begin, max(0, _memory("VmHWM") - before)
    if verdict.memory > MEMORY and verdict.kind in ("read", "refused"):
        verdict.kind, verdict.detail = "memory", f"{verdict.memory / 1e9:.2f} GB: {verdict.detail}"
    if found is not None and verdict.kind == "read" and reader.oracle is not None:
        try:
            expected = reader.oracle(path)
        except Exception as error:  # it is stricter
            verdict.detail = f"the other reader: {type(error).__name__}: {str(error)[:100]}"
            return verdict
        verdict.checked = True
        if difference := differences(found, expected):
            verdict.kind, verdict.detail = "wrong", difference
    return verdict


def main() -> None:
    """Judge what each line names, until there are no more."""
    from .readers import readers

    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print goes elsewhere
    import torch  # noqa: F401  # the oracles, before the memory is measured

    table = readers(Path(sys.argv[1]))
    for name, reader in table.items():  # whatever a library takes once, it takes here
        del name
        judge(reader, reader.seeds[0])
    answers.write(b"ready\n")
    for line in sys.stdin.buffer:
        name, path = json.loads(line)
        answers.write(json.dumps(vars(judge(table[name], Path(path)))).encode() + b"\n")


if __name__ == "__main__":
    main()
