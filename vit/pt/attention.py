"""Attention without its weights: PyTorch's fused kernel, or on CPUs in bfloat16 two products of oneDNN and a softmax.

The fused kernel computes bfloat16 on CPUs no faster than float32. Matrix products of all heads at once do, and bring
attention to about 0.6 of its time (ViT-B/16, two cores with AVX-512 BF16). Scores are rounded to bfloat16, as those of
the eager implementation are. They are computed for a few images at a time, so that they stay in cache.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear import takes_kernels

MOST_SCORES = 1 << 22
"""Scores computed at once, 8 MiB; one image may have more."""
MOST_TOKENS = 2048
"""Beyond it the scores of one image are too many to keep, and the fused kernel keeps none."""


def attend(query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0) -> Tensor:
    """Multi-head attention (Vaswani et al. 2017, Section 3.2.1).

    Args:
        query, key, value: (B, H, T, D / H).
        dropout_p: share of the attention weights to drop.

    Returns:
        (B, H, T, D / H).
    """
    batch, heads, tokens, size = query.shape
    if (
        query.dtype != torch.bfloat16
        or dropout_p
        or tokens > MOST_TOKENS
        or torch.is_grad_enabled()
        or not takes_kernels(query)
    ):
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p)
    images = max(1, MOST_SCORES // (heads * tokens * tokens))
    context = query.new_empty(batch, tokens, heads, size).transpose(1, 2)
    parts = (tensor.split(images) for tensor in (query * size**-0.5, key, value, context))
    for query, key, value, out in zip(*parts, strict=True):
        scores = torch.matmul(query, key.transpose(-1, -2))  # (images, H, T, T)
        out.copy_(torch.softmax(scores, -1, out=scores) @ value)
    return context
