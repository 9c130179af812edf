"""DeiTModel and its heads in Keras 3 on TensorFlow: a ViT with a distillation token.

Side by side with vit/pt/deit.py and vit/flax/deit.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from ..families.deit import DeiTConfig
from ..outputs import ModelOutput, collect
from .heads import TFHeadedModel
from .layers import ViTEmbeddings
from .linear import dense
from .vit import TFViTForImageClassification, TFViTForMaskedImageModeling, TFViTModel, TFViTPreTrainedModel


class DeiTEmbeddings(ViTEmbeddings):
    """Patch tokens, masked ones replaced, behind CLS and distillation tokens, plus position embeddings."""

    tokens = ("cls_token", "distillation_token")


class TFDeiTPreTrainedModel(TFViTPreTrainedModel):
    """What the classes of this family are."""

    config_class = DeiTConfig
    config: DeiTConfig


@keras.saving.register_keras_serializable("trivit")
class TFDeiTModel(TFDeiTPreTrainedModel, TFViTModel):
    """DeiT without a head (Touvron et al. 2021, Section 4; transformers' TFDeiTModel); called as `TFViTModel` is."""

    embeddings_class = DeiTEmbeddings


@keras.saving.register_keras_serializable("trivit")
class TFDeiTForImageClassification(TFDeiTPreTrainedModel, TFViTForImageClassification):
    """DeiT with a linear head on the CLS token (transformers' TFDeiTForImageClassification)."""

    base_class = TFDeiTModel


@keras.saving.register_keras_serializable("trivit")
class TFDeiTForImageClassificationWithTeacher(TFDeiTPreTrainedModel, TFHeadedModel):
    """DeiT with a linear head on the CLS token and one on the distillation token (Touvron et al. 2021, Section 4).

    It has no loss of its own; one given to `compile` sees the logits.
    """

    head = "teacher"
    base_class = TFDeiTModel

    def add_head(self, config: DeiTConfig) -> None:
        labels = config.num_labels
        self.cls_classifier = dense(config, labels, "cls_classifier", **self.options) if labels else None
        self.distillation_classifier = (
            dense(config, labels, "distillation_classifier", **self.options) if labels else None
        )

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        for classifier in (self.cls_classifier, self.distillation_classifier):
            if classifier is not None:
                classifier.build((None, self.config.hidden_size))

    def call(
        self,
        pixel_values: tf.Tensor,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
    ) -> ModelOutput | tuple[tf.Tensor, ...]:
        """Classify images; the arguments are those of `TFViTModel`.

        Returns:
            logits, the mean of cls_logits and distillation_logits, each (batch, num_labels); hidden_states and
            attentions as `TFViTModel`.

        Raises:
            InputError: inputs of another shape.
        """
        if isinstance(pixel_values, dict):
            (pixel_values,) = self.unpack(pixel_values)
        outputs: Any = self._base()(
            pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        cls_logits, distillation_logits = outputs["last_hidden_state"][:, 0], outputs["last_hidden_state"][:, 1]
        if self.cls_classifier is not None and self.distillation_classifier is not None:
            cls_logits = self.cls_classifier(cls_logits)
            distillation_logits = self.distillation_classifier(distillation_logits)
        return collect(
            self.config.return_dict if return_dict is None else return_dict,
            logits=(cls_logits + distillation_logits) / 2,
            cls_logits=cls_logits,
            distillation_logits=distillation_logits,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )


@keras.saving.register_keras_serializable("trivit")
class TFDeiTForMaskedImageModeling(TFDeiTPreTrainedModel, TFViTForMaskedImageModeling):
    """DeiT with a linear decoder of its patches to pixels (Xie et al. 2022, SimMIM)."""

    base_class = TFDeiTModel
