"""BeitModel and its heads in PyTorch.

Side by side with vit/tf/beit.py and vit/flax/beit.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..families.beit import BeitConfig
from ..inputs import check_bool_masked_pos, check_pixel_values, check_tensors
from ..outputs import ModelOutput, collect
from .attention import RelativePositionBias, relative_position_index
from .layers import ViTEmbeddings, ViTEncoder
from .linear import keep_freed_memory, linear, takes_kernels
from .loss import visual_token_loss
from .pretrained import PreTrainedModel
from .vit import ViTForImageClassification


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


class BeitModel(BeitPreTrainedModel):
    """BEiT without a head (Bao et al. 2022; transformers' BeitModel). It takes images of any size.

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

    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> ModelOutput | tuple[Tensor, ...]:
        """Encode images.

        Args:
            pixel_values: (batch, channels, height, width), float, as the image processor gives them.
            bool_masked_pos: (batch, patches), true where a patch is replaced by the mask token.
            interpolate_pos_encoding: changes nothing: tables and positions are always fitted to the image.
            output_hidden_states: also return the embeddings and every layer's output.
            output_attentions: also return every layer's attention probabilities.
            return_dict: False for a tuple. None takes this and the two above from the configuration.

        Returns:
            last_hidden_state (batch, tokens, hidden_size), normalised unless `config.use_mean_pooling`; pooler_output
            (batch, hidden_size); hidden_states, num_hidden_layers + 1 of (batch, tokens, hidden_size); attentions,
            num_hidden_layers of (batch, heads, tokens, tokens).

        Raises:
            InputError: inputs of another shape.
        """
        config = self.config
        check_tensors(Tensor, self.device, pixel_values=pixel_values, bool_masked_pos=bool_masked_pos)
        grid = check_pixel_values(config, pixel_values.shape, interpolate_pos_encoding=True)
        if bool_masked_pos is not None:
            patches = grid[0] * grid[1]
            check_bool_masked_pos(bool_masked_pos.shape, pixel_values.shape[0], patches, config.use_mask_token)
        pixel_values = pixel_values.to(self.dtype)
        if takes_kernels(pixel_values) and not torch.is_grad_enabled():
            keep_freed_memory()
        hidden_states, all_hidden_states, all_attentions = self.encoder(
            self.embeddings(pixel_values, grid, bool_masked_pos),
            config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            config.output_attentions if output_attentions is None else output_attentions,
            grid,
        )
        hidden_states = hidden_states if self.layernorm is None else self.layernorm(hidden_states)
        return collect(
            config.return_dict if return_dict is None else return_dict,
            last_hidden_state=hidden_states,
            pooler_output=None if self.pooler is None else self.pooler(hidden_states),
            hidden_states=all_hidden_states,
            attentions=all_attentions,
        )


class BeitForImageClassification(BeitPreTrainedModel, ViTForImageClassification):  # type: ignore[misc]  # config
    """BEiT with a linear head on what its pooler gives (transformers' BeitForImageClassification)."""

    base_class = BeitModel

    def pooled(self, outputs: ModelOutput) -> Tensor:
        return outputs["pooler_output"]


class BeitForMaskedImageModeling(BeitPreTrainedModel):
    """BEiT with a linear head that predicts the visual token of each patch (Bao et al. 2022, Section 2.3)."""

    head = "lm_head"
    accepts_loss_kwargs = True

    def __init__(self, config: BeitConfig) -> None:
        super().__init__(config)
        self.beit = BeitModel(config, add_pooling_layer=False)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.init_weights(self.layernorm, "layernorm")
        self.init_weights(self.lm_head, "lm_head")

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
        outputs: Any = self.beit(
            pixel_values,
            bool_masked_pos,
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
