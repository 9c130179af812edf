"""The heads on a model in Keras 3: what those of several families share, and the decoders to pixels.

Side by side with vit/pt/heads.py and vit/flax/heads.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import keras
import tensorflow as tf
from keras import ops

from ..config import PreTrainedConfig, to_pair
from ..families.mae import ViTMAEConfig
from ..inputs import check_pixel_values
from ..outputs import ModelOutput, collect
from .dropout import recomputed
from .layers import ViTKerasLayer, ViTLayer
from .linear import dense, initializer, linear
from .loss import classification_loss, reconstruction_loss
from .norm import layer_norm
from .posemb import interpolate
from .pretrained import TFPreTrainedModel


class TFHeadedModel(TFPreTrainedModel):
    """A base model, at the attribute that its configuration names, and the head that `add_head` puts on it."""

    base_class: ClassVar[type[TFPreTrainedModel]]
    config: Any

    def __init__(self, config: PreTrainedConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        config.check_head(self.head)
        setattr(self, config.base_model_prefix, self.base_class(config, **self.base_options))
        self.add_head(config)
        self.maybe_build()

    def add_head(self, config: Any) -> None:
        """Make the head's layers."""
        raise NotImplementedError

    def build(self, input_shape: Any) -> None:
        self._base().build(input_shape)


class TFImageClassifier(TFHeadedModel):
    """A base model with a linear head on what `pooled` gives, the CLS token.

    `compile` without a loss trains with the one that the configuration's problem_type selects; labels are y of `fit`
    and `evaluate`, or the key "labels" of a dict of inputs. A loss or metric given to `compile` sees the logits.
    """

    head = "classifier"
    loss_function: Callable[..., tf.Tensor] = staticmethod(classification_loss)

    def add_head(self, config: Any) -> None:
        self.classifier = dense(config, config.num_labels, "classifier", **self.options) if config.num_labels else None

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
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


class TFPatchReconstructor(TFHeadedModel):
    """A base model with a linear decoder of its patches to pixels (Xie et al. 2022, SimMIM).

    `compile` without a loss trains with the reconstruction loss; `fit` takes a dict of pixel_values and
    bool_masked_pos.
    """

    head = "decoder"

    def add_head(self, config: Any) -> None:
        height, width = to_pair(config.encoder_stride)
        # A list of one, because the published name of the layer is "decoder.0".
        self.decoder = [dense(config, height * width * config.num_channels, "decoder_0", **self.options)]

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
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


class ViTMAEDecoder(ViTKerasLayer):
    """From the tokens of the encoder to the pixels of every patch (He et al. 2022, Section 3)."""

    config: ViTMAEConfig

    def __init__(self, config: ViTMAEConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.decoder_config = decoder = config.decoder_config()
        self.decoder_embed = dense(config, decoder.hidden_size, "decoder_embed", **self.options)
        self.mask_token_initializer = initializer(config)
        self.decoder_pos_embed_initializer = keras.initializers.Constant(config.positions(decoder.hidden_size))
        self.decoder_layers = [
            ViTLayer(decoder, name=f"layer_{i}", **self.options) for i in range(decoder.num_hidden_layers)
        ]
        self.decoder_norm = layer_norm(config, "decoder_norm", **self.options)
        self.decoder_pred = dense(config, config.patch_values, "decoder_pred", **self.options)

    def build(self, input_shape: Any) -> None:
        width = self.decoder_config.hidden_size
        self._add("mask_token", (1, 1, width))
        self._add("decoder_pos_embed", (1, self.config.num_patches + 1, width), trainable=False)
        self.decoder_embed.build((None, None, self.config.hidden_size))
        for layer in (*self.decoder_layers, self.decoder_norm, self.decoder_pred):
            layer.build((None, None, width))

    def call(
        self,
        hidden_states: tf.Tensor,
        ids_restore: tf.Tensor,
        grid: tuple[int, int],
        checkpointing: bool = False,
        training: bool | None = None,
    ) -> tf.Tensor:
        hidden_states = linear(self.decoder_embed, hidden_states)
        (patches, tokens), width = (ids_restore.shape[1], hidden_states.shape[1]), hidden_states.shape[2]
        mask_tokens = ops.broadcast_to(self.mask_token, (ops.shape(hidden_states)[0], patches + 1 - tokens, width))
        shuffled = ops.concatenate([hidden_states[:, 1:], mask_tokens], axis=1)  # (B, N, E)
        restored = tf.gather(shuffled, ids_restore, batch_dims=1)
        positions = interpolate(self.decoder_pos_embed, *self.config.decoder_grids(grid))
        hidden_states = ops.concatenate([hidden_states[:, :1], restored], axis=1) + positions
        for layer in self.decoder_layers:
            (hidden_states,) = (recomputed(layer) if checkpointing and training else layer)(hidden_states)
        return linear(self.decoder_pred, self.decoder_norm(hidden_states))[:, 1:]
