"""What DINOv2 and DINOv3 share in PyTorch, in the order of the computation.

Side by side with vit/tf/dino.py and vit/flax/dino.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config import PreTrainedConfig
from .base import BaseModel
from .dropout import DropPath
from .layers import ViTAttention, ViTEmbeddings, residual
from .linear import linear


class DinoEmbeddings(ViTEmbeddings):
    """As those of ViT, with registers, which have no positions, behind the CLS token (Darcet et al. 2024)."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.mask_token = nn.Parameter(torch.empty(1, config.hidden_size)) if config.use_mask_token else None
        registers = torch.empty(1, config.num_register_tokens, config.hidden_size)
        self.register_tokens = nn.Parameter(registers) if config.num_register_tokens else None

    def forward(self, pixel_values: Tensor, grid: tuple[int, int], bool_masked_pos: Tensor | None = None) -> Tensor:
        hidden_states = super().forward(pixel_values, grid, bool_masked_pos)
        if self.register_tokens is None:
            return hidden_states
        registers = self.dropout(self.register_tokens.expand(hidden_states.shape[0], -1, -1))
        return torch.cat([hidden_states[:, :1], registers, hidden_states[:, 1:]], dim=1)


class DinoLayerScale(nn.Module):
    """A factor for each channel of a branch (Touvron et al. 2021, Section 2.1)."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.empty(config.hidden_size))


class DinoMLP(nn.Module):
    """The MLP of a layer."""

    projections: ClassVar[tuple[str, str]] = ("fc1", "fc2")

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        first, second = self.projections
        setattr(self, first, nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias))
        setattr(self, second, nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias))
        self.activation = config.hidden_act

    def forward(self, hidden_states: Tensor) -> Tensor:
        first, second = (getattr(self, name) for name in self.projections)
        return linear(second, linear(first, hidden_states, self.activation))


class DinoLayer(nn.Module):
    """One pre-norm encoder layer: attention and MLP, each scaled, with a residual."""

    attention_class: ClassVar[type[nn.Module]] = ViTAttention
    mlp_classes: ClassVar[tuple[type[nn.Module], ...]]  # plain and gated

    def __init__(self, config: PreTrainedConfig, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = self.attention_class(config)
        self.layer_scale1 = DinoLayerScale(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = self.mlp_classes[config.gated_mlp](config)
        self.layer_scale2 = DinoLayerScale(config)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else None

    def forward(
        self, hidden_states: Tensor, output_attentions: bool = False, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        context, attentions = self.attention(self.norm1(hidden_states), output_attentions, bias)
        hidden_states = residual(hidden_states, context, self.layer_scale1.lambda1, self.drop_path)
        mlp = self.mlp(self.norm2(hidden_states))
        return residual(hidden_states, mlp, self.layer_scale2.lambda1, self.drop_path), attentions


class DinoModel(BaseModel):
    """A model without a head of DINOv2, or one that follows it; pooler_output is CLS. It takes images of any size."""

    def pool(self, hidden_states: Tensor) -> Tensor | None:
        return hidden_states[:, 0]
