"""What the pictures share: the slide and its panels, overlays, files.

Only `Slide` needs matplotlib. Places and sizes are inches, from the top left corner.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import InputError, MissingFrameworkError, install_line

if TYPE_CHECKING:
    import numpy as np

SUFFIXES = (".png", ".svg", ".pdf")
BACKGROUND, INK, MUTED, RIGHT, WRONG = "#0d1117", "#f0f3f6", "#8b949e", "#7ee787", "#ff7b72"
COLORMAP = "inferno"
WIDTH, MARGIN = 16.0, 0.6
DPI = 120  # 1920 pixels across
PIXELS = 256  # height of an overlay
SPACE = WIDTH - 2 * MARGIN  # across, for panels
TOP, UNDER, FOOT = 1.66, 0.42, 1.07  # above the panels, for the captions below them, and below these
HIGHEST = 9.0 - TOP - UNDER - FOOT  # what that leaves to the panels of a slide of 16 by 9


# === What a command was given ===


def available() -> bool:
    """Whether matplotlib is installed; it is not imported."""
    return importlib.util.find_spec("matplotlib") is not None


def require(command: str) -> None:
    """Refuse to go on without matplotlib.

    Raises:
        MissingFrameworkError: it is not installed; the line that installs it is given.
    """
    if not available():
        raise MissingFrameworkError(f"{command} needs matplotlib. Install it with: {install_line('plot')}")


def check_output(path: Path, force: bool, option: str = "--output") -> None:
    """Refuse a path that `Slide.save` could not write to.

    Args:
        path: what the option says.
        force: whether a picture that exists may be replaced.
        option: which errors name.

    Raises:
        InputError: another kind of file, a folder, a place that does not exist or cannot be written, or, without
            `force`, a file that exists.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{option} is {str(path)!r}; expected a file name that ends in {', '.join(SUFFIXES)}.")
    if path.is_dir():
        raise InputError(f"{option} is {str(path)!r}, which is a folder; expected a file.")
    if not path.parent.is_dir():
        raise InputError(f"{option} is {str(path)!r}, but {str(path.parent)!r} is not a folder; make it first.")
    if path.exists() and not force:
        raise InputError(f"{option} is {str(path)!r}, which exists; give another name, or --force to replace it.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{option} is {str(path)!r}, which may not be written; give another place.")


def name_of(model: str | None) -> str:
    """A model's name for people: that of the hub, or the folder's."""
    if model is None:
        return "the bundled digits"
    return Path(model).resolve().name if os.path.isdir(os.path.expanduser(model)) else model


# === Pixels ===


def overlay(image: np.ndarray, attention: np.ndarray, colormap: Any, height: int = PIXELS) -> np.ndarray:
    """An image in grey under its attention in colour.

    Args:
        image: (height, width), or (height, width, 3) of RGB, in 0..1.
        attention: (rows, columns) of patches; its least becomes 0 and its most 1.
        colormap: from 0..1 to RGBA, such as matplotlib's.
        height: of the result, in pixels; the width follows.

    Returns:
        (height, width, 3) in 0..1: more colourful, and lighter, where there is more attention.
    """
    import numpy as np

    grey = enlarge(luminance(image), image, height)[..., None]
    attention = attention - attention.min()
    heat = enlarge(attention / max(attention.max(), np.finfo(np.float32).tiny), image, height)
    colour, weight = colormap(heat)[..., :3], 0.85 * heat[..., None]
    return grey * 0.8 * (1 - weight) + colour * weight


def cutout(image: np.ndarray, mask: np.ndarray, height: int = PIXELS) -> np.ndarray:
    """An image in its colours where a mask of patches, (rows, columns), is true, and in dark grey elsewhere.

    The other arguments and the result are those of `overlay`.
    """
    import numpy as np

    colours = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    colours = np.stack([enlarge(colours[..., i], image, height) for i in range(3)], axis=-1)
    kept = enlarge(mask, image, height, smooth=False)[..., None]
    return np.where(kept > 0.5, colours, 0.22 * luminance(colours)[..., None])


def luminance(image: np.ndarray) -> np.ndarray:
    """The grey of an image, (height, width) of (height, width, 3) or of itself (ITU-R BT.601)."""
    import numpy as np

    return image if image.ndim == 2 else image @ np.array([0.299, 0.587, 0.114])


def enlarge(array: np.ndarray, image: np.ndarray, height: int, smooth: bool = True) -> np.ndarray:
    """(rows, columns) in 0..1 drawn at a height in pixels and in the proportions of an image."""
    import numpy as np
    from PIL import Image

    size = (round(height * image.shape[1] / image.shape[0]), height)
    filter = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(array.astype(np.float32)).resize(size, filter)).clip(0, 1)


# === The slide ===


class Block(NamedTuple):
    """Panels of one size, in rows and columns.

    Attributes:
        rows: how many.
        columns: how many.
        aspect: width over height of a panel.
        gap: between columns.
        drop: between rows.
    """

    rows: int
    columns: int
    aspect: float
    gap: float = 0.08
    drop: float = 0.08

    def side(self, height: float) -> float:
        """The height of a panel in a block of some height."""
        return (height - (self.rows - 1) * self.drop) / self.rows

    def width(self, height: float) -> float:
        """The width of a block of some height."""
        return self.columns * self.side(height) * self.aspect + (self.columns - 1) * self.gap

    def places(self, left: float, top: float, height: float) -> Iterator[tuple[float, float, float, float]]:
        """(left, top, width, height) of each panel, in reading order."""
        side = self.side(height)
        for i in range(self.rows * self.columns):
            row, column = divmod(i, self.columns)
            width = side * self.aspect
            yield left + column * (width + self.gap), top + row * (side + self.drop), width, side


def common_height(blocks: Sequence[Block], width: float, highest: float, between: float) -> float:
    """The height at which blocks side by side fill a width, or `highest` if that is less."""
    width -= (len(blocks) - 1) * between
    least = sum(block.width(0) for block in blocks)  # widths are linear in the height
    return min(highest, (width - least) / (sum(block.width(1) for block in blocks) - least))


def arrange(mains: Sequence[Block], parts: int, aspect: float, between: float) -> tuple[float, list[Block]]:
    """Lay a main block and a block of smaller panels side by side, as large as a slide of 16 by 9 allows.

    Args:
        mains: the shapes that the main block may have.
        parts: how many smaller panels; 0 for none, and no block of them.
        aspect: width over height of each of these.
        between: between the blocks.

    Returns:
        The height of both blocks, and the blocks.
    """
    shapes = [Block(-(-parts // columns), columns, aspect) for columns in range(1, parts + 1)]
    best: tuple[float, float, list[Block]] = (-1.0, 0.0, [])
    for blocks in [[main, shape] for main in mains for shape in shapes] or [[main] for main in mains]:
        height = common_height(blocks, SPACE, HIGHEST, between)
        sides = [block.side(height) for block in blocks]
        if min(sides) <= 0 or sides[0] < sides[-1]:
            continue
        used = (sum(block.width(height) for block in blocks) + between * (len(blocks) - 1)) / SPACE
        filled = parts / (blocks[1].rows * blocks[1].columns) if parts else 1
        best = max(best, (sides[0] * sides[-1] * (used * filled) ** 2, height, blocks), key=lambda each: each[0])
    return best[1:]


class Slide:
    """A picture of 1920 pixels' width on a dark ground.

    Args:
        height: in inches, of which the width has 16.
    """

    def __init__(self, height: float) -> None:
        from matplotlib import colormaps
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.height = height
        self.colormap = colormaps[COLORMAP]
        self.figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor=BACKGROUND)
        self.canvas = FigureCanvasAgg(self.figure)  # measures text, whatever the file's format

    def write(self, left: float, top: float, text: str, most: float | None = None, **style: Any) -> float:
        """Write a line on a baseline, shortened where it would be longer than `most`; gives its right edge."""
        place = (left / WIDTH, 1 - top / self.height)
        style = {"color": INK, "va": "baseline", **style}
        written = self.figure.text(*place, text, parse_math=False, **style)  # a label may have dollars in it
        if most is not None and self._right(written) > left + most:
            fits, longest = 0, len(text)
            while fits + 1 < longest:  # bisection
                middle = (fits + longest) // 2
                written.set_text(text[:middle].rstrip() + "…")
                fits, longest = (middle, longest) if self._right(written) <= left + most else (fits, middle)
            written.set_text(text[:fits].rstrip() + "…")
        return self._right(written)

    def width(self, text: str, **style: Any) -> float:
        """How long a line would be."""
        written = self.figure.text(0, 0, text, parse_math=False, **style)
        right = self._right(written)
        written.remove()
        return right

    def _right(self, written: Any) -> float:
        return float(written.get_window_extent(self.canvas.get_renderer()).x1 / DPI)

    def panel(self, left: float, top: float, width: float, height: float) -> Any:
        """Empty axes."""
        axes = self.figure.add_axes(
            (left / WIDTH, 1 - (top + height) / self.height, width / WIDTH, height / self.height)
        )
        axes.set_axis_off()
        return axes

    def label(self, left: float, top: float, text: str, **style: Any) -> None:
        """Write in the upper left corner of a panel, legibly on any ground."""
        from matplotlib.patheffects import withStroke

        effects = [withStroke(linewidth=2.5, foreground=BACKGROUND)]
        self.write(left + 0.07, top + 0.21, text, path_effects=effects, **{"fontsize": 12, **style})

    def bar(self, left: float, top: float, width: float, height: float) -> None:
        """The colours from the least to the most."""
        self.panel(left, top, width, height).imshow([[i / 255 for i in range(256)]], aspect="auto", cmap=self.colormap)

    def heading(self, title: str, beside: str, below: str) -> None:
        """Write what the picture is about, in two lines."""
        right = self.write(MARGIN, 0.84, title, SPACE - 1.8 * bool(beside), fontsize=25, weight="bold")
        self.write(right + 0.25, 0.84, beside, fontsize=25, color=MUTED)
        self.write(MARGIN, 1.28, below, SPACE, fontsize=15, color=MUTED)

    def caption(self, left: float, bottom: float, width: float, text: str) -> None:
        """Write under panels that end at `bottom`."""
        self.write(left, bottom + 0.28, text, width, fontsize=13, color=MUTED)

    def foot(self, legend: str, note: str, bar: bool = True) -> None:
        """Write what the colours mean, with or without a bar of them, and a line more."""
        top, left = self.height - 0.72, MARGIN + 1.68 * bar
        if bar:
            self.bar(MARGIN, top - 0.12, 1.5, 0.13)
        self.write(left, top, legend, WIDTH - MARGIN - left, fontsize=12, color=MUTED)
        self.write(MARGIN, top + 0.3, note, SPACE, fontsize=12, color=MUTED)

    def save(self, path: Path, option: str = "--output") -> None:
        """Write the file, which is replaced only when the new one is complete.

        Args:
            path: what the option says.
            option: which errors name.

        Raises:
            InputError: it cannot be written.
        """
        beside = path.with_name(f".{path.name}.incomplete")
        try:
            self.figure.savefig(beside, format=path.suffix[1:].lower(), facecolor=BACKGROUND)
            os.replace(beside, path)
        except OSError as error:
            raise InputError(
                f"{option} is {str(path)!r}, which cannot be written: {error.strerror or error}."
            ) from None
        finally:
            beside.unlink(missing_ok=True)
