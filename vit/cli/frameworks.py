"""What every command that runs a model does before it does: choose frameworks, import them quietly, load."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FRAMEWORKS

if TYPE_CHECKING:
    from ..inference import Forward

DIGITS = Path(__file__).parents[1] / "demo"
"""The bundled checkpoint, its model card, and held-out scans called digit-<true label>-<index>.png."""


def choose(requested: Iterable[str] | None, command: str) -> list[str]:
    """The frameworks ("pt", "tf", "flax") that a command uses, with this process made ready for them.

    Every framework computes in full float32 precision on accelerators too: matrix products of their own default
    precision there would make one checkpoint three functions.

    Args:
        requested: those that the user named; all that are installed when there are none.
        command: such as "vit demo", for errors.

    Raises:
        InputError: an unknown one.
        MissingFrameworkError: one that is not installed, or none is.
    """
    from ..inference import choose_frameworks

    chosen = choose_frameworks(requested, command)
    os.environ["KERAS_BACKEND"] = "tensorflow"  # this process is ours, and vit.tf works on no other
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    return chosen


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what C++ libraries log at their import off the terminal, unless TF_CPP_MIN_LOG_LEVEL asks to see it.

    TensorFlow 2.21 announces oneDNN twice whatever that variable says, so file descriptor 2 itself points elsewhere.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        yield
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # for what comes after the import
    sys.stderr.flush()
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)
        del os.environ["TF_CPP_MIN_LOG_LEVEL"]


def open_model(
    checkpoint: str | os.PathLike[str] | None,
    extra: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    **options: Any,
) -> Forward:
    """`vit.inference.Forward`, without what the frameworks log while they are imported.

    Args:
        checkpoint: None for the bundled digits.
        extra: the framework, as `choose` gave it.
        device: "gpu" and "cuda" mean the same in every framework.
        dtype: None for the checkpoint's.
        **options: of `Forward`.
    """
    from ..inference import Forward

    if device is not None:
        device = device.lower().replace(*{"pt": ("gpu", "cuda"), "tf": ("cuda", "gpu"), "flax": ("cuda", "gpu")}[extra])
    if dtype == "float64" and extra == "flax":
        os.environ["JAX_ENABLE_X64"] = "1"
    with quiet():
        return Forward(checkpoint or DIGITS, extra, device=device, dtype=dtype, **options)


def version(extra: str) -> str:
    """The version of a framework that has been imported."""
    return sys.modules[FRAMEWORKS[extra][0]].__version__


def best_seconds(call: Callable[[], Any], repeats: int = 10, enough: float = 1.0) -> float:
    """The least time of a call that has been warmed up: what it takes when nothing else is in the way.

    Args:
        call: what is timed.
        repeats: how often, at most.
        enough: seconds in all after which it is not repeated.
    """
    times: list[float] = []
    while len(times) < repeats and sum(times) < enough:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
