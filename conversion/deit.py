"""facebookresearch/deit: {"model": state dict}; with a distillation token it is a DeiT, without a plain ViT."""

from __future__ import annotations

import dataclasses

from .rules import Format
from .timm import REFUSED, TIMM

_HEADS = {"cls_classifier.{leaf}": "head.{leaf}", "distillation_classifier.{leaf}": "head_dist.{leaf}"}
DISTILLED = dataclasses.replace(
    TIMM,
    family="deit",
    families=(),
    table={
        **{key.replace("vit.", "deit."): name for key, name in TIMM.table.items() if key.startswith("vit.")},
        "deit.embeddings.distillation_token": "dist_token",
        **_HEADS,
    },
    signs=(r"(^|[./])dist_token$",),
    only=(None, "teacher"),
    refused=tuple(each for each in REFUSED if each[1] != "a distillation token"),
)
"""timm's form of a distilled DeiT, and but for the wrapper the original's."""

DEIT: Format = dataclasses.replace(
    TIMM,
    name="deit",
    what="facebookresearch/deit, with distillation and without, .pth",
    kinds=("torch", "safetensors"),
    wrappers={"model_ema/": "the averaged weights", "model/": "the model of the checkpoint"},
)
DEIT = dataclasses.replace(
    DEIT,
    families=(
        dataclasses.replace(
            DISTILLED, name=DEIT.name, what=DEIT.what, kinds=DEIT.kinds, wrappers=DEIT.wrappers, families=()
        ),
    ),
)
