"""What DINOv2 and DINOv3 share in Flax NNX, in the order of the computation.

Side by side with vit/pt/dino.py and vit/tf/dino.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from ..config import PreTrainedConfig
from ..inputs import check_arrays, check_bool_masked_pos, check_pixel_values
from ..outputs import ModelOutput, collect
from .dropout import DropPath
from .eager import first_token
from .layers import ACTIVATIONS, ViTAttention, ViTEmbeddings, dense, initializer, residual
from .norm import layer_norm
from .pretrained import FlaxPreTrainedModel


class DinoEmbeddings(ViTEmbeddings):
    """As those of ViT, with registers, which have no positions, behind the CLS token (Darcet et al. 2024)."""

    def __init__(self, config: Any, **options: Any) -> None:
        super().__init__(config, config.use_mask_token, **options)
        rngs, dtype, width = options["rngs"], options["param_dtype"], config.hidden_size
        if config.use_mask_token:
            self.mask_token = nnx.Param(jnp.zeros((1, width), dtype))
        registers = initializer(config)(rngs.params(), (1, config.num_register_tokens, width), dtype)
        self.register_tokens: Any = nnx.Param(registers) if config.num_register_tokens else None

    def __call__(
        self,
        pixel_values: Array,
        grid: tuple[int, int],
        bool_masked_pos: Array | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Array:
        hidden_states = super().__call__(pixel_values, grid, bool_masked_pos, rngs)
        if self.register_tokens is None:
            return hidden_states
        registers = self.register_tokens[...].astype(hidden_states.dtype)
        registers = self.dropout(jnp.zeros_like(hidden_states[:, :1]) + registers, rngs=rngs)  # sharded as the patches
        return jnp.concatenate([hidden_states[:, :1], registers, hidden_states[:, 1:]], axis=1)


class DinoLayerScale(nnx.Module):
    """A factor for each channel of a branch (Touvron et al. 2021, Section 2.1)."""

    def __init__(self, config: PreTrainedConfig, **options: Any) -> None:
        self.lambda1 = nnx.Param(jnp.full(config.hidden_size, config.layer_scale, options["param_dtype"]))


class DinoMLP(nnx.Module):
    """The MLP of a layer."""

    projections: ClassVar[tuple[str, str]] = ("fc1", "fc2")

    def __init__(self, config: PreTrainedConfig, **options: Any) -> None:
        (first, second), width, mlp_width = self.projections, config.hidden_size, config.intermediate_size
        setattr(self, first, dense(config, width, mlp_width, use_bias=config.mlp_bias, **options))
        setattr(self, second, dense(config, mlp_width, width, use_bias=config.mlp_bias, **options))
        self.activation = config.hidden_act

    def __call__(self, hidden_states: Array) -> Array:
        first, second = (getattr(self, name) for name in self.projections)
        return second(ACTIVATIONS[self.activation](first(hidden_states)))


class DinoLayer(nnx.Module):
    """One pre-norm encoder layer: attention and MLP, each scaled, with a residual."""

    attention_class: ClassVar[type[nnx.Module]] = ViTAttention
    mlp_classes: ClassVar[tuple[type[nnx.Module], ...]]  # plain and gated

    def __init__(self, config: PreTrainedConfig, drop_path_rate: float = 0.0, **options: Any) -> None:
        self.norm1 = layer_norm(config, **options)
        self.attention = self.attention_class(config, **options)
        self.layer_scale1 = DinoLayerScale(config, **options)
        self.norm2 = layer_norm(config, **options)
        self.mlp = self.mlp_classes[config.gated_mlp](config, **options)
        self.layer_scale2 = DinoLayerScale(config, **options)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else None

    def __call__(
        self,
        hidden_states: Array,
        output_attentions: bool = False,
        rngs: nnx.Rngs | None = None,
        bias: Array | None = None,
    ) -> tuple[Array, Array | None]:
        context, attentions = self.attention(self.norm1(hidden_states), output_attentions, rngs, bias)
        hidden_states = residual(hidden_states, context, self.layer_scale1.lambda1, self.drop_path, rngs)
        mlp = self.mlp(self.norm2(hidden_states))
        return residual(hidden_states, mlp, self.layer_scale2.lambda1, self.drop_path, rngs), attentions


class FlaxDinoModel(FlaxPreTrainedModel):
    """A model without a head of DINOv2, or one that follows it: its call, around what `encode` computes."""

    config: Any
    embeddings: Any

    def encode(self, *inputs: Any, **options: Any) -> Any:
        """Images, their grid, the mask, and which of the last two are wanted -> tokens, hidden states, attentions."""
        raise NotImplementedError

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
        """Encode images of any size.

        Args:
            pixel_values: (batch, channels, height, width), float, as the image processor gives them.
            bool_masked_pos: (batch, patches), true where a patch is replaced by the mask token.
            interpolate_pos_encoding: changes nothing: positions are always fitted to the image.
            output_hidden_states: also return the embeddings and every layer's output.
            output_attentions: also return every layer's attention probabilities.
            return_dict: False for a tuple. None takes this and the two above from the configuration.
            rngs: of dropout and stochastic depth, for a model in train mode whose configuration has some.

        Returns:
            last_hidden_state (batch, tokens, hidden_size), of CLS, the registers if there are any, and the patches;
            pooler_output (batch, hidden_size), that of CLS; hidden_states, num_hidden_layers + 1 of (batch, tokens,
            hidden_size); attentions, num_hidden_layers of (batch, heads, tokens, tokens).

        Raises:
            InputError: inputs of another shape.
        """
        config = self.config
        check_arrays(pixel_values=pixel_values, bool_masked_pos=bool_masked_pos)
        grid = check_pixel_values(config, np.shape(pixel_values), interpolate_pos_encoding=True)
        if bool_masked_pos is not None:
            bool_masked_pos, patches = jnp.asarray(bool_masked_pos), grid[0] * grid[1]
            check_bool_masked_pos(bool_masked_pos.shape, np.shape(pixel_values)[0], patches, config.use_mask_token)
        pixel_values = jnp.asarray(pixel_values, self.dtype)
        hidden_states, all_hidden_states, all_attentions = self.encode(
            pixel_values,
            grid,
            bool_masked_pos,
            (
                config.output_hidden_states if output_hidden_states is None else output_hidden_states,
                config.output_attentions if output_attentions is None else output_attentions,
            ),
            rngs=rngs,
        )
        return collect(
            config.return_dict if return_dict is None else return_dict,
            last_hidden_state=hidden_states,
            pooler_output=first_token(hidden_states),
            hidden_states=all_hidden_states,
            attentions=all_attentions,
        )
