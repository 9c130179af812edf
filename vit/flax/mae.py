"""MAE, the masked autoencoder, in Flax NNX.

Side by side with vit/pt/mae.py and vit/tf/mae.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from ..errors import InputError
from ..families.mae import ViTMAEConfig
from ..inputs import check_arrays, check_patch_values, check_pixel_values
from ..outputs import ModelOutput, collect
from .eager import call
from .heads import FlaxHeadedModel, ViTMAEDecoder
from .layers import ViTEmbeddings, ViTEncoder, for_each
from .loss import masked_patch_loss, patchify, unpatchify
from .norm import layer_norm
from .pretrained import Fixed, FlaxPreTrainedModel


class FlaxViTMAEPreTrainedModel(FlaxPreTrainedModel):
    """What the classes of this family are."""

    config_class = ViTMAEConfig
    config: ViTMAEConfig


class ViTMAEEmbeddings(ViTEmbeddings):
    """Patch tokens with their positions, a random part of them taken away, behind a CLS token."""

    config: ViTMAEConfig

    def __init__(self, config: ViTMAEConfig, **options: Any) -> None:
        super().__init__(config, **options)
        rngs, dtype = options["rngs"], options["param_dtype"]
        self.position_embeddings = Fixed(jnp.asarray(config.positions(config.hidden_size), dtype))
        kernel = self.patch_embeddings.projection.kernel
        if (key := rngs.params()) is not None:
            kernel.set_value(jax.nn.initializers.glorot_uniform()(key, kernel[...].shape, dtype))

    def __call__(  # type: ignore[override]
        self, pixel_values: Array, grid: tuple[int, int], ids_shuffle: Array, rngs: nnx.Rngs | None = None
    ) -> tuple[Array, Array, Array]:
        hidden_states = self.patch_embeddings(pixel_values, grid)
        positions = jax.lax.stop_gradient(self.interpolated_position_embeddings(grid)).astype(hidden_states.dtype)
        hidden_states = hidden_states + positions[:, 1:]  # (B, N, D)
        kept = self.config.kept(grid[0] * grid[1])
        ids_restore = jnp.argsort(ids_shuffle, axis=1)
        cls_token = self.cls_token[...].astype(hidden_states.dtype) + positions[:, :1]
        cls_token = for_each(cls_token, hidden_states)
        hidden_states = jnp.take_along_axis(hidden_states, ids_shuffle[:, :kept, None], axis=1)
        mask = (ids_restore >= kept).astype(jnp.float32)
        return self.dropout(jnp.concatenate([cls_token, hidden_states], axis=1), rngs=rngs), mask, ids_restore


class FlaxViTMAEModel(FlaxViTMAEPreTrainedModel):
    """The encoder of a masked autoencoder (He et al. 2022; transformers' ViTMAEModel).

    Args:
        config: its shape.
        dtype: of the computation; None for that of the parameters.
        param_dtype: of the parameters.
        rngs: of the initial values.
    """

    def __init__(
        self,
        config: ViTMAEConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(config, param_dtype if dtype is None else dtype)
        self.embeddings = ViTMAEEmbeddings(config, **options)
        self.encoder = ViTEncoder(config, **options)
        self.layernorm = layer_norm(config, **options)

    def __call__(
        self,
        pixel_values: Array,
        noise: Array | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> ModelOutput | tuple[Array, ...]:
        """Encode the patches of images that are not masked.

        Args:
            pixel_values: (batch, channels, height, width), float, as the image processor gives them.
            noise: (batch, patches): those with the smallest numbers are kept, in their order. None draws them
                from `rngs.noise()`.
            interpolate_pos_encoding: take images of another size than `config.image_size`.
            output_hidden_states: also return the embeddings and every layer's output.
            output_attentions: also return every layer's attention probabilities.
            return_dict: False for a tuple. None takes this and the two above from the configuration.
            rngs: of the noise that is not given, and of the dropout.

        Returns:
            last_hidden_state (batch, 1 + kept patches, hidden_size); mask (batch, patches), float32, 1 where a patch is
            taken away; ids_restore (batch, patches), the place of each patch in the order of the noise; hidden_states
            and attentions as `FlaxViTModel`, of the tokens that are left.

        Raises:
            InputError: inputs of another shape, or neither noise nor rngs.
        """
        config = self.config
        check_arrays(pixel_values=pixel_values, noise=noise)
        grid = check_pixel_values(config, np.shape(pixel_values), interpolate_pos_encoding)
        shape = np.shape(pixel_values)[0], grid[0] * grid[1]
        if noise is None:
            if rngs is None:
                raise InputError("The masked patches are drawn at random: pass rngs=nnx.Rngs(0), or noise.")
            noise = jax.random.uniform(rngs.noise(), shape)
            rngs = None if self.embeddings.dropout.deterministic else rngs  # nothing more to draw
        noise = jnp.asarray(noise)
        check_patch_values("noise", noise.shape, *shape)
        ids_shuffle = jnp.argsort(noise, axis=1, stable=True)
        pixel_values = jnp.asarray(pixel_values, self.dtype)
        hidden_states, mask, ids_restore = call(self.embeddings, pixel_values, grid, ids_shuffle, rngs)
        wanted = config.wanted(output_hidden_states, output_attentions)
        hidden_states, all_hidden_states, all_attentions = self.encoder(hidden_states, *wanted, rngs)
        return collect(
            config.return_dict if return_dict is None else return_dict,
            last_hidden_state=call(self.layernorm, hidden_states),
            mask=mask,
            ids_restore=ids_restore,
            hidden_states=all_hidden_states,
            attentions=all_attentions,
        )


class FlaxViTMAEForPreTraining(FlaxViTMAEPreTrainedModel, FlaxHeadedModel):
    """A masked autoencoder with its decoder (He et al. 2022; transformers' ViTMAEForPreTraining)."""

    head = "decoder"
    base_class = FlaxViTMAEModel

    def add_head(self, config: ViTMAEConfig, **options: Any) -> None:
        self.decoder = ViTMAEDecoder(config, **options)

    def __call__(
        self,
        pixel_values: Array,
        noise: Array | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> ModelOutput | tuple[Array, ...]:
        """Reconstruct the patches that are masked; the arguments are those of `FlaxViTMAEModel`.

        Returns:
            loss, a scalar; logits (batch, patches, patch height * patch width * channels); mask, ids_restore,
            hidden_states and attentions as `FlaxViTMAEModel`.

        Raises:
            InputError: inputs of another shape, or neither noise nor rngs.
        """
        outputs: Any = self._base()(
            pixel_values,
            noise=noise,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            rngs=rngs,
        )
        grid = check_pixel_values(self.config, np.shape(pixel_values), interpolate_pos_encoding)
        rngs = None if self._base().embeddings.dropout.deterministic else rngs
        checkpointing = self._base().encoder.gradient_checkpointing
        logits = call(self.decoder, outputs["last_hidden_state"], outputs["ids_restore"], grid, checkpointing, rngs)
        return collect(
            self.config.return_dict if return_dict is None else return_dict,
            loss=masked_patch_loss(self.config, pixel_values, logits, outputs["mask"]),
            logits=logits,
            **{name: outputs.get(name) for name in ("mask", "ids_restore", "hidden_states", "attentions")},
        )

    def patchify(self, pixel_values: Array) -> Array:
        """(B, C, height, width) -> (B, N, height * width of a patch * C)."""
        return patchify(self.config, jnp.asarray(pixel_values))

    def unpatchify(self, patches: Array, original_image_size: tuple[int, int] | None = None) -> Array:
        """The inverse of `patchify`, for images of `config.image_size` or the (height, width) that is given."""
        return unpatchify(self.config, jnp.asarray(patches), original_image_size)
