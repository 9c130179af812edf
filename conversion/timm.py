"""timm's plain VisionTransformers: a state dict alone, or a hub folder with timm's config.json."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from vit.errors import CheckpointError, quoted, shown

from .containers import summary
from .rules import BICUBIC, IMAGENET_MEAN, IMAGENET_STD, LAYER, QKV, Format

REFUSED = (
    (r"(^|\.)reg_token$|register_tokens$", "register tokens"),
    (r"(^|\.)dist_token$|^head_dist\.", "a distillation token"),
    (r"\.ls[12]\.gamma$|\.gamma_[12]$|\.ls[12]$", "layer scale"),
    (
        r"^patch_embed\.(backbone|proj\.(conv|stages|norm)|conv|norm)|^patch_embed\.proj\.\d",
        "a hybrid ResNet or convolutional stem",
    ),
    (r"^fc_norm\.", "average pooling"),
    (r"^attn_pool\.", "attention pooling"),
    (r"\.mlp\.(w12|w3|fc1_[gx]|norm)\b", "a SwiGLU MLP"),
    (r"\.attn\.([qk]_norm|norm)\.", "normalised queries and keys"),
    (r"^norm_pre\.", "a LayerNorm before the layers (CLIP)"),
    (r"rel(ative)?_pos|\.rope\b|\.attn\.(q|v)_bias$", "relative or rotary positions (BEiT, EVA)"),
    (r"^decoder_|^mask_token$", "a masked autoencoder's decoder or mask token (MAE, BEiT)"),
)

TIMM = Format(
    name="timm",
    what="timm's VisionTransformer with token pooling, .safetensors, .pth, .bin",
    kinds=("safetensors", "torch"),
    table={
        "vit.embeddings.cls_token": "cls_token",
        "vit.embeddings.position_embeddings": "pos_embed",
        "vit.embeddings.patch_embeddings.projection.{leaf}": "patch_embed.proj.{leaf}",
        LAYER + "layernorm_before.{leaf}": "blocks.{i}.norm1.{leaf}",
        QKV + ".{leaf}": "blocks.{i}.attn.qkv.{leaf}",
        LAYER + "attention.output.dense.{leaf}": "blocks.{i}.attn.proj.{leaf}",
        LAYER + "layernorm_after.{leaf}": "blocks.{i}.norm2.{leaf}",
        LAYER + "intermediate.dense.{leaf}": "blocks.{i}.mlp.fc1.{leaf}",
        LAYER + "output.dense.{leaf}": "blocks.{i}.mlp.fc2.{leaf}",
        "vit.layernorm.{leaf}": "norm.{leaf}",
        "vit.pooler.dense.{leaf}": "pre_logits.fc.{leaf}",
        "classifier.{leaf}": "head.{leaf}",
    },
    config={"hidden_act": "gelu", "layer_norm_eps": 1e-6},
    image={"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "resample": BICUBIC},
    pooler_feeds_head=True,
    writes_pooler=False,  # timm has had no pre_logits since 0.8
    prefixes=r"module\.|_orig_mod\.|backbone\.|model\.",
    aliases=((r"^fc\.", "head."),),
    wrappers={
        "state_dict_ema/": "the averaged weights, which timm evaluates",
        "model_ema/": "the averaged weights, which timm evaluates",
        "state_dict/": "the weights of the training checkpoint",
    },
    refused=REFUSED,
)

_ARGUMENTS = {
    "img_size": "image_size",
    "patch_size": "patch_size",
    "embed_dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "in_chans": "num_channels",
    "qkv_bias": "qkv_bias",
}
_ACTIVATIONS = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
}
_HARMLESS = (  # what shows in the tensors, or does nothing at inference
    "num_classes global_pool class_token mlp_ratio act_layer pre_norm no_embed_class reg_tokens init_values fc_norm "
    "drop_rate drop_path_rate proj_drop_rate attn_drop_rate pos_drop_rate patch_drop_rate weight_init fix_init "
    "dynamic_img_size strict_img_size use_abs_pos_emb use_rel_pos_bias use_shared_rel_pos_bias"
)


def read_hub_config(values: Mapping[str, Any], names: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a timm hub folder's config.json says: options of the configuration, and image mean, std and resampling.

    Args:
        values: of config.json.
        names: of the tensors, which tell how the model pools.

    Raises:
        CheckpointError: it describes something else than a VisionTransformer that pools as its tensors say.
    """
    name = _get(values, "architecture", str, "?")
    arguments = _get(values, "model_args", dict, {})
    pretrained = _get(values, "pretrained_cfg", dict, {}) or dict(values)
    pool = arguments.get("global_pool", values.get("global_pool", "token"))
    has_norm = any(re.search(r"(^|[./])fc_norm\.", each) for each in names)
    has_head = values.get("num_classes", pretrained.get("num_classes")) != 0  # without one nothing is pooled
    if has_head and pool != (expected := "avg" if has_norm else "token"):
        raise CheckpointError(
            f"{shown(name)} pools with global_pool={quoted(pool)}; expected {expected!r}, as it has "
            f"{'a' if has_norm else 'no'} LayerNorm behind it (fc_norm)."
        )
    if unknown := arguments.keys() - _ARGUMENTS.keys() - set(_HARMLESS.split()):
        raise CheckpointError(
            f"{shown(name)} was made with {summary(sorted(unknown))}, which a plain ViT does not have."
        )
    activation = _get(arguments, "act_layer", str, "quick_gelu" if "quickgelu" in name else "gelu")
    if activation not in _ACTIVATIONS:
        raise CheckpointError(f"{shown(name)} has act_layer {quoted(activation)}; known are {', '.join(_ACTIVATIONS)}.")
    options = {key: arguments[timm] for timm, key in _ARGUMENTS.items() if timm in arguments}
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    if "hidden_act" not in options and activation != "gelu":
        options["hidden_act"] = _ACTIVATIONS[activation]
    if labels := _get(values, "label_names", list, []) or _get(pretrained, "label_names", list, []):
        if not all(isinstance(label, str) for label in labels):
            raise CheckpointError(f"{shown(name)} has label_names that are no list of names: {quoted(labels)}.")
        options["id2label"] = dict(enumerate(labels))
    image: dict[str, Any] = {}
    for key in ("mean", "std"):
        if numbers := _get(pretrained, key, list, []):
            valid = all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < 1e6 for n in numbers)
            if not valid or (key == "std" and not all(numbers)):
                raise CheckpointError(f"{shown(name)} has the {key} {quoted(numbers)}; expected a number a channel.")
            image[key] = tuple(numbers)
    resample = {"bilinear": 2, "bicubic": 3}.get(_get(pretrained, "interpolation", str, ""))
    return options, {**image, **({"resample": resample} if resample else {})}


def _get(values: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    """A value of config.json, which must be of its kind; the default where it is missing or null."""
    value = values.get(key)
    if value is None:
        return default
    if not isinstance(value, kind):
        names: dict[type, str] = {dict: "an object", list: "a list", str: "a string"}
        raise CheckpointError(f"config.json: {key} is {quoted(value)}; expected {names[kind]}.")
    return value
