"""torchvision's VisionTransformer: vit_b_16 and its kin."""

from __future__ import annotations

from .rules import BILINEAR, IMAGENET_MEAN, IMAGENET_STD, LAYER, QKV, Format

_BLOCK = "encoder.layers.encoder_layer_{i}."

TORCHVISION = Format(
    name="torchvision",
    what="torchvision's vit_b_16 and kin, .pth, .safetensors",
    kinds=("torch", "safetensors"),
    table={
        "vit.embeddings.cls_token": "class_token",
        "vit.embeddings.position_embeddings": "encoder.pos_embedding",
        "vit.embeddings.patch_embeddings.projection.{leaf}": "conv_proj.{leaf}",
        LAYER + "layernorm_before.{leaf}": _BLOCK + "ln_1.{leaf}",
        QKV + ".{leaf}": _BLOCK + "self_attention.in_proj_{leaf}",
        LAYER + "attention.output.dense.{leaf}": _BLOCK + "self_attention.out_proj.{leaf}",
        LAYER + "layernorm_after.{leaf}": _BLOCK + "ln_2.{leaf}",
        LAYER + "intermediate.dense.{leaf}": _BLOCK + "mlp.0.{leaf}",
        LAYER + "output.dense.{leaf}": _BLOCK + "mlp.3.{leaf}",
        "vit.layernorm.{leaf}": "encoder.ln.{leaf}",
        "vit.pooler.dense.{leaf}": "heads.pre_logits.{leaf}",
        "classifier.{leaf}": "heads.head.{leaf}",
    },
    config={"hidden_act": "gelu", "layer_norm_eps": 1e-6},
    image={"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "resample": BILINEAR},
    pooler_feeds_head=True,
    prefixes=r"module\.|_orig_mod\.|model\.",
    aliases=((r"\.mlp\.linear_1\.", ".mlp.0."), (r"\.mlp\.linear_2\.", ".mlp.3.")),
    wrappers={"model_ema/": "the averaged weights", "model/": "the model of the training checkpoint"},
    refused=((r"^conv_proj\.(conv|\d)", "a convolutional stem"),),
)
