"""Locks of what one process at a time may write: a file `<path>.lock` beside it, held through the operating system."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType

from .errors import InputError, shown

fcntl: ModuleType | None = None
with suppress(ImportError):  # not on Windows
    import fcntl

_FLAGS = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_FLAGS |= getattr(os, "O_BINARY", 0)


@contextmanager
def locked(paths: Sequence[Path]) -> Iterator[None]:
    """Hold `<path>.lock` of each path, and remove it at the end.

    Raises:
        InputError: another process holds one, or it cannot be made.
    """
    with ExitStack() as stack:
        for path in sorted(set(paths)):
            stack.enter_context(_lock(path))
        yield


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    name = beside(path, ".lock")
    if fcntl is None:
        yield
        return
    while True:
        file = open_own(name, os.O_CREAT)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise InputError(f"{shown(path)} is being written by another process; wait for it, or stop it.") from None
        except OSError as error:
            os.close(file)
            raise InputError(f"{shown(name)} cannot be locked: {error.strerror}; give another --output.") from None
        if is_at(file, name):  # and not removed by who held it before
            break
        os.close(file)
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(name)
        os.close(file)


def beside(path: Path, more: str) -> Path:
    """The path with more after its name."""
    return path.with_name(path.name + more)


def open_own(path: Path, flags: int = 0) -> int:
    """Open a regular file for reading and writing, and never what a link points at.

    Args:
        flags: O_CREAT, and O_EXCL where it must be new.

    Raises:
        InputError: it cannot be opened, or is something else.
    """
    try:
        file = os.open(path, _FLAGS | flags, 0o666)
    except OSError as error:
        if path.is_symlink():
            raise InputError(f"{shown(path)} is a symbolic link, which is not followed; remove it.") from None
        raise InputError(f"{shown(path)} cannot be written: {error.strerror}.") from None
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise InputError(f"{shown(path)} is no regular file; remove it, or give another --output.")
    return file


def is_at(file: int, path: Path) -> bool:
    """Whether an open file is still what its path names."""
    try:
        return os.path.samestat(os.fstat(file), os.lstat(path))
    except OSError:
        return False
