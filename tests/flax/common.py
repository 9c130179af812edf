"""Models and comparisons of the tests of the Flax models."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax import nnx

from vit import FlaxViTForImageClassification, FlaxViTForMaskedImageModeling, FlaxViTModel

MODELS = [FlaxViTModel, FlaxViTForImageClassification, FlaxViTForMaskedImageModeling]


def assert_close(actual: Any, expected: Any, atol: float = 1e-5) -> None:
    """The same structure, keys and dtypes, and numbers within `atol`."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=0, atol=atol)


@nnx.jit(static_argnames=("output_hidden_states", "output_attentions", "interpolate_pos_encoding", "return_dict"))
def call(model: Any, **inputs: Any) -> Any:
    return model(**inputs)


@nnx.jit
def loss_and_gradients(model: Any, inputs: dict[str, Any], rngs: nnx.Rngs | None = None) -> tuple[Any, Any]:
    return nnx.value_and_grad(lambda model, rngs: model(**inputs, rngs=rngs).loss)(model, rngs)
