"""Positions in JAX: embeddings resampled to another grid of patches, and rotations of queries and keys.

Side by side with vit/pt/posemb.py and vit/tf/posemb.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from ..posemb import bicubic_matrix, centres


def interpolate(positions: Array, old_grid: tuple[int, int], new_grid: tuple[int, int], **kernel: Any) -> Array:
    """`posemb.interpolate` in JAX: (1, T of the old grid, D) -> (1, T of the new one, D)."""
    if new_grid == old_grid:
        return positions
    dtype = jnp.promote_types(positions.dtype, jnp.float32)
    first = positions.shape[1] - old_grid[0] * old_grid[1]
    tokens, patches = positions[:, :first], positions[0, first:].astype(dtype)
    patches = patches.reshape(*old_grid, positions.shape[-1])  # (rows, columns, D)
    rows, columns = (
        jnp.asarray(bicubic_matrix(*pair, **kernel), dtype) for pair in zip(old_grid, new_grid, strict=True)
    )
    patches = jnp.einsum("hr,rcd->hcd", rows, patches)
    patches = jnp.einsum("wc,hcd->hwd", columns, patches).reshape(1, -1, positions.shape[-1])
    return jnp.concatenate([tokens, patches.astype(tokens.dtype)], axis=1)


def rotation(
    grid: tuple[int, int],
    before: int,
    frequencies: Sequence[float],
    dtype: DTypeLike,
    moved: Callable[[Array], Array] = lambda centres: centres,
) -> Array:
    """The angles by which `rotate` turns queries and keys (Su et al. 2021; of two axes as in Simeoni et al. 2025).

    Args:
        grid: (rows, columns) of patches.
        before: tokens before them, which are not turned.
        frequencies: of `posemb.frequencies`, for a head of `size` numbers.
        dtype: of the result, if that is at least float32.
        moved: the centres of the patches, (N, 2) of y and x from -1 to 1 -> where they are taken to be.

    Returns:
        (2, T, size): cosines, and sines, those of the first half negative.
    """
    at_least_float32 = jnp.promote_types(dtype, jnp.float32)
    places = moved(jnp.asarray(centres(grid), at_least_float32))  # (N, 2)
    angles = places[:, :, None] * jnp.asarray(frequencies, at_least_float32)
    angles = jnp.pad(angles.reshape(-1, 2 * len(frequencies)), ((before, 0), (0, 0)))  # (T, size / 2)
    cosines, sines = jnp.cos(angles), jnp.sin(angles)
    return jnp.stack([jnp.concatenate([cosines, cosines], axis=1), jnp.concatenate([-sines, sines], axis=1)])


def rotate(heads: Array, rotation: Array) -> Array:
    """Queries or keys, (B, T, H, D / H), turned by their positions: each number with that half a head further on."""
    cosines, sines = rotation.astype(heads.dtype)[:, :, None]
    return heads * cosines + jnp.roll(heads, heads.shape[-1] // 2, axis=-1) * sines
