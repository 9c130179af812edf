"""facebookresearch/deit: {"model": state dict}, without distillation."""

from __future__ import annotations

import dataclasses

from .timm import TIMM

DEIT = dataclasses.replace(
    TIMM,
    name="deit",
    what="facebookresearch/deit without distillation, .pth",
    kinds=("torch", "safetensors"),
    wrappers={"model_ema/": "the averaged weights", "model/": "the model of the checkpoint"},
)
