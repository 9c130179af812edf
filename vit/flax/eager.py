"""Calls outside of any transformation, compiled a module at a time.

Op by op, JAX compiles each operation of a ViT when it first meets it and then runs them unfused: the first image waits
for seconds, and the others take twice as long as under `jax.jit`. A layer compiles in a fraction of that, once for all
layers. Inside a transformation, and for a module that something was done to, the module is called as it is.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx


def call(module: nnx.Module, *arguments: Any) -> Any:
    """`module(*arguments)`: arrays, what is hashable, and nnx.Rngs, which nothing is compiled with."""
    transformed = any(isinstance(each, jax.core.Tracer | nnx.Rngs) for each in arguments)
    is_module = isinstance(module, nnx.Module)
    if transformed or not is_module or not all(is_plain(each) for _, each in nnx.iter_modules(module)):
        return module(*arguments)
    graphdef, state = nnx.split(module)
    is_array = [isinstance(each, jax.Array | np.ndarray) for each in arguments]
    arrays = [each for each, dynamic in zip(arguments, is_array, strict=True) if dynamic]
    static = tuple(None if dynamic else each for each, dynamic in zip(arguments, is_array, strict=True))
    return _compiled(graphdef, state, arrays, static, tuple(is_array))


@partial(jax.jit, static_argnums=(0, 3, 4))
def _compiled(
    graphdef: nnx.GraphDef, state: nnx.State, arrays: list[Any], static: tuple[Any, ...], is_array: tuple[bool, ...]
) -> Any:
    left = iter(arrays)
    arguments = [next(left) if dynamic else each for each, dynamic in zip(static, is_array, strict=True)]
    return nnx.merge(graphdef, state)(*arguments)


@jax.jit
def first_token(hidden_states: jax.Array) -> jax.Array:
    """The CLS token, cut out in one compiled piece: (B, T, D) -> (B, D)."""
    return hidden_states[:, 0]


def is_plain(module: Any) -> bool:
    """Whether it is one of ours or Flax's own layers, which keep nothing of a call, as a subclass might (`sow`)."""
    return type(module) in (nnx.Linear, nnx.Dropout, nnx.List) or type(module).__module__.startswith(f"{__package__}.")
