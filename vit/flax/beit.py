"""BeitModel and its heads in Flax NNX.

Side by side with vit/pt/beit.py and vit/tf/beit.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from ..families.beit import BeitConfig
from ..outputs import ModelOutput, collect
from .attention import RelativePositionBias
from .base import FlaxBaseModel
from .eager import call
from .heads import FlaxHeadedModel, FlaxImageClassifier
from .layers import ViTEmbeddings, ViTEncoder, dense
from .loss import visual_token_loss
from .norm import layer_norm
from .pretrained import FlaxPreTrainedModel


class BeitEncoder(ViTEncoder):
    """The stack of encoder layers, with the tables of their relative position biases."""

    def __init__(self, config: BeitConfig, **options: Any) -> None:
        super().__init__(config, **options)
        self.config = config
        shared = config.use_shared_relative_position_bias
        self.relative_position_bias = RelativePositionBias(config, **options) if shared else None
        if config.use_relative_position_bias:
            for layer in self.layer:
                layer.attention.attention.relative_position_bias = RelativePositionBias(config, **options)

    def __call__(  # type: ignore[override]  # its biases follow from the grid
        self,
        hidden_states: Array,
        output_hidden_states: bool,
        output_attentions: bool,
        grid: tuple[int, int],
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Array, tuple[Array, ...] | None, tuple[Array, ...] | None]:
        config = self.config
        if not (config.use_relative_position_bias or config.use_shared_relative_position_bias):
            return super().__call__(hidden_states, output_hidden_states, output_attentions, rngs)
        shared = None if self.relative_position_bias is None else call(self.relative_position_bias, grid)

        def bias(layer: int) -> Any:
            if not config.use_relative_position_bias:
                return shared
            own = call(self.layer[layer].attention.attention.relative_position_bias, grid)
            return own if shared is None else own + shared

        return super().__call__(hidden_states, output_hidden_states, output_attentions, rngs, bias)


class BeitPooler(nnx.Module):
    """The normalised mean of the patches, or the CLS token."""

    def __init__(self, config: BeitConfig, **options: Any) -> None:
        self.layernorm = layer_norm(config, **options) if config.use_mean_pooling else None

    def __call__(self, hidden_states: Array) -> Array:
        return hidden_states[:, 0] if self.layernorm is None else self.layernorm(hidden_states[:, 1:].mean(1))


class FlaxBeitPreTrainedModel(FlaxPreTrainedModel):
    """What the classes of this family are."""

    config_class = BeitConfig
    config: BeitConfig


class FlaxBeitModel(FlaxBeitPreTrainedModel, FlaxBaseModel):
    """BEiT without a head (Bao et al. 2022; transformers' FlaxBeitModel). It takes images of any size.

    Its last_hidden_state is normalised unless `config.use_mean_pooling`.

    Args:
        config: its shape.
        add_pooling_layer: give it a pooler.
        dtype: of the computation; None for that of the parameters.
        param_dtype: of the parameters.
        rngs: of the initial values.
    """

    def __init__(
        self,
        config: BeitConfig,
        add_pooling_layer: bool = True,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(config, param_dtype if dtype is None else dtype)
        self.embeddings = ViTEmbeddings(config, use_mask_token=config.use_mask_token, **options)
        self.encoder = BeitEncoder(config, **options)
        self.layernorm = None if config.use_mean_pooling else layer_norm(config, **options)
        self.pooler = BeitPooler(config, **options) if add_pooling_layer else None

    def encode(
        self,
        pixel_values: Array,
        grid: tuple[int, int],
        mask: Array | None,
        wanted: tuple[bool, bool],
        rngs: nnx.Rngs | None,
    ) -> Any:
        embedded = call(self.embeddings, pixel_values, grid, mask, rngs)
        hidden_states, *others = self.encoder(embedded, *wanted, grid, rngs)
        return hidden_states if self.layernorm is None else call(self.layernorm, hidden_states), *others


class FlaxBeitForImageClassification(FlaxBeitPreTrainedModel, FlaxImageClassifier):
    """BEiT with a linear head on what its pooler gives (transformers' FlaxBeitForImageClassification)."""

    base_class = FlaxBeitModel

    def pooled(self, outputs: ModelOutput) -> Array:
        return outputs["pooler_output"]


class FlaxBeitForMaskedImageModeling(FlaxBeitPreTrainedModel, FlaxHeadedModel):
    """BEiT with a linear head that predicts the visual token of each patch (Bao et al. 2022, Section 2.3)."""

    head = "lm_head"
    base_class = FlaxBeitModel

    def add_head(self, config: BeitConfig, **options: Any) -> None:
        self.layernorm = layer_norm(config, **options)
        self.lm_head = dense(config, config.hidden_size, config.vocab_size, **options)

    def __call__(
        self,
        pixel_values: Array,
        bool_masked_pos: Array | None = None,
        labels: Array | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> ModelOutput | tuple[Array, ...]:
        """Predict visual tokens; the other arguments are those of `FlaxBeitModel`.

        Args:
            labels: (masked patches,), the visual token of each, image after image; -100 for one that is left out.

        Returns:
            loss, a scalar, if labels are given; logits (batch, patches, vocab_size) of all patches; hidden_states and
            attentions as `FlaxBeitModel`.

        Raises:
            InputError: inputs of another shape, labels out of range, or another number of them than of masked patches.
        """
        outputs: Any = self._base()(
            pixel_values,
            bool_masked_pos=bool_masked_pos,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            rngs=rngs,
        )
        logits = call(self.lm_head, call(self.layernorm, outputs["last_hidden_state"])[:, 1:])
        return collect(
            self.config.return_dict if return_dict is None else return_dict,
            loss=None if labels is None else visual_token_loss(logits, labels, bool_masked_pos),
            logits=logits,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )
