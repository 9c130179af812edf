"""A model name -> a local checkpoint folder: an existing folder first, else the hub, through huggingface_hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .errors import CheckpointError

OPTIONS = ("revision", "token", "cache_dir", "local_files_only")
"""Keyword arguments of every from_pretrained that go to the hub."""

_CONFIGS = ["config.json", "preprocessor_config.json"]
_WEIGHTS = (["model.safetensors", "model-*.safetensors", "model.safetensors.index.json"], ["pytorch_model*.bin*"])


def split_options(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the hub's options among `kwargs`, the others)."""
    return {k: v for k, v in kwargs.items() if k in OPTIONS}, {k: v for k, v in kwargs.items() if k not in OPTIONS}


def resolve(
    name_or_folder: str | os.PathLike[str],
    *,
    config_only: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder of a checkpoint, downloaded into the hub's cache if it is not there yet.

    Args:
        name_or_folder: a local folder, or a model name such as "google/vit-base-patch16-224".
        config_only: leave the weights out.
        revision: branch, tag or commit on the hub.
        token: the hub's access token; the stored one when None.
        cache_dir: where downloads are kept; huggingface_hub's own cache when None.
        local_files_only: use the cache alone; so does the environment variable HF_HUB_OFFLINE=1.

    Raises:
        CheckpointError: neither a folder nor a model that can be had; the reason and the remedy are named.
    """
    name = os.fspath(name_or_folder)
    folder = os.path.expanduser(name)
    if name and os.path.isdir(folder):
        return Path(folder)
    is_file = os.path.exists(folder)
    if is_file or not name or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        found = "is a file" if is_file else "does not exist"
        raise CheckpointError(
            f"{name or 'An empty name'} {found}; expected a checkpoint folder or a model name on the hub."
        )

    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def download(patterns: list[str]) -> Path:
        return Path(
            snapshot_download(
                name,
                allow_patterns=patterns,
                revision=revision,
                token=token,
                cache_dir=None if cache_dir is None else Path(cache_dir),
                local_files_only=local_files_only,
            )
        )

    try:
        if config_only:
            return download(_CONFIGS)
        for patterns in _WEIGHTS:  # safetensors first; a pickle only where there is nothing else
            snapshot = download(_CONFIGS + patterns)
            if any(any(snapshot.glob(pattern)) for pattern in patterns):
                return snapshot
        reason = (
            "has neither model.safetensors nor pytorch_model.bin, on the hub or, where that is out of reach, in the "
            f"cache ({snapshot}); if only a part was downloaded, connect and load it again"
        )
    except HFValidationError:
        reason = (
            "is neither a folder here nor a possible model name; model names look like 'google/vit-base-patch16-224'"
        )
    except GatedRepoError:
        reason = "is gated on the hub: ask for access on its page, then pass token= or run 'hf auth login'"
    except RevisionNotFoundError:
        reason = f"has no revision {revision!r} on the hub"
    except RepositoryNotFoundError:
        reason = "is neither a folder here nor a model on the hub that you may read; if it is private, pass token="
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        reason = (
            "is not a folder here, not in the cache, and the hub cannot be reached (or is switched off by "
            "local_files_only or HF_HUB_OFFLINE); connect, or give the path of a folder"
        )
    except EntryNotFoundError as error:
        reason = f"lacks a file on the hub: {_first_line(error)}"
    except (OSError, HfHubHTTPError) as error:  # a broken connection, a full disk, a hub in trouble
        reason = f"could not be downloaded: {_first_line(error)}"
    raise CheckpointError(f"{name} {reason}.")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
