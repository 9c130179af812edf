"""ViTModel and its heads in Keras 3 on TensorFlow.

Side by side with vit/pt/vit.py and vit/flax/vit.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import keras
import tensorflow as tf
from keras import ops

from ..config import PreTrainedConfig, to_pair
from ..errors import ConfigError
from ..families.vit import ViTConfig
from ..inputs import check_bool_masked_pos, check_pixel_values
from ..outputs import ModelOutput, collect
from .layers import ViTEmbeddings, ViTEncoder, ViTPooler
from .linear import dense
from .loss import classification_loss, reconstruction_loss
from .norm import layer_norm
from .pretrained import TFPreTrainedModel


class TFViTPreTrainedModel(TFPreTrainedModel):
    """What the classes of this family are."""

    config_class: ClassVar[type[PreTrainedConfig]] = ViTConfig
    config: ViTConfig


@keras.saving.register_keras_serializable("trivit")
class TFViTModel(TFViTPreTrainedModel):
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

    def build(self, input_shape: Any) -> None:
        self.embeddings.build(input_shape)
        for layer in (self.encoder, self.layernorm, self.pooler):
            if layer is not None:
                layer.build((None, None, self.config.hidden_size))

    def call(
        self,
        pixel_values: tf.Tensor,
        bool_masked_pos: tf.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
    ) -> ModelOutput | tuple[tf.Tensor, ...]:
        """Encode images.

        Args:
            pixel_values: (batch, channels, height, width), float, as the image processor gives them; or a dict of
                the tensors of this call.
            bool_masked_pos: (batch, patches), true where a patch is replaced by the mask token.
            interpolate_pos_encoding: take images of another size than `config.image_size`.
            output_hidden_states: also return the embeddings and every layer's output.
            output_attentions: also return every layer's attention probabilities.
            return_dict: False for a tuple. None takes this and the two above from the configuration.
            training: whether dropout is on.

        Returns:
            last_hidden_state (batch, tokens, hidden_size); pooler_output (batch, pooler_output_size); hidden_states,
            num_hidden_layers + 1 of (batch, tokens, hidden_size); attentions, num_hidden_layers of (batch, heads,
            tokens, tokens).

        Raises:
            InputError: inputs of another shape.
        """
        if isinstance(pixel_values, dict):
            pixel_values, bool_masked_pos = self.unpack(pixel_values, bool_masked_pos=bool_masked_pos)
        config = self.config
        grid = check_pixel_values(config, pixel_values.shape, interpolate_pos_encoding)
        if bool_masked_pos is not None:
            has_mask_token = self.embeddings.mask_token is not None
            check_bool_masked_pos(bool_masked_pos.shape, pixel_values.shape[0], grid[0] * grid[1], has_mask_token)
        pixel_values = ops.cast(pixel_values, self.compute_dtype)
        hidden_states = self.embeddings(pixel_values, grid=grid, bool_masked_pos=bool_masked_pos)
        encoded = self.encoder(
            hidden_states,
            output_hidden_states=config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            output_attentions=config.output_attentions if output_attentions is None else output_attentions,
        )
        hidden_states = self.layernorm(encoded["last_hidden_state"])
        return collect(
            config.return_dict if return_dict is None else return_dict,
            last_hidden_state=hidden_states,
            pooler_output=None if self.pooler is None else self.pooler(hidden_states),
            hidden_states=encoded.get("hidden_states"),
            attentions=encoded.get("attentions"),
        )

    def parts(self) -> dict[str, bool]:
        return {"add_pooling_layer": self.pooler is not None, "use_mask_token": self.embeddings.use_mask_token}


@keras.saving.register_keras_serializable("trivit")
class TFViTForImageClassification(TFViTPreTrainedModel):
    """The Vision Transformer with a linear head on the CLS token (transformers' TFViTForImageClassification).

    `compile` without a loss trains with the one that the configuration's problem_type selects; labels are y of `fit`
    and `evaluate`, or the key "labels" of a dict of inputs. A loss or metric given to `compile` sees the logits.
    """

    head = "classifier"
    base_class: ClassVar[type[TFPreTrainedModel]] = TFViTModel
    loss_function: Callable[..., tf.Tensor] = staticmethod(classification_loss)

    def __init__(self, config: ViTConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        setattr(self, config.base_model_prefix, self.base_class(config, **self.base_options))
        self.classifier = dense(config, config.num_labels, "classifier", **self.options) if config.num_labels else None
        self.maybe_build()

    def build(self, input_shape: Any) -> None:
        self._base().build(input_shape)
        if self.classifier is not None:
            self.classifier.build((None, self.config.classifier_size))

    def call(
        self,
        pixel_values: tf.Tensor,
        labels: tf.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
    ) -> ModelOutput | tuple[tf.Tensor, ...]:
        """Classify images.

        Args:
            labels: (batch,) integers for one label an image, (batch, num_labels) floats for several, or the targets
                of a regression; see `classification_loss`, which is `loss_function` until another is assigned. The
                other arguments are those of the base model.

        Returns:
            loss, a scalar, if labels are given; logits (batch, num_labels); hidden_states and attentions as the base
            model.

        Raises:
            InputError: inputs of another shape, or labels out of range.
        """
        if isinstance(pixel_values, dict):
            pixel_values, labels = self.unpack(pixel_values, labels=labels)
        outputs: Any = self._base()(
            pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        logits = self.pooled(outputs)
        logits = logits if self.classifier is None else self.classifier(logits)
        return collect(
            self.config.return_dict if return_dict is None else return_dict,
            loss=None if labels is None else self.loss_function(labels, logits, self.config),
            logits=logits,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )

    def pooled(self, outputs: ModelOutput) -> tf.Tensor:
        """What is classified: (batch, classifier_size), of the outputs of the base model."""
        return outputs["last_hidden_state"][:, 0]

    def own_loss(self, y: Any, y_pred: Any, **options: Any) -> tf.Tensor:
        return self.loss_function(y, y_pred["logits"], self.config, **options)


@keras.saving.register_keras_serializable("trivit")
class TFViTForMaskedImageModeling(TFViTPreTrainedModel):
    """The Vision Transformer with a linear decoder to pixels (Xie et al. 2022, SimMIM).

    `compile` without a loss trains with the reconstruction loss; `fit` takes a dict of pixel_values and
    bool_masked_pos.
    """

    head = "decoder"
    base_class: ClassVar[type[TFPreTrainedModel]] = TFViTModel

    def __init__(self, config: ViTConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        if to_pair(config.encoder_stride) != to_pair(config.patch_size):
            raise ConfigError(
                f"encoder_stride is {config.encoder_stride} and patch_size {config.patch_size}; masked image modelling "
                "needs them to be equal, so that the reconstruction has the size of the image."
            )
        setattr(self, config.base_model_prefix, self.base_class(config, **self.base_options))
        height, width = to_pair(config.encoder_stride)
        # A list of one, because the published name of the layer is "decoder.0".
        self.decoder = [dense(config, height * width * config.num_channels, "decoder_0", **self.options)]
        self.maybe_build()

    def build(self, input_shape: Any) -> None:
        self._base().build(input_shape)
        self.decoder[0].build((None, None, self.config.hidden_size))

    def call(
        self,
        pixel_values: tf.Tensor,
        bool_masked_pos: tf.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
    ) -> ModelOutput | tuple[tf.Tensor, ...]:
        """Reconstruct masked images; the arguments are those of `TFViTModel`.

        Returns:
            loss, a scalar, if `bool_masked_pos` is given; reconstruction (batch, channels, height, width);
            hidden_states and attentions as `TFViTModel`.

        Raises:
            InputError: inputs of another shape.
        """
        if isinstance(pixel_values, dict):
            pixel_values, bool_masked_pos = self.unpack(pixel_values, bool_masked_pos=bool_masked_pos)
        outputs: Any = self._base()(
            pixel_values,
            bool_masked_pos=bool_masked_pos,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        grid = check_pixel_values(self.config, pixel_values.shape, interpolate_pos_encoding)
        patches = outputs["last_hidden_state"][:, self.config.prefix_tokens :]  # (B, N, D)
        reconstruction = self.unpatchify(self.decoder[0](patches), grid)
        return collect(
            self.config.return_dict if return_dict is None else return_dict,
            loss=None if bool_masked_pos is None else reconstruction_loss(
                self.config, pixel_values, reconstruction, bool_masked_pos, grid),
            reconstruction=reconstruction,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )  # fmt: skip

    def unpatchify(self, patches: tf.Tensor, grid: tuple[int, int]) -> tf.Tensor:
        """(B, N, C * height * width of a patch) -> (B, C, height, width)."""
        (rows, columns), (height, width) = grid, to_pair(self.config.encoder_stride)
        channels = self.config.num_channels
        patches = ops.reshape(patches, (-1, rows, columns, channels, height, width))
        patches = ops.transpose(patches, (0, 3, 1, 4, 2, 5))
        return ops.reshape(patches, (-1, channels, rows * height, columns * width))
