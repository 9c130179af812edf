"""What goes wrong, by name. Every error a user can cause is a ValueError, or an ImportError for a missing framework."""

from __future__ import annotations

import importlib.util


class ConfigError(ValueError):
    """A configuration value that no Vision Transformer can have."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be found, read, or fitted to the model."""


class InputError(ValueError):
    """An argument of a model or image processor call that it cannot use."""


class MissingFrameworkError(ImportError):
    """A framework or heavy feature that is not installed."""


FRAMEWORKS = {"pt": ("torch", "PyTorch"), "tf": ("tensorflow", "TensorFlow"), "flax": ("flax", "Flax")}
"""Extra -> (the module it installs, the name people know it by), in the order they are tried."""


def installed_frameworks() -> list[str]:
    """The extras ("pt", "tf", "flax") whose framework is installed, found without importing any."""
    return [extra for extra, (module, _) in FRAMEWORKS.items() if importlib.util.find_spec(module)]


def install_line(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'trivit[{extra}]'"


def missing_framework(what: str, extra: str) -> MissingFrameworkError:
    """The error for using `what` without the framework of `extra`, with the line that installs it."""
    return MissingFrameworkError(f"{what} needs {FRAMEWORKS[extra][1]}. Install it with: {install_line(extra)}")
