"""The layers of the Vision Transformer in Flax NNX, in the order of the computation.

Side by side with vit/pt/layers.py and vit/tf/layers.py: the same classes, the same attributes, the same order.
Shapes: B batch, C channels, N patches, T = N + 1 tokens, D hidden_size, H heads.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ..config import PreTrainedConfig, to_pair
from ..families.vit import ViTConfig
from ..posemb import bicubic_matrix
from .eager import call

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


class LayerNorm(nnx.LayerNorm):
    """nnx.LayerNorm with the two-pass variance, which does not cancel where the mean is large, and a cheap gradient."""

    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        assert mask is None, "A ViT has no padding."
        scale, bias = self.scale[...], self.bias[...]
        dtype = self.dtype or jnp.result_type(x, scale, bias)
        x = normalize(x.astype(jnp.promote_types(x.dtype, jnp.float32)), self.epsilon)
        return (x * scale + bias).astype(dtype)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def normalize(x: Array, epsilon: float) -> Array:
    """Mean 0 and variance 1 along the last axis."""
    return _normalize(x, epsilon)[0]


def _normalize(x: Array, epsilon: float) -> tuple[Array, Array]:
    x = x - x.mean(-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon)
    return x * factor, factor


@normalize.defjvp
def _normalize_jvp(epsilon: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # What JAX derives step by step has XLA on CPUs compute the same reductions again and again.
    x, factor = _normalize(*primals, epsilon)
    tangent = tangents[0] * factor
    return x, tangent - tangent.mean(-1, keepdims=True) - x * (x * tangent).mean(-1, keepdims=True)


def layer_norm(config: PreTrainedConfig, **options: Any) -> nnx.LayerNorm:
    """A LayerNorm with the epsilon of the configuration."""
    return LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps, **options)


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

    def __init__(self, config: PreTrainedConfig, use_mask_token: bool = False, **options: Any) -> None:
        self.config = config
        rngs, dtype, init = options["rngs"], options["param_dtype"], initializer(config)
        token = (1, 1, config.hidden_size)
        self.cls_token = nnx.Param(init(rngs.params(), token, dtype))
        self.mask_token: Any = nnx.Param(jnp.zeros(token, dtype)) if use_mask_token else None
        self.position_embeddings = nnx.Param(
            init(rngs.params(), (1, config.num_patches + 1, config.hidden_size), dtype)
        )
        self.patch_embeddings = ViTPatchEmbeddings(config, **options)
        self.dropout = nnx.Dropout(config.hidden_dropout_prob)

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
        cls_token = jnp.zeros_like(hidden_states[:, :1]) + self.cls_token[...].astype(dtype)  # sharded as the patches
        hidden_states = jnp.concatenate([cls_token, hidden_states], axis=1)  # (B, T, D)
        return self.dropout(hidden_states + self.interpolated_position_embeddings(grid).astype(dtype), rngs=rngs)

    def interpolated_position_embeddings(self, grid: tuple[int, int]) -> Array:
        """Position embeddings for a grid of (rows, columns) patches: (1, 1 + rows * columns, D)."""
        position_embeddings = self.position_embeddings[...]
        if grid == self.config.grid_size:
            return position_embeddings
        dtype = jnp.promote_types(position_embeddings.dtype, jnp.float32)
        cls_token, patches = position_embeddings[:, :1], position_embeddings[0, 1:].astype(dtype)
        patches = patches.reshape(*self.config.grid_size, -1)  # (rows, columns, D)
        rows, columns = (
            jnp.asarray(bicubic_matrix(old, new), dtype)
            for old, new in zip(self.config.grid_size, grid, strict=True)
        )  # fmt: skip
        patches = jnp.einsum("hr,rcd->hcd", rows, patches)
        patches = jnp.einsum("wc,hcd->hwd", columns, patches).reshape(1, -1, patches.shape[-1])
        return jnp.concatenate([cls_token, patches.astype(cls_token.dtype)], axis=1)


def attend(query: Array, key: Array, value: Array) -> Array:
    """Scaled dot-product attention, (B, T, H, D / H) each: JAX's own, and on CPUs one that suits XLA there."""
    if query.dtype == jnp.float64:  # which JAX's own computes in float32
        return attend_on_cpu(query, key, value)
    return jax.lax.platform_dependent(query, key, value, cpu=attend_on_cpu, default=jax.nn.dot_product_attention)


def attend_on_cpu(query: Array, key: Array, value: Array) -> Array:
    """Attention of plain matrix products, heads before tokens, divided after the second one: a pass over (T, D / H).

    JAX's own is slower on CPUs, has no float16 there, and divides in a pass over (T, T).
    """
    query, value = (x.swapaxes(1, 2) for x in (query * query.shape[-1] ** -0.5, value))  # (B, H, T, D / H)
    key = key.transpose(0, 2, 3, 1)  # (B, H, D / H, T)
    at_least_float32 = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.matmul(query, key, preferred_element_type=at_least_float32)  # (B, H, T, T)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    context = jnp.matmul(weights.astype(value.dtype), value, preferred_element_type=at_least_float32)
    return (context / weights.sum(-1, keepdims=True)).astype(value.dtype).swapaxes(1, 2)


class ViTSelfAttention(nnx.Module):
    """Multi-head attention of the tokens to each other, without the output projection."""

    def __init__(self, config: PreTrainedConfig, **options: Any) -> None:
        self.config = config
        options |= {"use_bias": config.qkv_bias}
        self.query = dense(config, config.hidden_size, config.hidden_size, **options)
        self.key = dense(config, config.hidden_size, config.hidden_size, **options)
        self.value = dense(config, config.hidden_size, config.hidden_size, **options)
        self.dropout = nnx.Dropout(config.attention_probs_dropout_prob)

    def __call__(
        self, hidden_states: Array, output_attentions: bool = False, rngs: nnx.Rngs | None = None
    ) -> tuple[Array, Array | None]:
        heads = (self.config.num_attention_heads, self.config.head_dim)
        query, key, value = (
            projection(hidden_states).reshape(*hidden_states.shape[:2], *heads)  # (B, T, H, D / H)
            for projection in (self.query, self.key, self.value)
        )
        has_dropout = self.dropout.rate > 0 and not self.dropout.deterministic  # which the fused attention lacks
        if output_attentions or has_dropout or self.config.attn_implementation == "eager":
            scores = jnp.einsum("bqhd,bkhd->bhqk", query * self.config.head_dim**-0.5, key)  # (B, H, T, T)
            at_least_float32 = jnp.promote_types(scores.dtype, jnp.float32)
            attentions = jax.nn.softmax(scores.astype(at_least_float32)).astype(scores.dtype)
            context = jnp.einsum("bhqk,bkhd->bqhd", self.dropout(attentions, rngs=rngs), value)
        else:
            attentions = None
            context = attend(query, key, value)
        return context.reshape(hidden_states.shape), attentions if output_attentions else None  # (B, T, D)


class ViTSelfOutput(nnx.Module):
    """The output projection of an attention; the residual is added in ViTLayer."""

    def __init__(self, config: PreTrainedConfig, **options: Any) -> None:
        self.dense = dense(config, config.hidden_size, config.hidden_size, **options)
        self.dropout = nnx.Dropout(config.hidden_dropout_prob)

    def __call__(self, hidden_states: Array, rngs: nnx.Rngs | None = None) -> Array:
        return self.dropout(self.dense(hidden_states), rngs=rngs)


class ViTAttention(nnx.Module):
    """Multi-head self-attention (Dosovitskiy et al. 2021, Equation 2)."""

    def __init__(self, config: PreTrainedConfig, **options: Any) -> None:
        self.attention = ViTSelfAttention(config, **options)
        self.output = ViTSelfOutput(config, **options)

    def __call__(
        self, hidden_states: Array, output_attentions: bool = False, rngs: nnx.Rngs | None = None
    ) -> tuple[Array, Array | None]:
        context, attentions = self.attention(hidden_states, output_attentions, rngs)
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
        self.dropout = nnx.Dropout(config.hidden_dropout_prob)

    def __call__(self, hidden_states: Array, rngs: nnx.Rngs | None = None) -> Array:
        return self.dropout(self.dense(hidden_states), rngs=rngs)


class ViTLayer(nnx.Module):
    """One pre-norm encoder layer: attention and MLP, each with a residual."""

    def __init__(self, config: PreTrainedConfig, **options: Any) -> None:
        self.layernorm_before = layer_norm(config, **options)
        self.attention = ViTAttention(config, **options)
        self.layernorm_after = layer_norm(config, **options)
        self.intermediate = ViTIntermediate(config, **options)
        self.output = ViTOutput(config, **options)

    def __call__(
        self, hidden_states: Array, output_attentions: bool = False, rngs: nnx.Rngs | None = None
    ) -> tuple[Array, Array | None]:
        context, attentions = self.attention(self.layernorm_before(hidden_states), output_attentions, rngs)
        hidden_states = hidden_states + context
        hidden_states = hidden_states + self.output(self.intermediate(self.layernorm_after(hidden_states)), rngs)
        return hidden_states, attentions


class ViTEncoder(nnx.Module):
    """The stack of encoder layers."""

    def __init__(self, config: PreTrainedConfig, **options: Any) -> None:
        self.layer = nnx.List([ViTLayer(config, **options) for _ in range(config.num_hidden_layers)])
        self.gradient_checkpointing = False

    def __call__(
        self,
        hidden_states: Array,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Array, tuple[Array, ...] | None, tuple[Array, ...] | None]:
        run = nnx.remat(ViTLayer.__call__, static_argnums=2) if self.gradient_checkpointing else call
        all_hidden_states, all_attentions = [hidden_states], []
        for layer in self.layer:
            hidden_states, attentions = run(layer, hidden_states, output_attentions, rngs)
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
