"""The folders of transformers: the canonical one, and the files that its PyTorch, TensorFlow and Flax classes wrote.

TensorFlow's names begin with the layer's group and the model's own name, vit/tf_vi_t_model/vit/...; a base model's
canonical and Flax names lack "vit".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vit import families
from vit.checkpoint import in_order
from vit.families.vit import ViTConfig
from vit.weights import LAYOUTS

from . import beit, dinov2, dinov3, mae
from .containers import Read, Specs, write_h5_dataset, writing_h5
from .rules import TOKENS, VIT, Format, family_names, patterns

_BASE = ViTConfig.base_model_prefix
_PUBLISHED = {"hidden_act": "gelu", "layer_norm_eps": 1e-12}
_IGNORED = ((r"embeddings.position_ids$", "the numbers 0, 1, 2 ..., which older versions stored"),
            (r"relative_position_index$", "the index of the window, which follows from its size"))  # fmt: skip


SIGNS = {
    "dinov3_vit": (r"(^|/)layer/\d+/attention/k_proj/",),
    "deit": (r"embeddings/distillation_token$",),
    "beit": (r"(^|/)beit/|/lambda_1$|relative_position_bias_table$",),
    "vit_mae": (r"(^|/)decoder/decoder_pos_embed$",),
    "dinov2_with_registers": (r"embeddings/register_tokens$",),
    "dinov2": (r"/layer_scale1/lambda1$",),
}
"""Family -> what only its names have, where a configuration does not say so; patterns with / between parts."""

INFER = {"beit": beit.infer, "vit_mae": mae.infer, "dinov3_vit": dinov3.infer,
         **dict.fromkeys(("dinov2", "dinov2_with_registers"), dinov2.infer)}  # fmt: skip
"""Family -> what its shapes tell, where a configuration does not say it."""

_MARKS = {"dinov3_vit": ("model.layer.0.norm1.weight",)}
"""Family -> names of the first LayerNorm's weight in models of transformers 5, where its files have others."""

_PREFIXES = r"module\.|_orig_mod\.|model\.|net\.|backbone\."
_WRAPPERS = {
    "state_dict_ema/": "the averaged weights", "model_ema/": "the averaged weights",
    "state_dict/": "the weights of the training checkpoint",
    "model_state_dict/": "the weights of the training checkpoint",
    "model/": "the model of the training checkpoint",
}  # fmt: skip


def canonical(separator: str, family: str) -> Callable[[Iterable[str]], dict[str, str]]:
    """As the family's configuration reads names, of those with another separator."""

    def rename(names: Iterable[str]) -> dict[str, str]:
        dotted = {name: name.replace(separator, ".") for name in names}
        known = families.config_class(family).canonical_names(dotted.values())
        return {name: known.get(other, other).replace(".", separator) for name, other in dotted.items()}

    return rename


def of_families(format: Format, separator: str, *names: str) -> Format:
    """A format that spells canonical paths with a separator, with its forms for the families named, or for all."""

    def form(family: str) -> Format:
        base = families.config_class(family).base_model_prefix
        return replace(
            format,
            family=family,
            table=patterns(separator, family_names(family)),
            signs=tuple(sign.replace("/", re.escape(separator)) for sign in SIGNS[family]),
            norm="norm1" if family.startswith("dinov") else "layernorm_before",
            marks=_MARKS.get(family, ()),
            rename=canonical(separator, family),
            config={**format.config, "layer_norm_eps": families.config_class(family)().layer_norm_eps},
            infer=INFER.get(family, format.infer),
            stored_name=lambda name, head: name if head else name.removeprefix(base + separator),
        )

    return replace(format, families=tuple(form(family) for family in names or SIGNS))


def with_base(separator: str) -> Callable[[Iterable[str]], dict[str, str]]:
    """Names of a base model get the "vit" that those of a model with a head have."""
    own = tuple(part + separator for part in (_BASE, "classifier", "decoder"))
    return lambda names: {name: name if name.startswith(own) else _BASE + separator + name for name in names}


def without_base(separator: str) -> Callable[[str, str | None], str]:
    """The inverse of `with_base`."""
    return lambda name, head: name if head else name.removeprefix(_BASE + separator)


HF = of_families(
    Format(
        name="hf",
        what="the canonical folder: config.json and model.safetensors",
        kinds=("safetensors",),
        table=patterns("."),
        config=_PUBLISHED,
        rename=with_base("."),
        stored_name=without_base("."),
        ignored=_IGNORED,
        prefixes=_PREFIXES,
        wrappers=_WRAPPERS,
    ),
    ".",
)

TRANSFORMERS_PT = of_families(
    Format(
        name="transformers-pt",
        what="transformers' pytorch_model.bin, sharded or not",
        kinds=("torch",),
        table=patterns("."),
        config=_PUBLISHED,
        rename=with_base("."),
        stored_name=without_base("."),
        ignored=_IGNORED,
        prefixes=_PREFIXES,
        wrappers=_WRAPPERS,
    ),
    ".",
)

_FLAX = LAYOUTS["flax"]
TRANSFORMERS_FLAX = of_families(
    Format(
        name="transformers-flax",
        what="transformers' flax_model.msgpack",
        kinds=("msgpack",),
        table={key: value for key, value in patterns("/").items() if not key.startswith(("decoder", TOKENS[1]))},
        leaves={"weight": _FLAX.kernel, "norm.weight": _FLAX.norm_scale},
        in_out=True,
        conv="HWIO",
        config=_PUBLISHED,
        rename=with_base("/"),
        stored_name=without_base("/"),
    ),
    "/",
    "dinov2",
    "beit",
)
TRANSFORMERS_FLAX = replace(  # its class multiplies its factors twice by the value that they began with
    TRANSFORMERS_FLAX,
    families=tuple(
        replace(form, multiplied={".lambda1": ("layerscale_value",) * 2}) if form.family == "dinov2" else form
        for form in TRANSFORMERS_FLAX.families
    ),
)


def _without_model_name(names: Iterable[str]) -> dict[str, str]:
    return {name: re.sub(r"^(\w+)/[^/]+/(?=\1/)", "", name) for name in names}


def _with_model_name(name: str, head: str | None) -> str:
    model = "tf_vi_t_for_image_classification" if head else "tf_vi_t_model"
    return f"{name.partition('/')[0]}/{model}/{name}"


def _mae_with_model_name(name: str, head: str | None) -> str:
    model = "tf_vi_tmae_for_pre_training" if head else "tf_vi_tmae_model"
    return f"{name.partition('/')[0]}/{model}/{name}"


_DEIT_MODELS = {
    None: "tf_dei_t_model",
    "classifier": "tf_dei_t_for_image_classification",
    "teacher": "tf_dei_t_for_image_classification_with_teacher",
}


def _deit_with_model_name(name: str, head: str | None) -> str:
    return f"{name.partition('/')[0]}/{_DEIT_MODELS[head]}/{name}"


def _tf_table(names: Iterable[str]) -> dict[str, str]:
    return {
        key: re.sub(r"(layers?)/\{i\}", lambda m: {"layer": "layer_._{i}"}.get(m[1], f"{m[1]}.{{i}}"), pattern)
        + ("" if "{leaf}" in pattern else ":0")
        for key, pattern in patterns("/", names).items()
    }


_TF = LAYOUTS["tf"]
TRANSFORMERS_TF = Format(
    name="transformers-tf",
    what="transformers' tf_model.h5",
    kinds=("h5",),
    table=_tf_table(name for name in VIT if not name.startswith("decoder")),
    leaves={
        "weight": f"{_TF.kernel}:0",
        "bias": "bias:0",
        "norm.weight": f"{_TF.norm_scale}:0",
        "norm.bias": f"{_TF.norm_bias}:0",
    },
    in_out=True,
    conv="HWIO",
    config=_PUBLISHED,
    rename=_without_model_name,
    stored_name=_with_model_name,
    refused=((r"^(?!vit/|classifier/)", "layers of another model than ViT"),),
)

TRANSFORMERS_TF = replace(
    TRANSFORMERS_TF,
    families=(
        replace(
            TRANSFORMERS_TF,
            family="vit_mae",
            infer=INFER["vit_mae"],
            table=_tf_table(family_names("vit_mae")),
            signs=(r"/decoder_pos_embed:0$",),
            stored_name=_mae_with_model_name,
            refused=(),
        ),
        replace(
            TRANSFORMERS_TF,
            family="deit",
            only=tuple(_DEIT_MODELS),
            table=_tf_table(name for name in family_names("deit") if not name.startswith("decoder")),
            signs=(r"/distillation_token:0$",),
            stored_name=_deit_with_model_name,
            refused=(),
        ),
    ),
)

_ATTRIBUTE_LIMIT = 60_000  # HDF5 holds 64 kB in an attribute; Keras splits longer lists into numbered ones


def write_tf_h5(path: Path, tensors: Specs, read: Read) -> None:
    """tf_model.h5: the tensors, and the lists of layers and weights by which Keras finds them."""
    groups: dict[str, list[str]] = {}
    for name in tensors:
        groups.setdefault(name.partition("/")[0], []).append(name.partition("/")[2])
    with writing_h5(path) as file:
        file.attrs["backend"], file.attrs["keras_version"] = "tensorflow", "2.15.0"
        _names(file, "layer_names", list(groups))
        for layer, names in groups.items():
            group = file.create_group(layer)
            _names(group, "weight_names", names)
            for name in names:
                shape, dtype = tensors[f"{layer}/{name}"]
                write_h5_dataset(group, name, in_order(read(f"{layer}/{name}"), dtype).reshape(shape))
        _names(file.create_group("top_level_model_weights"), "weight_names", [])


def _names(group: Any, attribute: str, names: list[str]) -> None:
    encoded = np.array([name.encode() for name in names], dtype="S" if names else "S1")
    if encoded.nbytes <= _ATTRIBUTE_LIMIT:
        group.attrs[attribute] = encoded
        return
    step = _ATTRIBUTE_LIMIT // encoded.itemsize
    for i, begin in enumerate(range(0, len(encoded), step)):
        group.attrs[f"{attribute}{i}"] = encoded[begin : begin + step]
