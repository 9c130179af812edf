"""A checkpoint's folder on the hub: its files in one commit, and a card where there is none."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .config import read_config, to_pair
from .files import STALE_WEIGHTS
from .folders import files
from .hub import is_published, push


def push_folder(
    folder: str | os.PathLike[str], repo_id: str, *, tags: str | Iterable[str] | None = None, **options: Any
) -> str:
    """Upload a checkpoint's folder to a model on the hub: configuration, image processor, weights and card.

    Args:
        folder: with config.json and weights, which take the place of those on the hub; what else a training left in
            it stays here.
        repo_id: as that of `push`.
        tags: one or several, of the card that a model without one gets.
        **options: those of `push`.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: no checkpoint, or it cannot be uploaded; the reason is named.
    """
    config = read_config(Path(folder))
    found = {path.name: path for path in sorted(files(Path(folder))) if is_published(path.name)}
    tags = [tags] if isinstance(tags, str) else list(tags or ())
    return push(found, repo_id, card=lambda name: _card(config, name, tags), stale=STALE_WEIGHTS, **options)


def _card(config: Any, repo_id: str, tags: Iterable[str]) -> str:
    """The text of a model's page: what it is, and the lines that load it."""
    name = next(iter(config.architectures or ()), config.heads[None].name)
    classifies = "ImageClassification" in name
    (height, width), (patch_height, patch_width) = to_pair(config.image_size), to_pair(config.patch_size)
    return "\n".join([
        "---",
        "library_name: transformers",
        f"pipeline_tag: {'image-classification' if classifies else 'image-feature-extraction'}",
        "tags:",
        *(f"- {tag}" for tag in ("vision", "trivit", *tags)),
        "---",
        "",
        f"# {repo_id.rpartition('/')[2]}",
        "",
        f"A `{name}` of the family `{config.model_type}`.",
        "",
        f"- images of {height} x {width} pixels, patches of {patch_height} x {patch_width}",
        f"- {config.num_hidden_layers} layers of width {config.hidden_size}, {config.num_attention_heads} heads",
        *([f"- {config.num_labels} labels"] if classifies else []),
        "",
        "The same weights in PyTorch, TensorFlow and Flax:",
        "",
        "```python",
        f"from vit import {name}, TF{name}, Flax{name}",
        "",
        f'model = {name}.from_pretrained("{repo_id}")',
        "```",
        "",
    ])  # fmt: skip
