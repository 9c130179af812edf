"""What every command that runs a model does before it does: choose frameworks, import them quietly, load."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FRAMEWORKS, InputError, shown

if TYPE_CHECKING:
    from ..inference import Forward

DIGITS = Path(__file__).parents[1] / "demo"
"""The bundled checkpoint, its model card, and held-out scans called digit-<true label>-<index>.png."""


FOR_PHOTOGRAPHS = (
    "The bundled model reads grey digits of 8 x 8 pixels; for photographs give a --model, such as "
    "google/vit-base-patch16-224 or a checkpoint folder."
)
"""What helps who gives the default model an image in colour."""


def check_default(path: str | os.PathLike[str], remedy: str = "") -> None:
    """Refuse a photograph for the default model, before anything is loaded; what cannot be read is for later.

    Args:
        path: an image.
        remedy: what else helps, as a sentence.

    Raises:
        InputError: it is in colour.
    """
    from ..image_processing.sources import open_image

    try:
        colours = len(open_image(path).getbands())
    except InputError:
        return
    if colours >= 3:
        raise InputError(" ".join((f"{shown(path)} is in colour. {FOR_PHOTOGRAPHS}", remedy)).rstrip())


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


def choose_one(requested: Iterable[str] | None, command: str) -> str:
    """The framework that a command uses which runs in one: as `choose`, the first installed when none is named.

    Raises:
        InputError: several are named, or an unknown one.
        MissingFrameworkError: it is not installed, or none is.
    """
    chosen = choose(requested, command)
    if requested and len(chosen) > 1:
        raise InputError(f"{command} runs in one framework; got --framework {' and --framework '.join(chosen)}.")
    return chosen[0]


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


def import_quietly(extra: str) -> None:
    """Import a framework's models, without what it logs meanwhile."""
    with quiet():
        importlib.import_module(f"vit.{extra}")


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
    from ..inference import Forward, device_name

    if device is not None:
        device = device_name(device, extra)
    if dtype == "float64" and extra == "flax":
        os.environ["JAX_ENABLE_X64"] = "1"
    with quiet():
        return Forward(checkpoint or DIGITS, extra, device=device, dtype=dtype, **options)


def version(extra: str) -> str:
    """The version of a framework that has been imported."""
    return sys.modules[FRAMEWORKS[extra][0]].__version__


BUSY = 0.15
"""The share of the processors that other programs may have before times mislead: threads that wait for each other take
many times as long."""


def busy_line(share: float) -> str:
    """What is said of a busy machine."""
    return f"Other programs keep {share:.0%} of the processors busy"


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
