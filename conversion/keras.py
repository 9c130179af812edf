"""This project's own models as Keras saves them: .keras, and .weights.h5, which lacks the configuration.

Keras names a stored variable by the attributes that lead to its layer and its number in the layer; layers in a list go
by their class, counted: vi_t_layer, vi_t_layer_1. What hangs on a model behind an earlier attribute's name goes under
"layers".
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vit import budgets
from vit.archives import check_crc, members, read_member
from vit.checkpoint import in_order
from vit.config import PreTrainedConfig, to_pair
from vit.errors import CheckpointError, shown
from vit.weights import LAYOUTS

from .containers import KINDS, Read, Specs, Store, Window, parsing, read_h5, write_h5_dataset, writing_h5
from .rules import Format, patterns

_MODEL = "layers/tf_vi_t_model/"
_LAYER = "encoder/layer/vi_t_layer"


def _table() -> dict[str, str]:
    table = patterns("/", **LAYOUTS["tf"].renamed)
    table = {key: value.replace("{leaf}", "vars/{leaf}") for key, value in table.items()}
    return {**table, **{f"vit.embeddings.{name}": f"vit/embeddings/{name}" for name in _TOKENS[True]}}


_TOKENS = {  # the order in which ViTEmbeddings creates them, with a mask token and without
    True: ("cls_token", "mask_token", "position_embeddings"),
    False: ("cls_token", "position_embeddings"),
}


def _rename(names: Iterable[str]) -> dict[str, str]:
    names = list(names)
    has_head = any(name.startswith(_MODEL) for name in names)
    table_names = {}
    for name in names:
        standard = name.replace(_MODEL, "vit/", 1) if has_head else "vit/" + name.removeprefix("layers/vi_t_")
        if has_head and not name.startswith(_MODEL) and name.startswith("decoder/"):
            standard = name.replace("decoder/", "decoder/0/", 1).replace("/dense/", "/", 1)
        standard = re.sub(r"encoder/layer/vi_t_layer(?:_(\d+))?/", lambda m: f"encoder/layer/{m[1] or 0}/", standard)
        table_names[name] = standard
    places = [name for name, standard in table_names.items() if re.fullmatch(r"vit/embeddings/vars/\d", standard)]
    for name in places:
        number = int(name[-1])
        if number < len(places) and len(places) in (2, 3):
            table_names[name] = f"vit/embeddings/{_TOKENS[len(places) == 3][number]}"
    return table_names


KERAS = Format(
    name="keras",
    what="this project's Keras models, .keras, .weights.h5",
    kinds=("keras", "h5"),
    table=_table(),
    leaves={"weight": "0", "bias": "1", "norm.weight": "0", "norm.bias": "1"},
    in_out=True,
    conv="matrix",
    config={"hidden_act": "gelu", "layer_norm_eps": 1e-12},
    rename=_rename,
    ignored=(
        (r"^(vit/)?optimizer/", "state of the optimiser"),
        (r"seed_generator", "state of a random generator"),
        (r"_metrics?/|metrics/", "state of a metric"),
    ),
)


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
    class_name = {
        None: "TFViTModel",
        "classifier": "TFViTForImageClassification",
        "decoder": "TFViTForMaskedImageModeling",
    }[head]
    policy = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": config.dtype}, "registered_name": None}
    arguments: dict[str, Any] = {
        "name": class_name.lower(),
        "trainable": True,
        "dtype": policy,
        "config": config.to_dict(),
    }
    if head is None:
        arguments["add_pooling_layer"] = "vit/pooler/dense/vars/0" in tensors
        arguments["use_mask_token"] = "vit/embeddings/mask_token" in tensors
    described = {
        "module": "vit.tf.vit", "class_name": class_name, "config": arguments,
        "registered_name": f"trivit>{class_name}",
        "build_config": {"input_shape": [None, config.num_channels, *to_pair(config.image_size)]},
    }  # fmt: skip
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.9.0", "date_saved": ""}))
        archive.writestr("config.json", json.dumps(described))
        archive.write(weights, "model.weights.h5")
    weights.unlink()


def _write_weights(path: Path, config: PreTrainedConfig, head: str | None, tensors: Specs, read: Read) -> None:
    has_mask = "vit/embeddings/mask_token" in tensors
    with writing_h5(path) as file:
        for name, (shape, dtype) in tensors.items():
            array = in_order(read(name), dtype).reshape(shape)
            write_h5_dataset(file, _stored_name(name, head, has_mask), array)
        for node, label in _layer_names(config, head).items():
            file.require_group(node).attrs["name"] = label


def _stored_name(name: str, head: str | None, has_mask: bool) -> str:
    """The inverse of `_rename`."""
    for number, token in enumerate(_TOKENS[has_mask]):
        name = name.replace(f"vit/embeddings/{token}", f"vit/embeddings/vars/{number}")
    name = re.sub(r"encoder/layer/(\d+)/", lambda m: f"{_LAYER}_{m[1]}/" if int(m[1]) else f"{_LAYER}/", name)
    name = name.replace("decoder/0/", "decoder/dense/")
    if head is not None:
        return re.sub("^vit/", _MODEL, name)
    return name.removeprefix("vit/").replace("pooler/", "layers/vi_t_pooler/", 1)


def _layer_names(config: PreTrainedConfig, head: str | None) -> dict[str, str]:
    """Group -> the layer's name that Keras keeps there, of the layers without variables of their own."""
    base = "" if head is None else _MODEL
    return {f"{base}encoder/vars": "encoder", f"{base}embeddings/vars": "embeddings"}
