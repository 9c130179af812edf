"""A folder as one thing: a save replaces all that it writes in one step, and a reader sees the files of one moment.

A save stages its files in `.incomplete-...`, inside the folder, and renames that to `.complete`: before this step
nothing has happened, after it nothing is undone. What is left to do is to move the files to their places. A reader
takes each file from `.complete` while that is there, and looks in the end whether all of them were the folder's at one
moment. A save that is killed leaves one of the two, which the next one removes or finishes. In between nothing extra
lies in the folder; who knows nothing of this sees the files change one after another.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from . import budgets
from .errors import CheckpointError, shown
from .files import CONFIG, INDEX, WEIGHTS

try:
    import fcntl
except ModuleNotFoundError:  # Windows: savers into one folder are not kept apart there
    fcntl = None  # type: ignore[assignment]

STAGED = ".incomplete-"
COMPLETE = ".complete"
REMOVED = ".removed"
"""In `.complete`, and the last to leave it: the names of the files that the save takes away."""

ATTEMPTS = 200
"""How often a reader begins again because of savers."""

T = TypeVar("T")

# === Saving ===


@contextmanager
def replace_files(folder: str | os.PathLike[str], stale: str | None = None) -> Iterator[Path]:
    """Give a staging folder whose files take their places in `folder` in one step when the block ends well.

    Where it does not end well, and after a kill, `folder` is as it was. Other savers into it wait.

    Args:
        folder: made if needed.
        stale: a pattern of file names; those of `folder` that match it and are not staged go in the same step.

    Raises:
        CheckpointError: `folder` is a file, or cannot be written; the file that could not be is named.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{shown(folder)} is a file; expected a folder to save into.")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    committed = False
    try:
        with settled(folder):
            for path in made:
                _sync(path.parent)
            staging = Path(tempfile.mkdtemp(prefix=STAGED, dir=folder))
            try:
                yield staging
                _stage(staging, folder, stale)
                os.rename(staging, folder / COMPLETE)
                committed = True
                _sync(folder)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
            _publish(folder)
    except OSError as error:
        name = "" if error.filename is None else f" ({shown(Path(os.fsdecode(error.filename)).name)})"
        reason = f"{error.strerror or error}{name}"
        if committed:
            raise CheckpointError(
                f"{shown(folder)} holds what was saved, but not all of it could be moved to its place: {reason}. It is "
                f"read from {COMPLETE} in it, and the next save moves it."
            ) from error
        raise CheckpointError(f"{shown(folder)} cannot be saved into: {reason}. It is as it was.") from error
    finally:
        for path in made:  # removes what is empty, that is, after a failure
            with suppress(OSError):
                path.rmdir()


@contextmanager
def settled(folder: Path) -> Iterator[None]:
    """A folder that no save is at work in, and none is left unfinished; it is made if needed.

    Raises:
        CheckpointError: what is in the place of a finished save was left by none.
        OSError: it cannot be written.
    """
    with _locked(folder):
        _finish(folder)
        yield


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name a file in the errors of what writes it, as the system does only where it is opened."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; an error names it."""
    with writing(path):
        path.write_text(text, encoding="utf-8")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make a folder if needed, and keep other savers waiting where the system can."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            yield
            return
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems have no locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_there(descriptor, folder):  # the one before may have removed it
                yield
                return
        finally:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing leaves it to children that were forked meanwhile
            os.close(descriptor)


def _is_there(descriptor: int, path: Path) -> bool:
    """Whether what is open still lies at its path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _stage(staging: Path, folder: Path, stale: str | None) -> None:
    """Make what was staged ready to be the folder's: nothing that comes after may fail but for want of a disk."""
    names = os.listdir(staging)
    for name in names:
        if (folder / name).is_dir():
            raise CheckpointError(f"{shown(folder / name)} is a folder where a file is to be saved; move it away.")
    removed = [name for name in os.listdir(folder) if stale and re.fullmatch(stale, name) and name not in names]
    write_text(staging / REMOVED, json.dumps(removed))
    for name in (*names, REMOVED):
        _sync(staging / name)
    _sync(staging)


def _publish(folder: Path) -> None:
    """Move the files of `.complete` to their places; whoever ends in between leaves the rest to the next."""
    complete = folder / COMPLETE
    removed = _removed(folder) or []
    # What names the others comes after them, for readers that do not look into `.complete`: an index after its shards.
    last = (WEIGHTS, INDEX, CONFIG)
    for name in sorted(os.listdir(complete), key=lambda name: (last.index(name) if name in last else -1, name)):
        if name != REMOVED:
            os.replace(complete / name, folder / name)
    _sync(folder)
    for name in removed:
        (folder / name).unlink(missing_ok=True)
    (complete / REMOVED).unlink()
    complete.rmdir()


def _finish(folder: Path) -> None:
    """Finish what a save that was killed had decided, and remove what it had not."""
    if _removed(folder) is not None:
        _publish(folder)
    with suppress(OSError):  # it is empty, or not ours
        (folder / COMPLETE).rmdir()
    if fcntl is not None:  # without locks another save may be at work there
        for path in folder.glob(f"{STAGED}*"):
            if stat.S_ISDIR(path.lstat().st_mode):
                shutil.rmtree(path, ignore_errors=True)


def _removed(folder: Path) -> list[str] | None:
    """The files that the save in `.complete` takes away; None if there is no such save."""
    try:
        if not stat.S_ISDIR((folder / COMPLETE).lstat().st_mode):  # a link would have files moved from elsewhere
            return None
        names = json.loads(budgets.read_whole(folder / COMPLETE / REMOVED))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise CheckpointError(
            f"{shown(folder / COMPLETE)} is not what a save left ({shown(error)}); remove it."
        ) from None
    if not isinstance(names, list) or not all(isinstance(n, str) and re.fullmatch(r"\w[\w.-]*", n) for n in names):
        raise CheckpointError(f"{shown(folder / COMPLETE)} is not what a save left; remove it.")
    return names


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, have reached the disk."""
    if path.is_dir() and fcntl is None:  # Windows opens no folders
        return
    with writing(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # of a folder, on some file systems
                raise
        finally:
            os.close(descriptor)


# === Reading ===

Find = Callable[[str], Path | None]
"""Where the file of a name lies; None where there is none."""


def at_one_moment(folder: Path, read: Callable[[Find], T]) -> T:
    """What `read` makes of the files of a folder, which it finds by its argument, as they were at one moment.

    `read` opens what it needs and may be called again: where a save came between its files, it saw some of two.

    Raises:
        CheckpointError: a file that is no file, or savers that leave no time to read.
        Exception: what `read` raises.
    """
    for attempt in range(ATTEMPTS):
        with _Files(folder) as files:
            try:
                result = read(files.find)
            except Exception:
                if files.are_current():
                    raise
            else:
                if files.are_current():
                    return result
        time.sleep(min(attempt, 20) / 1000)
    raise CheckpointError(f"{shown(folder)} is saved into again and again; read it when that has ended.")


def read_current(path: Path, read: Callable[[Path], T]) -> T:
    """What `read` makes of a file, wherever a save into its folder has it now."""
    return at_one_moment(path.parent, lambda find: read(find(path.name) or path))


def find(folder: Path, name: str) -> Path | None:
    """Where the file of a name lies in a folder, for those who need no more than one of its files."""
    return at_one_moment(folder, lambda find: find(name))


def files(folder: Path) -> list[Path]:
    """Every file below a folder, but for those that a save has replaced or not finished."""
    removed = _removed(folder)
    staged = [] if removed is None else [path for path in (folder / COMPLETE).iterdir() if path.name != REMOVED]
    hidden = {*(path.name for path in staged), *(removed or ()), *([COMPLETE] if removed is not None else ())}
    kept = [path for path in folder.iterdir() if path.name not in hidden and not path.name.startswith(STAGED)]
    below = [each for path in kept for each in (path.rglob("*") if path.is_dir() else (path,))]
    return [path for path in (*staged, *below) if path.is_file()]


class _Files:
    """The files that a reader found, kept open: while they are, no other can be taken for one of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[str, tuple[Path, BinaryIO] | None] = {}

    def find(self, name: str) -> Path | None:
        if name not in self.found:
            self.found[name] = _open(self.folder, name)
        found = self.found[name]
        return found and found[0]

    def are_current(self) -> bool:
        """Whether each lies where it was found; as all are open, they lay there together when the last was opened."""
        return all(self._is_current(*each) for each in self.found.items())

    def _is_current(self, name: str, found: tuple[Path, BinaryIO] | None) -> bool:
        now = _open(self.folder, name)
        if now is None or found is None:
            if now is not None:
                now[1].close()
            return now is found
        with now[1] as file:
            return now[0] == found[0] and os.path.sameopenfile(file.fileno(), found[1].fileno())

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *exception: object) -> None:
        for found in self.found.values():
            if found:
                found[1].close()


def _open(folder: Path, name: str) -> tuple[Path, BinaryIO] | None:
    """Where a file of the folder lies, and it."""
    removed = _removed(folder)
    places = [folder / COMPLETE / name] if removed is not None else []
    if removed is None or name not in removed:
        places.append(folder / name)
    for path in places:
        try:
            return path, budgets.open_file(path)
        except CheckpointError:
            raise
        except (FileNotFoundError, NotADirectoryError, ValueError):  # the last of a name that no file can have
            continue
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise CheckpointError(f"{shown(path)} cannot be read: {error.strerror}.") from None
    return None
