"""What DINOv2 and DINOv3 share in Keras 3, in the order of the computation.

Side by side with vit/pt/dino.py and vit/flax/dino.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import Any, ClassVar

import keras
import tensorflow as tf
from keras import ops

from ..config import PreTrainedConfig
from .base import TFBaseModel
from .dropout import DropPath
from .layers import ViTAttention, ViTEmbeddings, ViTKerasLayer, residual
from .linear import dense, initializer, linear
from .norm import layer_norm


class DinoEmbeddings(ViTEmbeddings):
    """As those of ViT, with registers, which have no positions, behind the CLS token (Darcet et al. 2024)."""

    config: Any

    def __init__(self, config: Any, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.register_tokens_initializer = initializer(config)

    def build(self, input_shape: Any) -> None:
        config, width = self.config, self.config.hidden_size
        self._add("cls_token", (1, 1, width))
        self._add("mask_token", (1, width) if config.use_mask_token else None)
        self._add("register_tokens", (1, config.num_register_tokens, width) if config.num_register_tokens else None)
        self._add("position_embeddings", (1, config.num_patches + 1, width))
        self.patch_embeddings.build(input_shape)

    def call(
        self, pixel_values: tf.Tensor, grid: tuple[int, int] | None = None, bool_masked_pos: tf.Tensor | None = None
    ) -> tf.Tensor:
        hidden_states = super().call(pixel_values, grid, bool_masked_pos)
        if self.register_tokens is None:
            return hidden_states
        shape = (ops.shape(hidden_states)[0], *self.register_tokens.shape[1:])
        registers = self.dropout(ops.broadcast_to(self.register_tokens, shape))
        return ops.concatenate([hidden_states[:, :1], registers, hidden_states[:, 1:]], axis=1)


class DinoLayerScale(ViTKerasLayer):
    """A factor for each channel of a branch (Touvron et al. 2021, Section 2.1)."""

    def __init__(self, config: PreTrainedConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.lambda1_initializer = keras.initializers.Constant(config.layer_scale)

    def build(self, input_shape: Any) -> None:
        self._add("lambda1", (self.config.hidden_size,))


class DinoMLP(ViTKerasLayer):
    """The MLP of a layer."""

    projections: ClassVar[tuple[str, str]] = ("fc1", "fc2")

    def __init__(self, config: PreTrainedConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        for name, width in zip(self.projections, (config.intermediate_size, config.hidden_size), strict=True):
            setattr(self, name, dense(config, width, name, use_bias=config.mlp_bias, **self.options))
        self.activation = config.hidden_act

    def build(self, input_shape: Any) -> None:
        first, second = (getattr(self, name) for name in self.projections)
        first.build((None, None, self.config.hidden_size))
        second.build((None, None, self.config.intermediate_size))

    def call(self, hidden_states: tf.Tensor) -> tf.Tensor:
        first, second = (getattr(self, name) for name in self.projections)
        return linear(second, linear(first, hidden_states, self.activation))


class DinoLayer(ViTKerasLayer):
    """One pre-norm encoder layer: attention and MLP, each scaled, with a residual."""

    attention_class: ClassVar[type[ViTKerasLayer]] = ViTAttention
    mlp_classes: ClassVar[tuple[type[ViTKerasLayer], ...]]  # plain and gated

    def __init__(self, config: PreTrainedConfig, drop_path_rate: float = 0.0, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.drop_path_rate = drop_path_rate
        self.norm1 = layer_norm(config, "norm1", **self.options)
        self.attention = self.attention_class(config, name="attention", **self.options)
        self.layer_scale1 = DinoLayerScale(config, name="layer_scale1", **self.options)
        self.norm2 = layer_norm(config, "norm2", **self.options)
        self.mlp = self.mlp_classes[config.gated_mlp](config, name="mlp", **self.options)
        self.layer_scale2 = DinoLayerScale(config, name="layer_scale2", **self.options)
        self.drop_path = DropPath(drop_path_rate, name="drop_path", **self.options) if drop_path_rate else None

    def build(self, input_shape: Any) -> None:
        for layer in (self.norm1, self.attention, self.layer_scale1, self.norm2, self.mlp, self.layer_scale2):
            layer.build((None, None, self.config.hidden_size))

    def call(
        self, hidden_states: tf.Tensor, output_attentions: bool = False, bias: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, ...]:
        context, *attentions = self.attention(self.norm1(hidden_states), output_attentions=output_attentions, bias=bias)
        hidden_states = residual(hidden_states, context, self.layer_scale1.lambda1, self.drop_path)
        mlp = self.mlp(self.norm2(hidden_states))
        return residual(hidden_states, mlp, self.layer_scale2.lambda1, self.drop_path), *attentions

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "drop_path_rate": self.drop_path_rate}


class TFDinoModel(TFBaseModel):
    """A model without a head of DINOv2, or one that follows it; pooler_output is CLS. It takes images of any size."""

    def pool(self, hidden_states: tf.Tensor) -> tf.Tensor | None:
        return hidden_states[:, 0]
