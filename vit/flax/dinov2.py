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
from ..outputs import ModelOutput, collect
from .dino import DinoEmbeddings, DinoLayer, DinoMLP, FlaxDinoModel
from .eager import call
from .layers import ViTEncoder, dense
from .loss import classification_loss
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

    def encode(
        self,
        pixel_values: Array,
        grid: tuple[int, int],
        mask: Array | None,
        wanted: tuple[bool, bool],
        rngs: nnx.Rngs | None,
    ) -> Any:
        hidden_states, *others = self.encoder(call(self.embeddings, pixel_values, grid, mask, rngs), *wanted, rngs)
        return call(self.layernorm, hidden_states), *others


class FlaxDinov2ForImageClassification(FlaxDinov2PreTrainedModel):
    """DINOv2 with a linear head on CLS and the mean of the patches (transformers' Dinov2ForImageClassification)."""

    head = "classifier"
    base_class: ClassVar[type[FlaxDinov2Model]] = FlaxDinov2Model

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
        setattr(self, config.base_model_prefix, self.base_class(config, **options))
        width, labels = 2 * config.hidden_size, config.num_labels
        self.classifier = dense(config, width, labels, **options) if labels else None

    def __call__(
        self,
        pixel_values: Array,
        labels: Array | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> ModelOutput | tuple[Array, ...]:
        """Classify images of any size.

        Args:
            labels: (batch,) integers for one label an image, (batch, num_labels) floats for several, or the targets
                of a regression; see `classification_loss`. The other arguments are those of `FlaxDinov2Model`.

        Returns:
            loss, a scalar, if labels are given; logits (batch, num_labels); hidden_states and attentions as
            `FlaxDinov2Model`.

        Raises:
            InputError: inputs of another shape, or labels out of range.
        """
        outputs: Any = self._base()(
            pixel_values,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            rngs=rngs,
        )
        patches = outputs["last_hidden_state"][:, self.config.prefix_tokens :]
        pooled = jnp.concatenate([outputs["pooler_output"], patches.mean(axis=1)], axis=1)
        logits = pooled if self.classifier is None else call(self.classifier, pooled)
        return collect(
            self.config.return_dict if return_dict is None else return_dict,
            loss=None if labels is None else classification_loss(self.config, logits, labels),
            logits=logits,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )


class FlaxDinov2WithRegistersModel(FlaxDinov2Model):
    """DINOv2 with registers (Darcet et al. 2024; transformers' Dinov2WithRegistersModel)."""

    config_class = Dinov2WithRegistersConfig


class FlaxDinov2WithRegistersForImageClassification(FlaxDinov2ForImageClassification):
    """DINOv2 with registers and a linear head (transformers' Dinov2WithRegistersForImageClassification)."""

    config_class = Dinov2WithRegistersConfig
    base_class = FlaxDinov2WithRegistersModel
