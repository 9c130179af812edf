"""`vit convert`: a checkpoint from one format into another."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import shown
from .options import DecoderHeads, Force, Heads, Json, Quiet, dtype_name

if TYPE_CHECKING:
    from conversion import Report


def command(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A checkpoint: a file or a folder, of any format.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A folder; a file name for formats of one file.")],
    source_format: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="FORMAT",
            help="auto, or: hf, transformers-pt, transformers-tf, "
            "transformers-flax, google, timm, torchvision, dino, deit, beit, mae, dinov2, dinov3, keras, orbax.",
        ),
    ] = "auto",
    target_format: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="hf, timm, torchvision, google, beit, mae, dinov2, transformers-tf, transformers-flax, keras, orbax.",
        ),
    ] = "hf",
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", callback=dtype_name, help="float32, float16, bfloat16 or float64. [default: as it is]"
        ),
    ] = None,
    verify: Annotated[bool, typer.Option(help="Read the result back and compare every tensor with the source.")] = True,
    labels: Annotated[
        str | None, typer.Option(metavar="NAMES", help="imagenet-1k, none, or a file: one name a line, or .json.")
    ] = None,
    published_config: Annotated[
        bool, typer.Option(help="The published activation and epsilon, not those that the source's code computes with.")
    ] = False,
    model_type: Annotated[
        str | None, typer.Option(metavar="NAME", help="The family, where names do not tell, such as vit_mae.")
    ] = None,
    num_attention_heads: Heads = None,
    decoder_num_attention_heads: DecoderHeads = None,
    hidden_act: Annotated[str | None, typer.Option(metavar="NAME", help="Instead of the source's.")] = None,
    layer_norm_eps: Annotated[float | None, typer.Option(metavar="X", help="Instead of the source's.")] = None,
    image_size: Annotated[str | None, typer.Option(metavar="N|HxW", help="Where positions form no square.")] = None,
    patch_size: Annotated[str | None, typer.Option(metavar="N|HxW", help="Where shapes do not tell.")] = None,
    num_channels: Annotated[int | None, typer.Option(metavar="N", help="Where shapes do not tell.")] = None,
    linear_head: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The linear head of a facebookresearch/dinov2 backbone.")
    ] = None,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Of the hf folder's weight files.")] = "5GB",
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Convert a checkpoint between formats.

    One tensor at a time, from the JAX, timm, torchvision, DINO, DeiT, Keras and transformers formats and back. What
    shapes do not tell comes from the source's conventions or from an option, and is said. Nothing is left out without
    a reason. The target appears when it is complete and compared.
    """
    import conversion

    options: dict[str, Any] = {"model_type": model_type, "num_attention_heads": num_attention_heads,
                               "decoder_num_attention_heads": decoder_num_attention_heads, "hidden_act": hidden_act,
                               "layer_norm_eps": layer_norm_eps, "image_size": _size(image_size),
                               "patch_size": _size(patch_size), "num_channels": num_channels}  # fmt: skip
    with terminated(), _Bar(quiet) as progress:
        report = conversion.convert(
            source, target, source_format, target_format, dtype=dtype, labels=labels, published_config=published_config,
            linear_head=linear_head, verify=verify, force=force, max_shard_size=max_shard_size, progress=progress,
            **options,
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    elif not quiet:
        show(report)


@contextmanager
def terminated() -> Iterator[None]:
    """SIGTERM ends this as Ctrl-C does, which removes what is half-written; a second one ends the process as it is."""

    def stop(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise SystemExit(128 + number)

    earlier = signal.signal(signal.SIGTERM, stop) if threading.current_thread() is threading.main_thread() else None
    try:
        yield
    finally:
        if earlier is not None:
            signal.signal(signal.SIGTERM, earlier)


def _size(text: str | None) -> int | tuple[int, int] | None:
    """The size that "384" or "384x512" says."""
    if text is None:
        return None
    numbers = text.lower().split("x")
    if not (1 <= len(numbers) <= 2 and all(number.strip().isdigit() for number in numbers)):
        raise typer.BadParameter(f"{text!r} is no size; expected a number, or height and width such as 384x512.")
    first, last = int(numbers[0]), int(numbers[-1])
    return first if first == last else (first, last)


def show(report: Report) -> None:
    """Print what was done, what was assumed and what was left out."""
    from conversion.inspection import variant

    config = report.config
    kind = (config.architectures or ("?",))[0]
    labels = f", {config.num_labels} labels" if "ForImageClassification" in kind else ""
    typer.echo(f"{shown(report.source)}: {report.source_format}, {kind} {variant(config)}{labels}")
    for line in report.said:
        typer.echo(f"  assumed  {shown(line)}")
    reasons: dict[str, list[str]] = {}
    for name, reason in report.ignored.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
        typer.echo(f"  left out {', '.join(map(shown, names[:3]))}{rest}: {reason}")
    compared = "every one compared bit by bit with the source" if report.verified else "not compared"
    typer.echo(f"{shown(report.target)}: {report.target_format}, {report.parameters:,} parameters, {compared}")


class _Bar:
    """A progress bar on stderr, where that is a terminal."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet

    def __enter__(self) -> Any:
        if self._quiet or not sys.stderr.isatty():
            self.bar = None
            return None
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        self.bar = Progress(
            TextColumn("converting"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
            console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self.bar.start()
        task = self.bar.add_task("", total=None)
        return lambda done, total: self.bar.update(task, completed=done, total=total)

    def __exit__(self, *error: Any) -> None:
        if self.bar is not None:
            self.bar.stop()
