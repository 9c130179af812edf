"""A model without a head in Keras 3: its call, which is that of almost every family.

Side by side with vit/pt/base.py and vit/flax/base.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import Any, ClassVar

import tensorflow as tf
from keras import ops

from ..inputs import check_bool_masked_pos, check_pixel_values
from ..outputs import ModelOutput, collect
from .pretrained import TFPreTrainedModel


class TFBaseModel(TFPreTrainedModel):
    """A model without a head: its call, around what `encode` and `pool` compute."""

    assumes_size: ClassVar[bool] = False  # of images whose size a graph does not know, where any is taken
    config: Any
    embeddings: Any
    encoder: Any
    layernorm: Any
    pooler: Any

    def build(self, input_shape: Any) -> None:
        self.embeddings.build(input_shape)
        for layer in (self.encoder, self.layernorm, getattr(self, "pooler", None)):
            if layer is not None:
                layer.build((None, None, self.config.hidden_size))

    def call(
        self,
        pixel_values: tf.Tensor,
        bool_masked_pos: tf.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
    ) -> ModelOutput | tuple[tf.Tensor, ...]:
        """Encode images.

        Args:
            pixel_values: (batch, channels, height, width), float, as the image processor gives them; or a dict of
                the tensors of this call.
            bool_masked_pos: (batch, patches), true where a patch is replaced by the mask token.
            interpolate_pos_encoding: take images of another size than `config.image_size`. It changes nothing in a
                family that takes any (BEiT, DINOv2, DINOv3), where positions are always fitted to the image. BEiT takes
                a size that a graph does not know to be the configured one.
            output_hidden_states: also return the embeddings and every layer's output.
            output_attentions: also return every layer's attention probabilities.
            return_dict: False for a tuple. None takes this and the two above from the configuration.
            training: whether dropout and stochastic depth are on.

        Returns:
            last_hidden_state (batch, tokens, hidden_size), of CLS, what else precedes the patches, and the patches;
            pooler_output (batch, `config.pooler_output_size`), unless the model has no pooler; hidden_states,
            num_hidden_layers + 1 of (batch, tokens, hidden_size); attentions, num_hidden_layers of (batch, heads,
            tokens, tokens).

        Raises:
            InputError: inputs of another shape.
        """
        if isinstance(pixel_values, dict):
            pixel_values, bool_masked_pos = self.unpack(pixel_values, bool_masked_pos=bool_masked_pos)
        config = self.config
        fits = None not in pixel_values.shape[2:] if self.assumes_size else interpolate_pos_encoding or config.any_size
        grid = check_pixel_values(config, pixel_values.shape, fits)
        if bool_masked_pos is not None:
            has_mask_token = self.embeddings.mask_token is not None
            check_bool_masked_pos(bool_masked_pos.shape, pixel_values.shape[0], grid[0] * grid[1], has_mask_token)
        pixel_values = ops.cast(pixel_values, self.compute_dtype)
        wanted = config.wanted(output_hidden_states, output_attentions)
        hidden_states, all_hidden_states, all_attentions = self.encode(
            pixel_values, grid, bool_masked_pos, wanted, training
        )
        return collect(
            config.return_dict if return_dict is None else return_dict,
            last_hidden_state=hidden_states,
            pooler_output=self.pool(hidden_states),
            hidden_states=all_hidden_states,
            attentions=all_attentions,
        )

    def encode(
        self,
        pixel_values: tf.Tensor,
        grid: tuple[int, int],
        mask: tf.Tensor | None,
        wanted: tuple[bool, bool],
        training: bool | None,
    ) -> Any:
        """Images, their grid, the mask, and which of the last two are wanted -> tokens, hidden states, attentions."""
        hidden_states = self.embeddings(pixel_values, grid=grid, bool_masked_pos=mask)
        encoded = self.encoder(hidden_states, output_hidden_states=wanted[0], output_attentions=wanted[1])
        hidden_states = self.layernorm(encoded["last_hidden_state"])
        return hidden_states, encoded.get("hidden_states"), encoded.get("attentions")

    def pool(self, hidden_states: tf.Tensor) -> tf.Tensor | None:
        """pooler_output, of the tokens."""
        return None if self.pooler is None else self.pooler(hidden_states)

    def parts(self) -> dict[str, bool]:
        found = {
            "add_pooling_layer": getattr(self, "pooler", None) is not None,
            "use_mask_token": self.embeddings.use_mask_token,
        }
        return {name: found[name] for name in self.config.heads[None].parts}
