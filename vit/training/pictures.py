"""The pictures of a run, on the slides of all pictures: the curves of its metrics, and the table of confusions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import picture

OPTION = "The picture"
"""What errors call a file that no option named."""
CURVES = (
    ("loss", {"training": "loss", "validation": "validation_loss"}),
    ("top-1", {"validation": "top1"}), ("average precision", {"validation": "mean_average_precision"}),
    ("rmse", {"validation": "rmse"}), ("learning rate", {"training": "learning_rate"}),
)  # fmt: skip
"""Panel -> whose line -> its key in the rows of metrics.jsonl; a panel without a value is left out."""
COLORS = {"training": "#58a6ff", "validation": "#f0883e"}
GRID = "#21262d"
POINTS = 200
"""The most that a line has; more are averaged."""
HEIGHT, SCALE, BETWEEN = 4.6, 0.75, 0.45  # inches: of a panel of curves, of the numbers beside it, to the next one

NAMED, COUNTED = 40, 20
"""The most labels that a table names beside it, and the most whose counts it shows."""
LETTERS = 20
"""The most letters of a label's name beside a table."""
LISTED = 0.34  # inches from a line of the list of confusions to the next


def curves(path: Path, rows: Iterable[Mapping[str, Any]], title: str, about: str) -> None:
    """Draw the loss, what validation measured and the learning rate by epochs.

    Args:
        path: the file.
        rows: of metrics.jsonl.
        title: what the run is called.
        about: what it was, in a line.

    Raises:
        InputError: the file cannot be written.
    """
    rows = list(rows)
    panels = {name: {whose: _points(rows, key) for whose, key in lines.items()} for name, lines in CURVES}
    panels = {name: drawn for name, lines in panels.items() if (drawn := {w: p for w, p in lines.items() if len(p)})}
    bottom, across = picture.TOP + HEIGHT, picture.SPACE + BETWEEN
    slide = picture.Slide(bottom + 0.3 + picture.UNDER + 0.35)
    slide.heading(title, _best(rows), about)
    width = across / max(len(panels), 1) - BETWEEN - SCALE
    for i, (name, lines) in enumerate(panels.items()):
        left = picture.MARGIN + i * across / len(panels)
        axes = slide.panel(left + SCALE, picture.TOP, width, HEIGHT)
        _dress(axes, is_part=name in ("top-1", "average precision"))
        right = slide.write(left + SCALE, bottom + 0.62, f"{name} by epochs", fontsize=13, color=picture.MUTED)
        for whose, points in lines.items():
            marker = "o" if len(points) < 30 else ""
            axes.plot(*points.T, color=COLORS[whose], linewidth=2, marker=marker, markersize=4, clip_on=False)
            if len(lines) > 1:
                right = slide.write(right + 0.25, bottom + 0.62, whose, fontsize=13, color=COLORS[whose])
        axes.set_xlim(0, 1.02 * max(points[-1, 0] for points in lines.values()))
        if name == "learning rate":
            axes.set_ylim(bottom=0)
    slide.save(path, OPTION)


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """(points, 2): epochs and values, as many in each of `POINTS` means where there are more."""
    points = np.array([(row["epoch"], row[key]) for row in rows if key in row], np.float64).reshape(-1, 2)
    return points if len(points) <= POINTS else np.stack([part.mean(axis=0) for part in np.array_split(points, POINTS)])


def _best(rows: Sequence[Mapping[str, Any]]) -> str:
    for key in ("top1", "mean_average_precision"):
        if values := [row[key] for row in rows if key in row]:
            return f"{max(values):.1%}"
    return ""


def _dress(axes: Any, is_part: bool) -> None:
    """Axes of numbers, in the colours of a slide."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_axis_on()
    axes.set_facecolor(picture.BACKGROUND)
    axes.grid(color=GRID, linewidth=1)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GRID)
    axes.tick_params(colors=picture.MUTED, labelsize=11, length=0, pad=6)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%" if is_part else f"{value:g}"))


def confusion(path: Path, table: np.ndarray, names: Sequence[str], title: str, option: str = OPTION) -> None:
    """Draw a table of confusions, beside those that are most frequent.

    Args:
        path: the file.
        table: (labels, labels) counts: rows are the truth, columns the answers.
        names: of the labels.
        title: what is evaluated.
        option: what said the path, for errors.

    Raises:
        InputError: the file cannot be written.
    """
    count, images, right = len(names), int(table.sum()), int(np.trace(table))
    totals = table.sum(axis=1)
    parts = table / np.maximum(totals[:, None], 1)
    side = min(max(picture.HIGHEST, 0.26 * min(count, NAMED)), 9.5)
    short = [name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…" for name in names] if count <= NAMED else []
    size = min(13.0, 0.62 * 72 * side / count)  # of the names, in points: as high as their rows allow
    slide = picture.Slide(9)  # until the names are measured
    margin = max([slide.width(name, fontsize=size) for name in short], default=0.0) + 0.12 * bool(short)
    bottom = picture.TOP + side + margin
    slide = picture.Slide(bottom + picture.UNDER + picture.FOOT)
    about = f"{images:,} images of {count:,} labels" if count != 1 else f"{images:,} images of one label"
    slide.heading(title, f"{right / max(images, 1):.1%}", f"{about}, {images - right:,} of them taken for another")

    left = picture.MARGIN + margin
    axes = slide.panel(left, picture.TOP, side, side)
    axes.set_axis_on()
    axes.imshow(np.sqrt(parts), cmap=slide.colormap, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for spine in axes.spines.values():
        spine.set_color(GRID)
    axes.tick_params(colors=picture.INK, labelsize=size, length=0, pad=5)
    axes.set_xticks(range(len(short)), short, rotation=90, parse_math=False)
    axes.set_yticks(range(len(short)), short, parse_math=False)
    if count <= NAMED:
        axes.set_xticks(np.arange(1, count) - 0.5, minor=True)
        axes.set_yticks(np.arange(1, count) - 0.5, minor=True)
        axes.grid(which="minor", color=GRID, linewidth=1)
        axes.tick_params(which="minor", length=0)
    for row, column in np.argwhere(table) if count <= COUNTED else ():
        colour = picture.BACKGROUND if parts[row, column] > 0.4 else picture.INK
        style = {"ha": "center", "va": "center", "fontsize": min(15.0, 0.36 * 72 * side / count), "color": colour}
        axes.text(column, row, f"{table[row, column]}", **style)
    slide.caption(picture.MARGIN, bottom, margin + side, "rows: the truth, columns: the answers")

    beside = left + side + 0.7
    _list(slide, beside, table, totals, names, int((side - 0.2) // LISTED))
    legend = "part of the images of a row's label, from none to all; colours go by its square root, so that few show"
    slide.foot(legend, "" if short else "labels in their order in config.json, the first at the top and on the left")
    slide.save(path, option)


def _list(slide: picture.Slide, left: float, table: np.ndarray, totals: np.ndarray, names: Sequence[str],
          most: int) -> None:  # fmt: skip
    """Write which labels are most often taken for which others."""
    wrong = table - np.diag(np.diag(table))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [(row, column) for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True)
             if wrong[row, column]]  # fmt: skip
    end, top = picture.WIDTH - picture.MARGIN, picture.TOP + 0.18
    what = "confused most often" if pairs else "nothing was confused"
    slide.write(left, top, what, end - left, fontsize=15, weight="bold")
    for i, (row, column) in enumerate(pairs):
        line, counted = top + (i + 1) * LISTED, f"{wrong[row, column]} of {totals[row]}"
        room = end - left - slide.width(counted, fontsize=13) - 0.3
        half = (room - 0.35) / 2
        right = slide.write(left, line, names[row], half, fontsize=13)
        right = slide.write(right + 0.08, line, "→", fontsize=13, color=picture.MUTED)
        slide.write(right + 0.08, line, names[column], left + room - right - 0.08, fontsize=13, color=picture.WRONG)
        slide.write(end, line, counted, ha="right", fontsize=13, color=picture.MUTED)
