"""DINOv2, without and with registers, and its heads in Keras 3 on TensorFlow.

Side by side with vit/pt/dinov2.py and vit/flax/dinov2.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import Any, ClassVar

import keras
import tensorflow as tf
from keras import ops

from ..families.dinov2 import Dinov2Config, Dinov2WithRegistersConfig
from ..outputs import ModelOutput, collect
from .dino import DinoEmbeddings, DinoLayer, DinoMLP, TFDinoModel
from .layers import ViTEncoder, ViTKerasLayer
from .linear import dense, linear
from .loss import classification_loss
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

    def build(self, input_shape: Any) -> None:
        self.embeddings.build(input_shape)
        self.encoder.build((None, None, self.config.hidden_size))
        self.layernorm.build((None, None, self.config.hidden_size))

    def encode(
        self,
        pixel_values: tf.Tensor,
        grid: tuple[int, int],
        mask: tf.Tensor | None,
        wanted: tuple[bool, bool],
        training: bool | None,
    ) -> Any:
        hidden_states = self.embeddings(pixel_values, grid=grid, bool_masked_pos=mask)
        hidden_states, *others = self.encoder(
            hidden_states, output_hidden_states=wanted[0], output_attentions=wanted[1]
        )
        return self.layernorm(hidden_states), *others


@keras.saving.register_keras_serializable("trivit")
class TFDinov2ForImageClassification(TFDinov2PreTrainedModel):
    """DINOv2 with a linear head on CLS and the mean of the patches (transformers' Dinov2ForImageClassification).

    `compile` without a loss trains with the one that the configuration's problem_type selects, as
    `TFViTForImageClassification` does.
    """

    head = "classifier"
    base_class: ClassVar[type[TFDinov2Model]] = TFDinov2Model

    def __init__(self, config: Dinov2Config, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        prefix = config.base_model_prefix
        setattr(self, prefix, self.base_class(config, build=False, name=prefix, **self.options))
        self.classifier = dense(config, config.num_labels, "classifier", **self.options) if config.num_labels else None
        self.maybe_build()

    def build(self, input_shape: Any) -> None:
        self._base().build(input_shape)
        if self.classifier is not None:
            self.classifier.build((None, 2 * self.config.hidden_size))

    def call(
        self,
        pixel_values: tf.Tensor,
        labels: tf.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
    ) -> ModelOutput | tuple[tf.Tensor, ...]:
        """Classify images of any size.

        Args:
            labels: (batch,) integers for one label an image, (batch, num_labels) floats for several, or the targets
                of a regression; see `classification_loss`. The other arguments are those of `TFDinov2Model`.

        Returns:
            loss, a scalar, if labels are given; logits (batch, num_labels); hidden_states and attentions as
            `TFDinov2Model`.

        Raises:
            InputError: inputs of another shape, or labels out of range.
        """
        if isinstance(pixel_values, dict):
            pixel_values, labels = self.unpack(pixel_values, labels=labels)
        outputs: Any = self._base()(
            pixel_values,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        patches = outputs["last_hidden_state"][:, self.config.prefix_tokens :]
        pooled = ops.concatenate([outputs["pooler_output"], ops.mean(patches, axis=1)], axis=1)
        logits = pooled if self.classifier is None else self.classifier(pooled)
        return collect(
            self.config.return_dict if return_dict is None else return_dict,
            loss=None if labels is None else classification_loss(self.config, logits, labels),
            logits=logits,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )

    def own_loss(self, y: Any, y_pred: Any) -> tf.Tensor:
        return classification_loss(self.config, y_pred["logits"], y)


@keras.saving.register_keras_serializable("trivit")
class TFDinov2WithRegistersModel(TFDinov2Model):
    """DINOv2 with registers (Darcet et al. 2024; transformers' Dinov2WithRegistersModel)."""

    config_class = Dinov2WithRegistersConfig


@keras.saving.register_keras_serializable("trivit")
class TFDinov2WithRegistersForImageClassification(TFDinov2ForImageClassification):
    """DINOv2 with registers and a linear head (transformers' Dinov2WithRegistersForImageClassification)."""

    config_class = Dinov2WithRegistersConfig
    base_class = TFDinov2WithRegistersModel
