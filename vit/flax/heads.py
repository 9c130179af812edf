"""The heads on a model in Flax NNX: what those of several families share, and the decoders to pixels.

Side by side with vit/pt/heads.py and vit/tf/heads.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from ..config import PreTrainedConfig, to_pair
from ..families.mae import ViTMAEConfig
from ..inputs import check_pixel_values
from ..outputs import ModelOutput, collect
from .eager import call, first_token
from .layers import ViTLayer, dense, for_each, initializer
from .loss import classification_loss, reconstruction_loss
from .norm import layer_norm
from .posemb import interpolate
from .pretrained import Fixed, FlaxPreTrainedModel


class FlaxHeadedModel(FlaxPreTrainedModel):
    """A base model, at the attribute that its configuration names, and the head that `add_head` puts on it."""

    base_class: ClassVar[type[FlaxPreTrainedModel]]
    config: Any

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(config, param_dtype if dtype is None else dtype)
        config.check_head(self.head)
        base: Any = self.base_class
        setattr(self, config.base_model_prefix, base(config, **config.heads[self.head].parts, **options))
        self.add_head(config, **options)

    def add_head(self, config: Any, **options: Any) -> None:
        """Make the head's modules."""
        raise NotImplementedError


class FlaxImageClassifier(FlaxHeadedModel):
    """A base model with a linear head on what `pooled` gives, the CLS token."""

    head = "classifier"
    loss_function: Callable[..., Array] = staticmethod(classification_loss)

    def add_head(self, config: Any, **options: Any) -> None:
        width, labels = config.classifier_size, config.num_labels
        self.classifier = dense(config, width, labels, **options) if labels else None

    def __call__(
        self,
        pixel_values: Array,
        labels: Array | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> ModelOutput | tuple[Array, ...]:
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
        outputs: Any = self._base()(
            pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            rngs=rngs,
        )
        logits = self.pooled(outputs)
        logits = logits if self.classifier is None else call(self.classifier, logits)
        return collect(
            self.config.return_dict if return_dict is None else return_dict,
            loss=None if labels is None else self.loss_function(labels, logits, self.config),
            logits=logits,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )

    def pooled(self, outputs: ModelOutput) -> Array:
        """What is classified: (batch, classifier_size), of the outputs of the base model."""
        return first_token(outputs["last_hidden_state"])


class FlaxPatchReconstructor(FlaxHeadedModel):
    """A base model with a linear decoder of its patches to pixels (Xie et al. 2022, SimMIM)."""

    head = "decoder"

    def add_head(self, config: Any, **options: Any) -> None:
        height, width = to_pair(config.encoder_stride)
        size_out = height * width * config.num_channels
        # A list of one, because the published name of the layer is "decoder.0".
        self.decoder = nnx.List([dense(config, config.hidden_size, size_out, **options)])

    def __call__(
        self,
        pixel_values: Array,
        bool_masked_pos: Array | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> ModelOutput | tuple[Array, ...]:
        """Reconstruct masked images; the arguments are those of `FlaxViTModel`.

        Returns:
            loss, a scalar, if `bool_masked_pos` is given; reconstruction (batch, channels, height, width);
            hidden_states and attentions as `FlaxViTModel`.

        Raises:
            InputError: inputs of another shape.
        """
        outputs: Any = self._base()(
            pixel_values,
            bool_masked_pos=bool_masked_pos,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            rngs=rngs,
        )
        grid = check_pixel_values(self.config, np.shape(pixel_values), interpolate_pos_encoding)
        patches = outputs["last_hidden_state"][:, self.config.prefix_tokens :]  # (B, N, D)
        reconstruction = self.unpatchify(call(self.decoder[0], patches), grid)
        return collect(
            self.config.return_dict if return_dict is None else return_dict,
            loss=None if bool_masked_pos is None else reconstruction_loss(
                self.config, pixel_values, reconstruction, bool_masked_pos, grid),
            reconstruction=reconstruction,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )  # fmt: skip

    def unpatchify(self, patches: Array, grid: tuple[int, int]) -> Array:
        """(B, N, C * height * width of a patch) -> (B, C, height, width)."""
        (rows, columns), (height, width) = grid, to_pair(self.config.encoder_stride)
        # One axis at a time, because a mesh with explicit axes knows no other reshape of a sharded array.
        patches = patches.reshape(patches.shape[0], rows, columns, patches.shape[2])
        patches = patches.reshape(*patches.shape[:3], self.config.num_channels, height, width)
        patches = patches.transpose(0, 3, 1, 4, 2, 5)  # (B, C, rows, height, columns, width)
        patches = patches.reshape(*patches.shape[:2], rows * height, columns, width)
        return patches.reshape(*patches.shape[:3], columns * width)


class ViTMAEDecoder(nnx.Module):
    """From the tokens of the encoder to the pixels of every patch (He et al. 2022, Section 3)."""

    def __init__(self, config: ViTMAEConfig, **options: Any) -> None:
        self.config, decoder = config, config.decoder_config()
        rngs, dtype, width = options["rngs"], options["param_dtype"], decoder.hidden_size
        self.decoder_embed = dense(config, config.hidden_size, width, **options)
        self.mask_token = nnx.Param(initializer(config)(rngs.params(), (1, 1, width), dtype))
        self.decoder_pos_embed = Fixed(jnp.asarray(config.positions(width), dtype))
        self.decoder_layers = nnx.List([ViTLayer(decoder, **options) for _ in range(decoder.num_hidden_layers)])
        self.decoder_norm = layer_norm(decoder, **options)
        self.decoder_pred = dense(config, width, config.patch_values, **options)

    def __call__(
        self,
        hidden_states: Array,
        ids_restore: Array,
        grid: tuple[int, int],
        checkpointing: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Array:
        hidden_states = self.decoder_embed(hidden_states)
        patches, tokens = ids_restore.shape[1], hidden_states.shape[1]
        mask_token = for_each(self.mask_token[...], hidden_states)
        mask_tokens = jnp.repeat(mask_token, patches + 1 - tokens, axis=1)
        shuffled = jnp.concatenate([hidden_states[:, 1:], mask_tokens], axis=1)  # (B, N, E)
        restored = jnp.take_along_axis(shuffled, ids_restore[:, :, None], axis=1)
        positions = interpolate(self.decoder_pos_embed[...], *self.config.decoder_grids(grid))
        positions = jax.lax.stop_gradient(positions).astype(hidden_states.dtype)
        hidden_states = jnp.concatenate([hidden_states[:, :1], restored], axis=1) + positions
        run = nnx.remat(ViTLayer.__call__, static_argnums=2) if checkpointing else call
        for layer in self.decoder_layers:
            hidden_states, _ = run(layer, hidden_states, False, rngs, None)
        return self.decoder_pred(self.decoder_norm(hidden_states))[:, 1:]
