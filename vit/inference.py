"""A checkpoint ready to serve, in any framework: NumPy arrays in, NumPy arrays out."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from .config import ViTConfig
from .errors import (
    FRAMEWORKS,
    InputError,
    MissingFrameworkError,
    install_line,
    installed_frameworks,
    missing_framework,
)
from .outputs import ModelOutput

CLASSES = {None: "ViTModel", "classifier": "ViTForImageClassification", "decoder": "ViTForMaskedImageModeling"}
"""Head -> the class that has it; TensorFlow's and Flax's have a prefix."""


class Forward:
    """A model's forward pass, compiled the way people serve it; calls with the same shapes and flags compile once.

    PyTorch runs eagerly under `inference_mode`, TensorFlow under `tf.function`, Flax under `jax.jit`.

    Args:
        name_or_folder: a checkpoint folder, or the name of a model on the hub.
        framework: "pt", "tf" or "flax"; None for the first that is installed.
        head: None, "classifier" or "decoder".
        **options: those of `from_pretrained`: dtype, device, attn_implementation, config overrides, ...

    Raises:
        CheckpointError: no checkpoint there, a broken one, or one that does not fit.
        InputError: an unknown framework, or a device that is not there.
        ImportError: a framework that is not installed, or cannot be imported.
    """

    def __init__(
        self,
        name_or_folder: str | os.PathLike[str],
        framework: str | None = None,
        *,
        head: str | None = "classifier",
        **options: Any,
    ) -> None:
        (self.framework,) = choose_frameworks([framework] if framework else None, "vit")[:1]
        prefix = {"pt": "", "tf": "TF", "flax": "Flax"}[self.framework]
        cls = getattr(importlib.import_module(f"vit.{self.framework}"), prefix + CLASSES[head])
        self.model = cls.from_pretrained(name_or_folder, **options)
        self.config: ViTConfig = self.model.config
        self._call = {"pt": _serve_pt, "tf": _serve_tf, "flax": _serve_flax}[self.framework](self.model)

    def __call__(
        self,
        pixel_values: np.ndarray,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> ModelOutput:
        """Run a batch.

        Args:
            pixel_values: (batch, channels, height, width) float32; the other arguments are those of the models.

        Returns:
            The model's outputs as NumPy arrays, half precisions as float32.

        Raises:
            InputError: inputs of another shape.
        """
        outputs = self._call(pixel_values, interpolate_pos_encoding, output_hidden_states, output_attentions)
        return ModelOutput({name: _to_numpy(value) for name, value in outputs.items()})


def choose_frameworks(requested: Iterable[str] | None, what: str) -> list[str]:
    """The frameworks ("pt", "tf", "flax") to use, found without importing any.

    Args:
        requested: those that the user named; all that are installed when there are none.
        what: who needs them, for errors.

    Raises:
        InputError: an unknown one.
        MissingFrameworkError: one that is not installed, or none is.
    """
    requested, installed = set(requested or ()), installed_frameworks()
    if unknown := sorted(requested - FRAMEWORKS.keys()):
        raise InputError(f"framework is {unknown[0]!r}; expected one of {', '.join(FRAMEWORKS)}.")
    for extra in FRAMEWORKS:
        if extra in requested - set(installed):
            raise missing_framework(what, extra)
    if not installed:
        names = ", ".join(f"{name}: {install_line(extra)}" for extra, (_, name) in FRAMEWORKS.items())
        raise MissingFrameworkError(f"{what} needs a framework. Install one ({names}) or all: {install_line('all')}")
    return [extra for extra in installed if not requested or extra in requested]


def _serve_pt(model: Any) -> Any:
    import torch

    device = model.device  # asking for it at each call would cost a walk through the modules

    @torch.inference_mode()
    def call(pixel_values: np.ndarray, *flags: bool) -> Any:
        return model(torch.from_numpy(pixel_values).to(device), **_keywords(flags))

    return call


def _serve_tf(model: Any) -> Any:
    import tensorflow as tf

    graph = tf.function(lambda pixel_values, *flags: model(pixel_values, training=False, **_keywords(flags)))
    return lambda pixel_values, *flags: graph(tf.convert_to_tensor(pixel_values), *flags)


def _serve_flax(model: Any) -> Any:
    import jax
    from flax import nnx

    graphdef, state = nnx.split(model)  # merged while tracing, where nnx.jit would walk through the model at each call
    jitted = jax.jit(
        lambda state, pixel_values, flags: nnx.merge(graphdef, state)(pixel_values, **_keywords(flags)),
        static_argnums=2,
    )
    return lambda pixel_values, *flags: jitted(state, pixel_values, flags)


def _keywords(flags: tuple[bool, ...]) -> dict[str, bool]:
    names = ("interpolate_pos_encoding", "output_hidden_states", "output_attentions")
    return {**dict(zip(names, flags, strict=True)), "return_dict": True}


def _to_numpy(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_to_numpy, value))
    if hasattr(value, "detach"):  # PyTorch's, whose bfloat16 NumPy does not know
        value = value.detach().cpu()
        return (value.float() if value.itemsize == 2 else value).numpy()
    array = np.asarray(value)
    return array.astype(np.float32) if array.itemsize == 2 else array
