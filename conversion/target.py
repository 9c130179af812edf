"""Where a conversion goes: what may be replaced, and the one step in which the new checkpoint takes its place.

A folder that is replaced is built anew beside the old one, with links to whatever else lay in it, and the two change
places in one system call: a reader, or a kill, meets the old checkpoint or the new one, and never a mix.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vit import checkpoint
from vit.errors import CheckpointError, shown
from vit.folders import find, settled

from . import orbax

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

TARGETS = {
    "hf": (),
    "timm": (".safetensors", ".pth", ".bin"),
    "dinov2": (".pth", ".safetensors"),
    "mae": (".pth", ".safetensors"),
    "beit": (".pth", ".safetensors"),
    "torchvision": (".pth", ".safetensors"),
    "google": (".npz",),
    "transformers-tf": (),
    "transformers-flax": (),
    "keras": (".keras", ".weights.h5"),
    "orbax": (),
}
"""Target format -> how its file's name may end; none means a folder."""

PREPROCESSOR = "preprocessor_config.json"
WEIGHT_FILES = tuple(
    name
    for file in ("model.safetensors", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack")
    for name in (file, file + ".index.json")
)
"""The files of weights in a folder, in the order in which they are looked for."""

_DESCRIBED = r"config\.json|preprocessor_config\.json"
OWN = {
    "hf": rf"{_DESCRIBED}|model(-(\d+-)?\d+-of-\d+)?\.safetensors(\.index\.json)?",
    "transformers-tf": rf"{_DESCRIBED}|tf_model\.h5",
    "transformers-flax": rf"{_DESCRIBED}|flax_model\.msgpack",
    "orbax": r"config\.json|manifest\.ocdbt|_METADATA|_CHECKPOINT_METADATA|_sharding|_strings\.json|"
    r"commit_success\.txt|d/[0-9a-f]{32}|(array_metadatas|ocdbt\.process_\d+)/.*",
}
"""What belongs to a checkpoint of a folder format, as paths in it: all that a forced conversion replaces."""


def check_target(target: Path, target_format: str, force: bool) -> None:
    """Refuse a target before anything is read.

    Raises:
        CheckpointError: it exists, is of another kind than the format, or holds what must not be replaced.
    """
    endings, name = TARGETS[target_format], shown(target)
    if endings and not target.name.endswith(endings):
        raise CheckpointError(f"{name} is to be one {target_format} file; end its name in {' or '.join(endings)}.")
    if not endings and target.suffix in (".safetensors", ".h5", ".msgpack", ".npz", ".pth", ".bin", ".keras"):
        raise CheckpointError(f"{name} looks like a file; a {target_format} checkpoint is a folder. Name one.")
    if target.is_symlink():
        raise CheckpointError(f"{name} is a symbolic link, which is not followed; name the place it leads to.")
    occupied = any(target.iterdir()) if target.is_dir() else target.exists()
    if occupied and not force:
        raise CheckpointError(f"{name} exists; name another target, or pass force=True (--force) to replace it.")
    if target.exists() and target.is_dir() != (not endings):
        found, wanted = ("folder", "file") if target.is_dir() else ("file", "folder")
        raise CheckpointError(f"{name} is a {found}; a {target_format} checkpoint is a {wanted}.")
    if target.exists() and not target.is_dir() and not target.is_file():
        raise CheckpointError(f"{name} is no file that could be replaced; name another target.")
    if target_format == "orbax" and occupied and not (target / orbax.MARKS[0]).is_file():
        raise CheckpointError(f"{name} is a folder of something else than an orbax checkpoint; it is not replaced.")
    written = {"transformers-tf": "tf_model.h5", "transformers-flax": "flax_model.msgpack"}.get(target_format)
    if occupied and written:
        before = WEIGHT_FILES[: WEIGHT_FILES.index(written)]
        if first := next((file for file in before if find(target, file)), None):
            raise CheckpointError(
                f"{name} holds {first}, which would be read instead of {written}, with the new config.json; name "
                "another target, or move it away."
            )


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A folder beside `target`, on the same disk, that vanishes with what is left in it.

    Raises:
        CheckpointError: what went wrong on the disk; the target is as it was.
    """
    parent = target.absolute().parent
    made = [path for path in target.absolute().parents if not path.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(parent)
        kept = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent, ignore_cleanup_errors=True)
        with kept as folder, _locked(Path(folder)):
            yield Path(folder)
    except (OSError, CheckpointError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, OSError):
            why = cause.strerror or shown(cause)
            if cause.filename is not None:
                path = Path(os.fsdecode(cause.filename))
                ours = path.name == target.name or any(part.startswith(_PREFIX) for part in path.parts)
                why += "" if ours else f" ({shown(path.name)})"
            raise CheckpointError(f"{shown(target)} cannot be written: {why}. It is as it was.") from error
        raise
    finally:
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


_PREFIX = ".converting-"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, by which others see that it is in use."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _remove_left_behind(parent: Path) -> None:
    """Remove what conversions that were killed have left: nobody holds its lock, and it is no new one either."""
    if fcntl is None:
        return
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if time.time() - os.fstat(descriptor).st_mtime > 60:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def sync(staged: Path) -> None:
    """Wait until what was staged has reached the disk."""
    paths = [staged, *(staged.rglob("*") if staged.is_dir() else ())]
    for path in paths:
        if path.is_file() and not path.is_symlink():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def publish(staged: Path, target: Path, own: str) -> None:
    """Put what was staged in its place, in one step.

    Args:
        staged: the file or folder, on the same disk.
        target: its place.
        own: a pattern of the paths in a folder that what was staged replaces; whatever else lies there is kept.

    Raises:
        CheckpointError: something in the target is in the way.
        OSError: it cannot be written; the target is as it was.
    """
    if staged.is_file() or not target.exists():
        os.replace(staged, target)
    else:
        pattern = re.compile(own, re.DOTALL)
        try:
            with settled(target):
                _keep_others(target, staged, pattern)
                shutil.copymode(target, staged)
                _exchange(staged, target)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EBUSY):  # a mounted folder stays where it is
                raise
            _into(staged, target, pattern)
    _sync_folder(target.absolute().parent)


def _keep_others(target: Path, staged: Path, own: re.Pattern[str]) -> None:
    """Link whatever is in a folder and belongs to no checkpoint of the format into the one that replaces it."""
    for folder, folders, files in os.walk(target):
        inside = Path(folder).relative_to(target)
        for name in [*files, *folders]:
            path, link = Path(folder) / name, staged / inside / name
            is_folder = name in folders and not path.is_symlink()
            if link.exists() and link.is_dir() != is_folder:
                raise CheckpointError(f"{shown(path)} is in the way of a file or folder to be saved; move it away.")
            if is_folder:
                if not own.match(f"{inside / name}/") and not any(path.iterdir()):
                    link.mkdir(parents=True, exist_ok=True)
            elif not own.fullmatch((inside / name).as_posix()):
                link.parent.mkdir(parents=True, exist_ok=True)
                _link(path, link)


def _link(path: Path, link: Path) -> None:
    try:
        os.link(path, link, follow_symlinks=False)
    except OSError:  # a file system without links
        shutil.copy2(path, link, follow_symlinks=False)


def _exchange(staged: Path, target: Path) -> None:
    """Let two folders change places, in one step where the system has one."""
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        paths = os.fsencode(staged.absolute()), os.fsencode(target.absolute())
        if sys.platform == "darwin":
            failed = libc.renamex_np(*paths, 2)  # RENAME_SWAP
        else:
            failed = libc.renameat2(-100, paths[0], -100, paths[1], 2)  # AT_FDCWD, RENAME_EXCHANGE
        if not failed:
            return
    old = staged.with_name("old")
    os.rename(target, old)
    try:
        os.rename(staged, target)
    except OSError:
        os.rename(old, target)
        raise


def _into(staged: Path, target: Path, own: re.Pattern[str]) -> None:
    """Replace the files of a mounted folder one by one, what names the others last."""
    names = [path.relative_to(staged).as_posix() for path in staged.rglob("*") if not path.is_dir()]
    with checkpoint.replace_files(target, own.pattern) as beside:
        for name in {name.partition("/")[0] for name in names if own.fullmatch(name)}:  # the others are there
            shutil.move(staged / name, beside / name)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
