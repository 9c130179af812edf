"""The layers of the Vision Transformer in Flax NNX, in the order of the computation.

Side by side with vit/pt/layers.py and vit/tf/layers.py: the same classes, the same attributes, the same order. What
only some families have (tokens, layer scale, stochastic depth, biases of the scores) their configurations ask for.
Shapes: B batch, C channels, N patches, T tokens (the patches and those before them), D hidden_size, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ..config import PreTrainedConfig, to_pair
from ..families.vit import ViTConfig
from .attention import attend
from .dropout import Dropout, DropPath
from .eager import call
from .norm import layer_norm
from .posemb import interpolate

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


def for_each(token: Array, hidden_states: Array) -> Array:
    """A token (1, 1, D) for each image of (B, T, D), sharded as they are."""
    shape = (hidden_states.shape[0], *token.shape[1:])
    return jnp.broadcast_to(token.astype(hidden_states.dtype), shape, out_sharding=jax.typeof(hidden_states).sharding)


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
        patches = self.projection(cut(pixel_values, grid, self.patch_size))
        return patches.reshape(patches.shape[0], grid[0] * grid[1], patches.shape[-1])  # (B, N, D)


def cut(pixel_values: Array, grid: tuple[int, int], patch_size: tuple[int, int]) -> Array:
    """(B, C, height, width) -> (B, rows, columns, C * height * width of a patch): of patches that do not overlap, a
    convolution is one matmul."""
    (rows, columns), (height, width) = grid, patch_size
    batch, channels = pixel_values.shape[:2]
    patches = pixel_values[:, :, : rows * height, : columns * width]
    # One axis at a time, because a mesh with explicit axes knows no other reshape of a sharded array.
    patches = patches.reshape(batch, channels, rows, height, columns * width)
    patches = patches.reshape(batch, channels, rows, height, columns, width).transpose(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, rows, columns, channels * height * width)


class ViTEmbeddings(nnx.Module):
    """Patch tokens, masked ones replaced, behind a CLS token, plus position embeddings."""

    tokens: ClassVar[tuple[str, ...]] = ("cls_token",)  # what precedes the patches and has positions, too
    patch_embeddings_class: ClassVar[Callable[..., nnx.Module]] = ViTPatchEmbeddings

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
        self.patch_embeddings = self.patch_embeddings_class(config, **options)
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
        tokens = [for_each(getattr(self, name)[...], hidden_states) for name in self.tokens]
        hidden_states = jnp.concatenate([*tokens, hidden_states], axis=1)  # (B, T, D)
        if self.position_embeddings is not None:
            hidden_states = hidden_states + self.interpolated_position_embeddings(grid).astype(dtype)
        return self.dropout(hidden_states, rngs=rngs)

    def interpolated_position_embeddings(self, grid: tuple[int, int]) -> Array:
        """Position embeddings for a grid of (rows, columns) patches: (1, T, D)."""
        return interpolate(self.position_embeddings[...], self.config.grid_size, grid, **self.config.interpolation)


class ViTSelfAttention(nnx.Module):
    """Multi-head attention of the tokens to each other, without the output projection."""

    projections: ClassVar[tuple[str, str, str]] = ("query", "key", "value")
    dropout_key: ClassVar[str] = "attention_probs_dropout_prob"

    def __init__(self, config: PreTrainedConfig, **options: Any) -> None:
        self.config = config
        for name, bias in zip(self.projections, config.projection_biases, strict=True):
            setattr(self, name, dense(config, config.hidden_size, config.hidden_size, use_bias=bias, **options))
        self.dropout = Dropout(config, self.dropout_key)

    def __call__(
        self,
        hidden_states: Array,
        output_attentions: bool = False,
        rngs: nnx.Rngs | None = None,
        bias: Array | None = None,
    ) -> tuple[Array, Array | None]:
        """`bias`, (1 or B, H, T, T), is added to the scores, unless `place` takes it for something else."""
        heads = (self.config.num_attention_heads, self.config.head_dim)
        query, key, value = (
            getattr(self, name)(hidden_states).reshape(*hidden_states.shape[:2], *heads)  # (B, T, H, D / H)
            for name in self.projections
        )
        query, key, bias = self.place(query, key, bias)
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

    def place(self, query: Array, key: Array, bias: Array | None) -> tuple[Array, Array, Array | None]:
        """Queries and keys, (B, T, H, D / H), where their tokens are, and what is added to their scores."""
        return query, key, bias


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


def encode(
    layers: Iterable[nnx.Module],
    hidden_states: Array,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
    rngs: nnx.Rngs | None = None,
    biases: Callable[[int], Array] | None = None,
    recompute: bool = False,
) -> tuple[Array, tuple[Array, ...] | None, tuple[Array, ...] | None]:
    """The tokens behind a stack of layers, and before each; the attentions of each.

    Args:
        biases: what the attention of the layer at an index takes as its `bias`.
        recompute: whether activations are not kept.
    """
    all_hidden_states, all_attentions = [hidden_states], []
    for i, layer in enumerate(layers):
        bias = None if biases is None else biases(i)
        run = nnx.remat(type(layer).__call__, static_argnums=2) if recompute else call
        hidden_states, attentions = run(layer, hidden_states, output_attentions, rngs, bias)
        all_hidden_states.append(hidden_states)
        all_attentions.append(attentions)
    return (
        hidden_states,
        tuple(all_hidden_states) if output_hidden_states else None,
        tuple(all_attentions) if output_attentions else None,
    )


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
        """As `encode`."""
        recompute = self.gradient_checkpointing
        return encode(self.layer, hidden_states, output_hidden_states, output_attentions, rngs, biases, recompute)


class ViTPooler(nnx.Module):
    """A dense layer over the CLS token."""

    def __init__(self, config: ViTConfig, **options: Any) -> None:
        self.dense = dense(config, config.hidden_size, config.pooler_output_size, **options)
        self.activation = config.pooler_act

    def __call__(self, hidden_states: Array) -> Array:
        return ACTIVATIONS[self.activation](self.dense(hidden_states[:, 0]))
