"""The options that several commands have, so that each is called and described the same everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

Frameworks = Annotated[
    list[str] | None,
    typer.Option(
        "--framework", "-f", metavar="pt|tf|flax", help="Use this framework; repeatable. [default: all installed]"
    ),
]
Framework = Annotated[
    str | None,
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
    typer.Option("--dtype", metavar="NAME", help="float32, bfloat16, float16 or float64. [default: the checkpoint's]"),
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", "-b", metavar="N", min=1, help="Images a step. [default: chosen]")
]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors, and what --json asks for.")]
