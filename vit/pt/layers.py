"""The layers of the Vision Transformer in PyTorch, in the order of the computation.

Side by side with vit/tf/layers.py and vit/flax/layers.py: the same classes, the same attributes, the same order.
Shapes: B batch, C channels, N patches, T = N + 1 tokens, D hidden_size, H heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import PreTrainedConfig, to_pair
from ..families.vit import ViTConfig
from .attention import attend
from .linear import ACTIVATIONS, linear, linears


class ViTPatchEmbeddings(nn.Module):
    """Cuts images into patches and projects each to a token (Dosovitskiy et al. 2021, Section 3.1)."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        patch_size = to_pair(config.patch_size)
        self.projection = nn.Conv2d(config.num_channels, config.hidden_size, patch_size, stride=patch_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.projection(pixel_values).flatten(2).transpose(1, 2)  # (B, C, height, width) -> (B, N, D)


class ViTEmbeddings(nn.Module):
    """Patch tokens, masked ones replaced, behind a CLS token, plus position embeddings."""

    def __init__(self, config: PreTrainedConfig, use_mask_token: bool = False) -> None:
        super().__init__()
        self.config = config
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.hidden_size)) if use_mask_token else None
        self.position_embeddings = nn.Parameter(torch.empty(1, config.num_patches + 1, config.hidden_size))
        self.patch_embeddings = ViTPatchEmbeddings(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: Tensor, grid: tuple[int, int], bool_masked_pos: Tensor | None = None) -> Tensor:
        hidden_states = self.patch_embeddings(pixel_values)  # (B, N, D)
        if bool_masked_pos is not None:
            mask = bool_masked_pos.bool()[:, :, None]
            hidden_states = torch.where(mask, self.mask_token, hidden_states)
        cls_token = self.cls_token.expand(hidden_states.shape[0], -1, -1)  # len would fix the size in an export
        hidden_states = torch.cat([cls_token, hidden_states], dim=1)  # (B, T, D)
        return self.dropout(hidden_states + self.interpolated_position_embeddings(grid))

    def interpolated_position_embeddings(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings for a grid of (rows, columns) patches: (1, 1 + rows * columns, D)."""
        position_embeddings = self.position_embeddings
        if grid == self.config.grid_size:
            return position_embeddings
        dtype = torch.promote_types(position_embeddings.dtype, torch.float32)
        cls_token, patches = position_embeddings[:, :1], position_embeddings[0, 1:].to(dtype)
        patches = patches.unflatten(0, self.config.grid_size)  # (rows, columns, D)
        rows, columns = (
            bicubic_matrix(old, new, like=patches) for old, new in zip(self.config.grid_size, grid, strict=True)
        )
        patches = torch.einsum("hr,rcd->hcd", rows, patches)
        patches = torch.einsum("wc,hcd->hwd", columns, patches).flatten(0, 1)[None]
        return torch.cat([cls_token, patches.to(cls_token.dtype)], dim=1)


def bicubic_matrix(old: int, new: int, like: Tensor) -> Tensor:
    """`posemb.bicubic_matrix` in tensors, because torch.compile and torch.export may leave the sizes open."""
    a, device = -0.75, like.device
    centre = (2 * torch.arange(new, device=device) + 1) * old - new  # in units of 1 / (2 new): exact
    taps = centre.div(2 * new, rounding_mode="floor")[:, None] + torch.arange(-1, 3, device=device)  # (new, 4)
    t = ((centre[:, None] - taps * (2 * new)).to(like.dtype) / (2 * new)).abs()
    weights = torch.where(t <= 1, ((a + 2) * t - (a + 3)) * t**2 + 1, a * (t - 1) * (t - 2) ** 2)
    columns = taps.clamp(0, old - 1)[:, :, None] == torch.arange(old, device=device)  # (new, 4, old)
    return (weights[:, :, None] * columns).sum(1)


class ViTSelfAttention(nn.Module):
    """Multi-head attention of the tokens to each other, without the output projection."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.key = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.value = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor, Tensor | None]:
        heads = (self.config.num_attention_heads, self.config.head_dim)
        query, key, value = (
            projected.unflatten(-1, heads).transpose(1, 2)  # (B, H, T, D / H)
            for projected in linears((self.query, self.key, self.value), hidden_states)
        )
        if output_attentions or self.config.attn_implementation == "eager":
            scores = (query * self.config.head_dim**-0.5) @ key.transpose(-1, -2)  # (B, H, T, T)
            at_least_float32 = torch.promote_types(scores.dtype, torch.float32)
            attentions = scores.softmax(dim=-1, dtype=at_least_float32).to(scores.dtype)
            context = self.dropout(attentions) @ value
        else:
            attentions = None
            dropout_p = self.dropout.p if self.training else 0.0
            context = attend(query, key, value, dropout_p)
        return context.transpose(1, 2).flatten(2), attentions if output_attentions else None  # (B, T, D)


class ViTSelfOutput(nn.Module):
    """The output projection of an attention; the residual is added in ViTLayer."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.dropout(linear(self.dense, hidden_states))


class ViTAttention(nn.Module):
    """Multi-head self-attention (Dosovitskiy et al. 2021, Equation 2)."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.attention = ViTSelfAttention(config)
        self.output = ViTSelfOutput(config)

    def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor, Tensor | None]:
        context, attentions = self.attention(hidden_states, output_attentions)
        return self.output(context), attentions


class ViTIntermediate(nn.Module):
    """The widening half of the MLP (Dosovitskiy et al. 2021, Equation 3)."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = config.hidden_act

    def forward(self, hidden_states: Tensor) -> Tensor:
        return linear(self.dense, hidden_states, self.activation)


class ViTOutput(nn.Module):
    """The narrowing half of the MLP; the residual is added in ViTLayer."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.dropout(linear(self.dense, hidden_states))


class ViTLayer(nn.Module):
    """One pre-norm encoder layer: attention and MLP, each with a residual."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = ViTAttention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.intermediate = ViTIntermediate(config)
        self.output = ViTOutput(config)

    def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor, Tensor | None]:
        context, attentions = self.attention(self.layernorm_before(hidden_states), output_attentions)
        hidden_states = hidden_states + context
        hidden_states = hidden_states + self.output(self.intermediate(self.layernorm_after(hidden_states)))
        return hidden_states, attentions


class ViTEncoder(nn.Module):
    """The stack of encoder layers."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(ViTLayer(config) for _ in range(config.num_hidden_layers))
        self.gradient_checkpointing: dict[str, Any] | None = None  # arguments of checkpoint

    def forward(
        self, hidden_states: Tensor, output_hidden_states: bool = False, output_attentions: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
        all_hidden_states, all_attentions = [hidden_states], []
        for layer in self.layer:
            if self.gradient_checkpointing is not None and self.training:
                hidden_states, attentions = checkpoint(
                    layer, hidden_states, output_attentions, **self.gradient_checkpointing
                )
            else:
                hidden_states, attentions = layer(hidden_states, output_attentions)
            all_hidden_states.append(hidden_states)
            all_attentions.append(attentions)
        return (
            hidden_states,
            tuple(all_hidden_states) if output_hidden_states else None,
            tuple(all_attentions) if output_attentions else None,
        )


class ViTPooler(nn.Module):
    """A dense layer over the CLS token."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.pooler_output_size)
        self.activation = config.pooler_act

    def forward(self, hidden_states: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](self.dense(hidden_states[:, 0]))
