"""The layers of the Vision Transformer in Keras 3, in the order of the computation.

Side by side with vit/pt/layers.py and vit/flax/layers.py: the same classes, the same attributes, the same order. One
name differs: `dense_output` stands for `output`, which every Keras layer has already.
Shapes: B batch, C channels, N patches, T = N + 1 tokens, D hidden_size, H heads.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from ..config import PreTrainedConfig, config_from_dict, to_pair
from ..families.vit import ViTConfig
from ..posemb import bicubic_matrix


def gelu(x: tf.Tensor) -> tf.Tensor:
    """The exact gelu; that of Keras rounds a constant to float32."""
    return 0.5 * x * (1.0 + ops.erf(x * 0.5**0.5))


def gelu_new(x: tf.Tensor) -> tf.Tensor:
    """The tanh approximation of gelu; that of Keras rounds a constant to float32."""
    return 0.5 * x * (1.0 + ops.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x * x * x)))


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_new": gelu_new,
    "gelu_pytorch_tanh": gelu_new,
    "quick_gelu": lambda x: x * ops.sigmoid(1.702 * x),
    "relu": ops.relu,
    "selu": ops.selu,
    "silu": ops.silu,
    "tanh": ops.tanh,
}


def initializer(config: PreTrainedConfig) -> keras.initializers.Initializer:
    """The truncated normal of fresh kernels and tokens, cut at two standard deviations."""
    return keras.initializers.TruncatedNormal(stddev=config.initializer_range)


def dense(config: PreTrainedConfig, units: int, name: str, **options: Any) -> keras.layers.Dense:
    """A dense layer with the initial values of the published ones."""
    return keras.layers.Dense(units, kernel_initializer=initializer(config), name=name, **options)


def linear(layer: keras.layers.Dense, x: tf.Tensor, activation: str | None = None) -> tf.Tensor:
    """`ACTIVATIONS[activation](layer(x))`, or layer(x) without one: (B, T, D) -> (B, T, layer.units).

    As a product of matrices, which TensorFlow fuses with the bias and the activation where no reshape stands between.
    """
    flat = layer(ops.reshape(x, (-1, x.shape[-1])))  # (B * T, units)
    flat = flat if activation is None else ACTIVATIONS[activation](flat)
    return ops.reshape(flat, (-1, x.shape[1], layer.units))


class LayerNorm(keras.layers.LayerNormalization):
    """The layer of Keras over the last axis, in fewer passes over the tokens."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        at_least_float32 = keras.backend.result_type(inputs.dtype, "float32")
        x, gamma, beta = (ops.cast(tensor, at_least_float32) for tensor in (inputs, self.gamma, self.beta))
        x = x - ops.mean(x, axis=-1, keepdims=True)
        x = x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + self.epsilon)
        return ops.cast(x * gamma + beta, self.compute_dtype)


def layer_norm(config: PreTrainedConfig, name: str, **options: Any) -> LayerNorm:
    """A LayerNorm with the epsilon of the configuration."""
    return LayerNorm(epsilon=config.layer_norm_eps, name=name, **options)


class ViTKerasLayer(keras.layers.Layer):
    """A layer with a configuration, and `options` that hand its dtype policy to its sublayers."""

    def __init__(self, config: PreTrainedConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.options = {"dtype": self.dtype_policy}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "config": self.config.to_dict()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return cls(**{**config, "config": config_from_dict(config["config"])})


class ViTPatchEmbeddings(ViTKerasLayer):
    """Cuts images into patches and projects each to a token (Dosovitskiy et al. 2021, Section 3.1)."""

    def __init__(self, config: PreTrainedConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.patch_size = to_pair(config.patch_size)
        self.projection = dense(config, config.hidden_size, "projection", **self.options)

    def build(self, input_shape: Any) -> None:
        self.projection.build((None, None, self.config.num_channels * self.patch_size[0] * self.patch_size[1]))

    def call(self, pixel_values: tf.Tensor, grid: tuple[int, int]) -> tf.Tensor:
        (rows, columns), (height, width), channels = grid, self.patch_size, self.config.num_channels
        # Patches do not overlap, so the convolution is a reshape and one matmul.
        patches = pixel_values[:, :, : rows * height, : columns * width]
        patches = ops.reshape(patches, (-1, channels, rows, height, columns, width))
        patches = ops.transpose(patches, (0, 2, 4, 1, 3, 5))
        patches = ops.reshape(patches, (-1, rows * columns, channels * height * width))
        return linear(self.projection, patches)  # (B, N, D)


class ViTEmbeddings(ViTKerasLayer):
    """Patch tokens, masked ones replaced, behind a CLS token, plus position embeddings."""

    def __init__(self, config: PreTrainedConfig, use_mask_token: bool = False, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.use_mask_token = use_mask_token
        self.cls_token_initializer = self.position_embeddings_initializer = initializer(config)
        self.mask_token_initializer = keras.initializers.Zeros()
        self.patch_embeddings = ViTPatchEmbeddings(config, name="patch_embeddings", **self.options)
        self.dropout = keras.layers.Dropout(config.hidden_dropout_prob, name="dropout", **self.options)

    def build(self, input_shape: Any) -> None:
        token, positions = (1, 1, self.config.hidden_size), (1, self.config.num_patches + 1, self.config.hidden_size)
        self.cls_token = self.add_weight(token, self.cls_token_initializer, name="cls_token")
        self.mask_token = (
            self.add_weight(token, self.mask_token_initializer, name="mask_token") if self.use_mask_token else None
        )
        self.position_embeddings = self.add_weight(
            positions, self.position_embeddings_initializer, name="position_embeddings"
        )
        self.patch_embeddings.build(input_shape)

    def call(
        self, pixel_values: tf.Tensor, grid: tuple[int, int], bool_masked_pos: tf.Tensor | None = None
    ) -> tf.Tensor:
        hidden_states = self.patch_embeddings(pixel_values, grid=grid)  # (B, N, D)
        if bool_masked_pos is not None:
            mask = ops.cast(bool_masked_pos, "bool")[:, :, None]
            hidden_states = ops.where(mask, self.mask_token, hidden_states)
        cls_token = ops.broadcast_to(self.cls_token, (ops.shape(hidden_states)[0], 1, self.config.hidden_size))
        hidden_states = ops.concatenate([cls_token, hidden_states], axis=1)  # (B, T, D)
        return self.dropout(hidden_states + self.interpolated_position_embeddings(grid))

    def interpolated_position_embeddings(self, grid: tuple[int, int]) -> tf.Tensor:
        """Position embeddings for a grid of (rows, columns) patches: (1, 1 + rows * columns, D)."""
        position_embeddings = ops.convert_to_tensor(self.position_embeddings)
        if grid == self.config.grid_size:
            return position_embeddings
        dtype = keras.backend.result_type(position_embeddings.dtype, "float32")
        cls_token, patches = position_embeddings[:, :1], ops.cast(position_embeddings[0, 1:], dtype)
        patches = ops.reshape(patches, (*self.config.grid_size, -1))  # (rows, columns, D)
        rows, columns = (
            ops.convert_to_tensor(bicubic_matrix(old, new), dtype)
            for old, new in zip(self.config.grid_size, grid, strict=True)
        )
        patches = ops.einsum("hr,rcd->hcd", rows, patches)
        patches = ops.reshape(ops.einsum("wc,hcd->hwd", columns, patches), (1, -1, self.config.hidden_size))
        return ops.concatenate([cls_token, ops.cast(patches, cls_token.dtype)], axis=1)


class ViTSelfAttention(ViTKerasLayer):
    """Multi-head attention of the tokens to each other, without the output projection."""

    def __init__(self, config: PreTrainedConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        options = {**self.options, "use_bias": config.qkv_bias}
        self.query = dense(config, config.hidden_size, "query", **options)
        self.key = dense(config, config.hidden_size, "key", **options)
        self.value = dense(config, config.hidden_size, "value", **options)
        self.dropout = keras.layers.Dropout(config.attention_probs_dropout_prob, name="dropout", **self.options)

    def build(self, input_shape: Any) -> None:
        for projection in (self.query, self.key, self.value):
            projection.build((None, None, self.config.hidden_size))

    def call(self, hidden_states: tf.Tensor, output_attentions: bool = False) -> tuple[tf.Tensor, tf.Tensor | None]:
        heads = (self.config.num_attention_heads, self.config.head_dim)
        query, key, value = (
            ops.reshape(linear(projection, hidden_states), (-1, hidden_states.shape[1], *heads))  # (B, T, H, D / H)
            for projection in (self.query, self.key, self.value)
        )
        # TensorFlow has no fused attention: both implementations are these operations.
        scores = ops.einsum("bqhd,bkhd->bhqk", query * self.config.head_dim**-0.5, key)  # (B, H, T, T)
        at_least_float32 = keras.backend.result_type(scores.dtype, "float32")
        attentions = ops.cast(ops.softmax(ops.cast(scores, at_least_float32)), scores.dtype)
        context = ops.einsum("bhqk,bkhd->bqhd", self.dropout(attentions), value)
        context = ops.reshape(context, (-1, *hidden_states.shape[1:]))  # (B, T, D)
        return context, attentions if output_attentions else None


class ViTSelfOutput(ViTKerasLayer):
    """The output projection of an attention; the residual is added in ViTLayer."""

    def __init__(self, config: PreTrainedConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.dense = dense(config, config.hidden_size, "dense", **self.options)
        self.dropout = keras.layers.Dropout(config.hidden_dropout_prob, name="dropout", **self.options)

    def build(self, input_shape: Any) -> None:
        self.dense.build((None, None, self.config.hidden_size))

    def call(self, hidden_states: tf.Tensor) -> tf.Tensor:
        return self.dropout(linear(self.dense, hidden_states))


class ViTAttention(ViTKerasLayer):
    """Multi-head self-attention (Dosovitskiy et al. 2021, Equation 2)."""

    def __init__(self, config: PreTrainedConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.attention = ViTSelfAttention(config, name="attention", **self.options)
        self.dense_output = ViTSelfOutput(config, name="output", **self.options)

    def build(self, input_shape: Any) -> None:
        self.attention.build(input_shape)
        self.dense_output.build(input_shape)

    def call(self, hidden_states: tf.Tensor, output_attentions: bool = False) -> tuple[tf.Tensor, tf.Tensor | None]:
        context, attentions = self.attention(hidden_states, output_attentions=output_attentions)
        return self.dense_output(context), attentions


class ViTIntermediate(ViTKerasLayer):
    """The widening half of the MLP (Dosovitskiy et al. 2021, Equation 3)."""

    def __init__(self, config: PreTrainedConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.dense = dense(config, config.intermediate_size, "dense", **self.options)
        self.activation = config.hidden_act

    def build(self, input_shape: Any) -> None:
        self.dense.build((None, None, self.config.hidden_size))

    def call(self, hidden_states: tf.Tensor) -> tf.Tensor:
        return linear(self.dense, hidden_states, self.activation)


class ViTOutput(ViTKerasLayer):
    """The narrowing half of the MLP; the residual is added in ViTLayer."""

    def __init__(self, config: PreTrainedConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.dense = dense(config, config.hidden_size, "dense", **self.options)
        self.dropout = keras.layers.Dropout(config.hidden_dropout_prob, name="dropout", **self.options)

    def build(self, input_shape: Any) -> None:
        self.dense.build((None, None, self.config.intermediate_size))

    def call(self, hidden_states: tf.Tensor) -> tf.Tensor:
        return self.dropout(linear(self.dense, hidden_states))


class ViTLayer(ViTKerasLayer):
    """One pre-norm encoder layer: attention and MLP, each with a residual."""

    def __init__(self, config: PreTrainedConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.layernorm_before = layer_norm(config, "layernorm_before", **self.options)
        self.attention = ViTAttention(config, name="attention", **self.options)
        self.layernorm_after = layer_norm(config, "layernorm_after", **self.options)
        self.intermediate = ViTIntermediate(config, name="intermediate", **self.options)
        self.dense_output = ViTOutput(config, name="output", **self.options)

    def build(self, input_shape: Any) -> None:
        for layer in (
            self.layernorm_before,
            self.attention,
            self.layernorm_after,
            self.intermediate,
            self.dense_output,
        ):
            layer.build((None, None, self.config.hidden_size))

    def call(self, hidden_states: tf.Tensor, output_attentions: bool = False) -> tuple[tf.Tensor, tf.Tensor | None]:
        context, attentions = self.attention(self.layernorm_before(hidden_states), output_attentions=output_attentions)
        hidden_states = hidden_states + context
        hidden_states = hidden_states + self.dense_output(self.intermediate(self.layernorm_after(hidden_states)))
        return hidden_states, attentions


def recomputed(layer: ViTLayer) -> Any:
    """`layer` in training, computed again in the backward pass instead of keeping its activations."""
    dropouts = (layer.attention.attention.dropout, layer.attention.dense_output.dropout, layer.dense_output.dropout)
    seeds = [dropout.seed_generator for dropout in dropouts if dropout.rate > 0]
    start = [(seed.state, ops.copy(seed.state)) for seed in seeds]

    def call(hidden_states: tf.Tensor, output_attentions: bool = False) -> tuple[tf.Tensor, tf.Tensor | None]:
        def compute(hidden_states: tf.Tensor) -> tuple[tf.Tensor, ...]:
            with keras.StatelessScope(start):  # both times from the same seeds, so that both drop the same
                outputs = layer(hidden_states, output_attentions=output_attentions, training=True)
            return outputs if output_attentions else outputs[:1]  # remat takes no None

        outputs = keras.remat(compute)(hidden_states)
        for seed in seeds:
            seed.next()
        return outputs if output_attentions else (*outputs, None)

    return call


class ViTEncoder(ViTKerasLayer):
    """The stack of encoder layers."""

    def __init__(self, config: PreTrainedConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.layer = [ViTLayer(config, name=f"layer_{i}", **self.options) for i in range(config.num_hidden_layers)]
        self.gradient_checkpointing = False

    def build(self, input_shape: Any) -> None:
        for layer in self.layer:
            layer.build(input_shape)

    def call(
        self,
        hidden_states: tf.Tensor,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        training: bool | None = None,
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...] | None, tuple[tf.Tensor, ...] | None]:
        all_hidden_states, all_attentions = [hidden_states], []
        for layer in self.layer:
            run = recomputed(layer) if self.gradient_checkpointing and training else layer
            hidden_states, attentions = run(hidden_states, output_attentions=output_attentions)
            all_hidden_states.append(hidden_states)
            all_attentions.append(attentions)
        return (
            hidden_states,
            tuple(all_hidden_states) if output_hidden_states else None,
            tuple(all_attentions) if output_attentions else None,
        )


class ViTPooler(ViTKerasLayer):
    """A dense layer over the CLS token."""

    def __init__(self, config: ViTConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.dense = dense(config, config.pooler_output_size, "dense", **self.options)
        self.activation = config.pooler_act

    def build(self, input_shape: Any) -> None:
        self.dense.build((None, self.config.hidden_size))

    def call(self, hidden_states: tf.Tensor) -> tf.Tensor:
        return ACTIVATIONS[self.activation](self.dense(hidden_states[:, 0]))
