"""The files of a checkpoint folder: their names, and JSON read with errors that say what to do."""

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
STALE_WEIGHTS = r"model(-(\d+-)?\d+-of-\d+)?\.safetensors(\.index\.json)?"
"""What an earlier save left and a new one takes away, such as shards where there is one file now."""


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
