"""ViTModel and its heads in Flax NNX.

Side by side with vit/pt/vit.py and vit/tf/vit.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ..config import PreTrainedConfig
from ..families.vit import ViTConfig
from .base import FlaxBaseModel
from .heads import FlaxImageClassifier, FlaxPatchReconstructor
from .layers import ViTEmbeddings, ViTEncoder, ViTPooler
from .norm import layer_norm
from .pretrained import FlaxPreTrainedModel


class FlaxViTPreTrainedModel(FlaxPreTrainedModel):
    """What the classes of this family are."""

    config_class: ClassVar[type[PreTrainedConfig]] = ViTConfig
    config: ViTConfig


class FlaxViTModel(FlaxViTPreTrainedModel, FlaxBaseModel):
    """The Vision Transformer without a head (Dosovitskiy et al. 2021; transformers' FlaxViTModel).

    Args:
        config: its shape.
        add_pooling_layer: give it a pooler.
        use_mask_token: give it a mask token, for masked image modelling.
        dtype: of the computation; None for that of the parameters.
        param_dtype: of the parameters.
        rngs: of the initial values.
    """

    embeddings_class: ClassVar[type[ViTEmbeddings]] = ViTEmbeddings

    def __init__(
        self,
        config: ViTConfig,
        add_pooling_layer: bool = True,
        use_mask_token: bool = False,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(config, param_dtype if dtype is None else dtype)
        self.embeddings = self.embeddings_class(config, use_mask_token=use_mask_token, **options)
        self.encoder = ViTEncoder(config, **options)
        self.layernorm = layer_norm(config, **options)
        self.pooler = ViTPooler(config, **options) if add_pooling_layer else None


class FlaxViTForImageClassification(FlaxViTPreTrainedModel, FlaxImageClassifier):
    """The Vision Transformer with a linear head on the CLS token (transformers' FlaxViTForImageClassification)."""

    base_class = FlaxViTModel


class FlaxViTForMaskedImageModeling(FlaxViTPreTrainedModel, FlaxPatchReconstructor):
    """The Vision Transformer with a linear decoder to pixels (Xie et al. 2022, SimMIM)."""

    base_class = FlaxViTModel
