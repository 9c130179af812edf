"""The options that several commands have, so that each is called and described the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DTYPES = {"half": "float16", "fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "fp64": "float64"}
"""What people also call a dtype -> its name."""


def dtype_name(given: str | list[str] | None) -> str | list[str] | None:
    """The name of a dtype, or of each, for what people call it."""
    if isinstance(given, str):
        return DTYPES.get(given.lower(), given)
    return given and [DTYPES.get(each.lower(), each) for each in given]


Frameworks = Annotated[
    list[str] | None,
    typer.Option(
        "--framework", "-f", metavar="pt|tf|flax", help="Use this framework; repeatable. [default: all installed]"
    ),
]
Framework = Annotated[
    list[str] | None,
    typer.Option("--framework", "-f", metavar="pt|tf|flax", help="Use this framework. [default: the first installed]"),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="A checkpoint folder, or a model on the hub. [default: the bundled digits]",
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", metavar="NAME", help="Such as cpu, gpu or gpu:1. [default: the framework's]")
]
DType = Annotated[
    str | None,
    typer.Option(
        "--dtype", metavar="NAME", callback=dtype_name,
        help="float32, bfloat16, float16 or float64. [default: the checkpoint's]",
    ),
]  # fmt: skip
DTypes = Annotated[
    list[str] | None,
    typer.Option(
        "--dtype", metavar="NAME", callback=dtype_name,
        help="float32, bfloat16, float16 or float64; repeatable. [default: the checkpoint's]",
    ),
]  # fmt: skip
Revision = Annotated[
    str | None, typer.Option("--revision", metavar="NAME", help="Branch, tag or commit on the hub. [default: main]")
]
Token = Annotated[
    str | None,
    typer.Option("--token", metavar="TOKEN", help="Of the hub. [default: HF_TOKEN, or that of 'hf auth login']"),
]
CacheDir = Annotated[
    Path | None,
    typer.Option("--cache-dir", metavar="FOLDER", help="Where downloads are kept. [default: the hub's own cache]"),
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", "-b", metavar="N", min=1, help="Images a step. [default: chosen]")
]
Heads = Annotated[int | None, typer.Option(metavar="N", help="Where the file does not tell.")]
DecoderHeads = Annotated[
    int | None, typer.Option(metavar="N", help="Of a masked autoencoder. [default: as many as are 32 wide]")
]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the interrupted run that began --output.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first image that cannot be used.")]
Workers = Annotated[
    int | None, typer.Option("--workers", metavar="N", min=1, help="Threads that read images. [default: one per CPU]")
]
Images = Annotated[
    list[str],
    typer.Argument(metavar="PATH", help="Image files, folders (searched to the bottom), patterns; - lists on stdin."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors, and what --json asks for.")]
