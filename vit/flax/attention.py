"""Attention without its projections: JAX's own, and on CPUs one that suits XLA there."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ..families.beit import BeitConfig, relative_position_index
from ..posemb import linear_matrix


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


class RelativePositionBias(nnx.Module):
    """Biases of the scores of a head, by the distance of a key from its query (Bao et al. 2022, Section 2.2)."""

    def __init__(self, config: BeitConfig, **options: Any) -> None:
        self.config = config
        self.dtype = options["dtype"]
        self.relative_position_bias_table = nnx.Param(jnp.zeros(config.table_shape, options["param_dtype"]))

    def __call__(self, grid: tuple[int, int]) -> Array:
        table = self.interpolated_table(grid).T
        return table.astype(self.dtype or table.dtype)[:, relative_position_index(grid)][None]  # (1, H, T, T)

    def interpolated_table(self, grid: tuple[int, int]) -> Array:
        """The table for a grid of (rows, columns) patches: (distances, H)."""
        table = self.relative_position_bias_table[...]
        if grid == self.config.grid_size:
            return table
        dtype = jnp.promote_types(table.dtype, jnp.float32)
        old, new = ([2 * length - 1 for length in each] for each in (self.config.grid_size, grid))
        rows, columns = (jnp.asarray(linear_matrix(*pair), dtype) for pair in zip(old, new, strict=True))
        patches = jnp.einsum("hr,rcd->hcd", rows, table[:-3].astype(dtype).reshape(*old, -1))
        patches = jnp.einsum("wc,hcd->hwd", columns, patches).reshape(-1, table.shape[1])
        return jnp.concatenate([patches.astype(table.dtype), table[-3:]])
