"""The layers of the Vision Transformer in Flax NNX, in the order of the computation.

Side by side with vit/pt/layers.py and vit/tf/layers.py: the same classes, the same attributes, the same order. What
only some families have (tokens, layer scale, stochastic depth, biases of the scores) their configurations ask for.
Shapes: B batch, C channels, N patches, T tokens (the patches and those before them), D hidden_size, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ..config import PreTrainedConfig, to_pair
from ..families.vit import ViTConfig
from ..posemb import bicubic_matrix
from .attention import attend
from .dropout import Dropout
from .eager import call
from .norm import layer_norm

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "selu": jax.nn.selu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


def initializer(config: PreTrainedConfig) -> nnx.Initializer:
    """The truncated normal of fresh kernels and tokens, cut at two standard deviations; zeros where there is no key."""
    draw = jax.nn.initializers.truncated_normal(config.initializer_range)
    return lambda key, shape, dtype: jnp.zeros(shape, dtype) if key is None else draw(key, shape, dtype)


def dense(config: PreTrainedConfig, size_in: int, size_out: int, **options: Any) -> nnx.Linear:
    """A dense layer with the initial values of the published ones."""
    return nnx.Linear(size_in, size_out, kernel_init=initializer(config), **options)


class ViTPatchEmbeddings(nnx.Module):
    """Cuts images into patches and projects each to a token (Dosovitskiy et al. 2021, Section 3.1)."""

    def __init__(self, config: PreTrainedConfig, **options: Any) -> None:
        self.patch_size = to_pair(config.patch_size)
        size_in = config.num_channels * self.patch_size[0] * self.patch_size[1]
        self.projection = dense(config, size_in, config.hidden_size, **options)

    def __call__(self, pixel_values: Array, grid: tuple[int, int]) -> Array:
        (rows, columns), (height, width) = grid, self.patch_size
        batch, channels = pixel_values.shape[:2]
        # Patches do not overlap, so the convolution is a reshape and one matmul.
        patches = pixel_values[:, :, : rows * height, : columns * width]
        # One axis at a time, because a mesh with explicit axes knows no other reshape of a sharded array.
        patches = patches.reshape(batch, channels, rows, height, columns * width)
        patches = patches.reshape(batch, channels, rows, height, columns, width).transpose(0, 2, 4, 1, 3, 5)
        patches = self.projection(patches.reshape(batch, rows, columns, channels * height * width))
        return patches.reshape(batch, rows * columns, patches.shape[-1])  # (B, N, D)


class ViTEmbeddings(nnx.Module):
    """Patch tokens, masked ones replaced, behind a CLS token, plus position embeddings."""

    tokens: ClassVar[tuple[str, ...]] = ("cls_token",)  # what precedes the patches and has positions, too

    def __init__(self, config: PreTrainedConfig, use_mask_token: bool = False, **options: Any) -> None:
        self.config = config
        rngs, dtype, init = options["rngs"], options["param_dtype"], initializer(config)
        width, positions = config.hidden_size, len(self.tokens) + config.num_patches
        for name in self.tokens:
            setattr(self, name, nnx.Param(init(rngs.params(), (1, 1, width), dtype)))
        self.mask_token: Any = nnx.Param(jnp.zeros((1, 1, width), dtype)) if use_mask_token else None
        self.position_embeddings: Any = (
            nnx.Param(init(rngs.params(), (1, positions, width), dtype)) if config.has_positions else None
        )
        self.patch_embeddings = ViTPatchEmbeddings(config, **options)
        self.dropout = Dropout(config, "hidden_dropout_prob")

    def __call__(
        self,
        pixel_values: Array,
        grid: tuple[int, int],
        bool_masked_pos: Array | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Array:
        hidden_states = self.patch_embeddings(pixel_values, grid)  # (B, N, D)
        dtype = hidden_states.dtype
        if bool_masked_pos is not None:
            mask = bool_masked_pos.astype(bool)[:, :, None]
            hidden_states = jnp.where(mask, self.mask_token[...].astype(dtype), hidden_states)
        zeros = jnp.zeros_like(hidden_states[:, :1])  # sharded as the patches
        tokens = [zeros + getattr(self, name)[...].astype(dtype) for name in self.tokens]
        hidden_states = jnp.concatenate([*tokens, hidden_states], axis=1)  # (B, T, D)
        if self.position_embeddings is not None:
            hidden_states = hidden_states + self.interpolated_position_embeddings(grid).astype(dtype)
        return self.dropout(hidden_states, rngs=rngs)

    def interpolated_position_embeddings(self, grid: tuple[int, int]) -> Array:
        """Position embeddings for a grid of (rows, columns) patches: (1, T, D)."""
        return interpolate(self.position_embeddings[...], self.config.grid_size, grid, **self.config.interpolation)


def interpolate(positions: Array, old_grid: tuple[int, int], new_grid: tuple[int, int], **kernel: Any) -> Array:
    """`posemb.interpolate` in JAX: (1, T of the old grid, D) -> (1, T of the new one, D)."""
    if new_grid == old_grid:
        return positions
    dtype = jnp.promote_types(positions.dtype, jnp.float32)
    first = positions.shape[1] - old_grid[0] * old_grid[1]
    tokens, patches = positions[:, :first], positions[0, first:].astype(dtype)
    patches = patches.reshape(*old_grid, positions.shape[-1])  # (rows, columns, D)
    rows, columns = (
        jnp.asarray(bicubic_matrix(*pair, **kernel), dtype) for pair in zip(old_grid, new_grid, strict=True)
    )
    patches = jnp.einsum("hr,rcd->hcd", rows, patches)
    patches = jnp.einsum("wc,hcd->hwd", columns, patches).reshape(1, -1, positions.shape[-1])
    return jnp.concatenate([tokens, patches.astype(tokens.dtype)], axis=1)


class ViTSelfAttention(nnx.Module):
    """Multi-head attention of the tokens to each other, without the output projection."""

    def __init__(self, config: PreTrainedConfig, **options: Any) -> None:
        self.config = config
        self.query = dense(config, config.hidden_size, config.hidden_size, use_bias=config.qkv_bias, **options)
        self.key = dense(config, config.hidden_size, config.hidden_size, use_bias=config.key_bias, **options)
        self.value = dense(config, config.hidden_size, config.hidden_size, use_bias=config.qkv_bias, **options)
        self.dropout = Dropout(config, "attention_probs_dropout_prob")

    def __call__(
        self,
        hidden_states: Array,
        output_attentions: bool = False,
        rngs: nnx.Rngs | None = None,
        bias: Array | None = None,
    ) -> tuple[Array, Array | None]:
        """`bias`, (1 or B, H, T, T), is added to the scores."""
        heads = (self.config.num_attention_heads, self.config.head_dim)
        query, key, value = (
            projection(hidden_states).reshape(*hidden_states.shape[:2], *heads)  # (B, T, H, D / H)
            for projection in (self.query, self.key, self.value)
        )
        has_dropout = self.dropout.rate > 0 and not self.dropout.deterministic  # which the fused attention lacks
        if output_attentions or has_dropout or self.config.attn_implementation == "eager":
            scores = jnp.einsum("bqhd,bkhd->bhqk", query * self.config.head_dim**-0.5, key)  # (B, H, T, T)
            scores = scores if bias is None else scores + bias
            at_least_float32 = jnp.promote_types(scores.dtype, jnp.float32)
            attentions = jax.nn.softmax(scores.astype(at_least_float32)).astype(scores.dtype)
            context = jnp.einsum("bhqk,bkhd->bqhd", self.dropout(attentions, rngs=rngs), value)
        else:
            attentions = None
            context = attend(query, key, value, bias)
        return context.reshape(hidden_states.shape), attentions if output_attentions else None  # (B, T, D)


class ViTSelfOutput(nnx.Module):
    """The output projection of an attention; the residual is added in ViTLayer."""

    def __init__(self, config: PreTrainedConfig, **options: Any) -> None:
        self.dense = dense(config, config.hidden_size, config.hidden_size, **options)
        self.dropout = Dropout(config, "hidden_dropout_prob")

    def __call__(self, hidden_states: Array, rngs: nnx.Rngs | None = None) -> Array:
        return self.dropout(self.dense(hidden_states), rngs=rngs)


class ViTAttention(nnx.Module):
    """Multi-head self-attention (Dosovitskiy et al. 2021, Equation 2)."""

    def __init__(self, config: PreTrainedConfig, **options: Any) -> None:
        self.attention = ViTSelfAttention(config, **options)
        self.output = ViTSelfOutput(config, **options)

    def __call__(
        self,
        hidden_states: Array,
        output_attentions: bool = False,
        rngs: nnx.Rngs | None = None,
        bias: Array | None = None,
    ) -> tuple[Array, Array | None]:
        context, attentions = self.attention(hidden_states, output_attentions, rngs, bias)
        return self.output(context, rngs), attentions


class ViTIntermediate(nnx.Module):
    """The widening half of the MLP (Dosovitskiy et al. 2021, Equation 3)."""

    def __init__(self, config: PreTrainedConfig, **options: Any) -> None:
        self.dense = dense(config, config.hidden_size, config.intermediate_size, **options)
        self.activation = config.hidden_act

    def __call__(self, hidden_states: Array) -> Array:
        return ACTIVATIONS[self.activation](self.dense(hidden_states))


class ViTOutput(nnx.Module):
    """The narrowing half of the MLP; the residual is added in ViTLayer."""

    def __init__(self, config: PreTrainedConfig, **options: Any) -> None:
        self.dense = dense(config, config.intermediate_size, config.hidden_size, **options)
        self.dropout = Dropout(config, "hidden_dropout_prob")

    def __call__(self, hidden_states: Array, rngs: nnx.Rngs | None = None) -> Array:
        return self.dropout(self.dense(hidden_states), rngs=rngs)


class DropPath(nnx.Dropout):
    """Stochastic depth: in training drops all that a branch adds to an image (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__(rate, broadcast_dims=(1, 2))  # of a branch (B, T, D)


def residual(
    hidden_states: Array, branch: Array, scale: Any, drop_path: DropPath | None, rngs: nnx.Rngs | None
) -> Array:
    """hidden_states + branch, which layer scale (Touvron et al. 2021, Section 2.1) multiplies by a factor a channel."""
    branch = branch if scale is None else branch * scale[...].astype(branch.dtype)
    return hidden_states + (branch if drop_path is None else drop_path(branch, rngs=rngs))


class ViTLayer(nnx.Module):
    """One pre-norm encoder layer: attention and MLP, each with a residual."""

    def __init__(self, config: PreTrainedConfig, drop_path_rate: float = 0.0, **options: Any) -> None:
        self.layernorm_before = layer_norm(config, **options)
        self.attention = ViTAttention(config, **options)
        self.layernorm_after = layer_norm(config, **options)
        self.intermediate = ViTIntermediate(config, **options)
        self.output = ViTOutput(config, **options)
        scale = jnp.full(config.hidden_size, config.layer_scale, options["param_dtype"])
        self.lambda_1: Any = nnx.Param(scale) if config.layer_scale else None
        self.lambda_2: Any = nnx.Param(scale) if config.layer_scale else None
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else None

    def __call__(
        self,
        hidden_states: Array,
        output_attentions: bool = False,
        rngs: nnx.Rngs | None = None,
        bias: Array | None = None,
    ) -> tuple[Array, Array | None]:
        context, attentions = self.attention(self.layernorm_before(hidden_states), output_attentions, rngs, bias)
        hidden_states = residual(hidden_states, context, self.lambda_1, self.drop_path, rngs)
        mlp = self.output(self.intermediate(self.layernorm_after(hidden_states)), rngs)
        return residual(hidden_states, mlp, self.lambda_2, self.drop_path, rngs), attentions


class ViTEncoder(nnx.Module):
    """The stack of encoder layers."""

    layer_class: ClassVar[type[nnx.Module]] = ViTLayer

    def __init__(self, config: PreTrainedConfig, **options: Any) -> None:
        self.layer = nnx.List([self.layer_class(config, rate, **options) for rate in config.drop_path_rates])
        self.gradient_checkpointing = False

    def __call__(
        self,
        hidden_states: Array,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        rngs: nnx.Rngs | None = None,
        biases: Callable[[int], Array] | None = None,
    ) -> tuple[Array, tuple[Array, ...] | None, tuple[Array, ...] | None]:
        """`biases` of a layer, which stands at that index, are added to the scores of its attention."""
        run = nnx.remat(self.layer_class.__call__, static_argnums=2) if self.gradient_checkpointing else call
        all_hidden_states, all_attentions = [hidden_states], []
        for i, layer in enumerate(self.layer):
            bias = None if biases is None else biases(i)
            hidden_states, attentions = run(layer, hidden_states, output_attentions, rngs, bias)
            all_hidden_states.append(hidden_states)
            all_attentions.append(attentions)
        return (
            hidden_states,
            tuple(all_hidden_states) if output_hidden_states else None,
            tuple(all_attentions) if output_attentions else None,
        )


class ViTPooler(nnx.Module):
    """A dense layer over the CLS token."""

    def __init__(self, config: ViTConfig, **options: Any) -> None:
        self.dense = dense(config, config.hidden_size, config.pooler_output_size, **options)
        self.activation = config.pooler_act

    def __call__(self, hidden_states: Array) -> Array:
        return ACTIVATIONS[self.activation](self.dense(hidden_states[:, 0]))
