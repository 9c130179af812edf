"""DINOv2, without and with registers, and its heads in Keras 3 on TensorFlow.

Side by side with vit/pt/dinov2.py and vit/flax/dinov2.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import Any, ClassVar

import keras
import tensorflow as tf
from keras import ops

from ..families.dinov2 import Dinov2Config, Dinov2WithRegistersConfig
from ..outputs import ModelOutput
from .dino import DinoEmbeddings, DinoLayer, DinoMLP, TFDinoModel
from .heads import TFImageClassifier
from .layers import ViTEncoder, ViTKerasLayer
from .linear import dense, linear
from .norm import layer_norm
from .pretrained import TFPreTrainedModel


class TFDinov2PreTrainedModel(TFPreTrainedModel):
    """What the classes of this family are."""

    config_class: ClassVar[type[Dinov2Config]] = Dinov2Config
    config: Dinov2Config


class Dinov2SwiGLUFFN(ViTKerasLayer):
    """The gated MLP of a layer (Shazeer 2020)."""

    def __init__(self, config: Dinov2Config, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.weights_in = dense(config, 2 * config.intermediate_size, "weights_in", **self.options)
        self.weights_out = dense(config, config.hidden_size, "weights_out", **self.options)

    def build(self, input_shape: Any) -> None:
        self.weights_in.build((None, None, self.config.hidden_size))
        self.weights_out.build((None, None, self.config.intermediate_size))

    def call(self, hidden_states: tf.Tensor) -> tf.Tensor:
        gate, value = ops.split(linear(self.weights_in, hidden_states), 2, axis=-1)
        return linear(self.weights_out, ops.silu(gate) * value)


class Dinov2Layer(DinoLayer):
    """One pre-norm encoder layer: attention and MLP, each scaled, with a residual."""

    mlp_classes = (DinoMLP, Dinov2SwiGLUFFN)


class Dinov2Encoder(ViTEncoder):
    """The stack of encoder layers."""

    layer_class = Dinov2Layer


@keras.saving.register_keras_serializable("trivit")
class TFDinov2Model(TFDinoModel):
    """DINOv2 without a head (Oquab et al. 2024; transformers' Dinov2Model)."""

    config_class: ClassVar[type[Dinov2Config]] = Dinov2Config
    config: Dinov2Config

    def __init__(self, config: Dinov2Config, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.embeddings = DinoEmbeddings(config, name="embeddings", **self.options)
        self.encoder = Dinov2Encoder(config, name="encoder", **self.options)
        self.layernorm = layer_norm(config, "layernorm", **self.options)
        self.maybe_build()


@keras.saving.register_keras_serializable("trivit")
class TFDinov2ForImageClassification(TFDinov2PreTrainedModel, TFImageClassifier):
    """DINOv2 with a linear head on CLS and the mean of the patches (transformers' Dinov2ForImageClassification)."""

    base_class = TFDinov2Model

    def pooled(self, outputs: ModelOutput) -> tf.Tensor:
        patches = outputs["last_hidden_state"][:, self.config.prefix_tokens :]
        return ops.concatenate([outputs["pooler_output"], ops.mean(patches, axis=1)], axis=1)


@keras.saving.register_keras_serializable("trivit")
class TFDinov2WithRegistersModel(TFDinov2Model):
    """DINOv2 with registers (Darcet et al. 2024; transformers' Dinov2WithRegistersModel)."""

    config_class = Dinov2WithRegistersConfig


@keras.saving.register_keras_serializable("trivit")
class TFDinov2WithRegistersForImageClassification(TFDinov2ForImageClassification):
    """DINOv2 with registers and a linear head (transformers' Dinov2WithRegistersForImageClassification)."""

    config_class = Dinov2WithRegistersConfig
    base_class = TFDinov2WithRegistersModel
