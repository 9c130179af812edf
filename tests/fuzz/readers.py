"""The table of readers: what each is given, how it reads, and what an independent reader makes of the same bytes.

A row is a reader of files that come from outside. Whoever adds one adds a row here: `test_fuzz.py` compares the table
with the formats that the project reads. `read` raises one of the project's errors, or returns {name: array}; `oracle`
returns the same by other means, and raises whatever it likes.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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
    import vit

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
        _made_images(folder / "images")
        _made_journal(folder / "journal")
        for name in ("ViTImageProcessor", "BeitImageProcessorFast", "BitImageProcessor", "DeiTImageProcessor"):
            getattr(vit, name)().save_pretrained(folder / "processors" / name)
        siblings = [{"rfilename": name} for name in ("config.json", "model.safetensors", "README.md")]
        (folder / "hub.json").write_text(json.dumps({
            "_id": "0", "id": "me/model", "modelId": "me/model", "author": "me", "sha": _HUB_SHA, "private": False,
            "gated": False, "disabled": False, "downloads": 3, "likes": 1, "tags": ["vision"], "pipeline_tag": "x",
            "lastModified": "2024-01-01T00:00:00.000Z", "createdAt": "2024-01-01T00:00:00.000Z",
            "library_name": "trivit", "siblings": siblings, "config": {"model_type": "vit"},
            "cardData": {"license": "mit", "tags": ["vision"]}, "spaces": ["a/b"],
            "safetensors": {"parameters": {"F32": 3}, "total": 3},
            "transformersInfo": {"auto_model": "AutoModel"}, "usedStorage": 3,
        }))  # fmt: skip
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


# === Images ===

_IMAGES: dict[str, dict[str, Any]] = {"TIFF": {"compression": "tiff_lzw"}, "MPO": {"save_all": True}}
_MORE: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("JPEG", "L", {"progressive": True}), ("JPEG", "CMYK", {}), ("PNG", "I;16", {}), ("PNG", "P", {"transparency": 0}),
    ("PNG", "RGBA", {}), ("TIFF", "F", {}), ("TIFF", "RGB", {"compression": "jpeg"}), ("TIFF", "1", {
     "compression": "group4"}), ("GIF", "P", {"save_all": True, "duration": 9}), ("WEBP", "RGBA", {"lossless": True}),
    ("TGA", "P", {"compression": "tga_rle"}), ("BMP", "1", {}), ("PPM", "I", {}), ("PCX", "P", {}),
)  # fmt: skip
"""More of what a format can be: (format, mode, how it is saved)."""


def _made_images(folder: Path) -> None:
    from PIL import Image

    from vit.image_processing import FORMATS

    Image.init()
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    photo = Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC)  # smooth, as photographs are
    exif = Image.Exif()
    exif[0x0112] = 6  # its orientation
    folder.mkdir()
    rows = [(name, "RGBA" if name == "ICNS" else "RGB", _IMAGES.get(name, {})) for name in FORMATS]
    for i, (name, mode, options) in enumerate([*rows, *_MORE]):
        if name not in Image.SAVE:  # which formats, the build of Pillow decides
            continue
        image = Image.fromarray(np.asarray(photo.convert("L"), np.uint16) * 257) if mode == "I;16" else (
            photo.convert(mode))  # fmt: skip
        more = {"exif": exif} if name in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF") and mode == "RGB" else {}
        frames = {"append_images": [image.rotate(90)]} if options.get("save_all") else {}
        image.save(folder / f"{name}-{i}", format=name, **options, **more, **frames)


def read_image(path: Path) -> Arrays:
    """An image, as both processors take it."""
    from vit import ViTImageProcessor, ViTImageProcessorFast

    slow = ViTImageProcessor(size=32)(path, return_tensors="np").pixel_values
    ViTImageProcessorFast(size=32)(path, return_tensors="pt")
    assert slow.shape == (1, 3, 32, 32)
    assert np.isfinite(slow).all()
    return {}


def read_processor(folder: Path) -> Arrays:
    """An image processor, and what it makes of an image."""
    from vit import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder)
    json.loads(processor.to_json_string())
    processor(np.zeros((40, 30, 3), np.uint8), return_tensors="np")
    return {}


# === Folders, journals, hubs ===


def read_folder(folder: Path) -> Arrays:
    """Every tensor of a checkpoint folder, and whether they fit the model that it describes."""
    from vit import checkpoint

    opened = checkpoint.Checkpoint(folder)
    arrays = {name: np.asarray(opened.read(name)) for name in opened.tensors}
    head = checkpoint.head_of(opened)
    checkpoint.fit(opened, opened.config, head, **({} if head else checkpoint.parts_of(opened)))
    opened.config.to_json()
    return arrays


def folder_load(folder: Path) -> Arrays:
    """The same by the library of safetensors."""
    found: Arrays = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= safetensors_load(path)
    return found


_ROWS: tuple[dict[str, Any], ...] = tuple(
    {"path": f"{i}.png", "labels": ("a", "b"), "probabilities": (0.75, 0.25), "error": None} for i in range(3)
)


def _made_journal(folder: Path) -> None:
    from vit.cli import tables

    folder.mkdir()
    output = tables.Output(folder / "rows.jsonl")
    output.begin(tables.make(output.path, labels=2), {"task": "classify"})
    for row in _ROWS:
        output.append(row)
    output.close()


def read_journal(folder: Path) -> Arrays:
    """An interrupted run of `vit classify` goes on, in a copy, to its end."""
    from vit.cli import tables

    with tempfile.TemporaryDirectory(prefix="vit-fuzz-") as copy:
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        output = tables.Output(Path(copy) / "rows.jsonl")
        try:
            found = output.settings()
            list(output.go_on(tables.make(output.path, labels=2), found, {"task": "classify"}))
            output.append(_ROWS[0])
            output.finish()
        finally:
            output.close()
        for line in output.path.read_text().splitlines():
            json.loads(line)
    return {}


def read_hub(path: Path) -> Arrays:
    """A model by name, from a hub on this machine that says of it what the file says."""
    from vit import hub

    _HUB_SAYS.clear()
    _HUB_SAYS.append(path.read_bytes())
    with tempfile.TemporaryDirectory(prefix="vit-fuzz-") as cache:
        _start_hub()
        hub.resolve("me/model", cache_dir=cache)
    return {}


_HUB_SAYS: list[bytes] = []
_HUB_SHA = "0123456789abcdef0123456789abcdef01234567"


@cache
def _start_hub() -> None:
    whole = TESTS / "reference" / "hf_torch"

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            file = whole / self.path.rpartition("/")[2]
            body = _HUB_SAYS[0] if "/api/" in self.path else file.read_bytes() if file.is_file() else None
            self.send_response(200 if body is not None else 404)
            for name, value in {"Content-Length": len(body or b""), "X-Repo-Commit": _HUB_SHA,
                                "ETag": f'"{len(body or b"")}"'}.items():  # fmt: skip
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(body or b"" if self.command == "GET" else b"")

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert "huggingface_hub" not in sys.modules, "it has read its environment already"
    os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "NO_PROXY": "127.0.0.1",
                   "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}  # fmt: skip


OTHERS = ("json", "image", "checkpoint", "journal", "hub")
"""Kinds of readers beside those of `conversion`: of JSON, images, checkpoint folders, unfinished outputs, a hub."""


def readers(folder: Path) -> dict[str, Reader]:
    """The table. Names before a colon are kinds of `conversion.containers.KINDS`, or one of `OTHERS`.

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
        "json: processor": Reader(tuple(sorted(made["processors"].iterdir())), read_processor, ("json",),
                                  "preprocessor_config.json"),
        "checkpoint: config": Reader((TESTS / "reference" / "hf_torch",), read_folder, ("json",), "config.json",
                                     folder_load),
        "checkpoint: index": Reader((made["sharded"],), read_folder, ("json",), "model.safetensors.index.json",
                                    folder_load),
        "checkpoint: header": Reader((TESTS / "reference" / "hf_torch",), read_folder, ("header", "bytes"),
                                     "model.safetensors", folder_load),
        "checkpoint: torch": Reader((TESTS / "reference" / "hf_torch_bin",), read_folder, zipped, "pytorch_model.bin"),
        "journal": Reader((made["journal"],), read_journal, mutated="*"),
        "hub": Reader((made["hub.json"],), read_hub, ("json",)),
        **_image_readers(made["images"]),
    }  # fmt: skip


def _image_readers(folder: Path) -> dict[str, Reader]:
    """A row for each format that is read."""
    seeds: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        seeds.setdefault(path.name.partition("-")[0], []).append(path)
    return {f"image: {name}": Reader(tuple(paths), read_image) for name, paths in seeds.items()}


def differences(found: Arrays, expected: Arrays) -> str:
    """What a reader read otherwise than its oracle; empty where nothing is."""
    if found.keys() != expected.keys():
        return f"other names: {sorted(found.keys() ^ expected.keys())[:5]}"
    for name, array in expected.items():
        size = math.prod(found[name].shape) * found[name].dtype.itemsize
        if size != array.nbytes or np.ascontiguousarray(found[name]).tobytes() != np.ascontiguousarray(array).tobytes():
            return f"other bits: {name}"
    return ""
