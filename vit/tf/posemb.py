"""Positions in Keras 3: embeddings resampled to another grid of patches, and rotations of queries and keys.

Side by side with vit/pt/posemb.py and vit/flax/posemb.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from ..posemb import bicubic_matrix, centres


def interpolate(positions: tf.Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], **kernel: Any) -> tf.Tensor:
    """`posemb.interpolate` in tensors: (1, T of the old grid, D) -> (1, T of the new one, D)."""
    positions = ops.convert_to_tensor(positions)
    if new_grid == old_grid:
        return positions
    dtype = keras.backend.result_type(positions.dtype, "float32")
    first = positions.shape[1] - old_grid[0] * old_grid[1]
    tokens, patches = positions[:, :first], ops.cast(positions[0, first:], dtype)
    patches = ops.reshape(patches, (*old_grid, positions.shape[-1]))  # (rows, columns, D)
    rows, columns = (
        ops.convert_to_tensor(bicubic_matrix(*pair, **kernel), dtype) for pair in zip(old_grid, new_grid, strict=True)
    )
    patches = ops.einsum("hr,rcd->hcd", rows, patches)
    patches = ops.reshape(ops.einsum("wc,hcd->hwd", columns, patches), (1, -1, positions.shape[-1]))
    return ops.concatenate([tokens, ops.cast(patches, tokens.dtype)], axis=1)


def rotation(
    grid: tuple[int, int],
    before: int,
    frequencies: Sequence[float],
    dtype: str,
    moved: Callable[[tf.Tensor], tf.Tensor] = lambda centres: centres,
) -> tf.Tensor:
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
    at_least_float32 = keras.backend.result_type(dtype, "float32")
    places = moved(ops.convert_to_tensor(centres(grid), at_least_float32))  # (N, 2)
    angles = places[:, :, None] * ops.convert_to_tensor(frequencies, at_least_float32)
    angles = ops.pad(ops.reshape(angles, (-1, 2 * len(frequencies))), ((before, 0), (0, 0)))  # (T, size / 2)
    cosines, sines = ops.cos(angles), ops.sin(angles)
    return ops.stack([ops.concatenate([cosines, cosines], axis=1), ops.concatenate([-sines, sines], axis=1)])


def rotate(heads: tf.Tensor, rotation: tf.Tensor) -> tf.Tensor:
    """Queries or keys, (B, T, H, D / H), turned by their positions: each number with that half a head further on."""
    cosines, sines = ops.unstack(ops.cast(rotation, heads.dtype)[:, :, None])
    first, second = ops.split(heads, 2, axis=-1)
    return heads * cosines + ops.concatenate([second, first], axis=-1) * sines  # LiteRT has no roll
