"""Arrays copied as fast as memory allows, transposed matrices too."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numpy as np

from ..weights import Shape

_BLOCK = 2**20  # bytes that are copied before they are used: they stay in the cache of a core
_TILE = 1024, 128  # of a matrix: stays in the cache, too, and has some lines of it in every row and column


def blocks(array: np.ndarray) -> list[slice]:
    """The rows of an array in blocks of about 1 MB."""
    rows = max(1, _BLOCK * len(array) // max(1, array.nbytes))
    return [slice(begin, begin + rows) for begin in range(0, len(array), rows)]


def tiles(shape: Shape) -> list[tuple[Any, ...]]:
    """The parts of a matrix that `near` brings into the cache; of another array, all of it."""
    if len(shape) != 2:
        return [(...,)]
    height, width = _TILE
    begins = product(range(0, shape[0], height), range(0, shape[1], width))
    return [(slice(i, i + height), slice(j, j + width)) for i, j in begins]


def near(tile: np.ndarray) -> np.ndarray:
    """The tile itself, or of a transposed matrix a copy, in which going along a row is as fast as along a column.

    It is copied as it lies, and with a gap after each column: at the distance of a power of two, what is in one row
    would have the same few places of the cache.
    """
    if tile.ndim != 2 or tile.strides[0] != tile.itemsize:
        return tile
    height, width = tile.shape
    columns = np.empty((width, height + 16), tile.dtype)[:, :height]
    columns[:] = tile.T
    return columns.T


def fill(target: np.ndarray, array: np.ndarray) -> None:
    """Copy into an array of the same shape, cast to its dtype."""
    for part in tiles(array.shape):
        np.copyto(target[part], near(array[part]), casting="unsafe")


def aligned_copy(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A contiguous copy that begins at a multiple of 64 bytes: TensorFlow and JAX take such memory over as it is."""
    num_bytes = array.size * dtype.itemsize
    memory = np.empty(num_bytes + 64, np.uint8)
    begin = -memory.ctypes.data % 64
    copy = memory[begin : begin + num_bytes].view(dtype).reshape(array.shape)
    fill(copy, array)
    return copy


def in_order(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array of a dtype with its elements in the order of their indices: itself, or a copy, made by two threads."""
    if array.flags.c_contiguous:
        return array.astype(dtype, copy=False)
    result = np.empty(array.shape, dtype)
    if array.nbytes <= _BLOCK:
        fill(result, array)
    else:
        with ThreadPoolExecutor(2) as pool:
            deque(pool.map(lambda rows: fill(result[rows], array[rows]), blocks(array)), 0)  # raises what they raise
    return result
