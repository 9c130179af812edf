"""ViTModel and its heads in PyTorch.

Side by side with vit/tf/vit.py and vit/flax/vit.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config import PreTrainedConfig, to_pair
from ..errors import ConfigError
from ..families.vit import ViTConfig
from ..inputs import check_bool_masked_pos, check_pixel_values, check_tensors
from ..outputs import ModelOutput, collect
from .layers import ViTEmbeddings, ViTEncoder, ViTPooler
from .linear import keep_freed_memory, takes_kernels
from .loss import classification_loss, reconstruction_loss
from .pretrained import PreTrainedModel


class ViTPreTrainedModel(PreTrainedModel):
    """What the classes of this family are."""

    config_class: ClassVar[type[PreTrainedConfig]] = ViTConfig
    config: ViTConfig


class ViTModel(ViTPreTrainedModel):
    """The Vision Transformer without a head (Dosovitskiy et al. 2021; transformers' ViTModel).

    Args:
        config: its shape.
        add_pooling_layer: give it a pooler.
        use_mask_token: give it a mask token, for masked image modelling.
    """

    embeddings_class: ClassVar[type[ViTEmbeddings]] = ViTEmbeddings

    def __init__(self, config: ViTConfig, add_pooling_layer: bool = True, use_mask_token: bool = False) -> None:
        super().__init__(config)
        self.embeddings = self.embeddings_class(config, use_mask_token=use_mask_token)
        self.encoder = ViTEncoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = ViTPooler(config) if add_pooling_layer else None
        self.init_weights(self, config.base_model_prefix)

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
            interpolate_pos_encoding: take images of another size than `config.image_size`.
            output_hidden_states: also return the embeddings and every layer's output.
            output_attentions: also return every layer's attention probabilities.
            return_dict: False for a tuple. None takes this and the two above from the configuration.

        Returns:
            last_hidden_state (batch, tokens, hidden_size); pooler_output (batch, pooler_output_size); hidden_states,
            num_hidden_layers + 1 of (batch, tokens, hidden_size); attentions, num_hidden_layers of (batch, heads,
            tokens, tokens).

        Raises:
            InputError: inputs of another shape.
        """
        config = self.config
        check_tensors(Tensor, self.device, pixel_values=pixel_values, bool_masked_pos=bool_masked_pos)
        grid = check_pixel_values(config, pixel_values.shape, interpolate_pos_encoding)
        if bool_masked_pos is not None:
            has_mask_token = self.embeddings.mask_token is not None
            check_bool_masked_pos(bool_masked_pos.shape, pixel_values.shape[0], grid[0] * grid[1], has_mask_token)
        pixel_values = pixel_values.to(self.dtype)
        if takes_kernels(pixel_values) and not torch.is_grad_enabled():
            keep_freed_memory()
        hidden_states = self.embeddings(pixel_values, grid, bool_masked_pos)
        hidden_states, all_hidden_states, all_attentions = self.encoder(
            hidden_states,
            config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            config.output_attentions if output_attentions is None else output_attentions,
        )
        hidden_states = self.layernorm(hidden_states)
        return collect(
            config.return_dict if return_dict is None else return_dict,
            last_hidden_state=hidden_states,
            pooler_output=None if self.pooler is None else self.pooler(hidden_states),
            hidden_states=all_hidden_states,
            attentions=all_attentions,
        )


class ViTForImageClassification(ViTPreTrainedModel):
    """The Vision Transformer with a linear head on the CLS token (transformers' ViTForImageClassification)."""

    head = "classifier"
    base_class: ClassVar[type[PreTrainedModel]] = ViTModel
    accepts_loss_kwargs = True
    loss_function: Callable[..., Tensor] = staticmethod(classification_loss)

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        setattr(self, config.base_model_prefix, self.base_class(config, **config.heads[self.head].parts))
        width, labels = config.classifier_size, config.num_labels
        self.classifier = nn.Linear(width, labels) if labels else nn.Identity()
        self.init_weights(self.classifier, "classifier")

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


class ViTForMaskedImageModeling(ViTPreTrainedModel):
    """The Vision Transformer with a linear decoder to pixels (Xie et al. 2022, SimMIM)."""

    head = "decoder"
    base_class: ClassVar[type[PreTrainedModel]] = ViTModel

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        if to_pair(config.encoder_stride) != to_pair(config.patch_size):
            raise ConfigError(
                f"encoder_stride is {config.encoder_stride} and patch_size {config.patch_size}; masked image modelling "
                "needs them to be equal, so that the reconstruction has the size of the image."
            )
        setattr(self, config.base_model_prefix, self.base_class(config, **config.heads[self.head].parts))
        height, width = to_pair(config.encoder_stride)
        # A list of one, because the published name of the layer is "decoder.0".
        self.decoder = nn.ModuleList([nn.Conv2d(config.hidden_size, height * width * config.num_channels, 1)])
        self.init_weights(self.decoder, "decoder")

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
