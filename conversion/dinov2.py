"""facebookresearch/dinov2, with and without registers: backbones, training checkpoints and linear heads; timm's form.

In a training checkpoint the layers lie in chunks, blocks.CHUNK.LAYER, and LAYER counts over all chunks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from vit.errors import CheckpointError, shown
from vit.families.dinov2 import Dinov2Config
from vit.weights import Shape

from .containers import Store
from .rules import Format
from .timm import REFUSED, TIMM


def _table(base: str, gated: tuple[str, str], **tokens: str) -> dict[str, str]:
    layer = f"{base}.encoder.layer.{{i}}."
    return {
        f"{base}.embeddings.cls_token": "cls_token",
        f"{base}.embeddings.position_embeddings": "pos_embed",
        **{f"{base}.embeddings.{token}": name for token, name in tokens.items()},
        f"{base}.embeddings.patch_embeddings.projection.{{leaf}}": "patch_embed.proj.{leaf}",
        layer + "norm1.{leaf}": "blocks.{i}.norm1.{leaf}",
        layer + "attention.attention.{query,key,value}.{leaf}": "blocks.{i}.attn.qkv.{leaf}",
        layer + "attention.output.dense.{leaf}": "blocks.{i}.attn.proj.{leaf}",
        layer + "layer_scale1.lambda1": "blocks.{i}.ls1.gamma",
        layer + "norm2.{leaf}": "blocks.{i}.norm2.{leaf}",
        layer + "mlp.weights_in.{leaf}": f"blocks.{{i}}.mlp.{gated[0]}.{{leaf}}",
        layer + "mlp.weights_out.{leaf}": f"blocks.{{i}}.mlp.{gated[1]}.{{leaf}}",
        layer + "mlp.fc1.{leaf}": "blocks.{i}.mlp.fc1.{leaf}",
        layer + "mlp.fc2.{leaf}": "blocks.{i}.mlp.fc2.{leaf}",
        layer + "layer_scale2.lambda1": "blocks.{i}.ls2.gamma",
        f"{base}.layernorm.{{leaf}}": "norm.{leaf}",
        "classifier.{leaf}": "linear_head.{leaf}",
    }


def infer(shape: Callable[[str], Shape | None], known: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a DINOv2, with registers or without, that its shapes tell."""
    found: dict[str, Any] = {}
    for base in ("dinov2", "dinov2_with_registers"):
        if shape(f"{base}.embeddings.cls_token"):
            gated = shape(f"{base}.encoder.layer.0.mlp.weights_in.bias") is not None
            registers = shape(f"{base}.embeddings.register_tokens")
            found = {"use_swiglu_ffn": gated, "mlp_ratio": _ratio(known, gated)}
            found["use_mask_token"] = shape(f"{base}.embeddings.mask_token") is not None
            found["num_register_tokens"] = registers[1] if registers else 0
    return found


def _ratio(known: Mapping[str, Any], gated: bool) -> float:
    """The mlp_ratio that leaves the MLP the width it has: a whole number, where one does."""
    width, mlp_width = known["hidden_size"], known.get("intermediate_size", 0)
    exact = mlp_width / width * (1.5 if gated else 1)
    for ratio in (4, *range(1, 33), exact):
        keys = {"hidden_size": width, "num_attention_heads": 1, "use_swiglu_ffn": gated, "mlp_ratio": ratio}
        if ratio > 0 and Dinov2Config(**keys).intermediate_size == mlp_width:
            return ratio
    return exact


_PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "do_convert_rgb": True,
    "size": {"shortest_edge": 256},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
}
_OTHERS = {"layer scale", "a SwiGLU MLP", "register tokens", "a masked autoencoder's decoder or mask token (MAE, BEiT)"}
_PLAIN = Format(
    name="dinov2",
    what="facebookresearch/dinov2 backbones and training checkpoints (the teacher), .pth",
    kinds=("torch", "safetensors"),
    family="dinov2",
    table=_table("dinov2", ("w12", "w3"), mask_token="mask_token"),
    config={"hidden_act": "gelu", "layer_norm_eps": 1e-6, "interpolate_offset": 0.1},
    image=TIMM.image,
    processor=_PROCESSOR,
    signs=(r"\.ls1\.gamma$", r"(^|[./])mask_token$|\.mlp\.w12\.weight$"),
    norm="norm1",
    marks=("blocks.0.0.norm1.weight",),
    infer=infer,
    prefixes=TIMM.prefixes,
    aliases=((r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),),
    wrappers={
        "teacher/": "the published model",
        "student/": "the only one",
        "model/": "the model of the training checkpoint",
    },
    ignored=((r"^(dino|ibot)_head\.", "the projection head of the training, which the published model lacks"),),
    refused=tuple(each for each in REFUSED if each[1] not in _OTHERS),
)
_REGISTERS = dataclasses.replace(
    _PLAIN,
    family="dinov2_with_registers",
    table=_table("dinov2_with_registers", ("w12", "w3"), mask_token="mask_token", register_tokens="register_tokens"),
    config={"hidden_act": "gelu", "layer_norm_eps": 1e-6},
    signs=(*_PLAIN.signs, r"(^|[./])register_tokens$"),
)
DINOV2 = dataclasses.replace(_PLAIN, families=(_REGISTERS,))


def _in_timm(plain: Format, gated: bool, **changes: Any) -> Format:
    """timm's form, without a mask token: both kinds of MLP go by the same names."""
    tokens = {"register_tokens": "reg_token"} if plain is _REGISTERS else {}
    table = _table(plain.config_class.base_model_prefix, ("fc1", "fc2"), **tokens)
    unused = ".mlp.fc" if gated else ".mlp.weights"
    return dataclasses.replace(
        TIMM,
        family=plain.family,
        table={key: name for key, name in table.items() if unused not in key and not key.startswith("classifier")},
        signs=(r"\.ls1\.gamma$", r"\.ls2\.gamma$"),
        gated=gated,
        norm="norm1",
        infer=infer,
        refused=(*_PLAIN.refused, *(each for each in REFUSED if each[1] == "register tokens" and not tokens)),
        processor=_PROCESSOR,
        **changes,
    )


_WITHOUT_CLS_POSITION = {
    "cls_position": False,
    "zeros": ("dinov2_with_registers.embeddings.mask_token",),
}
_TIMM_SIGNS = (r"\.ls1\.gamma$", r"\.ls2\.gamma$", r"(^|[./])reg_token$")
_TIMM_REGISTERS = (
    dataclasses.replace(_in_timm(_REGISTERS, gated, **_WITHOUT_CLS_POSITION), signs=_TIMM_SIGNS)
    for gated in (False, True)
)
TIMM = dataclasses.replace(TIMM, families=(*_TIMM_REGISTERS, _in_timm(_PLAIN, False), _in_timm(_PLAIN, True)))


def with_linear_head(store: Store, head: Store) -> Store:
    """A backbone's tensors together with those of a file of a linear head.

    Raises:
        CheckpointError: it is another file, or a head that reads four layers, for which there is no class.
    """
    where = shown(head.path)
    if set(head.tensors) != {"weight", "bias"} or len(head.tensors["weight"].shape) != 2:
        raise CheckpointError(f"{where} is no linear head of DINOv2: expected the tensors weight and bias.")
    width = next((tensor.shape[-1] for name, tensor in store.tensors.items() if name.endswith("cls_token")), 0)
    if head.tensors["weight"].shape[1] == 5 * width:
        raise CheckpointError(f"{where} is a linear head on the last four layers, which no published class has.")
    # Where the backbone's names lie in a training checkpoint, those of its head lie, too.
    root = next((name.rpartition("cls_token")[0] for name in store.tensors if name.endswith("cls_token")), "")
    named = {f"{root}linear_head.{name}": tensor for name, tensor in head.tensors.items()}
    return dataclasses.replace(store, tensors={**store.tensors, **named})
