"""The layers of the Vision Transformer in Keras 3, in the order of the computation.

Side by side with vit/pt/layers.py and vit/flax/layers.py: the same classes, the same attributes, the same order. One
name differs: `dense_output` stands for `output`, which every Keras layer has already. What only some families have
(tokens, layer scale, stochastic depth, biases of the scores) their configurations ask for.
Shapes: B batch, C channels, N patches, T tokens (the patches and those before them), D hidden_size, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import keras
import tensorflow as tf
from keras import ops

from ..config import PreTrainedConfig, config_from_dict, to_pair
from ..families.vit import ViTConfig
from ..posemb import bicubic_matrix
from .attention import attend
from .dropout import Dropout
from .linear import ACTIVATIONS, dense, initializer, linear
from .norm import layer_norm


class ViTKerasLayer(keras.layers.Layer):
    """A layer with a configuration, and `options` that hand its dtype policy to its sublayers."""

    def __init__(self, config: PreTrainedConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.options = {"dtype": self.dtype_policy}

    def _add(self, name: str, shape: tuple[int, ...] | None, trainable: bool = True) -> None:
        """Make a weight the attribute `name`, which `name`_initializer begins; without a shape it is None."""
        start = getattr(self, f"{name}_initializer")
        setattr(self, name, None if shape is None else self.add_weight(shape, start, trainable=trainable, name=name))

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

    tokens: ClassVar[tuple[str, ...]] = ("cls_token",)  # what precedes the patches and has positions, too

    def __init__(self, config: PreTrainedConfig, use_mask_token: bool = False, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.use_mask_token = use_mask_token
        for name in (*self.tokens, "position_embeddings"):
            setattr(self, f"{name}_initializer", initializer(config))
        self.mask_token_initializer = keras.initializers.Zeros()
        self.patch_embeddings = ViTPatchEmbeddings(config, name="patch_embeddings", **self.options)
        self.dropout = Dropout(config, "hidden_dropout_prob", name="dropout", **self.options)

    def build(self, input_shape: Any) -> None:
        width, positions = self.config.hidden_size, len(self.tokens) + self.config.num_patches
        for name in self.tokens:
            self._add(name, (1, 1, width))
        self._add("mask_token", (1, 1, width) if self.use_mask_token else None)
        self._add("position_embeddings", (1, positions, width) if self.config.has_positions else None)
        self.patch_embeddings.build(input_shape)

    def call(
        self, pixel_values: tf.Tensor, grid: tuple[int, int], bool_masked_pos: tf.Tensor | None = None
    ) -> tf.Tensor:
        hidden_states = self.patch_embeddings(pixel_values, grid=grid)  # (B, N, D)
        if bool_masked_pos is not None:
            mask = ops.cast(bool_masked_pos, "bool")[:, :, None]
            hidden_states = ops.where(mask, self.mask_token, hidden_states)
        shape = (ops.shape(hidden_states)[0], 1, self.config.hidden_size)
        tokens = [ops.broadcast_to(getattr(self, name), shape) for name in self.tokens]
        hidden_states = ops.concatenate([*tokens, hidden_states], axis=1)  # (B, T, D)
        if self.position_embeddings is not None:
            hidden_states = hidden_states + self.interpolated_position_embeddings(grid)
        return self.dropout(hidden_states)

    def interpolated_position_embeddings(self, grid: tuple[int, int]) -> tf.Tensor:
        """Position embeddings for a grid of (rows, columns) patches: (1, T, D)."""
        return interpolate(self.position_embeddings, self.config.grid_size, grid, **self.config.interpolation)


def interpolate(positions: tf.Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], **kernel: Any) -> tf.Tensor:
    """`posemb.interpolate` in tensors: (1, T of the old grid, D) -> (1, T of the new one, D)."""
    positions = ops.convert_to_tensor(positions)
    if new_grid == old_grid:
        return positions
    dtype = keras.backend.result_type(positions.dtype, "float32")
    first = positions.shape[1] - old_grid[0] * old_grid[1]
    tokens, patches = positions[:, :first], ops.cast(positions[0, first:], dtype)
    patches = ops.reshape(patches, (*old_grid, positions.shape[-1]))  # (rows, columns, D)
    rows, columns = (
        ops.convert_to_tensor(bicubic_matrix(*pair, **kernel), dtype) for pair in zip(old_grid, new_grid, strict=True)
    )
    patches = ops.einsum("hr,rcd->hcd", rows, patches)
    patches = ops.reshape(ops.einsum("wc,hcd->hwd", columns, patches), (1, -1, positions.shape[-1]))
    return ops.concatenate([tokens, ops.cast(patches, tokens.dtype)], axis=1)


class ViTSelfAttention(ViTKerasLayer):
    """Multi-head attention of the tokens to each other, without the output projection."""

    def __init__(self, config: PreTrainedConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.query = dense(config, config.hidden_size, "query", use_bias=config.qkv_bias, **self.options)
        self.key = dense(config, config.hidden_size, "key", use_bias=config.key_bias, **self.options)
        self.value = dense(config, config.hidden_size, "value", use_bias=config.qkv_bias, **self.options)
        self.dropout = Dropout(config, "attention_probs_dropout_prob", name="dropout", **self.options)

    def build(self, input_shape: Any) -> None:
        for projection in (self.query, self.key, self.value):
            projection.build((None, None, self.config.hidden_size))

    def call(
        self, hidden_states: tf.Tensor, output_attentions: bool = False, bias: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        """`bias`, (1 or B, H, T, T), is added to the scores."""
        heads = (self.config.num_attention_heads, self.config.head_dim)
        query, key, value = (
            ops.reshape(linear(projection, hidden_states), (-1, hidden_states.shape[1], *heads))  # (B, T, H, D / H)
            for projection in (self.query, self.key, self.value)
        )
        context, attentions = attend(query, key, value, self.dropout, bias)
        context = ops.reshape(context, (-1, *hidden_states.shape[1:]))  # (B, T, D)
        return context, attentions if output_attentions else None


class ViTSelfOutput(ViTKerasLayer):
    """The output projection of an attention; the residual is added in ViTLayer."""

    def __init__(self, config: PreTrainedConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.dense = dense(config, config.hidden_size, "dense", **self.options)
        self.dropout = Dropout(config, "hidden_dropout_prob", name="dropout", **self.options)

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

    def call(
        self, hidden_states: tf.Tensor, output_attentions: bool = False, bias: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        context, attentions = self.attention(hidden_states, output_attentions=output_attentions, bias=bias)
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
        self.dropout = Dropout(config, "hidden_dropout_prob", name="dropout", **self.options)

    def build(self, input_shape: Any) -> None:
        self.dense.build((None, None, self.config.intermediate_size))

    def call(self, hidden_states: tf.Tensor) -> tf.Tensor:
        return self.dropout(linear(self.dense, hidden_states))


class DropPath(keras.layers.Dropout):
    """Stochastic depth: in training drops all that a branch adds to an image (Huang et al. 2016)."""

    def __init__(self, rate: float, **kwargs: Any) -> None:
        super().__init__(rate, noise_shape=(None, 1, 1), **kwargs)  # of a branch (B, T, D)


def residual(
    hidden_states: tf.Tensor, branch: tf.Tensor, scale: tf.Tensor | None, drop_path: DropPath | None
) -> tf.Tensor:
    """hidden_states + branch, which layer scale (Touvron et al. 2021, Section 2.1) multiplies by a factor a channel."""
    branch = branch if scale is None else branch * scale
    return hidden_states + (branch if drop_path is None else drop_path(branch))


class ViTLayer(ViTKerasLayer):
    """One pre-norm encoder layer: attention and MLP, each with a residual."""

    def __init__(self, config: PreTrainedConfig, drop_path_rate: float = 0.0, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.drop_path_rate = drop_path_rate
        self.layernorm_before = layer_norm(config, "layernorm_before", **self.options)
        self.attention = ViTAttention(config, name="attention", **self.options)
        self.layernorm_after = layer_norm(config, "layernorm_after", **self.options)
        self.intermediate = ViTIntermediate(config, name="intermediate", **self.options)
        self.dense_output = ViTOutput(config, name="output", **self.options)
        self.lambda_1_initializer = self.lambda_2_initializer = keras.initializers.Constant(config.layer_scale)
        self.drop_path = DropPath(drop_path_rate, name="drop_path", **self.options) if drop_path_rate else None

    def build(self, input_shape: Any) -> None:
        for name in ("lambda_1", "lambda_2"):
            self._add(name, (self.config.hidden_size,) if self.config.layer_scale else None)
        for layer in (
            self.layernorm_before,
            self.attention,
            self.layernorm_after,
            self.intermediate,
            self.dense_output,
        ):
            layer.build((None, None, self.config.hidden_size))

    def call(
        self, hidden_states: tf.Tensor, output_attentions: bool = False, bias: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        normed = self.layernorm_before(hidden_states)
        context, attentions = self.attention(normed, output_attentions=output_attentions, bias=bias)
        hidden_states = residual(hidden_states, context, self.lambda_1, self.drop_path)
        mlp = self.dense_output(self.intermediate(self.layernorm_after(hidden_states)))
        return residual(hidden_states, mlp, self.lambda_2, self.drop_path), attentions

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "drop_path_rate": self.drop_path_rate}


def recomputed(layer: ViTKerasLayer) -> Any:
    """`layer` in training, computed again in the backward pass instead of keeping its activations."""
    dropouts = [each for each in layer._flatten_layers() if isinstance(each, keras.layers.Dropout)]
    drawn = [each for each in dropouts if each.rate > 0 for _ in range(2 if isinstance(each, DropPath) else 1)]
    seeds = [dropout.seed_generator for dropout in drawn]  # as often as the layer draws from each
    start = [(seed.state, ops.copy(seed.state)) for seed in seeds]

    def call(
        hidden_states: tf.Tensor, output_attentions: bool = False, bias: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        def compute(hidden_states: tf.Tensor, *bias: tf.Tensor) -> tuple[tf.Tensor, ...]:
            with keras.StatelessScope(start):  # both times from the same seeds, so that both drop the same
                outputs = layer(
                    hidden_states, output_attentions=output_attentions, bias=bias[0] if bias else None, training=True
                )
            return outputs if output_attentions else outputs[:1]  # remat takes no None

        outputs = keras.remat(compute)(hidden_states, *([] if bias is None else [bias]))
        for seed in seeds:
            seed.next()
        return outputs if output_attentions else (*outputs, None)

    return call


class ViTEncoder(ViTKerasLayer):
    """The stack of encoder layers."""

    layer_class: ClassVar[type[ViTKerasLayer]] = ViTLayer

    def __init__(self, config: PreTrainedConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.layer = [
            self.layer_class(config, drop_path_rate=rate, name=f"layer_{i}", **self.options)
            for i, rate in enumerate(config.drop_path_rates)
        ]
        self.gradient_checkpointing = False

    def build(self, input_shape: Any) -> None:
        for layer in self.layer:
            layer.build(input_shape)

    def call(
        self,
        hidden_states: tf.Tensor,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        biases: Callable[[int], tf.Tensor] | None = None,
        training: bool | None = None,
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...] | None, tuple[tf.Tensor, ...] | None]:
        """`biases` of a layer, which stands at that index, are added to the scores of its attention."""
        all_hidden_states, all_attentions = [hidden_states], []
        for i, layer in enumerate(self.layer):
            bias = None if biases is None else biases(i)
            run = recomputed(layer) if self.gradient_checkpointing and training else layer
            hidden_states, attentions = run(hidden_states, output_attentions=output_attentions, bias=bias)
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
