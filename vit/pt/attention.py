"""Attention without its weights: PyTorch's fused kernel, or on CPUs in bfloat16 two products of oneDNN and a softmax.

On CPUs with AVX-512 BF16 and without AMX the fused kernel computes bfloat16 no faster than float32. Products of all
heads at once do, and bring attention to about 0.6 of its time (ViT-B/16, two cores). Scores are rounded to bfloat16, as
those of the eager implementation are. They are computed for a few images at a time, so that they stay in cache.
"""

from __future__ import annotations

from functools import cache
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear import takes_kernels

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


def suits(query: Tensor) -> bool:
    """Whether the products are the faster way, and the scores of an image not too many."""
    return query.dtype == torch.bfloat16 and query.shape[2] <= MOST_TOKENS and has_slow_kernel()


@cache
def has_slow_kernel() -> bool:
    """Whether this CPU multiplies bfloat16 in a way that the fused kernel makes no use of."""
    return torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()
