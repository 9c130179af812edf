"""This project's own models as Keras saves them: .keras, and .weights.h5, which lacks the configuration.

Keras names a stored variable by the attributes that lead to its layer and its number in the layer; layers in a list go
by their class, counted: vi_t_layer, vi_t_layer_1. What hangs on a model behind an earlier attribute's name goes under
"layers".
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from vit import budgets, families
from vit.archives import check_crc, members, read_member
from vit.checkpoint import in_order
from vit.config import PreTrainedConfig, to_pair
from vit.errors import CheckpointError, shown
from vit.weights import LAYOUTS, Shape

from .containers import KINDS, Read, Specs, Store, Window, parsing, read_h5, write_h5_dataset, writing_h5
from .rules import Format, family_names, patterns
from .transformers import INFER

_NUMBERS = {  # weights of layers without a kernel -> their number in the layer; those that are not trained are the last
    "lambda_1": 0, "lambda_2": 1, "lambda1": 0, "relative_position_bias_table": 0, "mask_token": 0,
    "decoder_pos_embed": 1,
}  # fmt: skip
_CLASSES = {
    "beit": {"pooler": "BeitPooler"},
    "dinov2": {"layer": "Dinov2Layer"},
    "dinov2_with_registers": {"layer": "Dinov2Layer"},
    "dinov3_vit": {"layer": "DINOv3ViTLayer", "norm": "LayerNorm"},
}
"""Family -> the classes by which Keras names its layers, where they are its own."""


def _snake_case(name: str) -> str:
    """A class's name as Keras spells it."""
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)).lower()


class _Names:
    """How Keras names what the models of a family store, and what the table of the format calls it ("standard")."""

    def __init__(self, family: str) -> None:
        config = families.config_class(family)
        classes = {"layer": "ViTLayer", "pooler": "ViTPooler", **_CLASSES.get(family, {})}
        self.base: str = config.base_model_prefix
        self.layer = _snake_case(classes["layer"])
        # Keras goes by the names of attributes in their order, and "layers" is one: "vit" is met there first.
        model = f"layers/{_snake_case('TF' + config.heads[None].name)}"
        self.root = self.base if self.base < "layers" else model
        late = [name for name in ("norm", "pooler") if name in classes]
        self.inner = {name: f"layers/{_snake_case(classes[name])}" for name in late}
        self.outer = {"lm_head": "layers/dense", "decoder/0": "decoder/dense"}
        tokens = (re.fullmatch(rf"{self.base}\.embeddings\.(\w+)", name) for name in family_names(family))
        self.tokens = [match[1] for match in tokens if match]
        self.table = {}
        for name, path in patterns("/", family_names(family), **LAYOUTS["tf"].renamed).items():
            module, _, leaf = path.rpartition("/")
            is_token = module == f"{self.base}/embeddings"
            self.table[name] = path if is_token else f"{module}/vars/{_NUMBERS.get(leaf, leaf)}"

    def standard(self, stored: Mapping[str, Shape]) -> dict[str, str]:
        """{stored name: standard name}."""
        has_head = any(name.startswith(f"{self.root}/") for name in stored)
        found, tokens = {}, []
        for name in stored:
            known, is_inner = name, not has_head
            if name.startswith(f"{self.root}/"):
                known, is_inner = name.removeprefix(f"{self.root}/"), True
            for ours, theirs in (self.inner if is_inner else self.outer).items():
                known = re.sub(f"^{theirs}/", f"{ours}/", known)
            known = re.sub(rf"(?<=layer/){self.layer}(?:_(\d+))?/", lambda match: f"{match[1] or 0}/", known)
            known = re.sub(r"(?<=_layers/)vi_t_layer(?:_(\d+))?/", lambda match: f"{match[1] or 0}/", known)
            found[name] = f"{self.base}/{known}" if is_inner else known
            if is_inner and re.fullmatch(r"embeddings/vars/\d", known):
                tokens.append(name)
        tokens.sort()
        return found | dict(zip(tokens, self._tokens([stored[name] for name in tokens]), strict=False))

    def _tokens(self, shapes: Sequence[Shape]) -> list[str]:
        """The standard names of the embeddings' own weights, which have these shapes."""
        names = list(self.tokens)
        if shapes and (len(shapes[-1]) != 3 or shapes[-1][1] == 1) and "position_embeddings" in names:
            names.remove("position_embeddings")
        for optional in ("register_tokens", "mask_token"):
            if optional in names and len(names) > len(shapes):
                names.remove(optional)
        return [f"{self.base}/embeddings/{name}" for name in names]

    def stored(self, standard: Iterable[str], head: str | None) -> dict[str, str]:
        """{standard name: stored name} of all that a model holds."""
        found, tokens = {}, 0
        for name in standard:
            known = name.removeprefix(f"{self.base}/")
            is_inner = known != name
            if is_inner and re.fullmatch(r"embeddings/\w+", known):
                known, tokens = f"embeddings/vars/{tokens}", tokens + 1
            for ours, theirs in (self.inner if is_inner else self.outer).items():
                known = re.sub(f"^{ours}/", f"{theirs}/", known)
            known = re.sub(r"(?<=layer/)(\d+)/", lambda match: _counted(self.layer, match[1]), known)
            known = re.sub(r"(?<=_layers/)(\d+)/", lambda match: _counted("vi_t_layer", match[1]), known)
            found[name] = f"{self.root}/{known}" if is_inner and head is not None else known
        return found


def _counted(name: str, number: str) -> str:
    return f"{name}_{number}/" if int(number) else f"{name}/"


_NAMES = cache(_Names)


@dataclass(frozen=True)
class _Keras(Format):
    """The format, whose families no pattern tells apart."""

    def is_of(self, shapes: Mapping[str, Shape]) -> bool:
        return _family(shapes) == self.family


def _family(shapes: Mapping[str, Shape]) -> str:
    """The family of stored tensors; of a masked autoencoder's encoder alone, which is one of a plain ViT, "vit"."""
    for family in families.CONFIGS:
        if any(name.startswith(f"{_NAMES(family).root}/") for name in shapes):
            return family
    tokens = sorted(name for name in shapes if re.fullmatch(r"embeddings/vars/\d", name))
    if any("/attention/q_proj/" in name for name in shapes):
        return "dinov3_vit"
    if any("/dinov2_layer/" in name for name in shapes):
        return "dinov2_with_registers" if len(tokens) == 4 else "dinov2"
    query, key = (any(f"/attention/attention/{part}/vars/1" in name for name in shapes) for part in ("query", "key"))
    if query and not key:
        return "beit"
    positions = shapes[tokens[-1]][1] if tokens and len(shapes[tokens[-1]]) == 3 else 0
    is_square = {count: math.isqrt(max(0, positions - count)) ** 2 == positions - count for count in (1, 2)}
    return "deit" if len(tokens) == 4 or (len(tokens) == 3 and is_square[2] and not is_square[1]) else "vit"


def may_be_mae(stored: Iterable[str]) -> bool:
    """Whether tensors of a plain ViT could be those of a masked autoencoder's encoder alone: nothing else is there."""
    return not any(re.match(r"vit/|layers/|classifier/|decoder/|embeddings/vars/2$", name) for name in stored)


def _form(family: str) -> Format:
    return _Keras(
        name="keras",
        what="this project's Keras models, .keras, .weights.h5",
        kinds=("keras", "h5"),
        table=_NAMES(family).table,
        leaves={"weight": "0", "bias": "1", "norm.weight": "0", "norm.bias": "1"},
        in_out=True,
        conv="matrix",
        config={"hidden_act": "gelu", "layer_norm_eps": families.config_class(family)().layer_norm_eps},
        rename=_NAMES(family).standard,
        family=family,
        infer=INFER.get(family, lambda shape, known: {}),
        norm="norm1" if any(".norm1." in name for name in _NAMES(family).table) else "layernorm_before",
        ignored=(
            (r"^(\w+/)?optimizer/", "state of the optimiser"),
            (r"seed_generator", "state of a random generator"),
            (r"_metrics?/|metrics/", "state of a metric"),
        ),
    )


KERAS = replace(_form("vit"), families=tuple(_form(family) for family in families.CONFIGS if family != "vit"))


def read_keras(path: Path) -> Store:
    """A .keras file: a zip file of config.json and an HDF5 file."""
    with parsing(path, ".keras"):
        places = members(path)
        weights = places["model.weights.h5"]
        if places["config.json"].size > budgets.JSON:
            raise ValueError("its config.json has more than a configuration")
        described = json.loads(read_member(path, "config.json"))
        name = described.get("registered_name") or described.get("class_name")
        for each in places.values():
            if each.offset is None:
                read_member(path, each.name)  # compares its checksum
            else:
                check_crc(path, each)
    if not str(name).startswith("trivit>") or not isinstance(described.get("config"), dict):
        raise CheckpointError(
            f"{path} is a Keras model of the class {shown(name)}; only this project's own models are read."
        )
    if weights.offset is None:
        raise CheckpointError(f"{path} compresses its weights; save it again with model.save.")
    store = read_h5(path, Window(path, weights.offset, weights.size), "keras")
    with parsing(path, ".keras"):
        store.config = dict(described["config"]["config"])
    return store


KINDS["keras"] = read_keras


def write_keras(path: Path, config: PreTrainedConfig, head: str | None, tensors: Specs, read: Read) -> None:
    """A .keras or .weights.h5 file, as Keras writes it."""
    if path.name.endswith(".h5"):
        _write_weights(path, config, head, tensors, read)
        return
    weights = path.with_name(path.name + ".weights.h5")
    _write_weights(weights, config, head, tensors, read)
    class_name = f"TF{config.heads[head].name}"
    policy = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": config.dtype}, "registered_name": None}
    arguments: dict[str, Any] = {
        "name": class_name.lower(),
        "trainable": True,
        "dtype": policy,
        "config": config.to_dict(),
    }
    if head is None:
        base = config.base_model_prefix
        there = {
            "add_pooling_layer": any(name.startswith(f"{base}/pooler/") for name in tensors),
            "use_mask_token": f"{base}/embeddings/mask_token" in tensors,
        }
        arguments |= {part: there[part] for part in config.heads[None].parts}
    described = {
        "module": f"vit.tf.{families.CONFIGS[config.model_type].partition('.')[0]}",
        "class_name": class_name,
        "config": arguments,
        "registered_name": f"trivit>{class_name}",
        "build_config": {"input_shape": [None, config.num_channels, *to_pair(config.image_size)]},
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.9.0", "date_saved": ""}))
        archive.writestr("config.json", json.dumps(described))
        archive.write(weights, "model.weights.h5")
    weights.unlink()


def _write_weights(path: Path, config: PreTrainedConfig, head: str | None, tensors: Specs, read: Read) -> None:
    names = _NAMES(config.model_type)
    stored = names.stored(tensors, head)
    with writing_h5(path) as file:
        for name, (shape, dtype) in tensors.items():
            write_h5_dataset(file, stored[name], in_order(read(name), dtype).reshape(shape))
        for layer in ("encoder", "embeddings"):  # those without weights of their own have a name alone
            node = file.require_group(f"{names.root}/{layer}/vars" if head is not None else f"{layer}/vars")
            node.attrs["name"] = layer
