"""The images that a command is given: files, folders, globs, and lists on stdin."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import InputError, shown, summary
from ..files import IMAGES

BESIDE = (".csv", ".html", ".json", ".jsonl", ".md", ".npy", ".parquet", ".txt", ".xml", ".yaml", ".yml")
"""What commonly lies beside images, and is passed over without a word."""

LIST = "-"
LINE = 65_536  # bytes of a path in a list, which is more than any system takes


def find(sources: Sequence[str], passed_over: Counter[str] | None = None) -> Iterator[str]:
    """The path of each image once, in an order that is the same every time: of a folder, that of the names.

    Args:
        sources: files, folders, which are searched all the way down past links and hidden names, glob patterns, and
            "-" for a list on stdin, a path a line, or between NULs as `find -print0` writes it.
        passed_over: counts the files of folders that are not taken for images, by the ending of their names.

    Raises:
        InputError: no such file or folder, or one that may not be read.
    """
    single = len(sources) == 1 and os.path.exists(sources[0])  # names no image twice, so none has to be remembered
    seen: set[str] = set()
    for source in sources:
        for path in _stdin() if source == LIST else _expand(source, Counter() if passed_over is None else passed_over):
            if not single:
                name = os.path.abspath(path)
                if name in seen:
                    continue
                seen.add(name)
            yield path


def count(sources: Sequence[str]) -> tuple[int | None, str]:
    """How many `find` gives, None where stdin has a say; and what is said of the files that it passes over.

    Raises:
        InputError: none, or as `find`.
    """
    if LIST in sources:
        return None, ""
    passed_over: Counter[str] = Counter()
    total = sum(1 for _ in find(sources, passed_over))
    endings = summary([f"{shown(name or 'no ending', 20)} ({number:,})" for name, number in passed_over.most_common()])
    several = passed_over.total() > 1
    files = (
        f"{passed_over.total():,} {'files' if several else 'file'} that {'are no images' if several else 'is no image'}"
    )
    passed = f"passed over {files} by {'their names' if several else 'its name'}: {endings}"
    if not total:
        found = f" ({passed})" if passed_over else ""
        raise InputError(
            f"There are no images in {', '.join(map(shown, sources))}{found}; expected files that end in "
            f"{', '.join(IMAGES)}."
        )
    return total, passed if passed_over else ""


def _stdin() -> Iterator[str]:
    """The paths of the list on stdin: lines, or what stands between NULs if the first path ends in one."""
    stream: Any = sys.stdin.buffer
    rest, end, without = b"", b"", 0
    while piece := stream.read1(LINE):
        rest += piece
        if not end and (found := re.search(rb"[\n\0]", rest)):
            end = b"\0" if b"\0" in rest else found[0]
        *paths, rest = rest.split(end) if end else [rest]
        found_paths = [path for path in (each if end == b"\0" else each.rstrip(b"\r") for each in paths) if path]
        without = 0 if found_paths else without + len(piece)
        if max(map(len, [rest, *paths])) >= LINE or without >= LINE:
            raise InputError(
                f"The list on stdin has {LINE:,} bytes without the end of a path; expected those of images."
            )
        yield from map(os.fsdecode, found_paths)
    if last := rest if end == b"\0" else rest.rstrip(b"\r"):
        yield os.fsdecode(last)


def _expand(source: str, passed_over: Counter[str]) -> Iterator[str]:
    if os.path.isdir(source):
        yield from _walk(source, passed_over)
    elif os.path.exists(source):
        yield source
    elif glob.has_magic(source):
        matches = sorted(glob.iglob(source, recursive=True))
        if not matches:
            raise InputError(f"{shown(source)} matches no file.")
        for match in matches:
            yield from _walk(match, passed_over) if os.path.isdir(match) else (match,)
    else:
        raise InputError(
            f"{shown(source)} does not exist; expected a file, a folder, a pattern such as '*.jpg', or - (stdin)."
        )


def _walk(folder: str, passed_over: Counter[str]) -> Iterator[str]:
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
            yield from _walk(path, passed_over)
        elif name.lower().endswith(IMAGES):
            yield path
        elif not name.lower().endswith(BESIDE):
            passed_over[os.path.splitext(name.lower())[1]] += 1
