"""Files by their names: those of a checkpoint folder, images; and JSON read with errors that say what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import budgets
from .errors import CheckpointError, MissingCheckpointError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TORCH_WEIGHTS = "pytorch_model.bin"
TORCH_INDEX = "pytorch_model.bin.index.json"
FOREIGN = {
    "tf": ("tf_model.h5", "tf_model.h5.index.json"),
    "flax": ("flax_model.msgpack", "flax_model.msgpack.index.json"),
}
"""What transformers' TensorFlow and Flax classes wrote, which a conversion reads."""
STALE_WEIGHTS = r"model(-(\d+-)?\d+-of-\d+)?\.safetensors(\.index\.json)?"
"""What an earlier save left and a new one takes away, such as shards where there is one file now."""

ADAPTER = "adapter_config.json"
"""What peft writes beside the weights of an adapter."""
ADAPTER_REMEDY = "load its base model, then merge it: peft.PeftModel.from_pretrained(model, folder).merge_and_unload()"

IMAGES = (
    ".avif", ".bmp", ".dib", ".gif", ".icns", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pcx",
    ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip
"""What files of a folder are taken for images; any file that is named itself is."""

_SIGNS = (
    (0, b"PK\x03\x04", "a zip archive, as PyTorch writes: name it pytorch_model.bin if it is one"),
    (0, b"\x80\x02", "a PyTorch file of the format before 1.6: name it pytorch_model.bin"),
    (8, b"{", "a safetensors file: name it model.safetensors"),
    (0, b"\x89HDF\r\n", "an HDF5 file: 'vit convert' reads those"),
    (257, b"ustar", "a tar archive: unpack it; one that PyTorch itself wrote, before 2017, is to be loaded and saved "
                    "again by it"),
    (0, b"\x1f\x8b", "compressed by gzip: unpack it"),
    (0, b"version https://git-lfs", "a pointer of git-lfs: 'git lfs pull' fetches the file itself"),
    (0, b"<", "a web page, or XML: download the file itself"),
)  # fmt: skip


def other_kind(path: Path, *but: str) -> str:
    """What a file is by its first bytes, as the end of a sentence that says that it is not what its name says.

    Args:
        path: of a file that is there.
        *but: how what it should be begins here; "" is returned for that, and for what is not known.
    """
    with budgets.open_file(path) as file:
        head = file.read(512)
    found = next((what for offset, sign, what in _SIGNS if head[offset : offset + len(sign)] == sign), "")
    return f" It is {found}." if found and not found.startswith(but) else ""


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        CheckpointError: the file is missing, or holds something else.
    """
    try:
        values = json.loads(budgets.read_whole(path))
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise MissingCheckpointError(
            f"{path.parent} has no {path.name}; expected a folder that save_pretrained wrote."
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:  # a broken encoding, too
        raise CheckpointError(f"{path} is not JSON: {error}. Write or download it again.") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a JSON {type(values).__name__}; expected an object.")
    return values
