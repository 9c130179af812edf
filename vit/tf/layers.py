"""The layers of the Vision Transformer in Keras 3, in the order of the computation.

Side by side with vit/pt/layers.py and vit/flax/layers.py: the same classes, the same attributes, the same order. One
name differs: `dense_output` stands for `output`, which every Keras layer has already. What only some families have
(tokens, layer scale, stochastic depth, biases of the scores) their configurations ask for.
Shapes: B batch, C channels, N patches, T tokens (the patches and those before them), D hidden_size, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import keras
import tensorflow as tf
from keras import ops

from ..config import PreTrainedConfig, config_from_dict, to_pair
from ..families.vit import ViTConfig
from ..inputs import check_pixel_values
from ..outputs import ModelOutput, collect
from .attention import attend
from .dropout import Dropout, DropPath, recomputed
from .linear import ACTIVATIONS, dense, initializer, linear
from .norm import layer_norm
from .posemb import interpolate


class ViTKerasLayer(keras.layers.Layer):
    """A layer with a configuration, and `options` that hand its dtype policy to its sublayers."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        keras.saving.register_keras_serializable("trivit")(cls)  # for functional models that are loaded

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

    def call(self, pixel_values: tf.Tensor, grid: tuple[int, int] | None = None) -> tf.Tensor:
        grid = grid_of(self.config, pixel_values) if grid is None else grid
        return linear(self.projection, cut(pixel_values, grid, self.patch_size))  # (B, N, D)


def grid_of(config: PreTrainedConfig, pixel_values: tf.Tensor) -> tuple[int, int]:
    """(rows, columns) of patches; those of the configured size where a graph does not know it."""
    return check_pixel_values(config, pixel_values.shape, None not in pixel_values.shape[2:])


def cut(pixel_values: tf.Tensor, grid: tuple[int, int], patch_size: tuple[int, int]) -> tf.Tensor:
    """(B, C, height, width) -> (B, N, C * height * width of a patch): of patches that do not overlap, a convolution is
    one matmul."""
    (rows, columns), (height, width), channels = grid, patch_size, pixel_values.shape[1]
    patches = pixel_values[:, :, : rows * height, : columns * width]
    patches = ops.reshape(patches, (-1, channels, rows, height, columns, width))
    patches = ops.transpose(patches, (0, 2, 4, 1, 3, 5))
    return ops.reshape(patches, (-1, rows * columns, channels * height * width))


class ViTEmbeddings(ViTKerasLayer):
    """Patch tokens, masked ones replaced, behind a CLS token, plus position embeddings."""

    tokens: ClassVar[tuple[str, ...]] = ("cls_token",)  # what precedes the patches and has positions, too
    patch_embeddings_class: ClassVar[Callable[..., keras.layers.Layer]] = ViTPatchEmbeddings

    def __init__(self, config: PreTrainedConfig, use_mask_token: bool = False, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.use_mask_token = use_mask_token
        for name in (*self.tokens, "position_embeddings"):
            setattr(self, f"{name}_initializer", initializer(config))
        self.mask_token_initializer = keras.initializers.Zeros()
        self.patch_embeddings = self.patch_embeddings_class(config, name="patch_embeddings", **self.options)
        self.dropout = Dropout(config, "hidden_dropout_prob", name="dropout", **self.options)

    def build(self, input_shape: Any) -> None:
        width, positions = self.config.hidden_size, len(self.tokens) + self.config.num_patches
        for name in self.tokens:
            self._add(name, (1, 1, width))
        self._add("mask_token", (1, 1, width) if self.use_mask_token else None)
        self._add("position_embeddings", (1, positions, width) if self.config.has_positions else None)
        self.patch_embeddings.build(input_shape)

    def call(
        self, pixel_values: tf.Tensor, grid: tuple[int, int] | None = None, bool_masked_pos: tf.Tensor | None = None
    ) -> tf.Tensor:
        grid = grid_of(self.config, pixel_values) if grid is None else grid
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

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "use_mask_token": self.use_mask_token}


class ViTSelfAttention(ViTKerasLayer):
    """Multi-head attention of the tokens to each other, without the output projection."""

    projections: ClassVar[tuple[str, str, str]] = ("query", "key", "value")
    dropout_key: ClassVar[str] = "attention_probs_dropout_prob"

    def __init__(self, config: PreTrainedConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        for name, bias in zip(self.projections, config.projection_biases, strict=True):
            setattr(self, name, dense(config, config.hidden_size, name, use_bias=bias, **self.options))
        self.dropout = Dropout(config, self.dropout_key, name="dropout", **self.options)

    def build(self, input_shape: Any) -> None:
        for name in self.projections:
            getattr(self, name).build((None, None, self.config.hidden_size))

    def call(
        self, hidden_states: tf.Tensor, output_attentions: bool = False, bias: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, ...]:
        """`bias`, (1 or B, H, T, T), is added to the scores, unless `place` takes it for something else."""
        heads = (self.config.num_attention_heads, self.config.head_dim)
        query, key, value = (
            ops.reshape(linear(getattr(self, name), hidden_states), (-1, hidden_states.shape[1], *heads))
            for name in self.projections
        )  # (B, T, H, D / H)
        query, key, bias = self.place(query, key, bias)
        context, attentions = attend(query, key, value, self.dropout, bias)
        context = ops.reshape(context, (-1, *hidden_states.shape[1:]))  # (B, T, D)
        return (context, attentions) if output_attentions else (context,)

    def place(
        self, query: tf.Tensor, key: tf.Tensor, bias: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
        """Queries and keys, (B, T, H, D / H), where their tokens are, and what is added to their scores."""
        return query, key, bias


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
    ) -> tuple[tf.Tensor, ...]:
        context, *attentions = self.attention(hidden_states, output_attentions=output_attentions, bias=bias)
        return self.dense_output(context), *attentions


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
        for name in ("layernorm_before", "attention", "layernorm_after", "intermediate", "dense_output"):
            getattr(self, name).build((None, None, self.config.hidden_size))

    def call(
        self, hidden_states: tf.Tensor, output_attentions: bool = False, bias: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, ...]:
        normed = self.layernorm_before(hidden_states)
        context, *attentions = self.attention(normed, output_attentions=output_attentions, bias=bias)
        hidden_states = residual(hidden_states, context, self.lambda_1, self.drop_path)
        mlp = self.dense_output(self.intermediate(self.layernorm_after(hidden_states)))
        return residual(hidden_states, mlp, self.lambda_2, self.drop_path), *attentions

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "drop_path_rate": self.drop_path_rate}


def encode(
    layers: Iterable[ViTKerasLayer],
    hidden_states: tf.Tensor,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
    biases: Callable[[int], tf.Tensor] | None = None,
    recompute: bool | None = False,
) -> tuple[tf.Tensor, tuple[tf.Tensor, ...] | None, tuple[tf.Tensor, ...] | None]:
    """The tokens behind a stack of layers, and before each; the attentions of each.

    Args:
        biases: what the attention of the layer at an index takes as its `bias`.
        recompute: whether activations are not kept.
    """
    all_hidden_states, all_attentions = [hidden_states], []
    for i, layer in enumerate(layers):
        bias = None if biases is None else biases(i)
        run = recomputed(layer) if recompute else layer
        hidden_states, *attentions = run(hidden_states, output_attentions=output_attentions, bias=bias)
        all_hidden_states.append(hidden_states)
        all_attentions.extend(attentions)
    return (
        hidden_states,
        tuple(all_hidden_states) if output_hidden_states else None,
        tuple(all_attentions) if output_attentions else None,
    )


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
    ) -> ModelOutput:
        """As `encode`: last_hidden_state, hidden_states and attentions, of which only what was asked for is there."""
        recompute = self.gradient_checkpointing and training
        wanted = output_hidden_states, output_attentions
        names = ("last_hidden_state", "hidden_states", "attentions")
        found = encode(self.layer, hidden_states, *wanted, biases, recompute)
        return collect(True, **dict(zip(names, found, strict=True)))


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
