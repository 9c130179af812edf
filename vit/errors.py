"""What goes wrong, by name. Every error a user can cause is a ValueError, or an ImportError for a missing framework."""

from __future__ import annotations

import importlib.util
import os
import re
import reprlib
import sys
import warnings
from collections.abc import Iterable
from functools import lru_cache
from types import FrameType
from typing import Any

_PACKAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "")


class ConfigError(ValueError):
    """A configuration value that no Vision Transformer can have."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be found, read, or fitted to the model."""


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """A checkpoint, or a file of one, that is not there: an OSError too, as callers of other libraries expect."""


class NoStateDictError(CheckpointError):
    """A PyTorch file that holds something else than names and dense tensors."""


class InputError(ValueError):
    """An argument of a model or image processor call that it cannot use."""


class MissingFrameworkError(ImportError):
    """A framework or heavy feature that is not installed."""


FRAMEWORKS = {"pt": ("torch", "PyTorch"), "tf": ("tensorflow", "TensorFlow"), "flax": ("flax", "Flax")}
"""Extra -> (the module it installs, the name people know it by), in the order they are tried."""


def installed_frameworks() -> list[str]:
    """The extras ("pt", "tf", "flax") whose framework is installed, found without importing any."""
    return [extra for extra, (module, _) in FRAMEWORKS.items() if importlib.util.find_spec(module)]


@lru_cache
def install_line(extra: str) -> str:
    """The command that installs what an extra stands for, with the names and releases of the package's metadata."""
    import shlex
    from importlib import metadata  # both slow to import

    try:
        marked = [requirement.partition(";") for requirement in metadata.requires("trivit") or ()]
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return f"pip install '.[{extra}]'"
    of_extra = re.compile(rf"(\s+and\s+)?extra\s*==\s*['\"]{extra}['\"]")
    found = []
    for name, _, marker in marked:
        if of_extra.search(marker):
            rest = of_extra.sub("", marker).strip().removeprefix("(").removesuffix(")")  # such as of a system
            found.append(f"{name.strip()}; {rest}" if rest else name.strip())
    quotes = (f'"{each}"' if "'" in each else shlex.quote(each) for each in found)
    return f"pip install {' '.join(quotes)}"


def missing_framework(what: str, extra: str) -> MissingFrameworkError:
    """The error for using `what` without the framework of `extra`, with the line that installs it."""
    return MissingFrameworkError(f"{what} needs {FRAMEWORKS[extra][1]}. Install it with: {install_line(extra)}")


def warn(message: str) -> None:
    """Warn of `message` at the line outside this package that led here."""
    level = 1
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def summary(names: Iterable[str], most: int = 8) -> str:
    """The first `most` names, as a terminal may get them, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + rest


# === What a message quotes ===

QUOTED = 200
"""The most characters of a value that a message quotes."""


def shown(text: object, most: int | None = QUOTED) -> str:
    """A name, path or message from outside as a terminal may get it: on one line, in characters that print.

    Control characters, those that reorder a line, and lone surrogates (the bytes of a file name that are no UTF-8) are
    escaped; at most `most` characters are left, or all when None.
    """
    text = str(text)
    cut = text if most is None or len(text) <= most else text[:most] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)


def quoted(value: Any, most: int = QUOTED) -> str:
    """A value from outside as Python writes it, cut to `most` characters; what it holds is not gone through."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother, short.maxlong = 3, most, most, most
    try:
        return shown(short.repr(value), most)
    except Exception:  # an int of more digits than Python writes, an object whose repr fails
        return f"a value of type {type(value).__name__}"
