"""ViTModel and its heads in Flax NNX.

Side by side with vit/pt/vit.py and vit/tf/vit.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from ..config import PreTrainedConfig, to_pair
from ..errors import ConfigError
from ..families.vit import ViTConfig
from ..inputs import check_arrays, check_bool_masked_pos, check_pixel_values
from ..outputs import ModelOutput, collect
from .eager import call, first_token
from .layers import ViTEmbeddings, ViTEncoder, ViTPooler, dense
from .loss import classification_loss, reconstruction_loss
from .norm import layer_norm
from .pretrained import FlaxPreTrainedModel


class FlaxViTPreTrainedModel(FlaxPreTrainedModel):
    """What the classes of this family are."""

    config_class: ClassVar[type[PreTrainedConfig]] = ViTConfig
    config: ViTConfig


class FlaxViTModel(FlaxViTPreTrainedModel):
    """The Vision Transformer without a head (Dosovitskiy et al. 2021; transformers' FlaxViTModel).

    Args:
        config: its shape.
        add_pooling_layer: give it a pooler.
        use_mask_token: give it a mask token, for masked image modelling.
        dtype: of the computation; None for that of the parameters.
        param_dtype: of the parameters.
        rngs: of the initial values.
    """

    embeddings_class: ClassVar[type[ViTEmbeddings]] = ViTEmbeddings

    def __init__(
        self,
        config: ViTConfig,
        add_pooling_layer: bool = True,
        use_mask_token: bool = False,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(config, param_dtype if dtype is None else dtype)
        self.embeddings = self.embeddings_class(config, use_mask_token=use_mask_token, **options)
        self.encoder = ViTEncoder(config, **options)
        self.layernorm = layer_norm(config, **options)
        self.pooler = ViTPooler(config, **options) if add_pooling_layer else None

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
        """Encode images.

        Args:
            pixel_values: (batch, channels, height, width), float, as the image processor gives them.
            bool_masked_pos: (batch, patches), true where a patch is replaced by the mask token.
            interpolate_pos_encoding: take images of another size than `config.image_size`.
            output_hidden_states: also return the embeddings and every layer's output.
            output_attentions: also return every layer's attention probabilities.
            return_dict: False for a tuple. None takes this and the two above from the configuration.
            rngs: of the dropout, for a model in train mode whose configuration has some.

        Returns:
            last_hidden_state (batch, tokens, hidden_size); pooler_output (batch, pooler_output_size); hidden_states,
            num_hidden_layers + 1 of (batch, tokens, hidden_size); attentions, num_hidden_layers of (batch, heads,
            tokens, tokens).

        Raises:
            InputError: inputs of another shape.
        """
        config = self.config
        check_arrays(pixel_values=pixel_values, bool_masked_pos=bool_masked_pos)
        grid = check_pixel_values(config, np.shape(pixel_values), interpolate_pos_encoding)
        if bool_masked_pos is not None:
            bool_masked_pos = jnp.asarray(bool_masked_pos)
            has_mask_token = self.embeddings.mask_token is not None
            check_bool_masked_pos(bool_masked_pos.shape, np.shape(pixel_values)[0], grid[0] * grid[1], has_mask_token)
        pixel_values = jnp.asarray(pixel_values, self.dtype)
        hidden_states = call(self.embeddings, pixel_values, grid, bool_masked_pos, rngs)
        hidden_states, all_hidden_states, all_attentions = self.encoder(
            hidden_states,
            config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            config.output_attentions if output_attentions is None else output_attentions,
            rngs,
        )
        hidden_states = call(self.layernorm, hidden_states)
        return collect(
            config.return_dict if return_dict is None else return_dict,
            last_hidden_state=hidden_states,
            pooler_output=None if self.pooler is None else call(self.pooler, hidden_states),
            hidden_states=all_hidden_states,
            attentions=all_attentions,
        )

    def parts(self) -> dict[str, bool]:
        has_mask_token = self.embeddings.mask_token is not None
        return {"add_pooling_layer": self.pooler is not None, "use_mask_token": has_mask_token}


class FlaxViTForImageClassification(FlaxViTPreTrainedModel):
    """The Vision Transformer with a linear head on the CLS token (transformers' FlaxViTForImageClassification)."""

    head = "classifier"
    base_class: ClassVar[type[FlaxPreTrainedModel]] = FlaxViTModel
    loss_function: Callable[..., Array] = staticmethod(classification_loss)

    def __init__(
        self,
        config: ViTConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(config, param_dtype if dtype is None else dtype)
        base: Any = self.base_class
        setattr(self, config.base_model_prefix, base(config, **config.heads[self.head].parts, **options))
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


class FlaxViTForMaskedImageModeling(FlaxViTPreTrainedModel):
    """The Vision Transformer with a linear decoder to pixels (Xie et al. 2022, SimMIM)."""

    head = "decoder"
    base_class: ClassVar[type[FlaxPreTrainedModel]] = FlaxViTModel

    def __init__(
        self,
        config: ViTConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(config, param_dtype if dtype is None else dtype)
        if to_pair(config.encoder_stride) != to_pair(config.patch_size):
            raise ConfigError(
                f"encoder_stride is {config.encoder_stride} and patch_size {config.patch_size}; masked image modelling "
                "needs them to be equal, so that the reconstruction has the size of the image."
            )
        base: Any = self.base_class
        setattr(self, config.base_model_prefix, base(config, **config.heads[self.head].parts, **options))
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
