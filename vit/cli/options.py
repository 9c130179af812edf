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
Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors, and what --json asks for.")]
