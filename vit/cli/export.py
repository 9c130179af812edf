"""`vit export`: a checkpoint for another runtime, compared with it before it appears."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import shown
from .convert import terminated
from .frameworks import BUSY, busy_line, choose
from .frameworks import quiet as quietly
from .options import CacheDir, Force, Json, Quiet, Revision, Token, dtype_name

if TYPE_CHECKING:
    from ..exporting import Report


def command(
    checkpoint: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint folder, or a model on the hub.")],
    target: Annotated[Path, typer.Argument(help="A file name, or a folder for formats that are one.")],
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="onnx, openvino, torch, stablehlo, saved-model or litert. [default: by the target's ending]",
        ),
    ] = None,
    task: Annotated[
        str, typer.Option(metavar="classify|embed", help="What it gives: labels, or a vector.")
    ] = "classify",
    pool: Annotated[
        str, typer.Option(metavar="cls|mean|pooler|patches", help="The vector: CLS token, mean of patches, ...")
    ] = "cls",
    images: Annotated[bool, typer.Option("--images", help="Put the image processor into it: images in.")] = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", callback=dtype_name, help="float32, float16 or bfloat16. [default: the checkpoint's]"
        ),
    ] = None,
    int8: Annotated[
        Path | None, typer.Option("--int8", metavar="FOLDER", help="Quantise to int8, calibrated with these images.")
    ] = None,
    verify: Annotated[
        bool, typer.Option(help="Run the result and compare it with the model before it appears.")
    ] = True,
    revision: Revision = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export a model to another runtime.

    The result is loaded in its own runtime and compared with the model before it appears; a table tells how they
    differ and how fast each is. Batches may have any size.
    """
    from ..exporting import FORMATS, export
    from ..exporting.formats import format_of, module_of

    name = format_of(target, to)
    module_of(name, to_write=True)
    choose([FORMATS[name].framework], "vit export")
    options = {"revision": revision, "token": token, "cache_dir": cache_dir}
    from rich.console import Console

    with (
        open(os.dup(2), "w") as stderr,  # as libraries log on the other
        terminated(),
        Console(file=stderr, quiet=quiet).status("Starting") as status,
        quietly(),
    ):
        report = export(
            checkpoint, target, to=name, task=task, pool=pool, images=images, dtype=dtype, int8=int8, verify=verify,
            force=force, progress=status.update, **{key: value for key, value in options.items() if value is not None},
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    elif not quiet:
        show(report)


def show(report: Report) -> None:
    """Print how an export compares with its model."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from ..errors import FRAMEWORKS
    from ..exporting import FORMATS
    from ..measure import busy

    console = Console(highlight=False)
    if not console.is_terminal:  # a file or a pipe is as wide as the table
        console = Console(highlight=False, width=160)
    found = report.metadata
    kind = "int8" if found["int8"] else found["dtype"]
    console.print(f"{shown(report.path)}: {report.format}, {found['task']}, {kind}", soft_wrap=True)
    if report.difference is None:
        console.print(f"{_bytes(report.size)}; not compared")
        return
    table = Table(box=box.SIMPLE, header_style=None)
    table.add_column("", no_wrap=True)
    share = busy()
    timed = share <= BUSY
    same = "near vector" if found["task"] == "embed" else "same label"
    for header in ("largest difference", "largest value", same, "size", *(("ms an image",) if timed else ())):
        table.add_column(header, justify="right", no_wrap=True)
    same = "" if report.agreement is None else f"{report.agreement:.1%} of {report.images}"
    numbers = [f"{report.difference:.1e}", f"{report.largest:.3g}", same, _bytes(report.size)]
    style = None if report.passed else "bold red"
    if timed:
        source = FRAMEWORKS[FORMATS[report.format].framework][1]
        table.add_row(report.format, *numbers, f"{1000 * (report.seconds or 0):.2f}", style=style)
        table.add_row(f"{source}, float32", "", "", "", "", f"{1000 * (report.source_seconds or 0):.2f}")
    else:
        table.add_row(report.format, *numbers, style=style)
    console.print(table)
    if not timed:
        console.print(f"{busy_line(share)}: times would mislead, and are left out.", soft_wrap=True)


def _bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
