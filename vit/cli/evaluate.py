"""`vit evaluate`: how good a checkpoint is on labelled images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import picture
from ..errors import shown, summary
from .frameworks import DIGITS, choose_one, import_quietly
from .options import (
    BatchSize,
    CacheDir,
    Device,
    DType,
    Force,
    Framework,
    Json,
    Model,
    Quiet,
    Revision,
    Strict,
    Token,
    Workers,
)

if TYPE_CHECKING:
    from ..training.evaluation import Evaluation

SHOWN = 50
"""The most labels that the table on the terminal has; those of the lowest recall."""


def command(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="A folder with one folder a class, a table, or a data set's name.")
    ],
    model: Model = None,
    revision: Revision = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    framework: Framework = None,
    knn: Annotated[
        int | None, typer.Option("--knn", metavar="K", min=1, help="Also by K nearest neighbours of the features.")
    ] = None,
    probe: Annotated[bool, typer.Option("--probe", help="Also by a linear map fitted to the features.")] = False,
    confusion: Annotated[
        Path | None, typer.Option("--confusion", metavar="FILE", help="A .png, .svg or .pdf of the confusions.")
    ] = None,
    device: Device = None,
    dtype: DType = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    strict: Strict = False,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate a checkpoint on labelled images.

    Of data with a split the validation part is taken; of the data of the run that left the checkpoint, what the run
    held out; otherwise all. Prints top-1, top-5, the calibration error, and each label's precision and recall; the
    labels must be the checkpoint's.
    """
    extra = choose_one(framework, "vit evaluate")
    if confusion is not None:
        picture.check_output(confusion, force, "--confusion")
        picture.require("vit evaluate --confusion")
    import_quietly(extra)

    from ..hub import resolve
    from ..inference import device_name
    from ..training.evaluation import evaluate

    if device is not None:
        device = device_name(device, extra)
    folder = resolve(model or DIGITS, revision=revision, token=token, cache_dir=cache_dir)
    found = evaluate(
        data, folder, extra, knn=knn, probe=probe, batch_size=batch_size or 32, workers=workers, strict=strict,
        device=device, dtype=dtype,
    )  # fmt: skip
    if confusion is not None and found.confusion is not None:
        from ..training import pictures

        pictures.confusion(confusion, found.confusion, found.names, picture.name_of(model), "--confusion")
    elif confusion is not None:
        typer.echo("vit: --confusion is of one label an image; there is no picture of these.", err=True)
    tell_skipped(found.broken)
    for note in () if quiet else found.notes:
        typer.echo(f"vit: {note}", err=True)
    if found.part == "all" and not quiet:
        typer.echo(
            "vit: all images of DATA were taken; where MODEL was trained on them, this is no test of it.", err=True
        )
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    elif not quiet:
        show(found)


def tell_skipped(broken: Mapping[str, str]) -> None:
    """Say how many images could not be used, if any, and why of the first."""
    if broken:
        reasons = summary((f"{name} {reason}" for name, reason in sorted(broken.items())), 5)
        typer.echo(
            f"vit: {len(broken):,} {'file was' if len(broken) == 1 else 'files were'} skipped: {reasons}", err=True
        )


def show(found: Evaluation) -> None:
    """Print an evaluation as tables."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..training import measures

    console = Console(highlight=False)
    figures = Table("Measure", "Value", title=f"{found.metrics['images']:,} images: {found.part}")
    for name, value in found.metrics.items():
        if name in ("top1", "top5", "accuracy", "mean_average_precision", "knn", "probe"):
            figures.add_row(name, f"{value:.2%}")
        elif name not in ("images", "score"):
            figures.add_row(name, f"{value:.4f}")
    console.print(figures)
    if found.confusion is None:
        return

    def part(value: Any) -> str:
        return "" if value is None else f"{value:.1%}"

    rows = [row for row in measures.per_class(found.confusion, found.names) if row["images"]]
    rows.sort(key=lambda row: row["recall"])
    classes = Table("Label", "Images", "Precision", "Recall")
    for row in rows[:SHOWN]:
        label = Text(shown(row["label"]))
        classes.add_row(label, f"{row['images']:,}", part(row["precision"]), part(row["recall"]))
    console.print(classes)
    if len(rows) > SHOWN:
        console.print(f"and {len(rows) - SHOWN:,} more labels of a higher recall; --json has all.")
