"""DINOv3's ViT in Flax NNX.

Side by side with vit/pt/dinov3.py and vit/tf/dinov3.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from ..config import PreTrainedConfig, to_pair
from ..errors import InputError
from ..families.dinov3 import DINOv3ViTConfig
from ..posemb import frequencies
from .dino import DinoEmbeddings, DinoLayer, DinoMLP, FlaxDinoModel
from .eager import call
from .layers import ACTIVATIONS, ViTSelfAttention, cut, dense, encode, initializer
from .norm import layer_norm
from .posemb import rotate, rotation


class DINOv3ViTPatchEmbeddings(nnx.Linear):
    """As those of ViT, with the projection itself in the place of what holds it."""

    def __init__(self, config: PreTrainedConfig, **options: Any) -> None:
        self.patch_size = to_pair(config.patch_size)
        size_in = config.num_channels * self.patch_size[0] * self.patch_size[1]
        super().__init__(size_in, config.hidden_size, kernel_init=initializer(config), **options)

    def __call__(self, pixel_values: Array, grid: tuple[int, int]) -> Array:
        patches = super().__call__(cut(pixel_values, grid, self.patch_size))
        return patches.reshape(patches.shape[0], grid[0] * grid[1], patches.shape[-1])  # (B, N, D)


class DINOv3ViTEmbeddings(DinoEmbeddings):
    """As those of DINOv2 with registers, without positions."""

    patch_embeddings_class = DINOv3ViTPatchEmbeddings

    def __init__(self, config: DINOv3ViTConfig, **options: Any) -> None:
        super().__init__(config, **options)
        rngs, dtype, width = options["rngs"], options["param_dtype"], config.hidden_size
        self.mask_token = nnx.Param(jnp.zeros((1, 1, width), dtype))
        registers = initializer(config)(rngs.params(), (1, config.num_register_tokens, width), dtype)
        self.register_tokens = nnx.data(nnx.Param(registers))  # where DINOv2 has None, if there are none


class DINOv3ViTRopePositionEmbedding(nnx.Module):
    """The angles by which queries and keys are rotated; in training, the positions are moved at random."""

    def __init__(self, config: DINOv3ViTConfig) -> None:
        self.config = config
        self.frequencies = frequencies(config.head_dim, config.rope_theta)
        self.deterministic = False

    def __call__(self, pixel_values: Array, grid: tuple[int, int], rngs: nnx.Rngs | None = None) -> Array:
        """(2, T, D / H), as `rotate` takes them."""

        def draw(shape: tuple[int, ...], bound: float) -> Array:
            if rngs is None:
                raise InputError(
                    "In train mode the positions are moved at random: pass rngs=nnx.Rngs(0), call model.eval(), or set "
                    "pos_embed_shift, pos_embed_jitter and pos_embed_rescale of the configuration to None."
                )
            return jax.random.uniform(rngs.dropout(), shape, minval=-bound, maxval=bound)

        def moved(centres: Array) -> Array:
            return centres if self.deterministic else self.config.moved(centres, draw, jnp.exp)

        return rotation(grid, self.config.prefix_tokens, self.frequencies, pixel_values.dtype, moved)


class DINOv3ViTAttention(ViTSelfAttention):
    """Multi-head self-attention whose queries and keys are rotated (Su et al. 2021)."""

    projections = ("q_proj", "k_proj", "v_proj")
    dropout_key = "attention_dropout"

    def __init__(self, config: DINOv3ViTConfig, **options: Any) -> None:
        super().__init__(config, **options)
        self.o_proj = dense(config, config.hidden_size, config.hidden_size, use_bias=config.proj_bias, **options)

    def __call__(
        self,
        hidden_states: Array,
        output_attentions: bool = False,
        rngs: nnx.Rngs | None = None,
        bias: Array | None = None,
    ) -> tuple[Array, Array | None]:
        context, attentions = super().__call__(hidden_states, output_attentions, rngs, bias)
        return self.o_proj(context), attentions

    def place(self, query: Array, key: Array, bias: Array | None) -> tuple[Array, Array, Array | None]:
        assert bias is not None, "The encoder gives each layer the angles."
        return rotate(query, bias), rotate(key, bias), None


class DINOv3ViTMLP(DinoMLP):
    """The MLP of a layer."""

    projections = ("up_proj", "down_proj")


class DINOv3ViTGatedMLP(nnx.Module):
    """The gated MLP of a layer (Shazeer 2020)."""

    def __init__(self, config: DINOv3ViTConfig, **options: Any) -> None:
        options = {"use_bias": config.mlp_bias, **options}
        self.gate_proj = dense(config, config.hidden_size, config.intermediate_size, **options)
        self.up_proj = dense(config, config.hidden_size, config.intermediate_size, **options)
        self.down_proj = dense(config, config.intermediate_size, config.hidden_size, **options)
        self.activation = config.hidden_act

    def __call__(self, hidden_states: Array) -> Array:
        gate, value = self.gate_proj(hidden_states), self.up_proj(hidden_states)
        return self.down_proj(ACTIVATIONS[self.activation](gate) * value)


class DINOv3ViTLayer(DinoLayer):
    """One pre-norm encoder layer: attention and MLP, each scaled, with a residual."""

    attention_class = DINOv3ViTAttention
    mlp_classes = (DINOv3ViTMLP, DINOv3ViTGatedMLP)


class FlaxDINOv3ViTModel(FlaxDinoModel):
    """DINOv3's ViT (Simeoni et al. 2025; transformers' DINOv3ViTModel).

    Args:
        config: its shape.
        dtype: of the computation; None for that of the parameters.
        param_dtype: of the parameters.
        rngs: of the initial values.
    """

    config_class: ClassVar[type[DINOv3ViTConfig]] = DINOv3ViTConfig
    config: DINOv3ViTConfig

    def __init__(
        self,
        config: DINOv3ViTConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(config, param_dtype if dtype is None else dtype)
        self.embeddings = DINOv3ViTEmbeddings(config, **options)
        self.rope_embeddings = DINOv3ViTRopePositionEmbedding(config)
        self.layer = nnx.List([DINOv3ViTLayer(config, rate, **options) for rate in config.drop_path_rates])
        self.norm = layer_norm(config, **options)
        self.gradient_checkpointing = False

    def encode(
        self,
        pixel_values: Array,
        grid: tuple[int, int],
        mask: Array | None,
        wanted: tuple[bool, bool],
        rngs: nnx.Rngs | None,
    ) -> Any:
        angles = call(self.rope_embeddings, pixel_values, grid, rngs)
        hidden_states, *others = encode(
            self.layer,
            call(self.embeddings, pixel_values, grid, mask, rngs),
            *wanted,
            rngs,
            biases=lambda layer: angles,
            recompute=self.gradient_checkpointing,
        )
        return call(self.norm, hidden_states), *others
