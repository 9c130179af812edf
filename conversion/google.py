"""The original JAX checkpoints: google-research/vision_transformer and AugReg, .npz.

Kernels are (in, out), and those of the attention keep their heads apart: query (hidden_size, heads, head_dim), out
(heads, head_dim, hidden_size). A `pre_logits` layer, tanh of a dense one over the CLS token, is the published pooler.
"""

from __future__ import annotations

from .rules import BILINEAR, LAYER, Format

_BLOCK = "Transformer/encoderblock_{i}/"
_ATTENTION = _BLOCK + "MultiHeadDotProductAttention_1/"

GOOGLE = Format(
    name="google",
    what="original JAX checkpoints, .npz (google-research/vision_transformer, AugReg)",
    kinds=("npz",),
    table={
        "vit.embeddings.cls_token": "cls",
        "vit.embeddings.position_embeddings": "Transformer/posembed_input/pos_embedding",
        "vit.embeddings.patch_embeddings.projection.{leaf}": "embedding/{leaf}",
        LAYER + "layernorm_before.{leaf}": _BLOCK + "LayerNorm_0/{leaf}",
        LAYER + "attention.attention.query.{leaf}": _ATTENTION + "query/{leaf}",
        LAYER + "attention.attention.key.{leaf}": _ATTENTION + "key/{leaf}",
        LAYER + "attention.attention.value.{leaf}": _ATTENTION + "value/{leaf}",
        LAYER + "attention.output.dense.{leaf}": _ATTENTION + "out/{leaf}",
        LAYER + "layernorm_after.{leaf}": _BLOCK + "LayerNorm_2/{leaf}",
        LAYER + "intermediate.dense.{leaf}": _BLOCK + "MlpBlock_3/Dense_0/{leaf}",
        LAYER + "output.dense.{leaf}": _BLOCK + "MlpBlock_3/Dense_1/{leaf}",
        "vit.layernorm.{leaf}": "Transformer/encoder_norm/{leaf}",
        "vit.pooler.dense.{leaf}": "pre_logits/{leaf}",
        "classifier.{leaf}": "head/{leaf}",
    },
    leaves={"weight": "kernel", "norm.weight": "scale"},
    in_out=True,
    conv="HWIO",
    heads=True,
    config={"hidden_act": "gelu_new", "layer_norm_eps": 1e-6},  # jax.nn.gelu approximates with tanh
    image={"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "resample": BILINEAR},
    pooler_feeds_head=True,
    # The published files count the parts of a block together; newer flax counts each class on its own.
    aliases=(
        (r"MultiHeadDotProductAttention_0", "MultiHeadDotProductAttention_1"),
        (r"(encoderblock_\d+)/LayerNorm_1/", r"\1/LayerNorm_2/"),
        (r"MlpBlock_0", "MlpBlock_3"),
        (r"^pos_embedding$", "Transformer/posembed_input/pos_embedding"),
    ),
    refused=(
        (r"^(conv_root|gn_root|block\d+)/", "a hybrid ResNet stem"),
        (r"^MAPHead_0/", "attention pooling"),
        (r"^Transformer/encoderblock/", "layers scanned into one array (big_vision)"),
        (r"/mlp/|/Moe/", "a mixture of experts"),
    ),
    wrappers={"opt/target/": "the parameters; the others are the optimiser's", "params/": "the parameters"},
)
