"""DINOv2, without and with registers, and its heads in Keras 3 on TensorFlow.

Side by side with vit/pt/dinov2.py and vit/flax/dinov2.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import Any, ClassVar

import keras
import tensorflow as tf
from keras import ops

from ..families.dinov2 import Dinov2Config, Dinov2WithRegistersConfig
from ..inputs import check_bool_masked_pos, check_pixel_values
from ..outputs import ModelOutput, collect
from .layers import DropPath, ViTAttention, ViTEmbeddings, ViTEncoder, ViTKerasLayer, residual
from .linear import dense, initializer, linear
from .loss import classification_loss
from .norm import layer_norm
from .pretrained import TFPreTrainedModel


class TFDinov2PreTrainedModel(TFPreTrainedModel):
    """What the classes of this family are."""

    config_class: ClassVar[type[Dinov2Config]] = Dinov2Config
    config: Dinov2Config


class Dinov2Embeddings(ViTEmbeddings):
    """As those of ViT, with registers, which have no positions, behind the CLS token (Darcet et al. 2024)."""

    config: Dinov2Config

    def __init__(self, config: Dinov2Config, **kwargs: Any) -> None:
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
        self, pixel_values: tf.Tensor, grid: tuple[int, int], bool_masked_pos: tf.Tensor | None = None
    ) -> tf.Tensor:
        hidden_states = super().call(pixel_values, grid, bool_masked_pos)
        if self.register_tokens is None:
            return hidden_states
        shape = (ops.shape(hidden_states)[0], *self.register_tokens.shape[1:])
        registers = self.dropout(ops.broadcast_to(self.register_tokens, shape))
        return ops.concatenate([hidden_states[:, :1], registers, hidden_states[:, 1:]], axis=1)


class Dinov2LayerScale(ViTKerasLayer):
    """A factor for each channel of a branch (Touvron et al. 2021, Section 2.1)."""

    def __init__(self, config: Dinov2Config, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.lambda1_initializer = keras.initializers.Constant(config.layerscale_value)

    def build(self, input_shape: Any) -> None:
        self._add("lambda1", (self.config.hidden_size,))


class Dinov2MLP(ViTKerasLayer):
    """The MLP of a layer."""

    def __init__(self, config: Dinov2Config, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.fc1 = dense(config, config.intermediate_size, "fc1", **self.options)
        self.fc2 = dense(config, config.hidden_size, "fc2", **self.options)
        self.activation = config.hidden_act

    def build(self, input_shape: Any) -> None:
        self.fc1.build((None, None, self.config.hidden_size))
        self.fc2.build((None, None, self.config.intermediate_size))

    def call(self, hidden_states: tf.Tensor) -> tf.Tensor:
        return linear(self.fc2, linear(self.fc1, hidden_states, self.activation))


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


class Dinov2Layer(ViTKerasLayer):
    """One pre-norm encoder layer: attention and MLP, each scaled, with a residual."""

    def __init__(self, config: Dinov2Config, drop_path_rate: float = 0.0, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.drop_path_rate = drop_path_rate
        self.norm1 = layer_norm(config, "norm1", **self.options)
        self.attention = ViTAttention(config, name="attention", **self.options)
        self.layer_scale1 = Dinov2LayerScale(config, name="layer_scale1", **self.options)
        self.norm2 = layer_norm(config, "norm2", **self.options)
        mlp = Dinov2SwiGLUFFN if config.use_swiglu_ffn else Dinov2MLP
        self.mlp = mlp(config, name="mlp", **self.options)
        self.layer_scale2 = Dinov2LayerScale(config, name="layer_scale2", **self.options)
        self.drop_path = DropPath(drop_path_rate, name="drop_path", **self.options) if drop_path_rate else None

    def build(self, input_shape: Any) -> None:
        for layer in (self.norm1, self.attention, self.layer_scale1, self.norm2, self.mlp, self.layer_scale2):
            layer.build((None, None, self.config.hidden_size))

    def call(
        self, hidden_states: tf.Tensor, output_attentions: bool = False, bias: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        context, attentions = self.attention(self.norm1(hidden_states), output_attentions=output_attentions, bias=bias)
        hidden_states = residual(hidden_states, context, self.layer_scale1.lambda1, self.drop_path)
        mlp = self.mlp(self.norm2(hidden_states))
        return residual(hidden_states, mlp, self.layer_scale2.lambda1, self.drop_path), attentions

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "drop_path_rate": self.drop_path_rate}


class Dinov2Encoder(ViTEncoder):
    """The stack of encoder layers."""

    layer_class = Dinov2Layer


@keras.saving.register_keras_serializable("trivit")
class TFDinov2Model(TFDinov2PreTrainedModel):
    """DINOv2 without a head (Oquab et al. 2024; transformers' Dinov2Model)."""

    def __init__(self, config: Dinov2Config, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.embeddings = Dinov2Embeddings(config, name="embeddings", **self.options)
        self.encoder = Dinov2Encoder(config, name="encoder", **self.options)
        self.layernorm = layer_norm(config, "layernorm", **self.options)
        self.maybe_build()

    def build(self, input_shape: Any) -> None:
        self.embeddings.build(input_shape)
        self.encoder.build((None, None, self.config.hidden_size))
        self.layernorm.build((None, None, self.config.hidden_size))

    def call(
        self,
        pixel_values: tf.Tensor,
        bool_masked_pos: tf.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
    ) -> ModelOutput | tuple[tf.Tensor, ...]:
        """Encode images of any size.

        Args:
            pixel_values: (batch, channels, height, width), float, as the image processor gives them; or a dict of
                the tensors of this call.
            bool_masked_pos: (batch, patches), true where a patch is replaced by the mask token.
            output_hidden_states: also return the embeddings and every layer's output.
            output_attentions: also return every layer's attention probabilities.
            return_dict: False for a tuple. None takes this and the two above from the configuration.
            training: whether dropout and stochastic depth are on.

        Returns:
            last_hidden_state (batch, tokens, hidden_size), of CLS, the registers if there are any, and the patches;
            pooler_output (batch, hidden_size), that of CLS; hidden_states, num_hidden_layers + 1 of (batch, tokens,
            hidden_size); attentions, num_hidden_layers of (batch, heads, tokens, tokens).

        Raises:
            InputError: inputs of another shape.
        """
        if isinstance(pixel_values, dict):
            pixel_values, bool_masked_pos = self.unpack(pixel_values, bool_masked_pos=bool_masked_pos)
        config = self.config
        grid = check_pixel_values(config, pixel_values.shape, interpolate_pos_encoding=True)
        if bool_masked_pos is not None:
            patches = grid[0] * grid[1]
            check_bool_masked_pos(bool_masked_pos.shape, pixel_values.shape[0], patches, config.use_mask_token)
        pixel_values = ops.cast(pixel_values, self.compute_dtype)
        hidden_states, all_hidden_states, all_attentions = self.encoder(
            self.embeddings(pixel_values, grid=grid, bool_masked_pos=bool_masked_pos),
            output_hidden_states=config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            output_attentions=config.output_attentions if output_attentions is None else output_attentions,
        )
        hidden_states = self.layernorm(hidden_states)
        return collect(
            config.return_dict if return_dict is None else return_dict,
            last_hidden_state=hidden_states,
            pooler_output=hidden_states[:, 0],
            hidden_states=all_hidden_states,
            attentions=all_attentions,
        )


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
