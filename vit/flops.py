"""The floating-point operations of a Vision Transformer, counted from its configuration.

With N patches of C channels and p pixels, T tokens (the patches, CLS and their like) of width D, an MLP of width M and
L layers, a forward pass of an image multiplies and adds this often:

    N C p D                    the patch embedding
    L T (4 D D + 2 D M)        query, key, value and output projections, and both halves of each MLP
    L 2 T T D                  the scores of each attention, and their product with the values
    D labels, or N D C p       the head: a classifier of the CLS token, or a decoder of every patch (a pooler: D P)

Each counts as two operations. Biases, LayerNorms, activations and softmaxes are left out, as is usual: they are under
one percent, and no matrix unit computes them. So the operations over a machine's rate of large matrix products are a
floor of the time, which no implementation of the same function gets under.
"""

from __future__ import annotations

import math

from .config import PreTrainedConfig, to_pair
from .weights import is_matrix


def forward_flops(config: PreTrainedConfig, head: str | None = "classifier", **parts: bool) -> int:
    """Floating-point operations of a forward pass of one image of `config.image_size`.

    Args:
        config: of the model.
        head: one of the family's; None for a model without.
        **parts: optional parts that the model has or lacks, otherwise than by default: `add_pooling_layer`, ...
    """
    stacks = config.attention_stacks(head)
    parts = {**config.heads[head].parts, **parts}
    matrices = {name: math.prod(shape) for name, shape in config.parameter_shapes(head=head, **parts).items()
                if is_matrix(name)}  # fmt: skip
    products = sum(size * _rows(name, config.num_patches, stacks) for name, size in matrices.items())
    return 2 * (products + sum(layers * 2 * tokens**2 * width for _, layers, tokens, width in stacks))


OF_PATCHES = (".patch_embeddings.", "decoder.0.", "lm_head.")
"""What is in the names of matrices that multiply every patch, outside the layers."""


def _rows(name: str, patches: int, stacks: tuple[tuple[str, int, int, int], ...]) -> int:
    """How many vectors of an image a matrix multiplies."""
    tokens = next((tokens for part, _, tokens, _ in stacks if part in name), 1)
    return patches if any(part in name for part in OF_PATCHES) else tokens


def training_flops(config: PreTrainedConfig, head: str | None = "classifier") -> int:
    """Floating-point operations of a forward and backward pass of one image, without a pooler or an optimizer.

    The backward pass multiplies each matrix twice, for the gradients of its two factors; pixels need none. What an
    implementation computes again in the backward pass (gradient checkpointing, fused attention) is not counted.
    """
    without = {name: False for name in config.heads[head].parts if name == "add_pooling_layer"}
    pixels = math.prod(to_pair(config.patch_size)) * config.num_channels
    return 3 * forward_flops(config, head, **without) - 2 * config.num_patches * pixels * config.hidden_size
