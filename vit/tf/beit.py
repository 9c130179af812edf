"""BeitModel and its heads in Keras 3 on TensorFlow.

Side by side with vit/pt/beit.py and vit/flax/beit.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from ..families.beit import BeitConfig
from ..outputs import ModelOutput, collect
from .attention import RelativePositionBias
from .base import TFBaseModel
from .heads import TFHeadedModel, TFImageClassifier
from .layers import ViTEmbeddings, ViTEncoder, ViTKerasLayer
from .linear import dense, linear
from .loss import visual_token_loss
from .norm import layer_norm
from .pretrained import TFPreTrainedModel


class BeitEncoder(ViTEncoder):
    """The stack of encoder layers, with the tables of their relative position biases."""

    config: BeitConfig

    def __init__(self, config: BeitConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        name, options = "relative_position_bias", self.options
        shared = config.use_shared_relative_position_bias
        self.relative_position_bias = RelativePositionBias(config, name=name, **options) if shared else None
        if config.use_relative_position_bias:
            for i, layer in enumerate(self.layer):
                own = RelativePositionBias(config, name=f"{name}_{i}", **options)  # .h5 files tell them by their names
                layer.attention.attention.relative_position_bias = own

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        if self.relative_position_bias is not None:
            self.relative_position_bias.build()
        if self.config.use_relative_position_bias:
            for layer in self.layer:
                layer.attention.attention.relative_position_bias.build()

    def call(  # type: ignore[override]  # its biases follow from the grid
        self,
        hidden_states: tf.Tensor,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        grid: tuple[int, int] | None = None,
        training: bool | None = None,
    ) -> ModelOutput:
        config = self.config
        grid = config.grid_size if grid is None else grid
        if not (config.use_relative_position_bias or config.use_shared_relative_position_bias):
            return super().call(hidden_states, output_hidden_states, output_attentions, training=training)
        shared = None if self.relative_position_bias is None else self.relative_position_bias(grid=grid)

        def bias(layer: int) -> Any:
            if not config.use_relative_position_bias:
                return shared
            own = self.layer[layer].attention.attention.relative_position_bias(grid=grid)
            return own if shared is None else own + shared

        return super().call(hidden_states, output_hidden_states, output_attentions, bias, training)


class BeitPooler(ViTKerasLayer):
    """The normalised mean of the patches, or the CLS token."""

    def __init__(self, config: BeitConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.layernorm = layer_norm(config, "layernorm", **self.options) if config.use_mean_pooling else None

    def build(self, input_shape: Any) -> None:
        if self.layernorm is not None:
            self.layernorm.build((None, self.config.hidden_size))

    def call(self, hidden_states: tf.Tensor) -> tf.Tensor:
        return hidden_states[:, 0] if self.layernorm is None else self.layernorm(ops.mean(hidden_states[:, 1:], axis=1))


class TFBeitPreTrainedModel(TFPreTrainedModel):
    """What the classes of this family are."""

    config_class = BeitConfig
    config: BeitConfig


@keras.saving.register_keras_serializable("trivit")
class TFBeitModel(TFBeitPreTrainedModel, TFBaseModel):
    """BEiT without a head (Bao et al. 2022; transformers' BeitModel). It takes images of any size.

    Its last_hidden_state is normalised unless `config.use_mean_pooling`.

    Args:
        config: its shape.
        add_pooling_layer: give it a pooler.
        **kwargs: those of keras.Model, such as `dtype`; and `build`, False to leave the weights uncreated.
    """

    assumes_size = True

    def __init__(self, config: BeitConfig, add_pooling_layer: bool = True, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.embeddings = ViTEmbeddings(config, config.use_mask_token, name="embeddings", **self.options)
        self.encoder = BeitEncoder(config, name="encoder", **self.options)
        self.layernorm = None if config.use_mean_pooling else layer_norm(config, "layernorm", **self.options)
        self.pooler = BeitPooler(config, name="pooler", **self.options) if add_pooling_layer else None
        self.maybe_build()

    def encode(
        self,
        pixel_values: tf.Tensor,
        grid: tuple[int, int],
        mask: tf.Tensor | None,
        wanted: tuple[bool, bool],
        training: bool | None,
    ) -> Any:
        hidden_states = self.embeddings(pixel_values, grid=grid, bool_masked_pos=mask)
        encoded = self.encoder(hidden_states, output_hidden_states=wanted[0], output_attentions=wanted[1], grid=grid)
        hidden_states = encoded["last_hidden_state"]
        hidden_states = hidden_states if self.layernorm is None else self.layernorm(hidden_states)
        return hidden_states, encoded.get("hidden_states"), encoded.get("attentions")


@keras.saving.register_keras_serializable("trivit")
class TFBeitForImageClassification(TFBeitPreTrainedModel, TFImageClassifier):
    """BEiT with a linear head on what its pooler gives (transformers' BeitForImageClassification)."""

    base_class = TFBeitModel

    def pooled(self, outputs: ModelOutput) -> tf.Tensor:
        return outputs["pooler_output"]


@keras.saving.register_keras_serializable("trivit")
class TFBeitForMaskedImageModeling(TFBeitPreTrainedModel, TFHeadedModel):
    """BEiT with a linear head that predicts the visual token of each patch (Bao et al. 2022, Section 2.3).

    `compile` without a loss trains with that of the labels of a dict of inputs; one given sees the logits.
    """

    head = "lm_head"
    base_class = TFBeitModel

    def add_head(self, config: BeitConfig) -> None:
        self.layernorm = layer_norm(config, "layernorm", **self.options)
        self.lm_head = dense(config, config.vocab_size, "lm_head", **self.options)

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        for layer in (self.layernorm, self.lm_head):
            layer.build((None, None, self.config.hidden_size))

    def call(
        self,
        pixel_values: tf.Tensor,
        bool_masked_pos: tf.Tensor | None = None,
        labels: tf.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
    ) -> ModelOutput | tuple[tf.Tensor, ...]:
        """Predict visual tokens; the other arguments are those of `TFBeitModel`.

        Args:
            labels: (masked patches,), the visual token of each, image after image; -100 for one that is left out.

        Returns:
            loss, a scalar, if labels are given; logits (batch, patches, vocab_size) of all patches; hidden_states and
            attentions as `TFBeitModel`.

        Raises:
            InputError: inputs of another shape, labels out of range, or another number of them than of masked patches.
        """
        if isinstance(pixel_values, dict):
            known = {"bool_masked_pos": bool_masked_pos, "labels": labels}
            pixel_values, bool_masked_pos, labels = self.unpack(pixel_values, **known)
        outputs: Any = self._base()(
            pixel_values,
            bool_masked_pos=bool_masked_pos,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        logits = linear(self.lm_head, self.layernorm(outputs["last_hidden_state"])[:, 1:])
        return collect(
            self.config.return_dict if return_dict is None else return_dict,
            loss=None if labels is None else visual_token_loss(logits, labels, bool_masked_pos),
            logits=logits,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )
