"""`vit posemb`: what a checkpoint's position embeddings and patch filters look like, as a picture."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import picture
from ..errors import InputError, shown
from .frameworks import DIGITS
from .options import CacheDir, Force, Json, Model, Quiet, Revision, Token

if TYPE_CHECKING:
    import numpy as np


def command(
    given: Annotated[str | None, typer.Argument(metavar="MODEL", help="The same as --model.")] = None,
    model: Model = None,
    revision: Revision = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where the picture goes: a .png, .svg or .pdf file.")
    ] = Path("vit-posemb.png"),
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw position embeddings and patch filters.

    Figure 7 of the Vision Transformer's paper for any checkpoint: how similar the position embedding of each patch is
    to all others, and the principal components of the filters that embed the patches. No framework is needed.
    """
    if given and model:
        raise InputError(f"There are two models, {shown(given)} and --model {shown(model)}; give one.")
    model = model or given
    picture.check_output(output, force)
    picture.require("vit posemb")
    view = examine(model or DIGITS, revision=revision, token=token, cache_dir=cache_dir)
    view.model = picture.name_of(model)
    draw(output, view)
    if as_json:
        typer.echo(json.dumps({"model": str(model or DIGITS), "picture": str(output), **view.to_dict()}, indent=2))
    elif not quiet:
        typer.echo(f"Picture: {output}")


# === The computation ===


@dataclass
class View:
    """What a checkpoint learned of positions and patches.

    Attributes:
        similarity: (rows, columns, rows, columns), -1 to 1: of the patch at the first two to that at the last two.
        filters: (components, channels, height, width) of a patch.
        shares: (components,) of the filters' variance.
        hidden_size: how many filters there are.
        model: its name.
        measure: what `similarity` is.
    """

    similarity: np.ndarray
    filters: np.ndarray
    shares: np.ndarray
    hidden_size: int
    model: str = ""
    measure: str = "cosine similarity of each position's embedding to all others"

    def to_dict(self) -> dict[str, Any]:
        """What --json prints."""
        rows, columns = self.similarity.shape[:2]
        channels, height, width = self.filters.shape[1:]
        return {
            "grid": [rows, columns],
            "patch_size": [height, width],
            "channels": channels,
            "least_similarity": float(self.similarity.min()),
            "variance_shares": [float(share) for share in self.shares],
        }


def examine(name_or_folder: str | Path, **hub: Any) -> View:
    """Read what the picture shows from a checkpoint, without a framework.

    Args:
        name_or_folder: a checkpoint folder, or a model on the hub.
        **hub: options of `vit.hub.resolve`.

    Raises:
        CheckpointError: no checkpoint there, not that of a Vision Transformer, or one without positions.
    """
    import numpy as np

    from ..checkpoint import Checkpoint, fit
    from ..errors import CheckpointError
    from ..hub import resolve

    checkpoint = Checkpoint(resolve(name_or_folder, **hub))
    config = checkpoint.config
    stored, _, _ = fit(checkpoint, config)  # names them, and checks every shape
    embeddings = f"{config.base_model_prefix}.embeddings."
    tables = [name for name in stored if name.endswith(config.grid_parameters)]
    if not tables:
        why = "; queries and keys are rotated by theirs, which are computed" if hasattr(config, "rope_theta") else ""
        raise CheckpointError(f"{checkpoint.folder} has neither position embeddings nor relative position biases{why}.")
    kernel = checkpoint.read(stored[f"{config.base_model_prefix}.{config.patch_projection}.weight"])
    filters, shares = principal_filters(kernel)
    if f"{embeddings}position_embeddings" in stored:
        positions = checkpoint.read(stored[f"{embeddings}position_embeddings"])
        return View(position_similarity(positions, config.grid_size), filters, shares, config.hidden_size)
    biases = np.stack([checkpoint.read(stored[name]) for name in tables])  # (tables, distances, heads)
    table = biases.mean(axis=(0, 2), dtype=np.float64)
    return View(position_bias(table, config.grid_size), filters, shares, config.hidden_size, measure=BIAS)


def position_similarity(position_embeddings: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The cosine similarity of each patch's position embedding to every other's (Dosovitskiy et al. 2021, Figure 7).

    Args:
        position_embeddings: (1, prefix + rows * columns, hidden_size), first those of CLS and what else has no place in
            a grid.
        grid: (rows, columns).

    Returns:
        (rows, columns, rows, columns) float64, 0 beside an embedding of zeros.
    """
    import numpy as np

    patches = position_embeddings[0, -grid[0] * grid[1] :].astype(np.float64)  # (N, D)
    lengths = np.linalg.norm(patches, axis=1, keepdims=True)
    patches = patches / np.where(lengths > 0, lengths, 1)
    return (patches @ patches.T).clip(-1, 1).reshape(*grid, *grid)


BIAS = "bias of the attention of each position to all others, of its largest value"


def position_bias(table: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """What each patch's attention to every other is biased by (Bao et al. 2022), where no position is embedded.

    Args:
        table: ((2 rows - 1) * (2 columns - 1) + 3,), the mean of heads and layers, by distance.
        grid: (rows, columns).

    Returns:
        (rows, columns, rows, columns) float64, -1 to 1: as a share of the largest absolute value.
    """
    import numpy as np

    from ..families.beit import relative_position_index

    bias = table[relative_position_index(grid)[1:, 1:]]
    return (bias / max(abs(bias).max(), np.finfo(float).tiny)).reshape(*grid, *grid)


def principal_filters(kernel: np.ndarray, most: int = 28) -> tuple[np.ndarray, np.ndarray]:
    """The principal components of the filters that embed a patch (Dosovitskiy et al. 2021, Figure 7).

    Args:
        kernel: (hidden_size, channels, height, width).
        most: how many components, at most (28 in the paper); fewer where there is no more variance.

    Returns:
        (components, channels, height, width) float64 of length 1, the largest value of each above 0, and
        (components,): the share of the filters' variance that each explains, falling.
    """
    import numpy as np

    filters = kernel.reshape(len(kernel), -1).astype(np.float64)
    filters = filters - filters.mean(axis=0)
    _, scales, components = np.linalg.svd(filters, full_matrices=False)
    shares = scales**2 / max((scales**2).sum(), np.finfo(float).tiny)
    count = min(max(int((shares > 1e-15).sum()), 1), most)  # a direction without variance is any direction
    components, shares = components[:count], shares[:count]
    strongest = np.take_along_axis(components, abs(components).argmax(axis=1)[:, None], axis=1)
    return (components * np.sign(strongest)).reshape(-1, *kernel.shape[1:]), shares


# === The picture ===

BETWEEN = 0.5  # inches between the filters and the similarities
TILES = 16  # along the longer side of the grid, at most: more would be too small to see anything in


def draw(path: Path, view: View) -> None:
    """Draw the filters and the similarities, and write the file.

    Raises:
        InputError: it cannot be written.
    """
    rows, columns = view.similarity.shape[:2]
    components, channels, patch_height, patch_width = view.filters.shape
    filters, step = [filter_tile(each) for each in view.filters], -(-max(rows, columns) // TILES)
    similarity = mosaic(view.similarity[::step, ::step])
    main = picture.Block(1, 1, similarity.shape[1] * patch_width / (similarity.shape[0] * patch_height))
    aspect = filters[0].shape[1] / filters[0].shape[0]
    height, (right, left) = picture.arrange([main], components, aspect, BETWEEN)
    start, bottom = picture.MARGIN + left.width(height) + BETWEEN, picture.TOP + height

    slide = picture.Slide(bottom + picture.UNDER + picture.FOOT)
    kind = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
    about = f"{rows} x {columns} patches of {patch_height} x {patch_width} pixels, {kind}"
    slide.heading(f"What {view.model} learned about patches and positions", "", about)
    for pixels, place in zip(filters, left.places(picture.MARGIN, picture.TOP, height), strict=False):
        slide.panel(*place).imshow(pixels, cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    slide.caption(picture.MARGIN, bottom, left.width(height), "patch filters")
    least = min(math.floor(view.similarity.min() * 10) / 10, 0.0)
    colours = slide.colormap.with_extremes(bad=picture.BACKGROUND)((similarity - least) / (1 - least))
    (place,) = right.places(start, picture.TOP, height)
    slide.panel(*place).imshow(colours, aspect="auto", interpolation="antialiased")
    slide.caption(
        start, bottom, right.width(height), "position biases" if view.measure == BIAS else "position embeddings"
    )
    some = "" if step == 1 else f"; of {step} rows and {step} columns one is drawn"
    several = "" if channels in (1, 3) else "; the channels of each in a square, row by row"
    slide.foot(
        f"{view.measure}, from {least:g} to 1{some}",
        f"filters: {components} principal components of the {view.hidden_size}, {view.shares.sum():.1%} of their "
        f"variance; each scaled to its largest value, 0 is grey{several}",
    )
    slide.save(path)


def filter_tile(filter: np.ndarray) -> np.ndarray:
    """A filter, (channels, height, width), in 0..1 around 0.5: RGB as (height, width, 3), else its channels in grey.

    Other numbers of channels than 1 and 3 lie in a square, row by row; what is left of the square is NaN.
    """
    import numpy as np

    values = 0.5 + 0.5 * filter / max(abs(filter).max(), np.finfo(float).tiny)
    channels, height, width = values.shape
    if channels == 3:
        return values.transpose(1, 2, 0)
    side = int(np.ceil(np.sqrt(channels)))
    rows = -(-channels // side)
    square = np.full((rows * side, height, width), np.nan)
    square[:channels] = values
    return square.reshape(rows, side, height, width).transpose(0, 2, 1, 3).reshape(rows * height, side * width)


def mosaic(tiles: np.ndarray, pixels: int = 1500) -> np.ndarray:
    """Tiles, (rows, columns, height, width), as one array of about so many pixels, with NaN in the gaps between."""
    import numpy as np

    rows, columns, height, width = tiles.shape
    scale = max(pixels // (max(rows, columns) * max(height, width)), 1)
    gap = max(round(0.08 * scale * max(height, width)), 1)
    tiles = tiles.repeat(scale, axis=2).repeat(scale, axis=3)
    tiles = np.pad(tiles, ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=np.nan)
    rows, columns, height, width = tiles.shape
    return tiles.transpose(0, 2, 1, 3).reshape(rows * height, columns * width)[:-gap, :-gap]
