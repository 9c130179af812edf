"""Positions: resampled by two small matrices, so that every framework does the same two matmuls, or rotated."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np


@lru_cache(maxsize=64)
def bicubic_matrix(old: int, new: int, offset: float = 0.0, antialias: bool = False) -> np.ndarray:
    """The (new, old) float64 matrix that resamples `old` points to `new` along one axis, with half-pixel centres.

    Cubic convolution (Keys 1981) with a = -0.75, edges clamped: what
    `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)` computes, with which the published
    checkpoints were evaluated. Resampling to the same length is the identity.

    Args:
        old: points there are.
        new: points wanted.
        offset: added to `new` where distances are computed, as facebookresearch/dinov2 does with 0.1.
        antialias: as torch does with `antialias=True`: a = -0.5, a kernel as wide as the new points are apart, cut at
            the edges.
    """
    if antialias:
        scale = old / new
        t = np.abs(np.arange(old) + 0.5 - scale * (np.arange(new)[:, None] + 0.5)) / max(scale, 1)
        matrix = _cubic(t, -0.5)
        matrix /= matrix.sum(1, keepdims=True)
    else:
        centre = (np.arange(new) + 0.5) * old / (new + offset) - 0.5
        left = np.floor(centre)
        matrix = np.zeros((new, old))
        for tap in (-1, 0, 1, 2):
            column = np.clip(left + tap, 0, old - 1).astype(int)
            np.add.at(matrix, (np.arange(new), column), _cubic(np.abs(centre - left - tap), -0.75))
    matrix.flags.writeable = False  # the cache hands the same array to everyone
    return matrix


def _cubic(t: np.ndarray, a: float) -> np.ndarray:
    """The weight of a point at a distance of t points."""
    near = ((a + 2) * t - (a + 3)) * t * t + 1  # t <= 1
    far = a * (t - 1) * (t - 2) ** 2  # 1 < t <= 2
    return np.where(t <= 1, near, np.where(t < 2, far, 0))


@lru_cache(maxsize=64)
def linear_matrix(old: int, new: int) -> np.ndarray:
    """As `bicubic_matrix`, but linear between neighbours, as `mode="bilinear"` does."""
    centre = np.maximum((np.arange(new) + 0.5) * old / new - 0.5, 0)
    left = np.minimum(np.floor(centre), old - 1).astype(int)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new), left), 1 - (centre - left))
    np.add.at(matrix, (np.arange(new), np.minimum(left + 1, old - 1)), centre - left)
    matrix.flags.writeable = False
    return matrix


def interpolate_table(table: np.ndarray, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> np.ndarray:
    """Resample a stored table of relative position biases (BEiT) to another grid.

    Args:
        table: ((2 rows - 1) * (2 columns - 1) + 3, heads), last those of CLS, which stay as they are.
        old_grid: (rows, columns) it was trained on.
        new_grid: (rows, columns) wanted.

    Returns:
        The table of the new grid in the same dtype; computed in float64.
    """
    old, new = ([2 * length - 1 for length in grid] for grid in (old_grid, new_grid))
    rows, columns = (linear_matrix(*pair) for pair in zip(old, new, strict=True))
    patches = table[:-3].astype(np.float64).reshape(*old, -1)
    patches = np.einsum("hr,wc,rcd->hwd", rows, columns, patches, optimize=True).reshape(-1, table.shape[1])
    return np.concatenate([patches.astype(table.dtype), table[-3:]])


def interpolate(
    position_embeddings: np.ndarray, old_grid: tuple[int, int], new_grid: tuple[int, int], **kernel: Any
) -> np.ndarray:
    """Resample stored position embeddings to another grid.

    Args:
        position_embeddings: (1, prefix + rows * columns, hidden_size), first those of CLS and what else precedes the
            patches.
        old_grid: (rows, columns) they were trained on.
        new_grid: (rows, columns) wanted.
        **kernel: options of `bicubic_matrix`.

    Returns:
        (1, prefix + new rows * new columns, hidden_size) in the same dtype; computed in float64.
    """
    hidden_size = position_embeddings.shape[-1]
    first = position_embeddings.shape[1] - old_grid[0] * old_grid[1]
    prefix, patches = position_embeddings[:, :first], position_embeddings[0, first:].astype(np.float64)
    rows, columns = (bicubic_matrix(*pair, **kernel) for pair in zip(old_grid, new_grid, strict=True))
    patches = np.einsum("hr,wc,rcd->hwd", rows, columns, patches.reshape(*old_grid, hidden_size), optimize=True)
    patches = patches.reshape(1, -1, hidden_size).astype(position_embeddings.dtype)
    return np.concatenate([prefix, patches], axis=1)


def sincos(grid: tuple[int, int], width: int) -> np.ndarray:
    """Fixed position embeddings of a grid of patches (Vaswani et al. 2017, of two axes as in He et al. 2022).

    Args:
        grid: (rows, columns).
        width: of a token; a multiple of 4.

    Returns:
        (1, rows * columns, width), float64: sines and cosines of the column, then of the row.
    """
    rows, columns = grid
    frequencies = 10000.0 ** -(np.arange(width // 4) / (width / 4))
    row, column = (axis.reshape(-1, 1) * frequencies for axis in np.mgrid[:rows, :columns])
    return np.concatenate([np.sin(column), np.cos(column), np.sin(row), np.cos(row)], axis=1)[None]


def frequencies(size: int, theta: float) -> tuple[float, ...]:
    """Radians by which queries and keys turn over the half of an image (Su et al. 2021, as in Simeoni et al. 2025).

    Args:
        size: of a head; a multiple of 4, for pairs of numbers along two axes.
        theta: the longest period over the shortest.

    Returns:
        size / 4 of them, of either axis, the fastest first.
    """
    return tuple(2 * math.pi * theta ** (-4 * i / size) for i in range(size // 4))


def centres(grid: tuple[int, int]) -> np.ndarray:
    """The centres of a grid of (rows, columns) patches, row by row: (rows * columns, 2) of y and x in [-1, 1]."""
    axes = ((np.arange(length) + 0.5) / length * 2 - 1 for length in grid)
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
