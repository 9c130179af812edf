"""facebookresearch/dinov3's ViTs: backbones and training checkpoints (the teacher), .pth; timm's form of them.

The fused bias of queries, keys and values has a mask beside it, which is zero for the keys: they have none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vit.errors import CheckpointError
from vit.weights import Shape

from .dinov2 import DINOV2
from .rules import BILINEAR, IMAGENET_MEAN, IMAGENET_STD
from .timm import REFUSED, TIMM

_LAYER = "dinov3_vit.layer.{i}."
_QKV = _LAYER + "attention.{q_proj,k_proj,v_proj}"


def _table(registers: str, scale: str, gate: str) -> dict[str, str]:
    return {
        "dinov3_vit.embeddings.cls_token": "cls_token",
        "dinov3_vit.embeddings.register_tokens": registers,
        "dinov3_vit.embeddings.patch_embeddings.{leaf}": "patch_embed.proj.{leaf}",
        _LAYER + "norm1.{leaf}": "blocks.{i}.norm1.{leaf}",
        _QKV + ".weight": "blocks.{i}.attn.qkv.weight",
        _LAYER + "attention.o_proj.{leaf}": "blocks.{i}.attn.proj.{leaf}",
        _LAYER + "layer_scale1.lambda1": f"blocks.{{i}}.{scale}1",
        _LAYER + "norm2.{leaf}": "blocks.{i}.norm2.{leaf}",
        _LAYER + "mlp.gate_proj.{leaf}": f"blocks.{{i}}.mlp.{gate}.{{leaf}}",
        _LAYER + "mlp.up_proj.{leaf}": "blocks.{i}.mlp.fc1.{leaf}",
        _LAYER + "mlp.down_proj.{leaf}": "blocks.{i}.mlp.fc2.{leaf}",
        _LAYER + "layer_scale2.lambda1": f"blocks.{{i}}.{scale}2",
        "dinov3_vit.norm.{leaf}": "norm.{leaf}",
    }


def infer(shape: Callable[[str], Shape | None], known: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a DINOv3 that its shapes tell; what is gated is gated by silu."""
    first = "dinov3_vit.layer.0."
    registers = shape("dinov3_vit.embeddings.register_tokens")
    gated = shape(f"{first}mlp.gate_proj.weight") is not None
    biases = {
        "query_bias": "attention.q_proj", "key_bias": "attention.k_proj", "value_bias": "attention.v_proj",
        "proj_bias": "attention.o_proj", "mlp_bias": "mlp.down_proj",
    }  # fmt: skip
    return {
        "num_register_tokens": registers[1] if registers else 0,
        "use_gated_mlp": gated,
        "hidden_act": "silu" if gated else "gelu",
        **{key: shape(f"{first}{module}.bias") is not None for key, module in biases.items()},
    }


def measure(read: Callable[[str], np.ndarray | None]) -> dict[str, Any]:
    """What the values of the tensors beside the parameters tell.

    Raises:
        CheckpointError: they are those of no model here.
    """
    found = {}
    if (periods := read("rope_embed.periods")) is not None and periods.size > 1:
        periods = periods.astype(np.float64)
        size = len(periods)
        theta = float(periods[-1] ** (size / (size - 1)))
        theta = float(round(theta)) if abs(theta - round(theta)) < 0.01 * theta else theta  # they may be bfloat16
        if not np.allclose(periods, theta ** (np.arange(size) / size), rtol=0.01):
            raise CheckpointError(f"rope_embed.periods is {periods}; expected powers of one number, the first being 1.")
        found["rope_theta"] = theta
    mask = read("blocks.0.attn.qkv.bias_mask")
    if mask is not None and not np.array_equal(mask, np.repeat([1, 0, 1], len(mask) // 3)):
        raise CheckpointError("blocks.0.attn.qkv.bias_mask masks something else than the biases of the keys.")
    return found


_OTHERS = {"layer scale", "a SwiGLU MLP", "register tokens", "relative or rotary positions (BEiT, EVA)"}
_MASK = r"\.attn\.qkv\.bias_mask$"
_UNMASKED = dataclasses.replace(
    DINOV2,
    name="dinov3",
    what="facebookresearch/dinov3 ViTs, backbones and training checkpoints (the teacher), .pth",
    family="dinov3_vit",
    families=(),
    table={
        **_table("storage_tokens", "ls", "w1"),
        "dinov3_vit.embeddings.mask_token": "mask_token",
        _QKV + ".bias": "blocks.{i}.attn.qkv.bias",
    },
    config={"layer_norm_eps": 1e-5},
    image={"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "resample": BILINEAR},
    processor={"image_processor_type": "DINOv3ViTImageProcessorFast"},
    signs=(r"\.ls1\.gamma$", r"rope_embed\.periods$"),
    aliases=(
        *DINOV2.aliases,
        (r"\.(ls[12])\.gamma$", r".\1"),
        (r"\.mlp\.w2\.", ".mlp.fc1."),
        (r"\.mlp\.w3\.", ".mlp.fc2."),
    ),
    flat=("mask_token",),
    infer=infer,
    measure=measure,
    ignored=(
        *DINOV2.ignored,
        (r"^rope_embed\.periods$", "the periods of the rotations, which rope_theta gives"),
        (_MASK, "the mask of the biases, which leaves those of the keys out"),
        (r"^local_cls_norm\.", "a LayerNorm of small crops, which training alone uses"),
    ),
    refused=((r"^cls_norm\.", "a LayerNorm of their own for CLS and the registers"),),
)
_MASKED = dataclasses.replace(
    _UNMASKED,
    signs=(*_UNMASKED.signs, _MASK),
    without=((r"\.k_proj\.bias$", "the mask beside it leaves the biases of the keys out"),),
)
DINOV3 = dataclasses.replace(_UNMASKED, families=(_MASKED,))
IN_TIMM = dataclasses.replace(
    TIMM,
    family="dinov3_vit",
    families=(),
    table={
        **_table("reg_token", "gamma_", "fc1_g"),
        _LAYER + "attention.q_proj.bias": "blocks.{i}.attn.q_bias",
        _LAYER + "attention.v_proj.bias": "blocks.{i}.attn.v_bias",
    },
    config={"layer_norm_eps": 1e-5},
    signs=(r"\.gamma_1$", r"(^|[./])reg_token$"),
    norm="norm1",
    zeros=("dinov3_vit.embeddings.mask_token",),
    aliases=((r"\.mlp\.fc1_x\.", ".mlp.fc1."),),
    infer=infer,
    refused=tuple(each for each in REFUSED if each[1] not in _OTHERS),
    only=(),
)
"""timm's EVA with these positions: it has no mask token, and biases of queries and values where its name says qkvb."""
