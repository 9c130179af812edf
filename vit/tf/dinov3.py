"""DINOv3's ViT in Keras 3 on TensorFlow.

Side by side with vit/pt/dinov3.py and vit/flax/dinov3.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import Any, ClassVar

import keras
import tensorflow as tf
from keras import ops

from ..config import PreTrainedConfig, to_pair
from ..families.dinov3 import DINOv3ViTConfig
from ..posemb import frequencies
from .dino import DinoEmbeddings, DinoLayer, DinoMLP, TFDinoModel
from .layers import ViTKerasLayer, ViTSelfAttention, cut, encode, grid_of
from .linear import ACTIVATIONS, dense, initializer, linear
from .norm import layer_norm
from .posemb import rotate, rotation


class DINOv3ViTPatchEmbeddings(keras.layers.Dense):
    """As those of ViT, with the projection itself in the place of what holds it."""

    def __init__(self, config: PreTrainedConfig, **kwargs: Any) -> None:
        super().__init__(config.hidden_size, kernel_initializer=initializer(config), **kwargs)
        self.config, self.patch_size = config, to_pair(config.patch_size)

    def build(self, input_shape: Any) -> None:
        super().build((None, None, self.config.num_channels * self.patch_size[0] * self.patch_size[1]))
        self.input_spec = None  # that of patches; images come in

    def call(self, pixel_values: tf.Tensor, grid: tuple[int, int] | None = None) -> tf.Tensor:
        grid = grid_of(self.config, pixel_values) if grid is None else grid
        return super().call(cut(pixel_values, grid, self.patch_size))  # (B, N, D)


class DINOv3ViTEmbeddings(DinoEmbeddings):
    """As those of DINOv2 with registers, without positions."""

    patch_embeddings_class = DINOv3ViTPatchEmbeddings

    def build(self, input_shape: Any) -> None:
        width = self.config.hidden_size
        self._add("cls_token", (1, 1, width))
        self._add("mask_token", (1, 1, width))
        self._add("register_tokens", (1, self.config.num_register_tokens, width))
        self._add("position_embeddings", None)
        self.patch_embeddings.build(input_shape)


class DINOv3ViTRopePositionEmbedding(ViTKerasLayer):
    """The angles by which queries and keys are rotated; in training, the positions are moved at random."""

    config: DINOv3ViTConfig

    def __init__(self, config: DINOv3ViTConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.frequencies = frequencies(config.head_dim, config.rope_theta)
        self.seed_generator = keras.random.SeedGenerator()
        self.built = True

    def call(self, pixel_values: tf.Tensor, grid: tuple[int, int] | None = None, training: bool = False) -> tf.Tensor:
        """(2, T, D / H), as `rotate` takes them."""
        grid = grid_of(self.config, pixel_values) if grid is None else grid
        moved = self.moved if training else tf.identity
        return rotation(grid, self.config.prefix_tokens, self.frequencies, self.compute_dtype, moved)

    def moved(self, centres: tf.Tensor) -> tf.Tensor:
        """Where patches, (N, 2), are taken to be."""

        def draw(shape: tuple[int, ...], bound: float) -> tf.Tensor:
            return keras.random.uniform(shape, -1.0, 1.0, dtype=centres.dtype, seed=self.seed_generator) * bound

        return self.config.moved(centres, draw, ops.exp)


class DINOv3ViTAttention(ViTSelfAttention):
    """Multi-head self-attention whose queries and keys are rotated (Su et al. 2021)."""

    projections = ("q_proj", "k_proj", "v_proj")
    dropout_key = "attention_dropout"

    def __init__(self, config: DINOv3ViTConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.o_proj = dense(config, config.hidden_size, "o_proj", use_bias=config.proj_bias, **self.options)

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self.o_proj.build((None, None, self.config.hidden_size))

    def call(
        self, hidden_states: tf.Tensor, output_attentions: bool = False, bias: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, ...]:
        context, *attentions = super().call(hidden_states, output_attentions, bias)
        return linear(self.o_proj, context), *attentions

    def place(
        self, query: tf.Tensor, key: tf.Tensor, bias: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
        assert bias is not None, "The encoder gives each layer the angles."
        return rotate(query, bias), rotate(key, bias), None


class DINOv3ViTMLP(DinoMLP):
    """The MLP of a layer."""

    projections = ("up_proj", "down_proj")


class DINOv3ViTGatedMLP(ViTKerasLayer):
    """The gated MLP of a layer (Shazeer 2020)."""

    def __init__(self, config: DINOv3ViTConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        options = {"use_bias": config.mlp_bias, **self.options}
        self.gate_proj = dense(config, config.intermediate_size, "gate_proj", **options)
        self.up_proj = dense(config, config.intermediate_size, "up_proj", **options)
        self.down_proj = dense(config, config.hidden_size, "down_proj", **options)
        self.activation = config.hidden_act

    def build(self, input_shape: Any) -> None:
        self.gate_proj.build((None, None, self.config.hidden_size))
        self.up_proj.build((None, None, self.config.hidden_size))
        self.down_proj.build((None, None, self.config.intermediate_size))

    def call(self, hidden_states: tf.Tensor) -> tf.Tensor:
        gate, value = (linear(layer, hidden_states) for layer in (self.gate_proj, self.up_proj))
        return linear(self.down_proj, ACTIVATIONS[self.activation](gate) * value)


class DINOv3ViTLayer(DinoLayer):
    """One pre-norm encoder layer: attention and MLP, each scaled, with a residual."""

    attention_class = DINOv3ViTAttention
    mlp_classes = (DINOv3ViTMLP, DINOv3ViTGatedMLP)


@keras.saving.register_keras_serializable("trivit")
class TFDINOv3ViTModel(TFDinoModel):
    """DINOv3's ViT (Simeoni et al. 2025; transformers' DINOv3ViTModel)."""

    config_class: ClassVar[type[DINOv3ViTConfig]] = DINOv3ViTConfig
    config: DINOv3ViTConfig

    def __init__(self, config: DINOv3ViTConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.embeddings = DINOv3ViTEmbeddings(config, name="embeddings", **self.options)
        self.rope_embeddings = DINOv3ViTRopePositionEmbedding(config, name="rope_embeddings", **self.options)
        self.layer = [
            DINOv3ViTLayer(config, drop_path_rate=rate, name=f"layer_{i}", **self.options)
            for i, rate in enumerate(config.drop_path_rates)
        ]
        self.norm = layer_norm(config, "norm", **self.options)
        self.gradient_checkpointing = False
        self.maybe_build()

    def build(self, input_shape: Any) -> None:
        self.embeddings.build(input_shape)
        for layer in self.layer:
            layer.build((None, None, self.config.hidden_size))
        self.norm.build((None, None, self.config.hidden_size))

    def encode(
        self,
        pixel_values: tf.Tensor,
        grid: tuple[int, int],
        mask: tf.Tensor | None,
        wanted: tuple[bool, bool],
        training: bool | None,
    ) -> Any:
        angles = self.rope_embeddings(pixel_values, grid=grid)
        hidden_states, *others = encode(
            self.layer,
            self.embeddings(pixel_values, grid=grid, bool_masked_pos=mask),
            *wanted,
            biases=lambda layer: angles,
            recompute=self.gradient_checkpointing and training,
        )
        return self.norm(hidden_states), *others
