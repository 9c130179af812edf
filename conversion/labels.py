"""Names for the labels of a head: those of ImageNet-1k ship with the package; others come from a file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from vit import budgets
from vit.config import label_index
from vit.errors import CheckpointError, shown


def label_names(source: str | Path | Iterable[str]) -> dict[int, str]:
    """Label names: "imagenet-1k", a file with one a line or a JSON list or object, or the names themselves."""
    if isinstance(source, str | Path):
        path = Path(__file__).parent / "data" / "imagenet-1k.txt" if source == "imagenet-1k" else Path(source)
        try:
            text = budgets.read_whole(path).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"The labels {shown(source)} cannot be read ({shown(error)}); give imagenet-1k or a file."
            ) from None
        if path.suffix == ".json":
            try:
                values = json.loads(text)
                values = values.get("id2label", values) if isinstance(values, dict) else dict(enumerate(values))
                found = {label_index(index): str(label) for index, label in values.items()}
                if len(found) == len(values):
                    return found
                raise ValueError
            except (ValueError, TypeError, AttributeError, RecursionError):
                raise CheckpointError(
                    f"{shown(path)} holds no list of labels and no object of numbers and labels."
                ) from None
        source = [line for line in text.splitlines() if line and not line.startswith("#")]
    return dict(enumerate(source))
