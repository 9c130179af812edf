"""DINOv2, without and with registers, and its heads in PyTorch.

Side by side with vit/tf/dinov2.py and vit/flax/dinov2.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..families.dinov2 import Dinov2Config, Dinov2WithRegistersConfig
from ..inputs import check_bool_masked_pos, check_pixel_values, check_tensors
from ..outputs import ModelOutput, collect
from .layers import DropPath, ViTAttention, ViTEmbeddings, ViTEncoder, residual
from .linear import keep_freed_memory, linear, takes_kernels
from .loss import classification_loss
from .pretrained import PreTrainedModel


class Dinov2PreTrainedModel(PreTrainedModel):
    """What the classes of this family are."""

    config_class: ClassVar[type[Dinov2Config]] = Dinov2Config
    config: Dinov2Config


class Dinov2Embeddings(ViTEmbeddings):
    """As those of ViT, with registers, which have no positions, behind the CLS token (Darcet et al. 2024)."""

    def __init__(self, config: Dinov2Config) -> None:
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


class Dinov2LayerScale(nn.Module):
    """A factor for each channel of a branch (Touvron et al. 2021, Section 2.1)."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.empty(config.hidden_size))


class Dinov2MLP(nn.Module):
    """The MLP of a layer."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = config.hidden_act

    def forward(self, hidden_states: Tensor) -> Tensor:
        return linear(self.fc2, linear(self.fc1, hidden_states, self.activation))


class Dinov2SwiGLUFFN(nn.Module):
    """The gated MLP of a layer (Shazeer 2020)."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.weights_in = nn.Linear(config.hidden_size, 2 * config.intermediate_size)
        self.weights_out = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        gate, value = linear(self.weights_in, hidden_states).chunk(2, dim=-1)
        return linear(self.weights_out, F.silu(gate) * value)


class Dinov2Layer(nn.Module):
    """One pre-norm encoder layer: attention and MLP, each scaled, with a residual."""

    def __init__(self, config: Dinov2Config, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = ViTAttention(config)
        self.layer_scale1 = Dinov2LayerScale(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Dinov2SwiGLUFFN(config) if config.use_swiglu_ffn else Dinov2MLP(config)
        self.layer_scale2 = Dinov2LayerScale(config)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else None

    def forward(
        self, hidden_states: Tensor, output_attentions: bool = False, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        context, attentions = self.attention(self.norm1(hidden_states), output_attentions, bias)
        hidden_states = residual(hidden_states, context, self.layer_scale1.lambda1, self.drop_path)
        mlp = self.mlp(self.norm2(hidden_states))
        return residual(hidden_states, mlp, self.layer_scale2.lambda1, self.drop_path), attentions


class Dinov2Encoder(ViTEncoder):
    """The stack of encoder layers."""

    layer_class = Dinov2Layer


class Dinov2Model(Dinov2PreTrainedModel):
    """DINOv2 without a head (Oquab et al. 2024; transformers' Dinov2Model)."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__(config)
        self.embeddings = Dinov2Embeddings(config)
        self.encoder = Dinov2Encoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.init_weights(self, config.base_model_prefix)

    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> ModelOutput | tuple[Tensor, ...]:
        """Encode images of any size.

        Args:
            pixel_values: (batch, channels, height, width), float, as the image processor gives them.
            bool_masked_pos: (batch, patches), true where a patch is replaced by the mask token.
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
        check_tensors(Tensor, pixel_values=pixel_values, bool_masked_pos=bool_masked_pos)
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
        )
        hidden_states = self.layernorm(hidden_states)
        return collect(
            config.return_dict if return_dict is None else return_dict,
            last_hidden_state=hidden_states,
            pooler_output=hidden_states[:, 0],
            hidden_states=all_hidden_states,
            attentions=all_attentions,
        )


class Dinov2ForImageClassification(Dinov2PreTrainedModel):
    """DINOv2 with a linear head on CLS and the mean of the patches (transformers' Dinov2ForImageClassification)."""

    head = "classifier"
    base_class: ClassVar[type[Dinov2Model]] = Dinov2Model

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__(config)
        setattr(self, config.base_model_prefix, self.base_class(config))
        self.classifier = nn.Linear(2 * config.hidden_size, config.num_labels) if config.num_labels else nn.Identity()
        self.init_weights(self.classifier, "classifier")

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> ModelOutput | tuple[Tensor, ...]:
        """Classify images of any size.

        Args:
            labels: (batch,) integers for one label an image, (batch, num_labels) floats for several, or the targets
                of a regression; see `classification_loss`. The other arguments are those of `Dinov2Model`.

        Returns:
            loss, a scalar, if labels are given; logits (batch, num_labels); hidden_states and attentions as
            `Dinov2Model`.

        Raises:
            InputError: inputs of another shape, or labels out of range.
        """
        outputs: Any = self._base()(
            pixel_values,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        patches = outputs["last_hidden_state"][:, self.config.prefix_tokens :]
        logits = self.classifier(torch.cat([outputs["pooler_output"], patches.mean(dim=1)], dim=1))
        return collect(
            self.config.return_dict if return_dict is None else return_dict,
            loss=None if labels is None else classification_loss(self.config, logits, labels),
            logits=logits,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )


class Dinov2WithRegistersModel(Dinov2Model):
    """DINOv2 with registers (Darcet et al. 2024; transformers' Dinov2WithRegistersModel)."""

    config_class = Dinov2WithRegistersConfig


class Dinov2WithRegistersForImageClassification(Dinov2ForImageClassification):
    """DINOv2 with registers and a linear head (transformers' Dinov2WithRegistersForImageClassification)."""

    config_class = Dinov2WithRegistersConfig
    base_class = Dinov2WithRegistersModel
