"""DeiTModel and its heads in Flax NNX: a ViT with a distillation token.

Side by side with vit/pt/deit.py and vit/tf/deit.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import Any

from flax import nnx
from jax import Array

from ..families.deit import DeiTConfig
from ..outputs import ModelOutput, collect
from .eager import call
from .heads import FlaxHeadedModel
from .layers import ViTEmbeddings, dense
from .vit import FlaxViTForImageClassification, FlaxViTForMaskedImageModeling, FlaxViTModel, FlaxViTPreTrainedModel


class DeiTEmbeddings(ViTEmbeddings):
    """Patch tokens, masked ones replaced, behind CLS and distillation tokens, plus position embeddings."""

    tokens = ("cls_token", "distillation_token")


class FlaxDeiTPreTrainedModel(FlaxViTPreTrainedModel):
    """What the classes of this family are."""

    config_class = DeiTConfig
    config: DeiTConfig


class FlaxDeiTModel(FlaxDeiTPreTrainedModel, FlaxViTModel):
    """DeiT without a head (Touvron et al. 2021, Section 4); called as `FlaxViTModel` is."""

    embeddings_class = DeiTEmbeddings


class FlaxDeiTForImageClassification(FlaxDeiTPreTrainedModel, FlaxViTForImageClassification):
    """DeiT with a linear head on the CLS token."""

    base_class = FlaxDeiTModel


class FlaxDeiTForImageClassificationWithTeacher(FlaxDeiTPreTrainedModel, FlaxHeadedModel):
    """DeiT with a linear head on the CLS token and one on the distillation token (Touvron et al. 2021, Section 4)."""

    head = "teacher"
    base_class = FlaxDeiTModel

    def add_head(self, config: DeiTConfig, **options: Any) -> None:
        width, labels = config.hidden_size, config.num_labels
        self.cls_classifier = dense(config, width, labels, **options) if labels else None
        self.distillation_classifier = dense(config, width, labels, **options) if labels else None

    def __call__(
        self,
        pixel_values: Array,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> ModelOutput | tuple[Array, ...]:
        """Classify images; the arguments are those of `FlaxViTModel`.

        Returns:
            logits, the mean of cls_logits and distillation_logits, each (batch, num_labels); hidden_states and
            attentions as `FlaxViTModel`.

        Raises:
            InputError: inputs of another shape.
        """
        outputs: Any = self._base()(
            pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            rngs=rngs,
        )
        cls_logits, distillation_logits = outputs["last_hidden_state"][:, 0], outputs["last_hidden_state"][:, 1]
        if self.cls_classifier is not None:
            cls_logits = call(self.cls_classifier, cls_logits)
            distillation_logits = call(self.distillation_classifier, distillation_logits)
        return collect(
            self.config.return_dict if return_dict is None else return_dict,
            logits=(cls_logits + distillation_logits) / 2,
            cls_logits=cls_logits,
            distillation_logits=distillation_logits,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )


class FlaxDeiTForMaskedImageModeling(FlaxDeiTPreTrainedModel, FlaxViTForMaskedImageModeling):
    """DeiT with a linear decoder of its patches to pixels (Xie et al. 2022, SimMIM)."""

    base_class = FlaxDeiTModel
