"""Kill a program at each of its durable steps, or fill its disk there, and look at what it left: `every_step`.

A durable step is a system call that changes what a folder holds: a write, a file made or cut, a rename, link or
unlink, a folder made or removed, an fsync. They are found as they are called, whoever calls them (Python, NumPy,
SQLite, Arrow, a child process), so no test has to know the code that it tests:

    for step in kill.every_step(folder, warm="from vit import checkpoint", run="checkpoint.copy('old', 'new')"):
        assert whole(folder / "new"), step

`warm` runs once, in a process of its own; each `run` is a fork of it, with its variables, that starts in `folder` as
it was in the beginning. So imports and models cost once, and a kill a few milliseconds. Do in `warm` what takes time,
except what a fork does not survive: threads (JAX and TensorFlow may be imported there, and no more).

Linux alone: `ptrace` stops the process before each such call (seccomp picks them out, the rest runs at full speed).
Where a sandbox forbids that, Python's own calls are interposed instead: those of C libraries are then not seen.
"""

from __future__ import annotations

import builtins
import ctypes
import io
import json
import os
import platform
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 60  # that a run may take


@dataclass(frozen=True)
class Step:
    """Where a run was ended.

    Attributes:
        number: which step, from 1; 0 for a run that nothing ended.
        call: the system call, such as "write"; None for a kill at a random time.
        path: what it would have changed, relative to the folder.
        status: how the run ended: its exit status, or minus the number of the signal that killed it.
        stderr: what it said.
    """

    number: int
    call: str | None
    path: str
    status: int
    stderr: str

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL


def every_step(
    folder: str | os.PathLike[str],
    *,
    run: str,
    warm: str = "",
    error: int | None = None,
    torn: bool = True,
    once: bool = False,
    first: int = 1,
    every: int = 1,
) -> Iterator[Step]:
    """End a program at each durable step in turn; the folder is as it was left while the loop's body runs.

    Args:
        folder: whose changes are steps. Before each run it is again what it was at first.
        run: Python source: what is ended, in a fork, with the folder as its working directory.
        warm: Python source: what is done once before, in the same namespace.
        error: None to kill (SIGKILL); otherwise, such as `errno.ENOSPC`, from that step on every write, new file,
            rename and fsync fails with it, as on a disk that is full, where unlinks are no steps.
        torn: each write of several bytes is also killed in its middle.
        once: the program runs once, and what a kill would leave at each step is copied while it waits there: for what
            takes seconds to begin. It is not killed, nor its writes torn.
        first: the first step.
        every: 2 for every second step, and so on.

    Yields:
        A `Step` for each, in order, and at last that of a run to the end, with the number 0.
    """
    with _Runner(Path(folder), warm, run) as runner:
        if once:
            yield from runner.moments(every)
            return
        number = first
        while True:
            step = runner.step(at=number, error=error)
            if not step.number:
                yield step
                return
            yield step
            if torn and error is None and step.call in _TORN:
                yield runner.step(at=number, torn=True)
            number += every


def at_random(folder: str | os.PathLike[str], *, run: str, warm: str = "", times: int, seed: int = 0) -> Iterator[Step]:
    """As `every_step`, killed at random moments, of which some fall after the end."""
    draw = random.Random(seed)
    with _Runner(Path(folder), warm, run) as runner:
        runner.step()
        begun = time.monotonic()
        runner.step()
        seconds = time.monotonic() - begun
        for _ in range(times):
            yield runner.step(after=draw.uniform(0, 1.05 * seconds))


class _Runner:
    """The process that `warm` ran in, and the folder's first state."""

    def __init__(self, folder: Path, warm: str, run: str) -> None:
        self._folder = folder.resolve()
        self._kept = tempfile.TemporaryDirectory(prefix="kill-")
        shutil.copytree(self._folder, self._first, symlinks=True)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self._folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip
        self._ask({"warm": warm, "run": run})

    @property
    def _first(self) -> Path:
        return Path(self._kept.name) / "first"

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the runner ended with status {self._process.wait()}; see its stderr")
        return json.loads(answer)

    def _restore(self, copy: Path) -> None:
        for entry in os.scandir(self._folder):  # the folder itself stays: tests and processes stand in it
            shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
        shutil.copytree(copy, self._folder, symlinks=True, dirs_exist_ok=True)

    def step(self, **message: Any) -> Step:
        self._restore(self._first)
        answer = self._ask(message)
        del answer["copied"]
        return Step(**answer)

    def moments(self, every: int) -> Iterator[Step]:
        """What the folder was before each step of one run, or every second, and so on, and in the end."""
        self._restore(self._first)
        copies = Path(self._kept.name) / "copies"
        answer = self._ask({"copies": str(copies), "every": every})
        shutil.copytree(self._folder, copies / "0", symlinks=True)
        steps = [Step(*step, -signal.SIGKILL, "") for step in answer["copied"]]
        for step in [*steps, Step(0, None, "", answer["status"], answer["stderr"])]:
            self._restore(copies / str(step.number))
            yield step

    def __enter__(self) -> _Runner:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._process.communicate()  # the end of its stdin is its end
        self._kept.cleanup()


# === In the other process: ptrace ===

# Name: (number on x86-64, on arm64, what is changed). The last is "fd" and its argument, or "path" and the arguments of
# paths, before each of which stands that of the folder it is relative to, or None.
_CALLS: dict[str, tuple[int | None, int | None, tuple[Any, ...]]] = {
    "write": (1, 64, ("fd", 0)),
    "pwrite": (18, 68, ("fd", 0)),
    "writev": (20, 66, ("fd", 0)),
    "pwritev": (296, 70, ("fd", 0)),
    "sendfile": (40, 71, ("fd", 0)),
    "copy_file_range": (326, 285, ("fd", 2)),
    "fallocate": (285, 47, ("fd", 0)),
    "ftruncate": (77, 46, ("fd", 0)),
    "fsync": (74, 82, ("fd", 0)),
    "fdatasync": (75, 83, ("fd", 0)),
    "truncate": (76, 45, ("path", None, 0)),
    "open": (2, None, ("path", None, 0)),
    "openat": (257, 56, ("path", 0, 1)),
    "creat": (85, None, ("path", None, 0)),
    "rename": (82, None, ("path", None, 0, None, 1)),
    "renameat": (264, 38, ("path", 0, 1, 2, 3)),
    "renameat2": (316, 276, ("path", 0, 1, 2, 3)),
    "link": (86, None, ("path", None, 1)),
    "linkat": (265, 37, ("path", 2, 3)),
    "symlink": (88, None, ("path", None, 1)),
    "symlinkat": (266, 36, ("path", 1, 2)),
    "unlink": (87, None, ("path", None, 0)),
    "unlinkat": (263, 35, ("path", 0, 1)),
    "mkdir": (83, None, ("path", None, 0)),
    "mkdirat": (258, 34, ("path", 0, 1)),
    "rmdir": (84, None, ("path", None, 0)),
}
_TORN = ("write", "pwrite")  # whose third argument is the number of bytes
_FREES = ("unlink", "unlinkat", "rmdir")  # a full disk lets them be
_MACHINE = {"x86_64": 0, "aarch64": 1, "arm64": 1}.get(platform.machine())
_AUDIT_ARCH = (0xC000003E, 0xC00000B7)
_TRACEME, _CONT, _SYSCALL, _SETOPTIONS, _GETREGS, _SETREGS = 0, 7, 24, 0x4200, 12, 13
_GETREGSET, _SETREGSET, _GET_SYSCALL_INFO = 0x4204, 0x4205, 0x420E
_OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x80 | 0x100000  # sysgood, fork, vfork, clone, exec, seccomp, exitkill
_SECCOMP_EVENT = 7


def _ptrace(request: int, pid: int, address: int = 0, data: Any = 0) -> int:
    result = _libc.ptrace(request, pid, ctypes.c_void_p(address), ctypes.c_void_p(data) if type(data) is int else data)
    if result == -1:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x}: {os.strerror(ctypes.get_errno())}")
    return result


def _watch() -> None:
    """In the child: stop for the tracer at the calls of `_CALLS` from here on."""
    _ptrace(_TRACEME, 0)
    os.kill(os.getpid(), signal.SIGSTOP)
    numbers = [call[_MACHINE] for call in _CALLS.values() if call[_MACHINE] is not None]  # type: ignore[index]
    program = [(0x20, 0, 0, 4), (0x15, 0, len(numbers) + 1, _AUDIT_ARCH[_MACHINE]), (0x20, 0, 0, 0)]  # type: ignore[index]
    program += [(0x15, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    program += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x7FF00000)]  # allow; trace
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
    pointer = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
    if _libc.prctl(38, 1, 0, 0, 0) or _libc.prctl(22, 2, pointer, 0, 0):  # no new privileges; seccomp filter
        raise OSError(ctypes.get_errno(), "seccomp")


class _Tracer:
    """Follows a child and all that it starts, step by step."""

    def __init__(
        self, folder: str, at: int, error: int | None, torn: bool, copies: str | None = None, every: int = 1
    ) -> None:
        self._folder, self._at, self._error, self._torn = folder, at, error, torn
        self._copies, self._every = copies, every
        self._count = 0
        self.copied: list[tuple[int, str, str]] = []  # what each copy was made before
        self.found: tuple[int, str | None, str] = (0, None, "")  # the step where it was ended

    def follow(self, pid: int) -> int:
        """Until it ends; how it did."""
        os.waitpid(pid, 0)
        _ptrace(_SETOPTIONS, pid, 0, _OPTIONS)
        _ptrace(_CONT, pid)
        known, status = {pid}, 0
        while known:
            try:
                each, stopped = os.waitpid(-1, 0x40000000)  # threads too
            except ChildProcessError:
                break
            if not os.WIFSTOPPED(stopped):
                known.discard(each)
                if each == pid:
                    status = os.waitstatus_to_exitcode(stopped)
                continue
            number, go = os.WSTOPSIG(stopped), _CONT
            event = stopped >> 16
            if event == _SECCOMP_EVENT:
                number, go = 0, self._step(each, known)
            elif event or number == signal.SIGTRAP:
                number = 0
            elif number == signal.SIGTRAP | 0x80:  # the end of a torn write
                self._kill(known)
                number = 0
            elif each not in known and number == signal.SIGSTOP:
                number = 0
            known.add(each)
            with suppress(ProcessLookupError):  # killed meanwhile
                _ptrace(go, each, 0, int(number))
        return status

    def _kill(self, known: set[int]) -> None:
        for each in known:
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)

    def _step(self, pid: int, known: set[int]) -> int:
        """Look at a call that is about to happen; how to go on."""
        info = ctypes.create_string_buffer(88)
        try:
            _ptrace(_GET_SYSCALL_INFO, pid, 88, info)
            call, *arguments = struct.unpack_from("7Q", info, 24)
            name = _NAMES[call]
            path = _changed(pid, name, arguments, self._folder)
        except OSError:  # gone meanwhile, or no such descriptor
            return _CONT
        if path is None or (self._error is not None and name in _FREES):
            return _CONT
        self._count += 1
        if self._copies is not None:  # other threads that come to a step wait meanwhile
            if (self._count - 1) % self._every == 0:
                self.copied.append((self._count, name, path))
                shutil.copytree(self._folder, os.path.join(self._copies, str(self._count)), symlinks=True)
            return _CONT
        if self._count < self._at:
            return _CONT
        if self._count == self._at:
            self.found = (self._count, name, path)
        if self._error is not None:
            _fail(pid, self._error)
            return _CONT
        if self._torn and arguments[2] > 1:
            _shorten(pid, arguments[2] // 2)
            return _SYSCALL
        self._kill(known)
        return _CONT


def _changed(pid: int, name: str, arguments: list[int], folder: str) -> str | None:
    """What of the folder a call changes, relative to it; None for nothing."""
    kind, *places = _CALLS[name][2]
    if kind == "fd":
        paths = [os.readlink(f"/proc/{pid}/fd/{arguments[places[0]] & 0xFFFFFFFF}")]
    else:
        if name in ("open", "openat"):
            flags = arguments[places[1] + 1]
            if not flags & (os.O_CREAT | os.O_TRUNC):
                return None
        paths = []
        for at, place in zip(places[::2], places[1::2], strict=True):
            base = 0xFFFFFF9C if at is None else arguments[at] & 0xFFFFFFFF
            base_path = os.readlink(f"/proc/{pid}/cwd" if base == 0xFFFFFF9C else f"/proc/{pid}/fd/{base}")
            paths.append(os.path.normpath(os.path.join(base_path, _string(pid, arguments[place]))))
        if name in ("open", "openat") and flags & os.O_CREAT and not flags & os.O_TRUNC and os.path.lexists(paths[0]):
            return None
    for path in paths:
        if path == folder or path.startswith(folder + os.sep):
            return os.path.relpath(path, folder)
    return None


def _string(pid: int, address: int) -> str:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        found = b""
        while b"\0" not in found:
            # up to the end of a page: the next may not be there
            found += memory.read(4096 - (address + len(found)) % 4096)
        return os.fsdecode(found[: found.index(b"\0")])


def _fail(pid: int, error: int) -> None:
    """Let a call that is about to happen not happen, and give an error."""
    if _MACHINE == 0:
        registers = ctypes.create_string_buffer(27 * 8)
        _ptrace(_GETREGS, pid, 0, registers)
        struct.pack_into("q", registers, 15 * 8, -1)
        struct.pack_into("q", registers, 10 * 8, -error)
        _ptrace(_SETREGS, pid, 0, registers)
        return
    call = ctypes.create_string_buffer(struct.pack("i", -1))
    _ptrace(_SETREGSET, pid, 0x404, _vector(call, 4))
    registers = ctypes.create_string_buffer(34 * 8)
    _ptrace(_GETREGSET, pid, 1, _vector(registers, 34 * 8))
    struct.pack_into("q", registers, 0, -error)
    _ptrace(_SETREGSET, pid, 1, _vector(registers, 34 * 8))


def _shorten(pid: int, size: int) -> None:
    """Let the write that is about to happen be of so many bytes."""
    place, length = ((12, 27), (2, 34))[_MACHINE or 0]
    registers = ctypes.create_string_buffer(length * 8)
    if _MACHINE == 0:
        _ptrace(_GETREGS, pid, 0, registers)
    else:
        _ptrace(_GETREGSET, pid, 1, _vector(registers, length * 8))
    struct.pack_into("Q", registers, place * 8, size)
    if _MACHINE == 0:
        _ptrace(_SETREGS, pid, 0, registers)
    else:
        _ptrace(_SETREGSET, pid, 1, _vector(registers, length * 8))


def _vector(buffer: Any, size: int) -> Any:
    return ctypes.create_string_buffer(struct.pack("QQ", ctypes.addressof(buffer), size))


_NAMES = {call[_MACHINE]: name for name, call in _CALLS.items()} if _MACHINE is not None else {}
_libc: Any = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


# === In the other process, where ptrace is forbidden: Python's calls ===

_PATHS = {"rename": (0, 1), "replace": (0, 1), "link": (1,), "symlink": (1,), "unlink": (0,), "remove": (0,),
          "mkdir": (0,), "rmdir": (0,), "truncate": (0,), "open": (0,)}  # fmt: skip
_DESCRIPTORS = ("write", "pwrite", "fsync", "fdatasync", "ftruncate", "posix_fallocate")


def _interpose(
    folder: str, at: int, error: int | None, torn: bool, copies: str | None, every: int, report: int
) -> None:
    """Wrap what Python's files and `os` call, in this process; its threads too, and no child of it."""
    count = 0
    copied: list[tuple[int, str, str]] | None = []  # None while a copy is made, whose calls are no steps
    write, seek, cut = os.write, os.lseek, os.ftruncate

    def step(name: str, paths: list[str]) -> bool:
        """Whether this is a step to tear; it does not return from others to end at."""
        nonlocal count, copied
        paths = [path for path in paths if path == folder or path.startswith(folder + os.sep)]
        if not paths or copied is None or (error is not None and name in _FREES):
            return False
        count += 1
        if copies is not None:
            if (count - 1) % every:
                return False
            steps, copied = [*copied, (count, name, os.path.relpath(paths[0], folder))], None
            shutil.copytree(folder, os.path.join(copies, str(count)), symlinks=True)
            copied = steps
            seek(report, 0, os.SEEK_SET)
            cut(report, 0)
            write(report, json.dumps([0, None, "", copied]).encode())
            return False
        if count < at:
            return False
        if count == at:
            write(report, json.dumps([count, name, os.path.relpath(paths[0], folder), []]).encode())
        if error is not None:
            raise OSError(error, os.strerror(error))
        if torn:
            return True
        os.kill(os.getpid(), signal.SIGKILL)
        return False

    def of(descriptor: int) -> list[str]:
        return [os.readlink(f"/proc/self/fd/{descriptor}")]

    def wrap_paths(name: str, places: tuple[int, ...]) -> Any:
        call = getattr(os, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            bases = [options.get(each) for each in ("dir_fd", "src_dir_fd", "dst_dir_fd") if options.get(each)]
            base = of(bases[-1])[0] if bases else os.getcwd()
            paths = [os.path.normpath(os.path.join(base, os.fsdecode(arguments[place]))) for place in places]
            new = os.O_TRUNC | (0 if os.path.lexists(paths[0]) else os.O_CREAT)
            if name != "open" or arguments[1] & new:
                step({"replace": "rename", "remove": "unlink"}.get(name, name), paths)
            return call(*arguments, **options)

        return wrapped

    def wrap_descriptor(name: str) -> Any:
        call = getattr(os, name)

        def wrapped(descriptor: Any, *arguments: Any) -> Any:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            if step(name, of(number)):
                call(number, bytes(arguments[0])[: len(arguments[0]) // 2], *arguments[1:])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(number, *arguments)

        return wrapped

    class File(io.FileIO):
        def write(self, data: Any) -> int:
            if step("write", of(self.fileno())):
                super().write(bytes(data)[: len(bytes(data)) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return super().write(data)

        def truncate(self, size: int | None = None) -> int:
            step("ftruncate", of(self.fileno()))
            return super().truncate(size)

    def opened(file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None, errors: str | None = None,
               newline: str | None = None, closefd: bool = True, opener: Any = None) -> Any:  # fmt: skip
        letters = mode.replace("b", "").replace("t", "")
        if letters == "r":
            return _open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = File(file, letters, closefd, opener or (lambda path, flags: os.open(path, flags, 0o666)))
        if buffering == 0:
            return raw
        binary = io.BufferedRandom(raw) if "+" in letters else io.BufferedWriter(raw)
        return binary if "b" in mode else io.TextIOWrapper(binary, encoding, errors, newline, buffering == 1)

    for name, places in _PATHS.items():
        setattr(os, name, wrap_paths(name, places))
    for name in _DESCRIPTORS:
        setattr(os, name, wrap_descriptor(name))
    builtins.open = io.open = opened


_open = io.open


def _may_trace() -> bool:
    if _MACHINE is None or os.environ.get("KILL_BY_PYTHON"):
        return False
    pid = os.fork()
    if not pid:
        try:
            _watch()
            os._exit(0)
        finally:
            os._exit(1)
    try:
        return _Tracer("/", sys.maxsize, None, False).follow(pid) == 0
    except OSError:
        return False


# === In the other process: runs ===


def _child(namespace: dict[str, Any], run: str, folder: str, stderr: int, begin: Any) -> None:
    """Never returns."""
    status = 0
    try:
        os.dup2(stderr, 2)
        os.dup2(stderr, 1)
        os.chdir(folder)
        sys.stdout = sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
        begin()
        exec(compile(run, "<run>", "exec"), namespace)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    os._exit(status)


def _one(namespace: dict[str, Any], run: str, folder: str, trace: bool, at: int = 0, error: int | None = None,
         torn: bool = False, after: float | None = None, copies: str | None = None,
         every: int = 1) -> dict[str, Any]:  # fmt: skip
    """Run, and say how it ended."""
    looks = at > 0 or copies is not None
    with tempfile.TemporaryFile() as stderr, tempfile.TemporaryFile() as report:
        tracer = _Tracer(folder, at, error, torn, copies, every)
        pid = os.fork()
        if not pid:
            begin = _watch if trace else lambda: _interpose(folder, at, error, torn, copies, every, report.fileno())
            _child(namespace, run, folder, stderr.fileno(), begin if looks else lambda: None)

        def end(number: int, frame: Any) -> None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

        signal.signal(signal.SIGALRM, end)
        seconds = SECONDS * (1 if copies is None else 10)
        signal.setitimer(signal.ITIMER_REAL, seconds if after is None else max(after, 1e-4))
        try:
            traced = trace and looks
            status = tracer.follow(pid) if traced else os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        said, found = (file.seek(0) or file.read() for file in (stderr, report))
    number, call, path, copied = json.loads(found) if found else (*tracer.found, tracer.copied)
    stderr_text = said.decode(errors="backslashreplace")
    return {"number": number, "call": call, "path": path, "status": status, "stderr": stderr_text, "copied": copied}


def _main(folder: str) -> None:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    first = json.loads(sys.stdin.readline())
    namespace: dict[str, Any] = {"__name__": "__kill__"}
    exec(compile(first["warm"], "<warm>", "exec"), namespace)
    trace = _may_trace()
    out.write("{}\n")
    for line in sys.stdin:
        out.write(json.dumps(_one(namespace, first["run"], folder, trace, **json.loads(line))) + "\n")


if __name__ == "__main__":
    _main(sys.argv[1])
