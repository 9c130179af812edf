"""The heads on a model in PyTorch: what those of several families share, and the decoders to pixels.

Side by side with vit/tf/heads.py and vit/flax/heads.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import PreTrainedConfig, to_pair
from ..families.mae import ViTMAEConfig
from ..inputs import check_pixel_values
from ..outputs import ModelOutput, collect
from .layers import ViTLayer
from .linear import linear
from .loss import classification_loss, reconstruction_loss
from .posemb import interpolate
from .pretrained import PreTrainedModel


class HeadedModel(PreTrainedModel):
    """A base model, at the attribute that its configuration names, and the head that `add_head` puts on it."""

    base_class: ClassVar[type[PreTrainedModel]]
    config: Any

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        config.check_head(self.head)
        setattr(self, config.base_model_prefix, self.base_class(config, **config.heads[self.head].parts))
        self.add_head(config)
        for name, module in self.named_children():
            if name != config.base_model_prefix:
                self.init_weights(module, name)

    def add_head(self, config: Any) -> None:
        """Make the head's modules."""
        raise NotImplementedError


class ImageClassifier(HeadedModel):
    """A base model with a linear head on what `pooled` gives, the CLS token."""

    head = "classifier"
    accepts_loss_kwargs = True
    loss_function: Callable[..., Tensor] = staticmethod(classification_loss)

    def add_head(self, config: Any) -> None:
        width, labels = config.classifier_size, config.num_labels
        self.classifier = nn.Linear(width, labels) if labels else nn.Identity()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        *,
        num_items_in_batch: Tensor | int | None = None,
    ) -> ModelOutput | tuple[Tensor, ...]:
        """Classify images.

        Args:
            labels: (batch,) integers for one label an image, (batch, num_labels) floats for several, or the targets
                of a regression; see `classification_loss`, which is `loss_function` until another is assigned.
            num_items_in_batch: passed on to it. The other arguments are those of the base model.

        Returns:
            loss, a scalar, if labels are given; logits (batch, num_labels); hidden_states and attentions as the base
            model.

        Raises:
            InputError: inputs of another shape, or labels out of range.
        """
        outputs: Any = self._base()(
            pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        logits = self.classifier(self.pooled(outputs))
        options = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
        return collect(
            self.config.return_dict if return_dict is None else return_dict,
            loss=None if labels is None else self.loss_function(labels, logits, self.config, **options),
            logits=logits,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )

    def pooled(self, outputs: ModelOutput) -> Tensor:
        """What is classified: (batch, classifier_size), of the outputs of the base model."""
        return outputs["last_hidden_state"][:, 0]


class PatchReconstructor(HeadedModel):
    """A base model with a linear decoder of its patches to pixels (Xie et al. 2022, SimMIM)."""

    head = "decoder"

    def add_head(self, config: Any) -> None:
        height, width = to_pair(config.encoder_stride)
        # A list of one, because the published name of the layer is "decoder.0".
        self.decoder = nn.ModuleList([nn.Conv2d(config.hidden_size, height * width * config.num_channels, 1)])

    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> ModelOutput | tuple[Tensor, ...]:
        """Reconstruct masked images; the arguments are those of `ViTModel`.

        Returns:
            loss, a scalar, if `bool_masked_pos` is given; reconstruction (batch, channels, height, width);
            hidden_states and attentions as `ViTModel`.

        Raises:
            InputError: inputs of another shape.
        """
        outputs: Any = self._base()(
            pixel_values,
            bool_masked_pos=bool_masked_pos,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        grid = check_pixel_values(self.config, pixel_values.shape, interpolate_pos_encoding)
        patches = (
            outputs["last_hidden_state"][:, self.config.prefix_tokens :].transpose(1, 2).unflatten(2, grid)
        )  # (B, D, rows, columns)
        reconstruction = self.unpatchify(self.decoder[0](patches))
        return collect(
            self.config.return_dict if return_dict is None else return_dict,
            loss=None if bool_masked_pos is None else reconstruction_loss(
                self.config, pixel_values, reconstruction, bool_masked_pos, grid),
            reconstruction=reconstruction,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )  # fmt: skip

    def unpatchify(self, patches: Tensor) -> Tensor:
        """(B, C * height * width of a patch, rows, columns) -> (B, C, height, width)."""
        batch, _, rows, columns = patches.shape
        height, width = to_pair(self.config.encoder_stride)
        patches = patches.reshape(batch, self.config.num_channels, height, width, rows, columns)
        return patches.permute(0, 1, 4, 2, 5, 3).reshape(batch, -1, rows * height, columns * width)


class ViTMAEDecoder(nn.Module):
    """From the tokens of the encoder to the pixels of every patch (He et al. 2022, Section 3)."""

    def __init__(self, config: ViTMAEConfig) -> None:
        super().__init__()
        self.config, decoder = config, config.decoder_config()
        width = decoder.hidden_size
        self.decoder_embed = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        positions = torch.empty(1, config.num_patches + 1, width)
        self.decoder_pos_embed = nn.Parameter(positions, requires_grad=False)
        self.decoder_layers = nn.ModuleList(ViTLayer(decoder) for _ in range(decoder.num_hidden_layers))
        self.decoder_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.decoder_pred = nn.Linear(width, config.patch_values)

    def forward(
        self, hidden_states: Tensor, ids_restore: Tensor, grid: tuple[int, int], checkpointing: dict[str, Any] | None
    ) -> Tensor:
        hidden_states = linear(self.decoder_embed, hidden_states)
        (batch, patches), (_, tokens, width) = ids_restore.shape, hidden_states.shape
        mask_tokens = self.mask_token.expand(batch, patches + 1 - tokens, -1)
        shuffled = torch.cat([hidden_states[:, 1:], mask_tokens], dim=1)  # (B, N, E)
        restored = shuffled.gather(1, ids_restore[:, :, None].expand(-1, -1, width))
        positions = interpolate(self.decoder_pos_embed, *self.config.decoder_grids(grid))
        hidden_states = torch.cat([hidden_states[:, :1], restored], dim=1) + positions
        for layer in self.decoder_layers:
            run = layer if checkpointing is None or not self.training else partial(checkpoint, layer, **checkpointing)
            hidden_states, _ = run(hidden_states)
        return linear(self.decoder_pred, self.decoder_norm(hidden_states))[:, 1:]
