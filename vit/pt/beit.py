"""BeitModel and its heads in PyTorch.

Side by side with vit/tf/beit.py and vit/flax/beit.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..families.beit import BeitConfig
from ..outputs import ModelOutput, collect
from .attention import RelativePositionBias, relative_position_index
from .base import BaseModel
from .heads import HeadedModel, ImageClassifier
from .layers import ViTEmbeddings, ViTEncoder
from .linear import linear
from .loss import visual_token_loss
from .pretrained import PreTrainedModel


class BeitEncoder(ViTEncoder):
    """The stack of encoder layers, with the tables of their relative position biases."""

    def __init__(self, config: BeitConfig) -> None:
        super().__init__(config)
        self.config = config
        shared = config.use_shared_relative_position_bias
        self.relative_position_bias = RelativePositionBias(config) if shared else None
        if config.use_relative_position_bias:
            for layer in self.layer:
                layer.attention.attention.relative_position_bias = RelativePositionBias(config)

    def forward(  # type: ignore[override]  # its biases follow from the grid
        self, hidden_states: Tensor, output_hidden_states: bool, output_attentions: bool, grid: tuple[int, int]
    ) -> tuple[Tensor, tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
        config = self.config
        if not (config.use_relative_position_bias or config.use_shared_relative_position_bias):
            return super().forward(hidden_states, output_hidden_states, output_attentions)
        index = relative_position_index(grid, hidden_states.device)
        shared = None if self.relative_position_bias is None else self.relative_position_bias(index, grid)

        def bias(layer: int) -> Any:
            if not config.use_relative_position_bias:
                return shared
            own = self.layer[layer].attention.attention.relative_position_bias(index, grid)
            return own if shared is None else own + shared

        return super().forward(hidden_states, output_hidden_states, output_attentions, bias)


class BeitPooler(nn.Module):
    """The normalised mean of the patches, or the CLS token."""

    def __init__(self, config: BeitConfig) -> None:
        super().__init__()
        norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.use_mean_pooling else None
        self.layernorm = norm

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states[:, 0] if self.layernorm is None else self.layernorm(hidden_states[:, 1:].mean(1))


class BeitPreTrainedModel(PreTrainedModel):
    """What the classes of this family are."""

    config_class = BeitConfig
    config: BeitConfig


class BeitModel(BeitPreTrainedModel, BaseModel):
    """BEiT without a head (Bao et al. 2022; transformers' BeitModel). It takes images of any size.

    Its last_hidden_state is normalised unless `config.use_mean_pooling`.

    Args:
        config: its shape.
        add_pooling_layer: give it a pooler.
    """

    def __init__(self, config: BeitConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = ViTEmbeddings(config, use_mask_token=config.use_mask_token)
        self.encoder = BeitEncoder(config)
        norm = None if config.use_mean_pooling else nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layernorm = norm
        self.pooler = BeitPooler(config) if add_pooling_layer else None
        self.init_weights(self, "beit")

    def encode(
        self, pixel_values: Tensor, grid: tuple[int, int], mask: Tensor | None, wanted: tuple[bool, bool]
    ) -> Any:
        hidden_states, *others = self.encoder(self.embeddings(pixel_values, grid, mask), *wanted, grid)
        return hidden_states if self.layernorm is None else self.layernorm(hidden_states), *others


class BeitForImageClassification(BeitPreTrainedModel, ImageClassifier):
    """BEiT with a linear head on what its pooler gives (transformers' BeitForImageClassification)."""

    base_class = BeitModel

    def pooled(self, outputs: ModelOutput) -> Tensor:
        return outputs["pooler_output"]


class BeitForMaskedImageModeling(BeitPreTrainedModel, HeadedModel):
    """BEiT with a linear head that predicts the visual token of each patch (Bao et al. 2022, Section 2.3)."""

    head = "lm_head"
    base_class = BeitModel
    accepts_loss_kwargs = True

    def add_head(self, config: BeitConfig) -> None:
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        *,
        num_items_in_batch: Tensor | int | None = None,
    ) -> ModelOutput | tuple[Tensor, ...]:
        """Predict visual tokens; the other arguments are those of `BeitModel`.

        Args:
            labels: (masked patches,), the visual token of each, image after image; -100 for one that is left out.
            num_items_in_batch: number of labels of all batches whose gradients are added up; divides the loss instead
                of this one's.

        Returns:
            loss, a scalar, if labels are given; logits (batch, patches, vocab_size) of all patches; hidden_states and
            attentions as `BeitModel`.

        Raises:
            InputError: inputs of another shape, labels out of range, or another number of them than of masked patches.
        """
        outputs: Any = self._base()(
            pixel_values,
            bool_masked_pos=bool_masked_pos,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        logits = linear(self.lm_head, self.layernorm(outputs["last_hidden_state"])[:, 1:].contiguous())
        return collect(
            self.config.return_dict if return_dict is None else return_dict,
            loss=None if labels is None else visual_token_loss(
                logits, labels, bool_masked_pos, num_items_in_batch),
            logits=logits,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )  # fmt: skip
