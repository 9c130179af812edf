"""The floating-point operations of a Vision Transformer, counted from its configuration.

With N patches of C channels and p pixels, T = N + 1 tokens of width D, an MLP of width M and L layers, a forward pass
of an image multiplies and adds this often:

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

from .config import ViTConfig, to_pair


def forward_flops(config: ViTConfig, head: str | None = "classifier", add_pooling_layer: bool | None = None) -> int:
    """Floating-point operations of a forward pass of one image of `config.image_size`.

    Args:
        config: of the model.
        head: None, "classifier" or "decoder".
        add_pooling_layer: whether the model has a pooler; None for a model without a head.
    """
    width, patches, tokens = config.hidden_size, config.num_patches, config.num_patches + 1
    layer = tokens * (4 * width**2 + 2 * width * config.intermediate_size) + 2 * tokens**2 * width
    heads = {
        None: 0,
        "classifier": width * config.num_labels,
        "decoder": patches * width * config.num_channels * math.prod(to_pair(config.encoder_stride)),
    }
    has_pooler = head is None if add_pooling_layer is None else add_pooling_layer
    pooler = width * config.pooler_output_size if has_pooler else 0
    return _patch_embedding(config) + 2 * (config.num_hidden_layers * layer + heads[head] + pooler)


def training_flops(config: ViTConfig, head: str | None = "classifier") -> int:
    """Floating-point operations of a forward and backward pass of one image, without a pooler or an optimizer.

    The backward pass multiplies each matrix twice, for the gradients of its two factors; pixels need none. What an
    implementation computes again in the backward pass (gradient checkpointing, fused attention) is not counted.
    """
    return 3 * forward_flops(config, head, add_pooling_layer=False) - _patch_embedding(config)


def _patch_embedding(config: ViTConfig) -> int:
    pixels = config.num_channels * math.prod(to_pair(config.patch_size))
    return 2 * config.num_patches * pixels * config.hidden_size
