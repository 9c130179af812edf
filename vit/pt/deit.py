"""DeiTModel and its heads in PyTorch: a ViT with a distillation token.

Side by side with vit/tf/deit.py and vit/flax/deit.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..families.deit import DeiTConfig
from ..outputs import ModelOutput, collect
from .heads import HeadedModel
from .layers import ViTEmbeddings
from .vit import ViTForImageClassification, ViTForMaskedImageModeling, ViTModel, ViTPreTrainedModel


class DeiTEmbeddings(ViTEmbeddings):
    """Patch tokens, masked ones replaced, behind CLS and distillation tokens, plus position embeddings."""

    tokens = ("cls_token", "distillation_token")


class DeiTPreTrainedModel(ViTPreTrainedModel):
    """What the classes of this family are."""

    config_class = DeiTConfig
    config: DeiTConfig


class DeiTModel(DeiTPreTrainedModel, ViTModel):
    """DeiT without a head (Touvron et al. 2021, Section 4; transformers' DeiTModel); called as `ViTModel` is."""

    embeddings_class = DeiTEmbeddings


class DeiTForImageClassification(DeiTPreTrainedModel, ViTForImageClassification):
    """DeiT with a linear head on the CLS token (transformers' DeiTForImageClassification)."""

    base_class = DeiTModel


class DeiTForImageClassificationWithTeacher(DeiTPreTrainedModel, HeadedModel):
    """DeiT with a linear head on the CLS token and one on the distillation token (Touvron et al. 2021, Section 4)."""

    head = "teacher"
    base_class = DeiTModel

    def add_head(self, config: DeiTConfig) -> None:
        width, labels = config.hidden_size, config.num_labels
        self.cls_classifier = nn.Linear(width, labels) if labels else nn.Identity()
        self.distillation_classifier = nn.Linear(width, labels) if labels else nn.Identity()

    def forward(
        self,
        pixel_values: Tensor,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> ModelOutput | tuple[Tensor, ...]:
        """Classify images; the arguments are those of `ViTModel`.

        Returns:
            logits, the mean of cls_logits and distillation_logits, each (batch, num_labels); hidden_states and
            attentions as `ViTModel`.

        Raises:
            InputError: inputs of another shape.
        """
        outputs: Any = self._base()(
            pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        cls_logits = self.cls_classifier(outputs["last_hidden_state"][:, 0])
        distillation_logits = self.distillation_classifier(outputs["last_hidden_state"][:, 1])
        return collect(
            self.config.return_dict if return_dict is None else return_dict,
            logits=(cls_logits + distillation_logits) / 2,
            cls_logits=cls_logits,
            distillation_logits=distillation_logits,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )


class DeiTForMaskedImageModeling(DeiTPreTrainedModel, ViTForMaskedImageModeling):
    """DeiT with a linear decoder of its patches to pixels (Xie et al. 2022, SimMIM)."""

    base_class = DeiTModel
