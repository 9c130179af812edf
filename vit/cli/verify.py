"""`vit verify`: one checkpoint in every framework, compared layer by layer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError, shown
from .frameworks import choose, import_quietly
from .frameworks import quiet as quietly
from .options import CacheDir, DecoderHeads, Device, Frameworks, Heads, Json, Quiet, Revision, Token, dtype_name

if TYPE_CHECKING:
    from conversion import Verification


def command(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint folder, a model on the hub, or a foreign file.")
    ],
    artifact: Annotated[
        Path | None, typer.Option("--artifact", metavar="PATH", help="What 'vit export' wrote, to compare it instead.")
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option("--images", "-i", metavar="FILE", help="An image to run; repeatable.")
    ] = None,
    framework: Frameworks = None,
    device: Device = None,
    tolerance: Annotated[
        float,
        typer.Option(
            metavar="X", help="Largest difference, as a share of the largest value (or of 1, if that is more)."
        ),
    ] = 1e-5,
    dtype: Annotated[str, typer.Option(metavar="NAME", callback=dtype_name, help="float32 or float64.")] = "float32",
    source_format: Annotated[str, typer.Option("--from", metavar="FORMAT", help="Of a foreign file.")] = "auto",
    num_attention_heads: Heads = None,
    decoder_num_attention_heads: DecoderHeads = None,
    revision: Revision = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Compare a checkpoint in every framework, or an export with it.

    Runs the same images (random ones, if none are given) and prints the largest difference of each layer. The exit
    status is 1 when one is past the tolerance, or when an image is classified differently.
    """
    if artifact is not None:
        others = {"--framework": framework, "--device": device, "--tolerance": tolerance != 1e-5,
                  "--dtype": dtype != "float32", "--from": source_format != "auto",
                  "--num-attention-heads": num_attention_heads,
                  "--decoder-num-attention-heads": decoder_num_attention_heads}  # fmt: skip
        if ignored := [name for name, given in others.items() if given]:
            raise InputError(
                f"{ignored[0]} changes nothing of an export, which has its own runtime, dtype and tolerance; leave it "
                "out beside --artifact."
            )
        hub = {"revision": revision, "token": token, "cache_dir": cache_dir}
        return _artifact(checkpoint, artifact, images, as_json, quiet, hub)
    import conversion

    given = {"num_attention_heads": num_attention_heads, "decoder_num_attention_heads": decoder_num_attention_heads,
             "revision": revision, "token": token, "cache_dir": cache_dir}  # fmt: skip
    options = {name: value for name, value in given.items() if value is not None}
    from rich.console import Console

    chosen = choose(framework, "vit verify")
    if "tf" in chosen:
        import_quietly("tf")
    with Console(stderr=True).status("Starting") if sys.stderr.isatty() and not quiet else _Silent() as status:
        found = conversion.verify(
            checkpoint, images, frameworks=chosen, tolerance=tolerance, dtype=dtype, source_format=source_format,
            progress=status.update, device=device, **options,
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    elif not quiet:
        show(found)
    return 0 if found.passed else 1


def _artifact(
    checkpoint: str, artifact: Path, images: list[Path] | None, as_json: bool, quiet: bool, hub: dict[str, Any]
) -> int:
    from ..exporting import verify
    from ..exporting.engine import verdict
    from . import export

    with quietly():
        found = verify(checkpoint, artifact, images, **{key: value for key, value in hub.items() if value is not None})
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    elif not quiet:
        export.show(found)
        typer.echo(f"{'the same function' if found.passed else 'NOT the same function'}: {verdict(found)}")
    return 0 if found.passed else 1


def show(found: Verification) -> None:
    """Print the table and the verdict."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from conversion.inspection import variant

    from ..errors import FRAMEWORKS

    console = Console(highlight=False)
    if not console.is_terminal:  # a file or a pipe is as wide as the table
        console = Console(highlight=False, width=160)
    versions = ", ".join(f"{FRAMEWORKS[key][1]} {version}" for key, version in found.versions.items())
    console.print(f"{shown(found.name)}: {found.architecture} {variant(found.config)}, {found.dtype}", soft_wrap=True)
    console.print(f"{versions}; {', '.join(map(shown, found.images))}", soft_wrap=True)
    table = Table(box=box.SIMPLE, header_style=None)
    for header in ("stage", "shape"):
        table.add_column(header, no_wrap=True)
    for header in ("largest value", *(pair.replace("-", " - ") for pair in found.stages[0].differences)):
        table.add_column(header, justify="right", no_wrap=True)
    for stage in found.stages:
        row = (stage.name, "x".join(map(str, stage.shape)), f"{stage.largest:.3g}")
        differences = (f"{value:.1e}" for value in stage.differences.values())
        table.add_row(*row, *differences, style=None if found.within(stage) else "bold red")
    console.print(table)
    for image, answers in found.answers.items():
        if len(set(answers.values())) > 1:
            console.print(
                f"{shown(image)}: {', '.join(f'{key} says {shown(label)}' for key, label in answers.items())}",
                style="red",
            )
    worst = found.worst
    verdict = "the same function" if found.passed else "NOT the same function"
    console.print(
        f"{verdict}: the largest difference is {worst.worst():.1e} at {worst.name}, where values reach "
        f"{worst.largest:.3g}; the tolerance is {found.tolerance:g} of the largest value, or {found.tolerance:g}",
        soft_wrap=True,
    )


class _Silent:
    """A status that shows nothing."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def update(self, step: str) -> None:
        return None
