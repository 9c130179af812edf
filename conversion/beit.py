"""microsoft/unilm's BEiT and BEiT v2: fine-tuned classifiers and pre-training models, .pth; timm's form is theirs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from vit.families.beit import TABLE
from vit.weights import Shape

from .rules import BICUBIC, Format
from .timm import REFUSED, TIMM

_LAYER = "beit.encoder.layer.{i}."
_ATTENTION = _LAYER + "attention.attention."


def infer(shape: Callable[[str], Shape | None], known: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a BEiT that its shapes tell."""
    first = "beit.encoder.layer.0."
    tokens = shape("lm_head.bias")
    return {
        "use_mask_token": shape("beit.embeddings.mask_token") is not None,
        "use_absolute_position_embeddings": shape("beit.embeddings.position_embeddings") is not None,
        "use_relative_position_bias": shape(f"{first}attention.attention.{TABLE}") is not None,
        "use_shared_relative_position_bias": shape(f"beit.encoder.{TABLE}") is not None,
        "layer_scale_init_value": 0.1 if shape(f"{first}lambda_1") else 0.0,  # as in the published configurations
        "use_mean_pooling": shape("beit.layernorm.weight") is None,
        **({"vocab_size": tokens[0]} if tokens else {}),
    }


_SIGN = r"\.attn\.q_bias$"
_SHARED = {
    key.replace("vit.", "beit."): name
    for key, name in TIMM.table.items()
    if key.startswith("vit.") and not any(part in key for part in ("{query,key,value}", "pooler", "vit.layernorm"))
}
_BEIT = Format(
    name="beit",
    what="microsoft/unilm's BEiT and BEiT v2, classifiers and pre-training models, .pth",
    kinds=("torch", "safetensors"),
    family="beit",
    table={
        **_SHARED,
        "beit.embeddings.mask_token": "mask_token",
        _ATTENTION + "{query,key,value}.weight": "blocks.{i}.attn.qkv.weight",
        _ATTENTION + "query.bias": "blocks.{i}.attn.q_bias",
        _ATTENTION + "value.bias": "blocks.{i}.attn.v_bias",
        _ATTENTION + TABLE: "blocks.{i}.attn.relative_position_bias_table",
        f"beit.encoder.{TABLE}": "rel_pos_bias.relative_position_bias_table",
        _LAYER + "lambda_1": "blocks.{i}.gamma_1",
        _LAYER + "lambda_2": "blocks.{i}.gamma_2",
        "beit.layernorm.{leaf}": "norm.{leaf}",
        "beit.pooler.layernorm.{leaf}": "fc_norm.{leaf}",
        "classifier.{leaf}": "head.{leaf}",
    },
    config=TIMM.config,
    image={"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "resample": BICUBIC},
    processor={"image_processor_type": "BeitImageProcessor"},
    signs=(_SIGN, r"relative_position_bias_table$|(^|[./])pos_embed$"),
    only=(None, "classifier"),
    infer=infer,
    prefixes=TIMM.prefixes,
    wrappers={"model/": "the model of the checkpoint", "module/": "the model of the checkpoint"},
    ignored=((r"relative_position_index$", "the index of the window, which follows from its size"),),
    refused=tuple(each for each in REFUSED if each[1].startswith(("a hybrid", "attention", "register", "a SwiGLU"))),
)
_PRETRAINING = dataclasses.replace(
    _BEIT,
    table={
        **{key: name for key, name in _BEIT.table.items() if name != "norm.{leaf}"},
        "layernorm.{leaf}": "norm.{leaf}",
        "lm_head.{leaf}": "lm_head.{leaf}",
    },
    signs=(_SIGN, r"(^|[./])lm_head\.weight$"),
    only=("lm_head",),
    ignored=(
        *_BEIT.ignored,
        (r"^cls_pt_layers\.", "the auxiliary branch of BEiT v2's training, for which no class has a place"),
    ),
)
BEIT = dataclasses.replace(_BEIT, families=(_PRETRAINING,))
IN_TIMM = dataclasses.replace(_BEIT, name=TIMM.name, what=TIMM.what, kinds=TIMM.kinds)
MEAN_POOLED = dataclasses.replace(
    TIMM,
    family="beit",
    families=(),
    table={
        **_SHARED,
        _ATTENTION + "{query,key,value}.{leaf}": "blocks.{i}.attn.qkv.{leaf}",
        "beit.pooler.layernorm.{leaf}": "fc_norm.{leaf}",
        "classifier.{leaf}": "head.{leaf}",
    },
    signs=(r"(^|[./])fc_norm\.weight$", r"\.attn\.qkv\.bias$"),
    without=(
        (r"\.key\.bias$", "a bias of the keys adds the same to all scores of a query, which changes no attention"),
    ),
    only=(),
    infer=infer,
    refused=(
        *(each for each in REFUSED if each[1] != "average pooling"),
        (r"^norm\.", "average pooling behind a norm and fc_norm.weight"),
    ),
)
"""A plain ViT whose head reads the normalised mean of the patches: what a BEiT without tables and factors computes."""
