"""Positions in PyTorch: embeddings resampled to another grid of patches, and rotations of queries and keys.

Side by side with vit/tf/posemb.py and vit/flax/posemb.py. In tensors, because torch.compile and torch.export may leave
the sizes open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def interpolate(positions: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], **kernel: Any) -> Tensor:
    """`posemb.interpolate` in tensors: (1, T of the old grid, D) -> (1, T of the new one, D)."""
    if is_same(new_grid, old_grid):
        return positions
    if kernel.get("offset") and torch.compiler.is_compiling():  # the sizes may be open, and with the old ones it is 0
        lengths = [positions.new_ones(()) * length for length in (*new_grid, *old_grid)]
        differ = (lengths[0] != lengths[2]) | (lengths[1] != lengths[3])
        kernel["offset"] = kernel["offset"] * differ
    first = positions.shape[1] - old_grid[0] * old_grid[1]
    tokens, patches = positions[:, :first], positions[0, first:]
    patches = patches.to(torch.promote_types(positions.dtype, torch.float32))
    patches = patches.unflatten(0, old_grid)  # (rows, columns, D)
    rows, columns = (bicubic_matrix(*pair, like=patches, **kernel) for pair in zip(old_grid, new_grid, strict=True))
    patches = torch.einsum("hr,rcd->hcd", rows, patches)
    patches = torch.einsum("wc,hcd->hwd", columns, patches).flatten(0, 1)[None]
    return torch.cat([tokens, patches.to(tokens.dtype)], dim=1)


def is_same(grid: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two grids are the same, whatever sizes a compiler leaves open."""
    if not torch.compiler.is_compiling():
        return grid == other
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(grid[0] == other[0]) and statically_known_true(grid[1] == other[1])


def bicubic_matrix(old: int, new: int, like: Tensor, offset: Any = 0.0, antialias: bool = False) -> Tensor:
    """`posemb.bicubic_matrix` in tensors; `offset` may be one."""
    points, device = torch.arange(old, device=like.device), like.device
    if antialias:
        scale = like.new_ones(()) * old / new
        centre = scale * (torch.arange(new, dtype=like.dtype, device=device) + 0.5)[:, None]
        weights = cubic((points + 0.5 - centre).abs() / scale.clamp(min=1), -0.5)  # (new, old)
        return weights / weights.sum(1, keepdim=True)
    whole = not isinstance(offset, Tensor) and offset == 0
    exact = torch.int64 if whole else like.dtype
    size = new if whole else new + offset
    centre = (2 * torch.arange(new, dtype=exact, device=device) + 1) * old - size  # in units of 1 / (2 size)
    taps = centre.div(2 * size, rounding_mode="floor")[:, None] + torch.arange(-1, 3, device=device)  # (new, 4)
    weights = cubic(((centre[:, None] - taps * (2 * size)).to(like.dtype) / (2 * size)).abs(), -0.75)
    columns = taps.clamp(0, old - 1)[:, :, None] == points  # (new, 4, old)
    return (weights[:, :, None] * columns).sum(1)


def cubic(t: Tensor, a: float) -> Tensor:
    """The weight of a point at a distance of t points (Keys 1981)."""
    far = torch.where(t < 2, a * (t - 1) * (t - 2) ** 2, 0)
    return torch.where(t <= 1, ((a + 2) * t - (a + 3)) * t**2 + 1, far)


def rotation(
    grid: tuple[int, int],
    before: int,
    frequencies: Sequence[float],
    like: Tensor,
    moved: Callable[[Tensor], Tensor] = lambda centres: centres,
) -> Tensor:
    """The angles by which `rotate` turns queries and keys (Su et al. 2021; of two axes as in Simeoni et al. 2025).

    Args:
        grid: (rows, columns) of patches.
        before: tokens before them, which are not turned.
        frequencies: of `posemb.frequencies`, for a head of `size` numbers.
        like: a tensor of the device, and of the dtype if that is at least float32.
        moved: the centres of the patches, (N, 2) of y and x from -1 to 1 -> where they are taken to be.

    Returns:
        (2, T, size): cosines, and sines, those of the first half negative.
    """
    options: Any = {"dtype": torch.promote_types(like.dtype, torch.float32), "device": like.device}
    axes = [(torch.arange(length, **options) + 0.5) / length * 2 - 1 for length in grid]
    centres = moved(torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1))  # (N, 2)
    angles = (centres[:, :, None] * torch.tensor(frequencies, **options)).flatten(1)  # (N, size / 2)
    angles = F.pad(angles, (0, 0, before, 0))
    cosines, sines = angles.cos(), angles.sin()
    return torch.stack([torch.cat([cosines, cosines], dim=1), torch.cat([-sines, sines], dim=1)])


def rotate(heads: Tensor, rotation: Tensor) -> Tensor:
    """Queries or keys, (B, H, T, D / H), turned by their positions: each number with that half a head further on."""
    cosines, sines = rotation.to(heads.dtype)
    return torch.addcmul(heads * cosines, heads.roll(heads.shape[-1] // 2, -1), sines)
