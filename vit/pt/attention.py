"""Attention without its projections: PyTorch's fused kernel, or on CPUs in bfloat16 oneDNN's products and a softmax.

On CPUs with AVX-512 BF16 and without AMX the fused kernel computes bfloat16 no faster than float32. Products of all
heads at once do, and bring attention to about 0.6 of its time (ViT-B/16, two cores). Scores are rounded to bfloat16, as
those of the eager implementation are. They are computed for a few images at a time, so that they stay in cache.
"""

from __future__ import annotations

from functools import cache
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..families.beit import BeitConfig
from .linear import takes_kernels
from .posemb import is_same

MOST_SCORES = 1 << 22
"""Scores computed at once, 8 MiB; one image may have more."""
MOST_TOKENS = 2048
"""Beyond it the scores of one image are too many to keep, and the fused kernel keeps none."""


def attend(query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0, bias: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, Section 3.2.1).

    Args:
        query, key, value: (B, H, T, D / H).
        dropout_p: share of the attention weights to drop.
        bias: (1 or B, H, T, T), added to the scores.

    Returns:
        (B, H, T, D / H).
    """
    bias = None if bias is None else bias.to(query.dtype)  # which differ under autocast
    if is_transformed():
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)  # (B, H, T, T)
        weights = (scores if bias is None else scores + bias).softmax(-1)
        return (F.dropout(weights, dropout_p) if dropout_p else weights) @ value
    # First whether somebody compiles, who may leave the number of tokens open.
    if not takes_kernels(query) or not suits(query) or dropout_p or torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, key, value, bias, dropout_p)
    batch, heads, tokens, size = query.shape
    images = max(1, MOST_SCORES // (heads * tokens * tokens))
    query, key, value = (x.contiguous().flatten(0, 1) for x in (query * size**-0.5, key, value))  # (B * H, T, D / H)
    context = torch.empty_like(query)
    scores = query.new_empty(min(images, batch) * heads, tokens, tokens)
    added = repeat(None) if bias is None else bias.expand(batch, -1, -1, -1).split(images)
    parts = (tensor.split(images * heads) for tensor in (query, key.transpose(1, 2), value, context))
    for query, key, value, out, bias in zip(*parts, added, strict=False):  # (images * H, T, D / H), the key transposed
        weights = torch.bmm(query, key, out=scores[: len(query)])
        if bias is not None:
            weights.unflatten(0, (-1, heads)).add_(bias)
        torch.bmm(torch.softmax(weights, -1, out=weights), value, out=out)
    context = context.unflatten(0, (batch, heads)).transpose(1, 2).contiguous()  # (B, T, H, D / H), as heads are joined
    return context.transpose(1, 2)


def is_transformed() -> bool:
    """Whether torch.func or forward-mode differentiation looks on, which fused kernels have no rules for."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0


def suits(query: Tensor) -> bool:
    """Whether the products are the faster way, and the scores of an image not too many."""
    return query.dtype == torch.bfloat16 and query.shape[2] <= MOST_TOKENS and has_slow_kernel()


@cache
def has_slow_kernel() -> bool:
    """Whether this CPU multiplies bfloat16 in a way that the fused kernel makes no use of."""
    return torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()


class RelativePositionBias(nn.Module):
    """Biases of the scores of a head, by the distance of a key from its query (Bao et al. 2022, Section 2.2)."""

    def __init__(self, config: BeitConfig) -> None:
        super().__init__()
        self.config = config
        self.relative_position_bias_table = nn.Parameter(torch.empty(config.table_shape))

    def forward(self, index: Tensor, grid: tuple[int, int]) -> Tensor:
        table = self.interpolated_table(grid).t()
        return table.index_select(1, index.flatten()).unflatten(1, index.shape)[None]  # (1, H, T, T)

    def interpolated_table(self, grid: tuple[int, int]) -> Tensor:
        """The table for a grid of (rows, columns) patches: (distances, H)."""
        table = self.relative_position_bias_table
        if is_same(grid, self.config.grid_size):
            return table
        dtype = torch.promote_types(table.dtype, torch.float32)
        rows, columns = self.config.grid_size
        patches = table[:-3].to(dtype).t().unflatten(1, (2 * rows - 1, 2 * columns - 1))[None]
        patches = F.interpolate(patches, size=(2 * grid[0] - 1, 2 * grid[1] - 1), mode="bilinear")
        return torch.cat([patches[0].flatten(1).t().to(table.dtype), table[-3:]])


def relative_position_index(grid: tuple[int, int], device: torch.device) -> Tensor:
    """`families.beit.relative_position_index` in tensors, because torch.compile and torch.export leave sizes open."""
    rows, columns = grid
    patches = torch.arange(rows * columns, device=device)
    y, x = patches // columns, patches % columns
    distances = (2 * rows - 1) * (2 * columns - 1)
    index = (y[:, None] - y + rows - 1) * (2 * columns - 1) + (x[:, None] - x + columns - 1)
    from_cls, to_cls = torch.full_like(index[:1], distances), torch.full_like(patches[:, None], distances + 1)
    first = torch.cat([torch.full_like(to_cls[:1], distances + 2), from_cls], dim=1)
    return torch.cat([first, torch.cat([to_cls, index], dim=1)])  # (T, T)
