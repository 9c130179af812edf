"""A classification checkpoint in any framework: NumPy arrays in, NumPy arrays out."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FRAMEWORKS, InputError, MissingFrameworkError, installed_frameworks, missing_framework

if TYPE_CHECKING:
    import numpy as np

    from ..outputs import ModelOutput

    Forward = Callable[..., ModelOutput]


def install_line(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'trivit[{extra}]'"


def choose(requested: Iterable[str] | None, what: str) -> list[str]:
    """The frameworks ("pt", "tf", "flax") to use, found without importing any.

    Args:
        requested: those that the user named; all that are installed when there are none.
        what: the command, for errors.

    Raises:
        InputError: an unknown one.
        MissingFrameworkError: one that is not installed, or none is.
    """
    requested, installed = set(requested or ()), installed_frameworks()
    if unknown := sorted(requested - FRAMEWORKS.keys()):
        raise InputError(f"--framework is {unknown[0]!r}; expected one of {', '.join(FRAMEWORKS)}.")
    for extra in FRAMEWORKS:
        if extra in requested - set(installed):
            raise missing_framework(f"{what} --framework {extra}", extra)
    if not installed:
        names = ", ".join(f"{name}: {install_line(extra)}" for extra, (_, name) in FRAMEWORKS.items())
        raise MissingFrameworkError(f"{what} needs a framework. Install one ({names}) or all: {install_line('all')}")
    return [extra for extra in installed if not requested or extra in requested]


def open_checkpoint(extra: str, folder: Path) -> Forward:
    """Load a classification checkpoint and compile its forward pass the way people serve it.

    Args:
        extra: "pt", "tf" or "flax".
        folder: the checkpoint.

    Returns:
        `forward(pixel_values, output_attentions=False)`, from (B, C, height, width) float32 to a ModelOutput of NumPy
        arrays; full float32 precision on accelerators too.

    Raises:
        CheckpointError: a broken checkpoint.
        ImportError: a framework that cannot be imported.
    """
    os.environ["KERAS_BACKEND"] = "tensorflow"  # this process is ours, and vit.tf works on no other
    with _quiet():
        return {"pt": _open_pt, "tf": _open_tf, "flax": _open_flax}[extra](folder)


@contextmanager
def _quiet() -> Iterator[None]:
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


def _open_pt(folder: Path) -> Forward:
    import torch

    from .. import ViTForImageClassification

    model = ViTForImageClassification.from_pretrained(folder)

    @torch.inference_mode()
    def forward(pixel_values: np.ndarray, output_attentions: bool = False) -> ModelOutput:
        return _to_numpy(model(torch.from_numpy(pixel_values), output_attentions=output_attentions))

    return forward


def _open_tf(folder: Path) -> Forward:
    import tensorflow as tf

    from .. import TFViTForImageClassification

    tf.config.experimental.enable_tensor_float_32_execution(False)
    model = TFViTForImageClassification.from_pretrained(folder)
    call = tf.function(lambda pixels, attentions: model(pixels, output_attentions=attentions, training=False))

    def forward(pixel_values: np.ndarray, output_attentions: bool = False) -> ModelOutput:
        return _to_numpy(call(tf.convert_to_tensor(pixel_values), output_attentions))

    return forward


def _open_flax(folder: Path) -> Forward:
    import jax
    from flax import nnx

    from .. import FlaxViTForImageClassification

    jax.config.update("jax_default_matmul_precision", "highest")
    model = FlaxViTForImageClassification.from_pretrained(folder)
    call = nnx.jit(lambda model, pixels, attentions: model(pixels, output_attentions=attentions), static_argnums=2)

    def forward(pixel_values: np.ndarray, output_attentions: bool = False) -> ModelOutput:
        return _to_numpy(call(model, jax.numpy.asarray(pixel_values), output_attentions))

    return forward


def _to_numpy(output: ModelOutput) -> ModelOutput:
    import numpy as np

    from ..outputs import ModelOutput

    def convert(value: Any) -> Any:
        return tuple(map(convert, value)) if isinstance(value, tuple) else np.asarray(value)

    return ModelOutput({name: convert(value) for name, value in output.items()})


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
