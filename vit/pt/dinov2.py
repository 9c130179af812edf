"""DINOv2, without and with registers, and its heads in PyTorch.

Side by side with vit/tf/dinov2.py and vit/flax/dinov2.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..families.dinov2 import Dinov2Config, Dinov2WithRegistersConfig
from ..outputs import ModelOutput
from .dino import DinoEmbeddings, DinoLayer, DinoMLP, DinoModel
from .heads import ImageClassifier
from .layers import ViTEncoder
from .linear import linear
from .pretrained import PreTrainedModel


class Dinov2PreTrainedModel(PreTrainedModel):
    """What the classes of this family are."""

    config_class: ClassVar[type[Dinov2Config]] = Dinov2Config
    config: Dinov2Config


class Dinov2SwiGLUFFN(nn.Module):
    """The gated MLP of a layer (Shazeer 2020)."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.weights_in = nn.Linear(config.hidden_size, 2 * config.intermediate_size)
        self.weights_out = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        gate, value = linear(self.weights_in, hidden_states).chunk(2, dim=-1)
        return linear(self.weights_out, F.silu(gate) * value)


class Dinov2Layer(DinoLayer):
    """One pre-norm encoder layer: attention and MLP, each scaled, with a residual."""

    mlp_classes = (DinoMLP, Dinov2SwiGLUFFN)


class Dinov2Encoder(ViTEncoder):
    """The stack of encoder layers."""

    layer_class = Dinov2Layer


class Dinov2Model(DinoModel):
    """DINOv2 without a head (Oquab et al. 2024; transformers' Dinov2Model)."""

    config_class: ClassVar[type[Dinov2Config]] = Dinov2Config
    config: Dinov2Config

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__(config)
        self.embeddings = DinoEmbeddings(config)
        self.encoder = Dinov2Encoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.init_weights(self, config.base_model_prefix)


class Dinov2ForImageClassification(Dinov2PreTrainedModel, ImageClassifier):
    """DINOv2 with a linear head on CLS and the mean of the patches (transformers' Dinov2ForImageClassification)."""

    base_class = Dinov2Model

    def pooled(self, outputs: ModelOutput) -> Tensor:
        patches = outputs["last_hidden_state"][:, self.config.prefix_tokens :]
        return torch.cat([outputs["pooler_output"], patches.mean(dim=1)], dim=1)


class Dinov2WithRegistersModel(Dinov2Model):
    """DINOv2 with registers (Darcet et al. 2024; transformers' Dinov2WithRegistersModel)."""

    config_class = Dinov2WithRegistersConfig


class Dinov2WithRegistersForImageClassification(Dinov2ForImageClassification):
    """DINOv2 with registers and a linear head (transformers' Dinov2WithRegistersForImageClassification)."""

    config_class = Dinov2WithRegistersConfig
    base_class = Dinov2WithRegistersModel
