"""The pictures of a run: curves of its metrics, and the table of confusions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

NAMED = 40
"""The most labels that a table names on its axes."""


def available() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def curves(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Draw the loss, the score and the learning rate over the steps, of the rows of metrics.jsonl."""
    from matplotlib.figure import Figure

    rows = list(rows)
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = (("loss", ("loss", "validation_loss")), ("score", ("score",)), ("learning rate", ("learning_rate",)))
    for axes, (title, names) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if name in row]
            marker = "." if len(points) < 30 else ""
            axes.plot([x for x, _ in points], [y for _, y in points], label=name.replace("_", " "), marker=marker)
        axes.set_title(title)
        axes.set_xlabel("step")
        if len(names) > 1:
            axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def confusion(path: Path, table: np.ndarray, names: tuple[str, ...]) -> None:
    """Draw a table of confusions: rows are the truth, each as parts of its images."""
    from matplotlib.figure import Figure

    few = len(names) <= NAMED
    side = 3 + 0.35 * min(len(names), NAMED)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    parts = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(parts, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="part of the true label's images")
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    if few:
        short = [name if len(name) <= 20 else f"{name[:19]}…" for name in names]
        axes.set_xticks(range(len(names)), short, rotation=90, parse_math=False)
        axes.set_yticks(range(len(names)), short, parse_math=False)
    if len(names) <= 20:
        for (row, column), count in np.ndenumerate(table):
            if count:
                colour = "white" if parts[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=colour)
    figure.savefig(path, dpi=120)
