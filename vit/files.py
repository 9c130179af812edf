"""The files of a checkpoint folder: their names, JSON read with errors that say what to do, and whole replacement."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from . import budgets
from .errors import CheckpointError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TORCH_WEIGHTS = "pytorch_model.bin"
TORCH_INDEX = "pytorch_model.bin.index.json"


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
        raise CheckpointError(
            f"{path.parent} has no {path.name}; expected a folder that save_pretrained wrote."
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:  # a broken encoding, too
        raise CheckpointError(f"{path} is not JSON: {error}. Write or download it again.") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a JSON {type(values).__name__}; expected an object.")
    return values


@contextmanager
def replace_files(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a staging folder whose files move into `folder` when the block ends well, and vanish when it does not.

    Raises:
        CheckpointError: `folder` is a file, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; expected a folder to save into.")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".incomplete-", dir=folder, ignore_cleanup_errors=True) as staging:
            yield Path(staging)
            # What names the others comes after them: an index after its shards, config.json last.
            files = sorted(
                Path(staging).iterdir(), key=lambda path: (path.name == CONFIG, path.name in (WEIGHTS, INDEX))
            )
            for path in files:
                if (folder / path.name).is_dir():
                    raise CheckpointError(
                        f"{folder / path.name} is a folder where a file is to be saved; move it away."
                    )
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            for path in files:
                os.replace(path, folder / path.name)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be saved into: {error.strerror or error}.") from error
    finally:
        for path in made:  # removes what is empty, that is, after a failure
            with suppress(OSError):
                path.rmdir()
