"""DeiT with distillation: its configuration, under the keys of the published config.json, and its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..config import Head
from ..weights import Shape, linear_shapes
from .vit import MASKED, ViTConfig


@dataclass(eq=False)
class DeiTConfig(ViTConfig):
    """The configuration of a distilled DeiT: a ViT with a distillation token (Touvron et al. 2021, Section 4).

    Keys and defaults are those of `ViTConfig` and of transformers' DeiTConfig, so the defaults are the distilled B/16
    at 224. A DeiT without a distillation token is a plain ViT.

    Args:
        model_type: "deit".

    Raises:
        ConfigError: a value that no model can have.
    """

    base_model_prefix: ClassVar[str] = "deit"
    heads: ClassVar[Mapping[str | None, Head]] = {
        None: Head("DeiTModel", "last_hidden_state", {"add_pooling_layer": True, "use_mask_token": False}),
        "classifier": Head("DeiTForImageClassification", "logits", {"add_pooling_layer": False}),
        "teacher": Head("DeiTForImageClassificationWithTeacher", "logits", {"add_pooling_layer": False}),
        "decoder": Head("DeiTForMaskedImageModeling", "reconstruction", MASKED),
    }
    optional: ClassVar[tuple[str, ...]] = (
        "deit.pooler.",
        "deit.embeddings.mask_token",
        "classifier.",
        "cls_classifier.",
        "distillation_classifier.",
        "decoder.",
    )
    label_parameters: ClassVar[tuple[str, ...]] = ("classifier.", "cls_classifier.", "distillation_classifier.")
    prefix_tokens: ClassVar[int] = 2
    """CLS and the distillation token."""
    prefix_name: ClassVar[str] = "distillation token"

    model_type: str = "deit"

    def parameter_shapes(
        self, head: str | None = None, add_pooling_layer: bool = False, use_mask_token: bool = False
    ) -> dict[str, Shape]:
        """As `ViTConfig.parameter_shapes`; `head` may also be "teacher"."""
        shapes: dict[str, Shape] = {}
        for name, shape in super().parameter_shapes(head, add_pooling_layer, use_mask_token).items():
            shapes[name] = shape
            if name.endswith("cls_token"):
                shapes["deit.embeddings.distillation_token"] = shape
        if head == "teacher" and self.num_labels:
            for name in ("cls_classifier", "distillation_classifier"):
                shapes |= linear_shapes(name, self.hidden_size, self.num_labels)
        return shapes
