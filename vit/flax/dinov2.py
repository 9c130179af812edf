"""DINOv2, without and with registers, and its heads in Flax NNX.

Side by side with vit/pt/dinov2.py and vit/tf/dinov2.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from ..families.dinov2 import Dinov2Config, Dinov2WithRegistersConfig
from ..outputs import ModelOutput
from .dino import DinoEmbeddings, DinoLayer, DinoMLP, FlaxDinoModel
from .heads import FlaxImageClassifier
from .layers import ViTEncoder, dense
from .norm import layer_norm
from .pretrained import FlaxPreTrainedModel


class FlaxDinov2PreTrainedModel(FlaxPreTrainedModel):
    """What the classes of this family are."""

    config_class: ClassVar[type[Dinov2Config]] = Dinov2Config
    config: Dinov2Config


class Dinov2SwiGLUFFN(nnx.Module):
    """The gated MLP of a layer (Shazeer 2020)."""

    def __init__(self, config: Dinov2Config, **options: Any) -> None:
        self.weights_in = dense(config, config.hidden_size, 2 * config.intermediate_size, **options)
        self.weights_out = dense(config, config.intermediate_size, config.hidden_size, **options)

    def __call__(self, hidden_states: Array) -> Array:
        gate, value = jnp.split(self.weights_in(hidden_states), 2, axis=-1)
        return self.weights_out(jax.nn.silu(gate) * value)


class Dinov2Layer(DinoLayer):
    """One pre-norm encoder layer: attention and MLP, each scaled, with a residual."""

    mlp_classes = (DinoMLP, Dinov2SwiGLUFFN)


class Dinov2Encoder(ViTEncoder):
    """The stack of encoder layers."""

    layer_class = Dinov2Layer


class FlaxDinov2Model(FlaxDinoModel):
    """DINOv2 without a head (Oquab et al. 2024; transformers' Dinov2Model).

    Args:
        config: its shape.
        dtype: of the computation; None for that of the parameters.
        param_dtype: of the parameters.
        rngs: of the initial values.
    """

    config_class: ClassVar[type[Dinov2Config]] = Dinov2Config
    config: Dinov2Config

    def __init__(
        self,
        config: Dinov2Config,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(config, param_dtype if dtype is None else dtype)
        self.embeddings = DinoEmbeddings(config, **options)
        self.encoder = Dinov2Encoder(config, **options)
        self.layernorm = layer_norm(config, **options)


class FlaxDinov2ForImageClassification(FlaxDinov2PreTrainedModel, FlaxImageClassifier):
    """DINOv2 with a linear head on CLS and the mean of the patches (transformers' Dinov2ForImageClassification)."""

    base_class = FlaxDinov2Model

    def pooled(self, outputs: ModelOutput) -> Array:
        patches = outputs["last_hidden_state"][:, self.config.prefix_tokens :]
        return jnp.concatenate([outputs["pooler_output"], patches.mean(axis=1)], axis=1)


class FlaxDinov2WithRegistersModel(FlaxDinov2Model):
    """DINOv2 with registers (Darcet et al. 2024; transformers' Dinov2WithRegistersModel)."""

    config_class = Dinov2WithRegistersConfig


class FlaxDinov2WithRegistersForImageClassification(FlaxDinov2ForImageClassification):
    """DINOv2 with registers and a linear head (transformers' Dinov2WithRegistersForImageClassification)."""

    config_class = Dinov2WithRegistersConfig
    base_class = FlaxDinov2WithRegistersModel
