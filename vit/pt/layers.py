"""The layers of the Vision Transformer in PyTorch, in the order of the computation.

Side by side with vit/tf/layers.py and vit/flax/layers.py: the same classes, the same attributes, the same order. What
only some families have (tokens, layer scale, stochastic depth, biases of the scores) their configurations ask for.
Shapes: B batch, C channels, N patches, T tokens (the patches and those before them), D hidden_size, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import PreTrainedConfig, to_pair
from ..families.vit import ViTConfig
from .attention import attend
from .dropout import Dropout, DropPath
from .linear import ACTIVATIONS, linear, linears
from .posemb import interpolate


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

    tokens: ClassVar[tuple[str, ...]] = ("cls_token",)  # what precedes the patches and has positions, too
    patch_embeddings_class: ClassVar[Callable[..., nn.Module]] = ViTPatchEmbeddings

    def __init__(self, config: PreTrainedConfig, use_mask_token: bool = False) -> None:
        super().__init__()
        self.config = config
        width, positions = config.hidden_size, len(self.tokens) + config.num_patches
        for name in self.tokens:
            setattr(self, name, nn.Parameter(torch.empty(1, 1, width)))
        self.mask_token = nn.Parameter(torch.empty(1, 1, width)) if use_mask_token else None
        self.position_embeddings: Any = nn.Parameter(torch.empty(1, positions, width)) if config.has_positions else None
        self.patch_embeddings = self.patch_embeddings_class(config)
        self.dropout = Dropout(config, "hidden_dropout_prob")

    def forward(self, pixel_values: Tensor, grid: tuple[int, int], bool_masked_pos: Tensor | None = None) -> Tensor:
        hidden_states = self.patch_embeddings(pixel_values)  # (B, N, D)
        if bool_masked_pos is not None:
            mask = bool_masked_pos.bool()[:, :, None]
            hidden_states = torch.where(mask, self.mask_token, hidden_states)
        batch = hidden_states.shape[0]  # len would fix the size in an export
        tokens = [getattr(self, name).expand(batch, -1, -1) for name in self.tokens]
        hidden_states = torch.cat([*tokens, hidden_states], dim=1)  # (B, T, D)
        if self.position_embeddings is not None:
            hidden_states = hidden_states + self.interpolated_position_embeddings(grid)
        return self.dropout(hidden_states)

    def interpolated_position_embeddings(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings for a grid of (rows, columns) patches: (1, T, D)."""
        return interpolate(self.position_embeddings, self.config.grid_size, grid, **self.config.interpolation)


class ViTSelfAttention(nn.Module):
    """Multi-head attention of the tokens to each other, without the output projection."""

    projections: ClassVar[tuple[str, str, str]] = ("query", "key", "value")
    dropout_key: ClassVar[str] = "attention_probs_dropout_prob"

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config
        for name, bias in zip(self.projections, config.projection_biases, strict=True):
            setattr(self, name, nn.Linear(config.hidden_size, config.hidden_size, bias=bias))
        self.dropout = Dropout(config, self.dropout_key)

    def forward(
        self, hidden_states: Tensor, output_attentions: bool = False, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """`bias`, (1 or B, H, T, T), is added to the scores, unless `place` takes it for something else."""
        heads = (self.config.num_attention_heads, self.config.head_dim)
        query, key, value = (
            projected.unflatten(-1, heads).transpose(1, 2)  # (B, H, T, D / H)
            for projected in linears([getattr(self, name) for name in self.projections], hidden_states)
        )
        query, key, bias = self.place(query, key, bias)
        if output_attentions or self.config.attn_implementation == "eager":
            scores = (query * self.config.head_dim**-0.5) @ key.transpose(-1, -2)  # (B, H, T, T)
            scores = scores if bias is None else scores + bias
            at_least_float32 = torch.promote_types(scores.dtype, torch.float32)
            attentions = scores.softmax(dim=-1, dtype=at_least_float32).to(scores.dtype)
            context = self.dropout(attentions) @ value
        else:
            attentions = None
            dropout_p = self.dropout.p if self.training else 0.0
            context = attend(query, key, value, dropout_p, bias)
        return context.transpose(1, 2).flatten(2), attentions if output_attentions else None  # (B, T, D)

    def place(self, query: Tensor, key: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Queries and keys, (B, H, T, D / H), where their tokens are, and what is added to their scores."""
        return query, key, bias


class ViTSelfOutput(nn.Module):
    """The output projection of an attention; the residual is added in ViTLayer."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = Dropout(config, "hidden_dropout_prob")

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.dropout(linear(self.dense, hidden_states))


class ViTAttention(nn.Module):
    """Multi-head self-attention (Dosovitskiy et al. 2021, Equation 2)."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.attention = ViTSelfAttention(config)
        self.output = ViTSelfOutput(config)

    def forward(
        self, hidden_states: Tensor, output_attentions: bool = False, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        context, attentions = self.attention(hidden_states, output_attentions, bias)
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
        self.dropout = Dropout(config, "hidden_dropout_prob")

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.dropout(linear(self.dense, hidden_states))


def residual(hidden_states: Tensor, branch: Tensor, scale: Tensor | None, drop_path: DropPath | None) -> Tensor:
    """hidden_states + branch, which layer scale (Touvron et al. 2021, Section 2.1) multiplies by a factor a channel."""
    if drop_path is None or not drop_path.training:
        return hidden_states + branch if scale is None else torch.addcmul(hidden_states, branch, scale)
    return hidden_states + drop_path(branch if scale is None else branch * scale)


class ViTLayer(nn.Module):
    """One pre-norm encoder layer: attention and MLP, each with a residual."""

    def __init__(self, config: PreTrainedConfig, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = ViTAttention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.intermediate = ViTIntermediate(config)
        self.output = ViTOutput(config)
        self.lambda_1 = nn.Parameter(torch.empty(config.hidden_size)) if config.layer_scale else None
        self.lambda_2 = nn.Parameter(torch.empty(config.hidden_size)) if config.layer_scale else None
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else None

    def forward(
        self, hidden_states: Tensor, output_attentions: bool = False, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        context, attentions = self.attention(self.layernorm_before(hidden_states), output_attentions, bias)
        hidden_states = residual(hidden_states, context, self.lambda_1, self.drop_path)
        mlp = self.output(self.intermediate(self.layernorm_after(hidden_states)))
        return residual(hidden_states, mlp, self.lambda_2, self.drop_path), attentions


def encode(
    layers: Iterable[nn.Module],
    hidden_states: Tensor,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
    biases: Callable[[int], Tensor] | None = None,
    recompute: dict[str, Any] | None = None,
) -> tuple[Tensor, tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
    """The tokens behind a stack of layers, and before each; the attentions of each.

    Args:
        biases: what the attention of the layer at an index takes as its `bias`.
        recompute: arguments of `checkpoint`, where activations are not kept.
    """
    all_hidden_states, all_attentions = [hidden_states], []
    for i, layer in enumerate(layers):
        inputs = (hidden_states, output_attentions, None if biases is None else biases(i))
        hidden_states, attentions = layer(*inputs) if recompute is None else checkpoint(layer, *inputs, **recompute)
        all_hidden_states.append(hidden_states)
        all_attentions.append(attentions)
    return (
        hidden_states,
        tuple(all_hidden_states) if output_hidden_states else None,
        tuple(all_attentions) if output_attentions else None,
    )


class ViTEncoder(nn.Module):
    """The stack of encoder layers."""

    layer_class: ClassVar[type[nn.Module]] = ViTLayer

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(self.layer_class(config, rate) for rate in config.drop_path_rates)
        self.gradient_checkpointing: dict[str, Any] | None = None  # arguments of checkpoint

    def forward(
        self,
        hidden_states: Tensor,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        biases: Callable[[int], Tensor] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
        """As `encode`."""
        recompute = self.gradient_checkpointing if self.training else None
        return encode(self.layer, hidden_states, output_hidden_states, output_attentions, biases, recompute)


class ViTPooler(nn.Module):
    """A dense layer over the CLS token."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.pooler_output_size)
        self.activation = config.pooler_act

    def forward(self, hidden_states: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](self.dense(hidden_states[:, 0]))
