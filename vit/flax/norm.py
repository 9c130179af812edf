"""LayerNorm in Flax NNX."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ..config import PreTrainedConfig


class LayerNorm(nnx.LayerNorm):
    """nnx.LayerNorm with the two-pass variance, which does not cancel where the mean is large, and a cheap gradient."""

    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        assert mask is None, "A ViT has no padding."
        scale, bias = self.scale[...], self.bias[...]
        dtype = self.dtype or jnp.result_type(x, scale, bias)
        x = normalize(x.astype(jnp.promote_types(x.dtype, jnp.float32)), self.epsilon)
        return (x * scale + bias).astype(dtype)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def normalize(x: Array, epsilon: float) -> Array:
    """Mean 0 and variance 1 along the last axis."""
    return _normalize(x, epsilon)[0]


def _normalize(x: Array, epsilon: float) -> tuple[Array, Array]:
    x = x - x.mean(-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon)
    return x * factor, factor


@normalize.defjvp
def _normalize_jvp(epsilon: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # What JAX derives step by step has XLA on CPUs compute the same reductions again and again.
    x, factor = _normalize(*primals, epsilon)
    tangent = tangents[0] * factor
    return x, tangent - tangent.mean(-1, keepdims=True) - x * (x * tangent).mean(-1, keepdims=True)


def layer_norm(config: PreTrainedConfig, **options: Any) -> nnx.LayerNorm:
    """A LayerNorm with the epsilon of the configuration."""
    return LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps, **options)
