"""Attention without its weights: JAX's own, and on CPUs one that suits XLA there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def attend(query: Array, key: Array, value: Array, bias: Array | None = None) -> Array:
    """Scaled dot-product attention (Vaswani et al. 2017, Section 3.2.1).

    Args:
        query, key, value: (B, T, H, D / H).
        bias: (1 or B, H, T, T), added to the scores.

    Returns:
        (B, T, H, D / H).
    """
    operands = (query, key, value) if bias is None else (query, key, value, bias)
    if query.dtype == jnp.float64:  # which JAX's own computes in float32
        return attend_on_cpu(*operands)
    return jax.lax.platform_dependent(*operands, cpu=attend_on_cpu, default=jax.nn.dot_product_attention)


def attend_on_cpu(query: Array, key: Array, value: Array, bias: Array | None = None) -> Array:
    """Attention of plain matrix products, heads before tokens, divided after the second one: a pass over (T, D / H).

    JAX's own is slower on CPUs, has no float16 there, and divides in a pass over (T, T).
    """
    query, value = (x.swapaxes(1, 2) for x in (query * query.shape[-1] ** -0.5, value))  # (B, H, T, D / H)
    key = key.transpose(0, 2, 3, 1)  # (B, H, D / H, T)
    at_least_float32 = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.matmul(query, key, preferred_element_type=at_least_float32)  # (B, H, T, T)
    scores = scores if bias is None else scores + bias.astype(at_least_float32)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    context = jnp.matmul(weights.astype(value.dtype), value, preferred_element_type=at_least_float32)
    return (context / weights.sum(-1, keepdims=True)).astype(value.dtype).swapaxes(1, 2)
