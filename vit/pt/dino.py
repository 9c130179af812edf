"""What DINOv2 and DINOv3 share in PyTorch, in the order of the computation.

Side by side with vit/tf/dino.py and vit/flax/dino.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config import PreTrainedConfig
from ..inputs import check_bool_masked_pos, check_pixel_values, check_tensors
from ..outputs import ModelOutput, collect
from .dropout import DropPath
from .layers import ViTAttention, ViTEmbeddings, residual
from .linear import keep_freed_memory, linear, takes_kernels
from .pretrained import PreTrainedModel


class DinoEmbeddings(ViTEmbeddings):
    """As those of ViT, with registers, which have no positions, behind the CLS token (Darcet et al. 2024)."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.mask_token = nn.Parameter(torch.empty(1, config.hidden_size)) if config.use_mask_token else None
        registers = torch.empty(1, config.num_register_tokens, config.hidden_size)
        self.register_tokens = nn.Parameter(registers) if config.num_register_tokens else None

    def forward(self, pixel_values: Tensor, grid: tuple[int, int], bool_masked_pos: Tensor | None = None) -> Tensor:
        hidden_states = super().forward(pixel_values, grid, bool_masked_pos)
        if self.register_tokens is None:
            return hidden_states
        registers = self.dropout(self.register_tokens.expand(hidden_states.shape[0], -1, -1))
        return torch.cat([hidden_states[:, :1], registers, hidden_states[:, 1:]], dim=1)


class DinoLayerScale(nn.Module):
    """A factor for each channel of a branch (Touvron et al. 2021, Section 2.1)."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.empty(config.hidden_size))


class DinoMLP(nn.Module):
    """The MLP of a layer."""

    projections: ClassVar[tuple[str, str]] = ("fc1", "fc2")

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        first, second = self.projections
        setattr(self, first, nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias))
        setattr(self, second, nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias))
        self.activation = config.hidden_act

    def forward(self, hidden_states: Tensor) -> Tensor:
        first, second = (getattr(self, name) for name in self.projections)
        return linear(second, linear(first, hidden_states, self.activation))


class DinoLayer(nn.Module):
    """One pre-norm encoder layer: attention and MLP, each scaled, with a residual."""

    attention_class: ClassVar[type[nn.Module]] = ViTAttention
    mlp_classes: ClassVar[tuple[type[nn.Module], ...]]  # plain and gated

    def __init__(self, config: PreTrainedConfig, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = self.attention_class(config)
        self.layer_scale1 = DinoLayerScale(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = self.mlp_classes[config.gated_mlp](config)
        self.layer_scale2 = DinoLayerScale(config)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else None

    def forward(
        self, hidden_states: Tensor, output_attentions: bool = False, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        context, attentions = self.attention(self.norm1(hidden_states), output_attentions, bias)
        hidden_states = residual(hidden_states, context, self.layer_scale1.lambda1, self.drop_path)
        mlp = self.mlp(self.norm2(hidden_states))
        return residual(hidden_states, mlp, self.layer_scale2.lambda1, self.drop_path), attentions


class DinoModel(PreTrainedModel):
    """A model without a head of DINOv2, or one that follows it: its call, around what `encode` computes."""

    config: Any
    embeddings: Any

    def encode(self, *inputs: Any) -> Any:
        """Images, their grid, the mask, and which of the last two are wanted -> tokens, hidden states, attentions."""
        raise NotImplementedError

    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> ModelOutput | tuple[Tensor, ...]:
        """Encode images of any size.

        Args:
            pixel_values: (batch, channels, height, width), float, as the image processor gives them.
            bool_masked_pos: (batch, patches), true where a patch is replaced by the mask token.
            interpolate_pos_encoding: changes nothing: positions are always fitted to the image.
            output_hidden_states: also return the embeddings and every layer's output.
            output_attentions: also return every layer's attention probabilities.
            return_dict: False for a tuple. None takes this and the two above from the configuration.

        Returns:
            last_hidden_state (batch, tokens, hidden_size), of CLS, the registers if there are any, and the patches;
            pooler_output (batch, hidden_size), that of CLS; hidden_states, num_hidden_layers + 1 of (batch, tokens,
            hidden_size); attentions, num_hidden_layers of (batch, heads, tokens, tokens).

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
        hidden_states, all_hidden_states, all_attentions = self.encode(
            pixel_values,
            grid,
            bool_masked_pos,
            (
                config.output_hidden_states if output_hidden_states is None else output_hidden_states,
                config.output_attentions if output_attentions is None else output_attentions,
            ),
        )
        return collect(
            config.return_dict if return_dict is None else return_dict,
            last_hidden_state=hidden_states,
            pooler_output=hidden_states[:, 0],
            hidden_states=all_hidden_states,
            attentions=all_attentions,
        )
