"""The table of readers: what each is given, how it reads, and what an independent reader makes of the same bytes.

A row is a reader of files that come from outside. Whoever adds one adds a row here: `test_fuzz.py` compares the table
with the formats that the project reads. `read` raises one of the project's errors, or returns {name: array}; `oracle`
returns the same by other means, and raises whatever it likes.
"""

from __future__ import annotations

import io
import json
import math
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TESTS = Path(__file__).parents[1]
FOREIGN = TESTS / "fixtures" / "conversion"
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Reader:
    """One reader.

    Args:
        seeds: inputs that are whole: files or folders.
        read: reads one: all of it.
        mutated: the file of a folder that is mutated; empty where the seed is that file.
        mutations: names of `mutations.MUTATIONS` that suit it.
        oracle: reads it by other means; None where there are none.
    """

    seeds: tuple[Path, ...]
    read: Callable[[Path], Arrays]
    mutations: tuple[str, ...] = ("bytes",)
    mutated: str = ""
    oracle: Callable[[Path], Arrays] | None = None


def read_checkpoint(path: Path) -> Arrays:
    """Every tensor of a foreign checkpoint; and it is converted, if that is possible."""
    import conversion
    from vit.errors import CheckpointError

    source = conversion.open_source(path, num_attention_heads=4)
    arrays = {name: np.asarray(source.store.read(name)) for name in source.store.tensors}
    with tempfile.TemporaryDirectory(prefix="vit-fuzz-") as folder:
        conversion.convert(path, Path(folder) / "out", num_attention_heads=4)
    described = conversion.inspect(path, num_attention_heads=4)
    if not described.whole:
        raise CheckpointError(described.problem)
    return arrays


# === Independent readers ===


def torch_load(path: Path) -> Arrays:
    import argparse

    import torch

    def flat(content: Any, prefix: str = "") -> Arrays:
        found = {}
        for key, value in content.items():
            if isinstance(value, dict):
                found |= flat(value, f"{prefix}{key}/")
            elif isinstance(value, torch.Tensor):
                dense = torch.empty(value.shape, dtype=value.dtype).copy_(value.detach())
                bits = dense.reshape(-1).view(torch.uint8).numpy()
                found[f"{prefix}{key}"] = bits.reshape(*value.shape, value.element_size())
        return found

    with torch.serialization.safe_globals([argparse.Namespace]):
        return flat(torch.load(path, map_location="cpu", weights_only=True))


def numpy_load(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def safetensors_load(path: Path) -> Arrays:
    from safetensors.numpy import load_file

    return load_file(path)


def h5py_load(path: Path | io.BytesIO) -> Arrays:
    import h5py

    found: Arrays = {}
    with h5py.File(path, "r") as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def keras_load(path: Path) -> Arrays:
    with zipfile.ZipFile(path) as archive:
        return h5py_load(io.BytesIO(archive.read("model.weights.h5")))


def msgpack_load(path: Path) -> Arrays:
    import msgpack

    def extension(code: int, data: bytes) -> Any:
        if code != 1:
            return None
        shape, dtype, buffer = msgpack.unpackb(data)
        return np.frombuffer(buffer, np.dtype(dtype)).reshape(shape)

    def flat(content: Any, prefix: str = "") -> Arrays:
        found = {}
        for key, value in content.items():
            if isinstance(value, dict) and "__msgpack_chunked_array__" in value:
                pieces, sizes = ([value[k][str(i)] for i in range(len(value[k]))] for k in ("chunks", "shape"))
                found[prefix + key] = np.concatenate([piece.reshape(-1) for piece in pieces]).reshape(sizes)
            elif isinstance(value, dict):
                found |= flat(value, f"{prefix}{key}/")
            elif isinstance(value, np.ndarray):
                found[prefix + key] = value
        return found

    return flat(msgpack.unpackb(path.read_bytes(), ext_hook=extension))


def read_orbax_again(path: Path) -> Arrays:
    import tensorstore as ts

    base = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{path}/"}}
    found = {}
    for key in ts.KvStore.open(base).result().list().result():
        name, _, leaf = key.decode().rpartition("/")
        if leaf == ".zarray":
            spec = {"driver": "zarr", "kvstore": {**base, "path": f"{name}/"}}
            found[name] = np.asarray(ts.open(spec, open=True, read=True).result().read().result())
    return found


# === Seeds that are made ===


def _made(folder: Path) -> dict[str, Path]:
    """Seeds that no fixture is: in a folder, once."""
    import conversion

    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        plain = FOREIGN / "google_vit.npz"
        arrays = dict(np.load(plain))
        np.savez_compressed(folder / "deflated.npz", **arrays)
        conversion.convert(plain, folder / "model.keras", target_format="keras")
        conversion.convert(plain, folder / "model.weights.h5", target_format="keras")
        conversion.convert(plain, folder / "orbax", target_format="orbax")
        conversion.convert(plain, folder / "sharded", max_shard_size="100KB")
        conversion.convert(plain, folder / "timm_folder" / "model.safetensors", target_format="timm")
        hub = {
            "architecture": "vit_tiny_patch8_32", "num_classes": 7, "num_features": 48, "global_pool": "token",
            "model_args": {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4,
                           "act_layer": "gelu", "qkv_bias": True},
            "label_names": list("abcdefg"),
            "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic",
                               "input_size": [3, 32, 32], "label_names": list("abcdefg")},
        }  # fmt: skip
        (folder / "timm_folder" / "config.json").write_text(json.dumps(hub))
        _older_torch(folder / "older.pth")
        (folder / "labels").mkdir()
        (folder / "labels" / "labels.json").write_text(json.dumps({"id2label": dict(enumerate("abcdefg"))}))
        (folder / "done").touch()
    return {path.name: path for path in folder.iterdir()}


def _older_torch(path: Path) -> None:
    import torch

    state = torch.load(FOREIGN / "dino_backbone.pth", weights_only=True)
    torch.save(state, path, _use_new_zipfile_serialization=False)


def read_labels(folder: Path) -> Arrays:
    """The labels of a JSON file, given to a conversion."""
    import conversion

    conversion.open_source(FOREIGN / "google_vit.npz", labels=folder / "labels.json")
    return {}


def readers(folder: Path) -> dict[str, Reader]:
    """The table. Names before a colon are kinds of `conversion.containers.KINDS`, and "json" those that are JSON.

    Args:
        folder: for seeds that have to be made.
    """
    made = _made(folder)
    zipped = ("bytes", "zip members", "zip structure")
    check = read_checkpoint
    return {
        "torch: zip": Reader(tuple(FOREIGN / name for name in ("dino_full.pth", "torchvision_vit.pth")), check, zipped,
                             oracle=torch_load),
        "torch: older": Reader((made["older.pth"],), check, oracle=torch_load),
        "npz: stored": Reader((FOREIGN / "google_vit.npz",), check, zipped, oracle=numpy_load),
        "npz: deflated": Reader((made["deflated.npz"],), check, zipped, oracle=numpy_load),
        "safetensors": Reader((FOREIGN / "timm_vit.safetensors",), check, oracle=safetensors_load),
        "h5: transformers": Reader((FOREIGN / "hf_tf_h5" / "tf_model.h5",), check, oracle=h5py_load),
        "h5: keras": Reader((made["model.weights.h5"],), check, oracle=h5py_load),
        "keras": Reader((made["model.keras"],), check, zipped, oracle=keras_load),
        "msgpack": Reader((FOREIGN / "hf_flax_msgpack" / "flax_model.msgpack",), check, oracle=msgpack_load),
        "orbax": Reader((made["orbax"],), check, mutated="d/*", oracle=read_orbax_again),
        "orbax: manifest": Reader((made["orbax"],), check, mutated="manifest.ocdbt", oracle=read_orbax_again),
        "json: orbax": Reader((made["orbax"],), check, ("json",), "config.json"),
        "json: config": Reader((TESTS / "reference" / "hf_torch",), check, ("json",), "config.json"),
        "json: index": Reader((made["sharded"],), check, ("json",), "model.safetensors.index.json"),
        "json: timm's hub": Reader((made["timm_folder"],), check, ("json",), "config.json"),
        "json: keras": Reader((made["model.keras"],), check, ("zip json",), oracle=keras_load),
        "json: labels": Reader((made["labels"],), read_labels, ("json",), "labels.json"),
    }  # fmt: skip


def differences(found: Arrays, expected: Arrays) -> str:
    """What a reader read otherwise than its oracle; empty where nothing is."""
    if found.keys() != expected.keys():
        return f"other names: {sorted(found.keys() ^ expected.keys())[:5]}"
    for name, array in expected.items():
        size = math.prod(found[name].shape) * found[name].dtype.itemsize
        if size != array.nbytes or np.ascontiguousarray(found[name]).tobytes() != np.ascontiguousarray(array).tobytes():
            return f"other bits: {name}"
    return ""
