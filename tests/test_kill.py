"""The harness that kills: it finds every durable step, ends runs there, and leaves what was there before."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from . import kill

RUN = """
import os
from pathlib import Path
with open("a", "wb") as file:
    file.write(b"12345678")
    file.flush()
    os.fsync(file.fileno())
    file.truncate(2)
Path("d").mkdir()
os.replace("a", "d/b")
os.unlink("old")
Path("../elsewhere").write_text("no step")
"""


def state(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("python", ["", "1"])  # 1: as where ptrace is forbidden
def test_each_step_of_a_program_is_a_place_to_be_killed_at(python, tmp_path, monkeypatch):
    monkeypatch.setenv("KILL_BY_PYTHON", python)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").write_text("old")
    found = [(step.call.removesuffix("at"), step.path, step.killed, state(folder)) if step.number else state(folder)
             for step in kill.every_step(folder, run=RUN)]  # fmt: skip
    old = {"old": "old"}
    assert found == [
        ("open", "a", True, old),
        ("write", "a", True, {"a": "", **old}),
        ("write", "a", True, {"a": "1234", **old}),  # torn
        ("fsync", "a", True, {"a": "12345678", **old}),
        ("ftruncate", "a", True, {"a": "12345678", **old}),
        ("mkdir", "d", True, {"a": "12", **old}),
        ("rename", "a", True, {"a": "12", **old}),
        ("unlink", "old", True, {"d/b": "12", **old}),
        {"d/b": "12"},
    ]


@pytest.mark.parametrize("python", ["", "1"])
def test_a_program_that_runs_once_shows_what_a_kill_at_each_step_would_leave(python, tmp_path, monkeypatch):
    monkeypatch.setenv("KILL_BY_PYTHON", python)
    found = []
    for once in (False, True):
        folder = tmp_path / str(once)
        folder.mkdir()
        (folder / "old").write_text("old")
        found.append([(step.number, step.call, step.path, step.killed, state(folder))
                      for step in kill.every_step(folder, run=RUN, torn=False, once=once)])  # fmt: skip
    assert found[0] == found[1]
    assert found[1][-1] == (0, None, "", False, {"d/b": "12"})


def test_what_c_libraries_threads_and_child_processes_write_is_seen(tmp_path):
    run = """
connection = sqlite3.connect("rows.db")
connection.execute("CREATE TABLE rows (value)")
connection.commit()
np.save("array.npy", np.arange(3))
thread = threading.Thread(target=lambda: Path("thread").write_text("1"))
thread.start()
thread.join()
subprocess.run(["/bin/sh", "-c", "echo 1 > shell"], check=True)
"""
    warm = "import numpy as np, sqlite3, subprocess, threading\nfrom pathlib import Path"
    steps = list(kill.every_step(tmp_path, run=run, warm=warm, torn=False))
    assert steps[-1] == kill.Step(0, None, "", 0, "")
    assert all(step.killed for step in steps[:-1])
    paths = [step.path for step in steps]
    assert {"rows.db", "rows.db-journal", "array.npy", "thread", "shell"} <= set(paths)
    assert {"fsync", "fdatasync"} & {step.call for step in steps if step.path == "rows.db"}


@pytest.mark.parametrize("python", ["", "1"])
def test_a_disk_may_be_full_from_each_step_on(python, tmp_path, monkeypatch):
    monkeypatch.setenv("KILL_BY_PYTHON", python)
    (tmp_path / "old").write_text("old")
    run = "from pathlib import Path\nPath('a').write_text('1')\nos.replace('a', 'b')\nos.unlink('old')"
    steps = list(kill.every_step(tmp_path, run=run, warm="import os", error=errno.ENOSPC))
    assert [step.status for step in steps] == [1, 1, 1, 0]
    for step in steps[:-1]:
        assert os.strerror(errno.ENOSPC) in step.stderr


def test_random_moments_fall_before_and_after_the_end(tmp_path):
    run = "import time\nfor i in range(20):\n    time.sleep(0.001)\n    open(str(i), 'w').close()"
    ends = {(step.killed, len(os.listdir(tmp_path))) for step in kill.at_random(tmp_path, run=run, times=12)}
    assert len({count for killed, count in ends if killed}) > 1


def test_how_a_run_ends_by_itself_is_told(tmp_path):
    for run, status, said in (("import sys; sys.exit(3)", 3, ""), ("1 / 0", 1, "ZeroDivisionError")):
        (step,) = kill.every_step(tmp_path, run=run)
        assert step.status == status
        assert said in step.stderr
