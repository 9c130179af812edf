"""facebookresearch/mae: {"model": state dict} of a masked autoencoder with its decoder, or of a fine-tuned classifier.

Of the encoder alone the names are those of a plain ViT, and so is what it computes without masking. A classifier reads
the mean of the patches, as one of BEiT does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from vit.weights import Shape

from .beit import MEAN_POOLED
from .rules import BILINEAR, Format
from .timm import TIMM

_DECODER = "decoder.decoder_layers.{i}."
_WRAPPERS = {"model/": "the model of the checkpoint"}


def infer(shape: Callable[[str], Shape | None], known: Mapping[str, Any]) -> dict[str, Any]:
    width = (shape("decoder.mask_token") or (0,))[-1]
    if not width:  # the encoder alone
        return {"num_labels": None}
    depth = 0
    while shape(f"decoder.decoder_layers.{depth}.layernorm_before.weight"):
        depth += 1
    mlp_width = (shape("decoder.decoder_layers.0.intermediate.dense.bias") or (4 * width,))[0]
    heads = math.gcd(width, max(1, width // 32))  # 32 wide, as in the published models
    return {"decoder_hidden_size": width, "decoder_num_hidden_layers": depth, "decoder_intermediate_size": mlp_width,
            "decoder_num_attention_heads": heads, "num_labels": None}  # fmt: skip


def _of_mae(key: str) -> str:
    """A name of the table of a block, in the decoder."""
    return key.replace("vit.encoder.layer.{i}.", _DECODER)


MAE: Format = dataclasses.replace(
    TIMM,
    name="mae",
    what="facebookresearch/mae with its decoder, or fine-tuned, .pth",
    kinds=("torch", "safetensors"),
    family="vit_mae",
    families=(
        dataclasses.replace(
            MEAN_POOLED,
            name="mae",
            what="facebookresearch/mae with its decoder, or fine-tuned, .pth",
            kinds=("torch",),
            signs=(r"^model/fc_norm\.weight$", r"\.attn\.qkv\.bias$"),
            wrappers=_WRAPPERS,
        ),
    ),
    signs=(r"(^|[./])decoder_pos_embed$",),
    table={
        **{key: name for key, name in TIMM.table.items() if key.startswith("vit.") and ".pooler." not in key},
        **{_of_mae(key): f"decoder_{name}" for key, name in TIMM.table.items() if ".layer." in key},
        "decoder.mask_token": "mask_token",
        "decoder.decoder_pos_embed": "decoder_pos_embed",
        **{f"decoder.decoder_{part}.{{leaf}}": f"decoder_{part}.{{leaf}}" for part in ("embed", "norm", "pred")},
    },
    image={**TIMM.image, "resample": BILINEAR},
    wrappers=_WRAPPERS,
    refused=(),
    infer=infer,
)
