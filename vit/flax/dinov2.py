"""DINOv2, without and with registers, and its heads in Flax NNX.

Side by side with vit/pt/dinov2.py and vit/tf/dinov2.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from ..families.dinov2 import Dinov2Config, Dinov2WithRegistersConfig
from ..inputs import check_arrays, check_bool_masked_pos, check_pixel_values
from ..outputs import ModelOutput, collect
from .eager import call, first_token
from .layers import ACTIVATIONS, DropPath, ViTAttention, ViTEmbeddings, ViTEncoder, dense, initializer, residual
from .loss import classification_loss
from .norm import layer_norm
from .pretrained import FlaxPreTrainedModel


class FlaxDinov2PreTrainedModel(FlaxPreTrainedModel):
    """What the classes of this family are."""

    config_class: ClassVar[type[Dinov2Config]] = Dinov2Config
    config: Dinov2Config


class Dinov2Embeddings(ViTEmbeddings):
    """As those of ViT, with registers, which have no positions, behind the CLS token (Darcet et al. 2024)."""

    def __init__(self, config: Dinov2Config, **options: Any) -> None:
        super().__init__(config, config.use_mask_token, **options)
        rngs, dtype, width = options["rngs"], options["param_dtype"], config.hidden_size
        if config.use_mask_token:
            self.mask_token = nnx.Param(jnp.zeros((1, width), dtype))
        registers = initializer(config)(rngs.params(), (1, config.num_register_tokens, width), dtype)
        self.register_tokens: Any = nnx.Param(registers) if config.num_register_tokens else None

    def __call__(
        self,
        pixel_values: Array,
        grid: tuple[int, int],
        bool_masked_pos: Array | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Array:
        hidden_states = super().__call__(pixel_values, grid, bool_masked_pos, rngs)
        if self.register_tokens is None:
            return hidden_states
        registers = self.register_tokens[...].astype(hidden_states.dtype)
        registers = self.dropout(jnp.zeros_like(hidden_states[:, :1]) + registers, rngs=rngs)  # sharded as the patches
        return jnp.concatenate([hidden_states[:, :1], registers, hidden_states[:, 1:]], axis=1)


class Dinov2LayerScale(nnx.Module):
    """A factor for each channel of a branch (Touvron et al. 2021, Section 2.1)."""

    def __init__(self, config: Dinov2Config, **options: Any) -> None:
        self.lambda1 = nnx.Param(jnp.full(config.hidden_size, config.layerscale_value, options["param_dtype"]))


class Dinov2MLP(nnx.Module):
    """The MLP of a layer."""

    def __init__(self, config: Dinov2Config, **options: Any) -> None:
        self.fc1 = dense(config, config.hidden_size, config.intermediate_size, **options)
        self.fc2 = dense(config, config.intermediate_size, config.hidden_size, **options)
        self.activation = config.hidden_act

    def __call__(self, hidden_states: Array) -> Array:
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(hidden_states)))


class Dinov2SwiGLUFFN(nnx.Module):
    """The gated MLP of a layer (Shazeer 2020)."""

    def __init__(self, config: Dinov2Config, **options: Any) -> None:
        self.weights_in = dense(config, config.hidden_size, 2 * config.intermediate_size, **options)
        self.weights_out = dense(config, config.intermediate_size, config.hidden_size, **options)

    def __call__(self, hidden_states: Array) -> Array:
        gate, value = jnp.split(self.weights_in(hidden_states), 2, axis=-1)
        return self.weights_out(jax.nn.silu(gate) * value)


class Dinov2Layer(nnx.Module):
    """One pre-norm encoder layer: attention and MLP, each scaled, with a residual."""

    def __init__(self, config: Dinov2Config, drop_path_rate: float = 0.0, **options: Any) -> None:
        self.norm1 = layer_norm(config, **options)
        self.attention = ViTAttention(config, **options)
        self.layer_scale1 = Dinov2LayerScale(config, **options)
        self.norm2 = layer_norm(config, **options)
        self.mlp = Dinov2SwiGLUFFN(config, **options) if config.use_swiglu_ffn else Dinov2MLP(config, **options)
        self.layer_scale2 = Dinov2LayerScale(config, **options)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else None

    def __call__(
        self,
        hidden_states: Array,
        output_attentions: bool = False,
        rngs: nnx.Rngs | None = None,
        bias: Array | None = None,
    ) -> tuple[Array, Array | None]:
        context, attentions = self.attention(self.norm1(hidden_states), output_attentions, rngs, bias)
        hidden_states = residual(hidden_states, context, self.layer_scale1.lambda1, self.drop_path, rngs)
        mlp = self.mlp(self.norm2(hidden_states))
        return residual(hidden_states, mlp, self.layer_scale2.lambda1, self.drop_path, rngs), attentions


class Dinov2Encoder(ViTEncoder):
    """The stack of encoder layers."""

    layer_class = Dinov2Layer


class FlaxDinov2Model(FlaxDinov2PreTrainedModel):
    """DINOv2 without a head (Oquab et al. 2024; transformers' Dinov2Model).

    Args:
        config: its shape.
        dtype: of the computation; None for that of the parameters.
        param_dtype: of the parameters.
        rngs: of the initial values.
    """

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
        self.embeddings = Dinov2Embeddings(config, **options)
        self.encoder = Dinov2Encoder(config, **options)
        self.layernorm = layer_norm(config, **options)

    def __call__(
        self,
        pixel_values: Array,
        bool_masked_pos: Array | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> ModelOutput | tuple[Array, ...]:
        """Encode images of any size.

        Args:
            pixel_values: (batch, channels, height, width), float, as the image processor gives them.
            bool_masked_pos: (batch, patches), true where a patch is replaced by the mask token.
            output_hidden_states: also return the embeddings and every layer's output.
            output_attentions: also return every layer's attention probabilities.
            return_dict: False for a tuple. None takes this and the two above from the configuration.
            rngs: of dropout and stochastic depth, for a model in train mode whose configuration has some.

        Returns:
            last_hidden_state (batch, tokens, hidden_size), of CLS, the registers if there are any, and the patches;
            pooler_output (batch, hidden_size), that of CLS; hidden_states, num_hidden_layers + 1 of (batch, tokens,
            hidden_size); attentions, num_hidden_layers of (batch, heads, tokens, tokens).

        Raises:
            InputError: inputs of another shape.
        """
        config = self.config
        check_arrays(pixel_values=pixel_values, bool_masked_pos=bool_masked_pos)
        grid = check_pixel_values(config, np.shape(pixel_values), interpolate_pos_encoding=True)
        if bool_masked_pos is not None:
            bool_masked_pos, patches = jnp.asarray(bool_masked_pos), grid[0] * grid[1]
            check_bool_masked_pos(bool_masked_pos.shape, np.shape(pixel_values)[0], patches, config.use_mask_token)
        pixel_values = jnp.asarray(pixel_values, self.dtype)
        hidden_states, all_hidden_states, all_attentions = self.encoder(
            call(self.embeddings, pixel_values, grid, bool_masked_pos, rngs),
            config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            config.output_attentions if output_attentions is None else output_attentions,
            rngs,
        )
        hidden_states = call(self.layernorm, hidden_states)
        return collect(
            config.return_dict if return_dict is None else return_dict,
            last_hidden_state=hidden_states,
            pooler_output=first_token(hidden_states),
            hidden_states=all_hidden_states,
            attentions=all_attentions,
        )


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
