"""facebookresearch/dino: a backbone's state dict, or a whole training checkpoint, of which the teacher is the model."""

from __future__ import annotations

import dataclasses

from .timm import TIMM

DINO = dataclasses.replace(
    TIMM,
    name="dino",
    what="facebookresearch/dino backbones and training checkpoints (the teacher), .pth",
    kinds=("torch", "safetensors"),
    wrappers={"teacher/": "the published model", "student/": "the only one"},
    ignored=((r"^head\.(mlp|last_layer)\b", "the projection head of the training, which the published model lacks"),),
)
