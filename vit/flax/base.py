"""A model without a head in Flax NNX: its call, which is that of almost every family.

Side by side with vit/pt/base.py and vit/tf/base.py: the same classes, the same attributes, the same order.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from ..inputs import check_arrays, check_bool_masked_pos, check_pixel_values
from ..outputs import ModelOutput, collect
from .eager import call
from .pretrained import FlaxPreTrainedModel


class FlaxBaseModel(FlaxPreTrainedModel):
    """A model without a head: its call, around what `encode` and `pool` compute."""

    config: Any
    embeddings: Any
    encoder: Any
    layernorm: Any
    pooler: Any

    def __call__(
        self,
        pixel_values: Array,
        bool_masked_pos: Array | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> ModelOutput | tuple[Array, ...]:
        """Encode images.

        Args:
            pixel_values: (batch, channels, height, width), float, as the image processor gives them.
            bool_masked_pos: (batch, patches), true where a patch is replaced by the mask token.
            interpolate_pos_encoding: take images of another size than `config.image_size`. It changes nothing in a
                family that takes any (BEiT, DINOv2, DINOv3), where positions are always fitted to the image.
            output_hidden_states: also return the embeddings and every layer's output.
            output_attentions: also return every layer's attention probabilities.
            return_dict: False for a tuple. None takes this and the two above from the configuration.
            rngs: of dropout and stochastic depth, for a model in train mode whose configuration has some.

        Returns:
            last_hidden_state (batch, tokens, hidden_size), of CLS, what else precedes the patches, and the patches;
            pooler_output (batch, `config.pooler_output_size`), unless the model has no pooler; hidden_states,
            num_hidden_layers + 1 of (batch, tokens, hidden_size); attentions, num_hidden_layers of (batch, heads,
            tokens, tokens).

        Raises:
            InputError: inputs of another shape.
        """
        config = self.config
        check_arrays(pixel_values=pixel_values, bool_masked_pos=bool_masked_pos)
        grid = check_pixel_values(config, np.shape(pixel_values), interpolate_pos_encoding or config.any_size)
        if bool_masked_pos is not None:
            bool_masked_pos = jnp.asarray(bool_masked_pos)
            has_mask_token = self.embeddings.mask_token is not None
            check_bool_masked_pos(bool_masked_pos.shape, np.shape(pixel_values)[0], grid[0] * grid[1], has_mask_token)
        pixel_values = jnp.asarray(pixel_values, self.dtype)
        wanted = config.wanted(output_hidden_states, output_attentions)
        hidden_states, all_hidden_states, all_attentions = self.encode(
            pixel_values, grid, bool_masked_pos, wanted, rngs
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
        pixel_values: Array,
        grid: tuple[int, int],
        mask: Array | None,
        wanted: tuple[bool, bool],
        rngs: nnx.Rngs | None,
    ) -> Any:
        """Images, their grid, the mask, and which of the last two are wanted -> tokens, hidden states, attentions."""
        hidden_states, *others = self.encoder(call(self.embeddings, pixel_values, grid, mask, rngs), *wanted, rngs)
        return call(self.layernorm, hidden_states), *others

    def pool(self, hidden_states: Array) -> Array | None:
        """pooler_output, of the tokens."""
        return None if self.pooler is None else call(self.pooler, hidden_states)

    def parts(self) -> dict[str, bool]:
        found = {
            "add_pooling_layer": getattr(self, "pooler", None) is not None,
            "use_mask_token": self.embeddings.mask_token is not None,
        }
        return {name: found[name] for name in self.config.heads[None].parts}
