"""DINOv3's ViT in PyTorch.

Side by side with vit/tf/dinov3.py and vit/flax/dinov3.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config import PreTrainedConfig, to_pair
from ..families.dinov3 import DINOv3ViTConfig
from ..posemb import frequencies
from .dino import DinoEmbeddings, DinoLayer, DinoMLP, DinoModel
from .layers import ViTSelfAttention, encode
from .linear import ACTIVATIONS, linear, linears
from .posemb import rotate, rotation


class DINOv3ViTPatchEmbeddings(nn.Conv2d):
    """As those of ViT, with the projection itself in the place of what holds it."""

    def __init__(self, config: PreTrainedConfig) -> None:
        patch_size = to_pair(config.patch_size)
        super().__init__(config.num_channels, config.hidden_size, patch_size, stride=patch_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return super().forward(pixel_values).flatten(2).transpose(1, 2)  # (B, C, height, width) -> (B, N, D)


class DINOv3ViTEmbeddings(DinoEmbeddings):
    """As those of DINOv2 with registers, without positions."""

    patch_embeddings_class = DINOv3ViTPatchEmbeddings

    def __init__(self, config: DINOv3ViTConfig) -> None:
        super().__init__(config)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.register_tokens = nn.Parameter(torch.empty(1, config.num_register_tokens, config.hidden_size))


class DINOv3ViTRopePositionEmbedding(nn.Module):
    """The angles by which queries and keys are rotated; in training, the positions are moved at random."""

    def __init__(self, config: DINOv3ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.frequencies = frequencies(config.head_dim, config.rope_theta)

    def forward(self, pixel_values: Tensor, grid: tuple[int, int]) -> Tensor:
        """(2, T, D / H), as `rotate` takes them, of the device of the images."""
        return rotation(grid, self.config.prefix_tokens, self.frequencies, pixel_values, self.moved)

    def moved(self, centres: Tensor) -> Tensor:
        """Where patches, (N, 2), are taken to be."""

        def draw(shape: tuple[int, ...], bound: float) -> Tensor:
            return (torch.rand(shape, dtype=centres.dtype, device=centres.device) * 2 - 1) * bound

        return self.config.moved(centres, draw, torch.exp) if self.training else centres


class DINOv3ViTAttention(ViTSelfAttention):
    """Multi-head self-attention whose queries and keys are rotated (Su et al. 2021)."""

    projections = ("q_proj", "k_proj", "v_proj")
    dropout_key = "attention_dropout"

    def __init__(self, config: DINOv3ViTConfig) -> None:
        super().__init__(config)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.proj_bias)

    def forward(
        self, hidden_states: Tensor, output_attentions: bool = False, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        context, attentions = super().forward(hidden_states, output_attentions, bias)
        return linear(self.o_proj, context), attentions

    def place(self, query: Tensor, key: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        assert bias is not None, "The encoder gives each layer the angles."
        return rotate(query, bias), rotate(key, bias), None


class DINOv3ViTMLP(DinoMLP):
    """The MLP of a layer."""

    projections = ("up_proj", "down_proj")


class DINOv3ViTGatedMLP(nn.Module):
    """The gated MLP of a layer (Shazeer 2020)."""

    def __init__(self, config: DINOv3ViTConfig) -> None:
        super().__init__()
        width, mlp_width = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(width, mlp_width, bias=config.mlp_bias)
        self.up_proj = nn.Linear(width, mlp_width, bias=config.mlp_bias)
        self.down_proj = nn.Linear(mlp_width, width, bias=config.mlp_bias)
        self.activation = config.hidden_act

    def forward(self, hidden_states: Tensor) -> Tensor:
        gate, value = linears((self.gate_proj, self.up_proj), hidden_states)
        return linear(self.down_proj, ACTIVATIONS[self.activation](gate) * value)


class DINOv3ViTLayer(DinoLayer):
    """One pre-norm encoder layer: attention and MLP, each scaled, with a residual."""

    attention_class = DINOv3ViTAttention
    mlp_classes = (DINOv3ViTMLP, DINOv3ViTGatedMLP)


class DINOv3ViTModel(DinoModel):
    """DINOv3's ViT (Simeoni et al. 2025; transformers' DINOv3ViTModel)."""

    config_class: ClassVar[type[DINOv3ViTConfig]] = DINOv3ViTConfig
    config: DINOv3ViTConfig

    def __init__(self, config: DINOv3ViTConfig) -> None:
        super().__init__(config)
        self.embeddings = DINOv3ViTEmbeddings(config)
        self.rope_embeddings = DINOv3ViTRopePositionEmbedding(config)
        self.layer = nn.ModuleList(DINOv3ViTLayer(config, rate) for rate in config.drop_path_rates)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = None
        self.init_weights(self, config.base_model_prefix)

    def encode(
        self, pixel_values: Tensor, grid: tuple[int, int], mask: Tensor | None, wanted: tuple[bool, bool]
    ) -> Any:
        angles = self.rope_embeddings(pixel_values, grid)
        hidden_states, *others = encode(
            self.layer,
            self.embeddings(pixel_values, grid, mask),
            *wanted,
            biases=lambda layer: angles,
            recompute=self.gradient_checkpointing if self.training else None,
        )
        return self.norm(hidden_states), *others
