"""MAE, the masked autoencoder, in PyTorch.

Side by side with vit/tf/mae.py and vit/flax/mae.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..families.mae import ViTMAEConfig
from ..inputs import check_patch_values, check_pixel_values, check_tensors
from ..outputs import ModelOutput, collect
from .heads import HeadedModel, ViTMAEDecoder
from .layers import ViTEmbeddings, ViTEncoder
from .linear import keep_freed_memory, takes_kernels
from .loss import masked_patch_loss, patchify, unpatchify
from .pretrained import PreTrainedModel


class ViTMAEPreTrainedModel(PreTrainedModel):
    """What the classes of this family are."""

    config_class = ViTMAEConfig
    config: ViTMAEConfig


class ViTMAEEmbeddings(ViTEmbeddings):
    """Patch tokens with their positions, a random part of them taken away, behind a CLS token."""

    config: ViTMAEConfig

    def __init__(self, config: ViTMAEConfig) -> None:
        super().__init__(config)
        self.position_embeddings.requires_grad = False

    def forward(  # type: ignore[override]
        self, pixel_values: Tensor, grid: tuple[int, int], ids_shuffle: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        positions = self.interpolated_position_embeddings(grid)
        hidden_states = self.patch_embeddings(pixel_values) + positions[:, 1:]  # (B, N, D)
        kept = self.config.kept(grid[0] * grid[1])
        ids_restore = ids_shuffle.argsort(dim=1)
        hidden_states = hidden_states.gather(1, ids_shuffle[:, :kept, None].expand(-1, -1, hidden_states.shape[2]))
        cls_token = (self.cls_token + positions[:, :1]).expand(hidden_states.shape[0], -1, -1)
        mask = (ids_restore >= kept).float()
        return self.dropout(torch.cat([cls_token, hidden_states], dim=1)), mask, ids_restore


class ViTMAEModel(ViTMAEPreTrainedModel):
    """The encoder of a masked autoencoder (He et al. 2022; transformers' ViTMAEModel)."""

    def __init__(self, config: ViTMAEConfig) -> None:
        super().__init__(config)
        self.embeddings = ViTMAEEmbeddings(config)
        self.encoder = ViTEncoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.init_weights(self, "vit")

    def forward(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> ModelOutput | tuple[Tensor, ...]:
        """Encode the patches of images that are not masked.

        Args:
            pixel_values: (batch, channels, height, width), float, as the image processor gives them.
            noise: (batch, patches): those with the smallest numbers are kept, in their order. None draws them.
            interpolate_pos_encoding: take images of another size than `config.image_size`.
            output_hidden_states: also return the embeddings and every layer's output.
            output_attentions: also return every layer's attention probabilities.
            return_dict: False for a tuple. None takes this and the two above from the configuration.

        Returns:
            last_hidden_state (batch, 1 + kept patches, hidden_size); mask (batch, patches), float32, 1 where a patch is
            taken away; ids_restore (batch, patches), the place of each patch in the order of the noise; hidden_states
            and attentions as `ViTModel`, of the tokens that are left.

        Raises:
            InputError: inputs of another shape.
        """
        config = self.config
        check_tensors(Tensor, self.device, pixel_values=pixel_values, noise=noise)
        grid = check_pixel_values(config, pixel_values.shape, interpolate_pos_encoding)
        shape = pixel_values.shape[0], grid[0] * grid[1]
        if noise is None:
            noise = torch.rand(shape, device=pixel_values.device)
        check_patch_values("noise", noise.shape, *shape)
        pixel_values = pixel_values.to(self.dtype)
        if takes_kernels(pixel_values) and not torch.is_grad_enabled():
            keep_freed_memory()
        hidden_states, mask, ids_restore = self.embeddings(pixel_values, grid, noise.argsort(dim=1, stable=True))
        wanted = config.wanted(output_hidden_states, output_attentions)
        hidden_states, all_hidden_states, all_attentions = self.encoder(hidden_states, *wanted)
        return collect(
            config.return_dict if return_dict is None else return_dict,
            last_hidden_state=self.layernorm(hidden_states),
            mask=mask,
            ids_restore=ids_restore,
            hidden_states=all_hidden_states,
            attentions=all_attentions,
        )


class ViTMAEForPreTraining(ViTMAEPreTrainedModel, HeadedModel):
    """A masked autoencoder with its decoder (He et al. 2022; transformers' ViTMAEForPreTraining)."""

    head = "decoder"
    base_class = ViTMAEModel

    def add_head(self, config: ViTMAEConfig) -> None:
        self.decoder = ViTMAEDecoder(config)

    def forward(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> ModelOutput | tuple[Tensor, ...]:
        """Reconstruct the patches that are masked; the arguments are those of `ViTMAEModel`.

        Returns:
            loss, a scalar; logits (batch, patches, patch height * patch width * channels); mask, ids_restore,
            hidden_states and attentions as `ViTMAEModel`.

        Raises:
            InputError: inputs of another shape.
        """
        outputs: Any = self._base()(
            pixel_values,
            noise=noise,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        grid = check_pixel_values(self.config, pixel_values.shape, interpolate_pos_encoding)
        checkpointing = self._base().encoder.gradient_checkpointing
        logits = self.decoder(outputs["last_hidden_state"], outputs["ids_restore"], grid, checkpointing)
        return collect(
            self.config.return_dict if return_dict is None else return_dict,
            loss=masked_patch_loss(self.config, pixel_values, logits, outputs["mask"]),
            logits=logits,
            **{name: outputs.get(name) for name in ("mask", "ids_restore", "hidden_states", "attentions")},
        )

    def patchify(self, pixel_values: Tensor) -> Tensor:
        """(B, C, height, width) -> (B, N, height * width of a patch * C)."""
        return patchify(self.config, pixel_values)

    def unpatchify(self, patches: Tensor, original_image_size: tuple[int, int] | None = None) -> Tensor:
        """The inverse of `patchify`, for images of `config.image_size` or the (height, width) that is given."""
        return unpatchify(self.config, patches, original_image_size)
