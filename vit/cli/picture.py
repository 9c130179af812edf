"""The picture of `vit demo`: every scan with its answer and the CLS token's attention. Only `draw` needs matplotlib."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FRAMEWORKS, InputError

if TYPE_CHECKING:
    import numpy as np

    from .demo import Results

SUFFIXES = (".png", ".svg", ".pdf")
BACKGROUND, INK, MUTED, RIGHT, WRONG = "#0d1117", "#f0f3f6", "#8b949e", "#7ee787", "#ff7b72"
COLUMNS = 10
WIDTH, MARGIN, HEADER, CAPTION, FOOTER = 16.0, 0.6, 2.03, 0.68, 1.14  # inches; 30 scans fill 16 by 9
GAP = 0.24  # inches between panels
PIXELS = 256  # height of an overlay


def available() -> bool:
    """Whether matplotlib is installed; it is not imported."""
    return importlib.util.find_spec("matplotlib") is not None


def check_output(path: Path) -> None:
    """Refuse a path that `draw` could not write to.

    Raises:
        InputError: another kind of file, a folder, or a place that does not exist or cannot be written.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"--output is {str(path)!r}; expected a file name that ends in {', '.join(SUFFIXES)}.")
    if path.is_dir():
        raise InputError(f"--output is {str(path)!r}, which is a folder; expected a file.")
    if not path.parent.is_dir():
        raise InputError(f"--output is {str(path)!r}, but {str(path.parent)!r} is not a folder; make it first.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"--output is {str(path)!r}, which may not be written; give another place.")


def overlay(image: np.ndarray, attention: np.ndarray, colormap: Any) -> np.ndarray:
    """An image in grey under its attention in colour.

    Args:
        image: (height, width) in 0..1.
        attention: (rows, columns) of patches; its least becomes 0 and its most 1.
        colormap: from 0..1 to RGBA, such as matplotlib's.

    Returns:
        (PIXELS, PIXELS * width / height, 3) in 0..1: more colourful, and lighter, where there is more attention.
    """
    import numpy as np
    from PIL import Image

    def enlarge(array: np.ndarray) -> np.ndarray:
        size = (round(PIXELS * image.shape[1] / image.shape[0]), PIXELS)
        return np.asarray(Image.fromarray(array.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)

    grey = enlarge(image)[..., None]
    attention = attention - attention.min()
    heat = enlarge(attention / max(attention.max(), np.finfo(np.float32).tiny))
    colour, weight = colormap(heat)[..., :3], 0.85 * heat[..., None]
    return grey * 0.8 * (1 - weight) + colour * weight


def draw(path: Path, results: Results) -> None:
    """Draw the results of `vit demo` and write them to a file, which is replaced only when the new one is complete.

    Raises:
        InputError: it cannot be written.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    colormap = colormaps["inferno"]
    columns = min(COLUMNS, len(results.files))
    rows = -(-len(results.files) // columns)
    side = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) / COLUMNS
    height = HEADER + rows * (side + CAPTION) + FOOTER
    figure = Figure(figsize=(WIDTH, height), dpi=120, facecolor=BACKGROUND)

    def write(left: float, top: float, text: str, **style: Any) -> None:
        figure.text(left / WIDTH, 1 - top / height, text, **{"color": INK, "va": "baseline", **style})

    def panel(left: float, top: float, width: float, tall: float) -> Any:
        axes = figure.add_axes((left / WIDTH, 1 - (top + tall) / height, width / WIDTH, tall / height))
        axes.set_axis_off()
        return axes

    write(MARGIN, 0.97, title(results), fontsize=25, weight="bold")
    write(MARGIN, 1.45, summary(results), fontsize=15, color=MUTED)
    for i in range(len(results.files)):
        column, row = divmod(i, rows)  # down the columns: with three scans of each digit, a column for each digit
        left, top = MARGIN + column * (side + GAP), HEADER + row * (side + CAPTION)
        panel(left, top, side, side).imshow(overlay(results.images[i], results.attention[i], colormap), aspect="auto")
        answer, right = caption(results, i)
        style = {"fontsize": 15, "color": RIGHT} if right else {"fontsize": 12.5, "color": WRONG}
        write(left, top + side + 0.27, answer, weight="bold", **style)
        probability = max(results.answer(extra, i)[1] for extra in results.runs)
        write(left + side, top + side + 0.27, f"{probability:.1%}", fontsize=11.5, color=MUTED, ha="right")
    top = height - 0.6
    panel(MARGIN, top - 0.12, 1.5, 0.13).imshow([[i / 255 for i in range(256)]], aspect="auto", cmap=colormap)
    legend = (
        "the CLS token's attention to each patch: last layer, mean of its heads, from the least to the most in a scan"
    )
    write(MARGIN + 1.68, top, legend, fontsize=12, color=MUTED)
    beside = path.with_name(f".{path.name}.incomplete")
    try:
        figure.savefig(beside, format=path.suffix[1:].lower(), facecolor=BACKGROUND)
        os.replace(beside, path)
    except OSError as error:
        raise InputError(f"--output is {str(path)!r}, which cannot be written: {error.strerror or error}.") from None
    finally:
        beside.unlink(missing_ok=True)


def title(results: Results) -> str:
    """What the frameworks have in common."""
    *names, last = (FRAMEWORKS[extra][1] for extra in results.runs)
    where = f"in {', '.join(names)} and {last}" if names else f"in {last}"
    answers = [[results.answer(extra, i)[0] for i in range(len(results.files))] for extra in results.runs]
    same = len(answers) > 1 and all(each == answers[0] for each in answers)
    return f"One checkpoint, the same answers {where}" if same else f"One checkpoint {where}"


def summary(results: Results) -> str:
    """What the picture shows, in a line."""
    right = ",  ".join(f"{FRAMEWORKS[extra][1]} {results.correct(extra)}" for extra in results.runs)
    text = f"Right of {len(results.files)} held-out handwritten digits:  {right}"
    return (
        text if results.difference is None else f"{text}.   Largest difference of any logit:  {results.difference:.1e}"
    )


def caption(results: Results, i: int) -> tuple[str, bool]:
    """What stands under a scan, and whether every framework is right."""
    answers = {extra: results.answer(extra, i)[0] for extra in results.runs}
    if set(answers.values()) == {results.labels[i]}:
        return results.labels[i], True
    if len(set(answers.values())) == 1:
        return f"{next(iter(answers.values()))}, is {results.labels[i]}", False
    return " ".join(f"{extra} {answer}" for extra, answer in answers.items()), False
