"""The images that a command is given: files, folders, globs, and lists on stdin."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator, Sequence

from ..errors import InputError, shown

SUFFIXES = (
    ".avif", ".bmp", ".dib", ".gif", ".icns", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pcx",
    ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip
"""What files of a folder are taken for images; any file that is named itself is."""

LIST = "-"
LINE = 65_536  # bytes of a path in a list, which is more than any system takes


def find(sources: Sequence[str]) -> Iterator[str]:
    """The path of each image once, in an order that is the same every time: of a folder, that of the names.

    Args:
        sources: files, folders, which are searched all the way down past links and hidden names, glob patterns, and
            "-" for a list on stdin, a path a line.

    Raises:
        InputError: no such file or folder, or one that may not be read.
    """
    single = len(sources) == 1 and os.path.exists(sources[0])  # names no image twice, so none has to be remembered
    seen: set[str] = set()
    for source in sources:
        for path in _stdin() if source == LIST else _expand(source):
            if not single:
                name = os.path.abspath(path)
                if name in seen:
                    continue
                seen.add(name)
            yield path


def count(sources: Sequence[str]) -> int | None:
    """How many `find` gives; None where stdin has a say.

    Raises:
        InputError: none, or as `find`.
    """
    if LIST in sources:
        return None
    total = sum(1 for _ in find(sources))
    if not total:
        raise InputError(
            f"There are no images in {', '.join(map(shown, sources))}; expected files that end in "
            f"{', '.join(SUFFIXES)}."
        )
    return total


def _stdin() -> Iterator[str]:
    while line := sys.stdin.buffer.readline(LINE):
        if len(line) == LINE:
            raise InputError(f"A line of the list on stdin has {LINE:,} bytes or more; expected the path of an image.")
        if path := line.rstrip(b"\r\n"):
            yield os.fsdecode(path)


def _expand(source: str) -> Iterator[str]:
    if os.path.isdir(source):
        yield from _walk(source)
    elif os.path.exists(source):
        yield source
    elif glob.has_magic(source):
        matches = sorted(glob.iglob(source, recursive=True))
        if not matches:
            raise InputError(f"{shown(source)} matches no file.")
        for match in matches:
            yield from _walk(match) if os.path.isdir(match) else (match,)
    else:
        raise InputError(
            f"{shown(source)} does not exist; expected a file, a folder, a pattern such as '*.jpg', or - (stdin)."
        )


def _walk(folder: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except OSError as error:
        raise InputError(f"{shown(folder)} cannot be read: {error.strerror}.") from None
    for name, is_folder in found:
        path = os.path.join(folder, name)
        if name.startswith("."):
            continue
        if is_folder:
            yield from _walk(path)
        elif name.lower().endswith(SUFFIXES):
            yield path
