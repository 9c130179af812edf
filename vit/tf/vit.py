"""ViTModel and its heads in Keras 3 on TensorFlow.

Side by side with vit/pt/vit.py and vit/flax/vit.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from ..config import PreTrainedConfig
from ..families.vit import ViTConfig
from .base import TFBaseModel
from .heads import TFImageClassifier, TFPatchReconstructor
from .layers import ViTEmbeddings, ViTEncoder, ViTPooler
from .norm import layer_norm
from .pretrained import TFPreTrainedModel


class TFViTPreTrainedModel(TFPreTrainedModel):
    """What the classes of this family are."""

    config_class: ClassVar[type[PreTrainedConfig]] = ViTConfig
    config: ViTConfig


@keras.saving.register_keras_serializable("trivit")
class TFViTModel(TFViTPreTrainedModel, TFBaseModel):
    """The Vision Transformer without a head (Dosovitskiy et al. 2021; transformers' TFViTModel).

    Args:
        config: its shape.
        add_pooling_layer: give it a pooler.
        use_mask_token: give it a mask token, for masked image modelling.
        **kwargs: those of keras.Model, such as `dtype`; and `build`, False to leave the weights uncreated.
    """

    embeddings_class: ClassVar[type[ViTEmbeddings]] = ViTEmbeddings

    def __init__(
        self, config: ViTConfig, add_pooling_layer: bool = True, use_mask_token: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(config, **kwargs)
        options = {"name": "embeddings", **self.options}
        self.embeddings = self.embeddings_class(config, use_mask_token=use_mask_token, **options)
        self.encoder = ViTEncoder(config, name="encoder", **self.options)
        self.layernorm = layer_norm(config, "layernorm", **self.options)
        self.pooler = ViTPooler(config, name="pooler", **self.options) if add_pooling_layer else None
        self.maybe_build()


@keras.saving.register_keras_serializable("trivit")
class TFViTForImageClassification(TFViTPreTrainedModel, TFImageClassifier):
    """The Vision Transformer with a linear head on the CLS token (transformers' TFViTForImageClassification).

    `compile` without a loss trains with the one that the configuration's problem_type selects; labels are y of `fit`
    and `evaluate`, or the key "labels" of a dict of inputs. A loss or metric given to `compile` sees the logits.
    """

    base_class = TFViTModel


@keras.saving.register_keras_serializable("trivit")
class TFViTForMaskedImageModeling(TFViTPreTrainedModel, TFPatchReconstructor):
    """The Vision Transformer with a linear decoder to pixels (Xie et al. 2022, SimMIM).

    `compile` without a loss trains with the reconstruction loss; `fit` takes a dict of pixel_values and
    bool_masked_pos.
    """

    base_class = TFViTModel
