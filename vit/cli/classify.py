"""`vit classify`: the most probable labels of images, few or millions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import shown
from . import batch
from .options import (
    BatchSize,
    CacheDir,
    Device,
    DType,
    Force,
    Framework,
    Images,
    Json,
    Model,
    Quiet,
    Resume,
    Revision,
    Strict,
    Token,
    Workers,
)

if TYPE_CHECKING:
    from .tables import Row

SUFFIXES = (".csv", ".jsonl", ".parquet")


def command(
    images: Images,
    top_k: Annotated[int, typer.Option("--top-k", "-k", metavar="N", min=1, help="Labels an image.")] = 5,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="A .csv, .jsonl or .parquet file for the rows."),
    ] = None,
    spreadsheet: Annotated[
        bool, typer.Option("--spreadsheet", help="In .csv, put ' before cells that begin as a formula does.")
    ] = False,
    model: Model = None,
    revision: Revision = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    framework: Framework = None,
    device: Device = None,
    dtype: DType = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    resume: Resume = False,
    force: Force = False,
    strict: Strict = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Classify images.

    Prints a table, or writes a row an image to --output while the run goes on. An image that cannot be read is a row
    with its error, and the exit status is then 1; Ctrl-C ends the run in order, and --resume continues it.
    """
    hub = {"revision": revision, "token": token, "cache_dir": cache_dir}
    return batch.run(
        images, "classify", {"top_k": top_k}, model=model, hub=hub, framework=framework, device=device, dtype=dtype,
        batch_size=batch_size, workers=workers, output=output, suffixes=SUFFIXES, resume=resume, force=force,
        strict=strict, as_json=as_json, quiet=quiet, spreadsheet=spreadsheet, show=show,
    )  # fmt: skip


def show(rows: list[Row]) -> None:
    """Print rows as a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:  # a file or a pipe is as wide as the table
        console = Console(highlight=False, width=160)
    table = Table()
    table.add_column("Image", overflow="fold")
    table.add_column("Label", overflow="fold")
    table.add_column("Probability", justify="right")
    for row in rows:
        path = Text(shown(row["path"], None))
        if row["error"] is not None:
            table.add_row(path, Text(shown(row["error"], None), "red"), "")
        else:
            first, *others = (shown(label, None) for label in row["labels"])
            labels = Text("\n".join([first, *others]))
            labels.stylize("bold", 0, len(first))
            probabilities = "\n".join(f"{value:.2%}" for value in row["probabilities"])
            table.add_row(path, labels, probabilities)
        table.add_section()
    console.print(table)
