"""What DINOv2 and DINOv3 share in Flax NNX, in the order of the computation.

Side by side with vit/pt/dino.py and vit/tf/dino.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jax import Array

from ..config import PreTrainedConfig
from .base import FlaxBaseModel
from .dropout import DropPath
from .eager import first_token
from .layers import ACTIVATIONS, ViTAttention, ViTEmbeddings, dense, for_each, initializer, residual
from .norm import layer_norm


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
        registers = self.dropout(for_each(self.register_tokens[...], hidden_states), rngs=rngs)
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


class FlaxDinoModel(FlaxBaseModel):
    """A model without a head of DINOv2, or one that follows it; pooler_output is CLS. It takes images of any size."""

    def pool(self, hidden_states: Array) -> Array | None:
        return first_token(hidden_states)
