"""MAE, the masked autoencoder, in Keras 3 on TensorFlow.

Side by side with vit/pt/mae.py and vit/flax/mae.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from ..families.mae import ViTMAEConfig
from ..inputs import check_patch_values, check_pixel_values
from ..outputs import ModelOutput, collect
from .heads import TFHeadedModel, ViTMAEDecoder
from .layers import ViTEmbeddings, ViTEncoder
from .loss import masked_patch_loss, patchify, unpatchify
from .norm import layer_norm
from .pretrained import TFPreTrainedModel


class TFViTMAEPreTrainedModel(TFPreTrainedModel):
    """What the classes of this family are."""

    config_class = ViTMAEConfig
    config: ViTMAEConfig


class ViTMAEEmbeddings(ViTEmbeddings):
    """Patch tokens with their positions, a random part of them taken away, behind a CLS token."""

    config: ViTMAEConfig

    def __init__(self, config: ViTMAEConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.position_embeddings_initializer = keras.initializers.Constant(config.positions(config.hidden_size))
        self.patch_embeddings.projection.kernel_initializer = keras.initializers.GlorotUniform()

    def build(self, input_shape: Any) -> None:
        self._add("cls_token", (1, 1, self.config.hidden_size))
        self._add("position_embeddings", (1, self.config.num_patches + 1, self.config.hidden_size), trainable=False)
        self.patch_embeddings.build(input_shape)

    def call(  # type: ignore[override]
        self, pixel_values: tf.Tensor, grid: tuple[int, int], ids_shuffle: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        positions = self.interpolated_position_embeddings(grid)
        hidden_states = self.patch_embeddings(pixel_values, grid=grid) + positions[:, 1:]  # (B, N, D)
        kept = self.config.kept(grid[0] * grid[1])
        ids_restore = tf.argsort(ids_shuffle, axis=1)
        hidden_states = tf.gather(hidden_states, ids_shuffle[:, :kept], batch_dims=1)
        shape = (ops.shape(hidden_states)[0], 1, self.config.hidden_size)
        cls_token = ops.broadcast_to(self.cls_token + positions[:, :1], shape)
        mask = ops.cast(ids_restore >= kept, "float32")
        return self.dropout(ops.concatenate([cls_token, hidden_states], axis=1)), mask, ids_restore


@keras.saving.register_keras_serializable("trivit")
class TFViTMAEModel(TFViTMAEPreTrainedModel):
    """The encoder of a masked autoencoder (He et al. 2022; transformers' TFViTMAEModel)."""

    def __init__(self, config: ViTMAEConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.embeddings = ViTMAEEmbeddings(config, name="embeddings", **self.options)
        self.encoder = ViTEncoder(config, name="encoder", **self.options)
        self.layernorm = layer_norm(config, "layernorm", **self.options)
        self.seed_generator = keras.random.SeedGenerator()
        self.maybe_build()

    def build(self, input_shape: Any) -> None:
        self.embeddings.build(input_shape)
        self.encoder.build((None, None, self.config.hidden_size))
        self.layernorm.build((None, None, self.config.hidden_size))

    def call(
        self,
        pixel_values: tf.Tensor,
        noise: tf.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
    ) -> ModelOutput | tuple[tf.Tensor, ...]:
        """Encode the patches of images that are not masked.

        Args:
            pixel_values: (batch, channels, height, width), float, as the image processor gives them; or a dict of
                the tensors of this call.
            noise: (batch, patches): those with the smallest numbers are kept, in their order. None draws them.
            interpolate_pos_encoding: take images of another size than `config.image_size`.
            output_hidden_states: also return the embeddings and every layer's output.
            output_attentions: also return every layer's attention probabilities.
            return_dict: False for a tuple. None takes this and the two above from the configuration.
            training: whether dropout is on.

        Returns:
            last_hidden_state (batch, 1 + kept patches, hidden_size); mask (batch, patches), float32, 1 where a patch is
            taken away; ids_restore (batch, patches), the place of each patch in the order of the noise; hidden_states
            and attentions as `TFViTModel`, of the tokens that are left.

        Raises:
            InputError: inputs of another shape.
        """
        if isinstance(pixel_values, dict):
            pixel_values, noise = self.unpack(pixel_values, noise=noise)
        config = self.config
        grid = check_pixel_values(config, pixel_values.shape, interpolate_pos_encoding)
        if noise is None:
            shape = (ops.shape(pixel_values)[0], grid[0] * grid[1])
            noise = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator)
        check_patch_values("noise", noise.shape, pixel_values.shape[0], grid[0] * grid[1])
        ids_shuffle = tf.argsort(noise, axis=1, stable=True)  # here, as Keras casts what goes into a layer
        pixel_values = ops.cast(pixel_values, self.compute_dtype)
        hidden_states, mask, ids_restore = self.embeddings(pixel_values, grid=grid, ids_shuffle=ids_shuffle)
        wanted = config.wanted(output_hidden_states, output_attentions)
        encoded = self.encoder(hidden_states, output_hidden_states=wanted[0], output_attentions=wanted[1])
        return collect(
            config.return_dict if return_dict is None else return_dict,
            last_hidden_state=self.layernorm(encoded["last_hidden_state"]),
            mask=mask,
            ids_restore=ids_restore,
            hidden_states=encoded.get("hidden_states"),
            attentions=encoded.get("attentions"),
        )


@keras.saving.register_keras_serializable("trivit")
class TFViTMAEForPreTraining(TFViTMAEPreTrainedModel, TFHeadedModel):
    """A masked autoencoder with its decoder (He et al. 2022; transformers' TFViTMAEForPreTraining).

    `compile` without a loss trains with the reconstruction loss; `fit` takes pixel_values alone.
    """

    head = "decoder"
    base_class = TFViTMAEModel

    def add_head(self, config: ViTMAEConfig) -> None:
        self.decoder = ViTMAEDecoder(config, name="decoder", **self.options)

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self.decoder.build(None)

    def call(
        self,
        pixel_values: tf.Tensor,
        noise: tf.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
    ) -> ModelOutput | tuple[tf.Tensor, ...]:
        """Reconstruct the patches that are masked; the arguments are those of `TFViTMAEModel`.

        Returns:
            loss, a scalar; logits (batch, patches, patch height * patch width * channels); mask, ids_restore,
            hidden_states and attentions as `TFViTMAEModel`.

        Raises:
            InputError: inputs of another shape.
        """
        if isinstance(pixel_values, dict):
            pixel_values, noise = self.unpack(pixel_values, noise=noise)
        outputs: Any = self._base()(
            pixel_values,
            noise=noise,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        grid = check_pixel_values(self.config, pixel_values.shape, interpolate_pos_encoding)
        checkpointing = self._base().encoder.gradient_checkpointing
        logits = self.decoder(
            outputs["last_hidden_state"], outputs["ids_restore"], grid=grid, checkpointing=checkpointing
        )
        return collect(
            self.config.return_dict if return_dict is None else return_dict,
            loss=masked_patch_loss(self.config, pixel_values, logits, outputs["mask"]),
            logits=logits,
            **{name: outputs.get(name) for name in ("mask", "ids_restore", "hidden_states", "attentions")},
        )

    def patchify(self, pixel_values: tf.Tensor) -> tf.Tensor:
        """(B, C, height, width) -> (B, N, height * width of a patch * C)."""
        return patchify(self.config, pixel_values)

    def unpatchify(self, patches: tf.Tensor, original_image_size: tuple[int, int] | None = None) -> tf.Tensor:
        """The inverse of `patchify`, for images of `config.image_size` or the (height, width) that is given."""
        return unpatchify(self.config, patches, original_image_size)
