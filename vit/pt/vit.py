"""ViTModel and its heads in PyTorch.

Side by side with vit/tf/vit.py and vit/flax/vit.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from ..config import PreTrainedConfig
from ..families.vit import ViTConfig
from .base import BaseModel
from .heads import ImageClassifier, PatchReconstructor
from .layers import ViTEmbeddings, ViTEncoder, ViTPooler
from .pretrained import PreTrainedModel


class ViTPreTrainedModel(PreTrainedModel):
    """What the classes of this family are."""

    config_class: ClassVar[type[PreTrainedConfig]] = ViTConfig
    config: ViTConfig


class ViTModel(ViTPreTrainedModel, BaseModel):
    """The Vision Transformer without a head (Dosovitskiy et al. 2021; transformers' ViTModel).

    Args:
        config: its shape.
        add_pooling_layer: give it a pooler.
        use_mask_token: give it a mask token, for masked image modelling.
    """

    embeddings_class: ClassVar[type[ViTEmbeddings]] = ViTEmbeddings

    def __init__(self, config: ViTConfig, add_pooling_layer: bool = True, use_mask_token: bool = False) -> None:
        super().__init__(config)
        self.embeddings = self.embeddings_class(config, use_mask_token=use_mask_token)
        self.encoder = ViTEncoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = ViTPooler(config) if add_pooling_layer else None
        self.init_weights(self, config.base_model_prefix)


class ViTForImageClassification(ViTPreTrainedModel, ImageClassifier):
    """The Vision Transformer with a linear head on the CLS token (transformers' ViTForImageClassification)."""

    base_class = ViTModel


class ViTForMaskedImageModeling(ViTPreTrainedModel, PatchReconstructor):
    """The Vision Transformer with a linear decoder to pixels (Xie et al. 2022, SimMIM)."""

    base_class = ViTModel
