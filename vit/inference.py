"""A checkpoint ready to serve, in any framework: NumPy arrays in, NumPy arrays out."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np

from . import checkpoint, families, forks, hub
from .config import PreTrainedConfig
from .errors import (
    FRAMEWORKS,
    InputError,
    MissingFrameworkError,
    install_line,
    installed_frameworks,
    missing_framework,
    quoted,
)
from .loading import open_checkpoint
from .outputs import ModelOutput

FRAMEWORK_NAMES = {"pytorch": "pt", "torch": "pt", "tensorflow": "tf", "keras": "tf", "jax": "flax",
                   **{each: each for each in FRAMEWORKS}}  # fmt: skip
"""What people call a framework, in small letters -> its name here."""

PROGRAMS = 32
"""The most compiled programs that a `Forward` keeps, those used last; one takes 3 to 8 MB."""


class Forward:
    """A model's forward pass, compiled the way people serve it; calls with the same shapes and flags compile once.

    PyTorch runs eagerly under `inference_mode`, TensorFlow under `tf.function`, Flax under `jax.jit`. Threads may call
    one at the same time.

    Args:
        model: a checkpoint folder, the name of a model on the hub, or a model of this package that is loaded, whose
            weights are used as they are now.
        framework: "pt", "tf" or "flax"; None for that of the loaded model, or the first that is installed.
        head: one of the family's, such as None or "classifier"; "auto" is the one that the checkpoint has, None where
            it has none. That of a loaded model is its own.
        **options: those of `from_pretrained`: dtype, device, attn_implementation, config overrides, ...

    Attributes:
        framework: "pt", "tf" or "flax".
        model: the model.
        config: its configuration.
        device_type: "cpu", or what the framework calls the kind of accelerator that holds the weights.

    Raises:
        CheckpointError: no checkpoint there, a broken one, or one that does not fit.
        InputError: an unknown framework, a device that is not there, no model of this package, or one that trains.
        ImportError: a framework that is not installed, or cannot be imported.
    """

    def __init__(
        self,
        model: Any,
        framework: str | None = None,
        *,
        head: str | None = "auto",
        **options: Any,
    ) -> None:
        if isinstance(model, str | os.PathLike):
            (self.framework,) = choose_frameworks([framework] if framework else None, "vit")[:1]
            forks.check(self.framework)
            hub_options, options = hub.split_options(options)
            opened = open_checkpoint(model, **hub_options)
            if head == "auto":
                head = checkpoint.head_of(opened)
                options = options if head else {**checkpoint.parts_of(opened), **options}
            if head is None:
                options = {**opened.config.seeing_all, **options}
            cls = families.model_class(self.framework, opened.config.model_type, head)
            self.model = cls.from_pretrained(opened.folder, **options)
        else:
            self.framework = _framework_of(model)
            if options or framework not in (None, self.framework):
                given = ", ".join([*([f"framework={framework!r}"] if framework else []), *options])
                raise InputError(f"{given} cannot change a model that is loaded; load it so, or give its folder.")
            self.model = model
        self.config: PreTrainedConfig = self.model.config
        for name, value in self.config.seeing_all.items():
            if self.head is None and getattr(self.config, name) != value:
                raise InputError(
                    f"{name} is {getattr(self.config, name)}, with which the model does not see every patch; load it "
                    f"with {name}={value}."
                )
        forks.check(self.framework)
        if self.framework != "pt":
            forks.used.add(self.framework)
        serve = {"pt": _serve_pt, "tf": _serve_tf, "flax": _serve_flax}[self.framework]
        self._call, self.device_type = serve(self.model)

    @property
    def head(self) -> str | None:
        """The key of its class in the configuration's `heads`; None of a base model."""
        return self.model.head

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
        forks.check(self.framework)
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
    requested = {FRAMEWORK_NAMES.get(str(name).lower(), name) for name in requested or ()}
    installed = installed_frameworks()
    if unknown := sorted(requested - FRAMEWORKS.keys(), key=str):
        raise InputError(f"framework is {quoted(unknown[0])}; expected one of {', '.join(FRAMEWORKS)}.")
    for extra in FRAMEWORKS:
        if extra in requested - set(installed):
            raise missing_framework(what, extra)
    if not installed:
        names = ", or ".join(f"{name} ({install_line(extra)})" for extra, (_, name) in FRAMEWORKS.items())
        raise MissingFrameworkError(f"{what} needs a framework. Install {names}.")
    return [extra for extra in installed if not requested or extra in requested]


def device_name(device: str, framework: str) -> str:
    """What a framework calls a device: "gpu" and "cuda" mean the same in every one."""
    return device.lower().replace(*(("gpu", "cuda") if framework == "pt" else ("cuda", "gpu")))


def _framework_of(model: Any) -> str:
    modules = [cls.__module__ for cls in type(model).__mro__]
    for extra in FRAMEWORKS:
        if any(module.startswith(f"vit.{extra}.") for module in modules):
            return extra
    raise InputError(
        f"model is a {type(model).__module__}.{type(model).__qualname__}; expected a checkpoint folder, the name of a "
        "model on the hub, or a model of this package."
    )


def _serve_pt(model: Any) -> tuple[Any, str]:
    import torch

    if model.training:
        raise InputError(
            "The model is in training mode, in which dropout changes its answers; call model.eval() first."
        )
    device = model.device  # asking for it at each call would cost a walk through the modules

    @torch.inference_mode()
    def call(pixel_values: np.ndarray, *flags: bool) -> Any:
        inputs = {"pixel_values": pixel_values, **model.config.fixed_inputs(pixel_values.shape)}
        tensors = {name: torch.from_numpy(array).to(device) for name, array in inputs.items()}
        return model(**tensors, **_keywords(model, flags))

    return call, device.type


def _serve_tf(model: Any) -> tuple[Any, str]:
    import tensorflow as tf

    device = model.variables[0].value.device  # where operations run is not where variables lie unless it is said

    @lru_cache(PROGRAMS)  # of functions of one program each, because one function keeps all of its programs
    def program(shape: tuple[int, ...], dtype: np.dtype, flags: tuple[bool, ...]) -> Any:
        fixed = model.config.fixed_inputs(shape)
        run = tf.function(lambda pixel_values: model(pixel_values, training=False, **fixed, **_keywords(model, flags)))
        return run.get_concrete_function(tf.TensorSpec(shape, dtype))  # of calls that trace TensorFlow warns

    def call(pixel_values: np.ndarray, *flags: bool) -> Any:
        with tf.device(device):
            return program(pixel_values.shape, pixel_values.dtype, flags)(tf.convert_to_tensor(pixel_values))

    return call, tf.DeviceSpec.from_string(device).device_type.lower()


def _serve_flax(model: Any) -> tuple[Any, str]:
    import jax
    from flax import nnx

    graphdef, state = nnx.split(model)  # merged while tracing, where nnx.jit would walk through the model at each call

    @lru_cache(PROGRAMS)  # of functions of one program each, because one function keeps all of its programs
    def program(shape: tuple[int, ...], flags: tuple[bool, ...]) -> Any:
        fixed = model.config.fixed_inputs(shape)

        def run(state: Any, pixel_values: Any) -> Any:
            merged = nnx.merge(graphdef, state)
            merged.eval()  # the copy; a model that trains stays as it is
            return merged(pixel_values, **fixed, **_keywords(model, flags))

        return jax.jit(run)

    platforms = {device.platform for leaf in jax.tree.leaves(state) for device in leaf.devices()}
    return lambda pixel_values, *flags: program(pixel_values.shape, flags)(state, pixel_values), min(platforms)


def _keywords(model: Any, flags: tuple[bool, ...]) -> dict[str, bool]:
    names = ("interpolate_pos_encoding", "output_hidden_states", "output_attentions")
    keywords = {**dict(zip(names, flags, strict=True)), "return_dict": True}
    if model.config.any_size:
        del keywords["interpolate_pos_encoding"]  # these interpolate without being told to
    return keywords


def _to_numpy(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_to_numpy, value))
    if hasattr(value, "detach"):  # PyTorch's, whose bfloat16 NumPy does not know
        value = value.detach().cpu()
        return (value.float() if value.itemsize == 2 else value).numpy()
    array = np.asarray(value)
    return array.astype(np.float32) if array.itemsize == 2 else array
