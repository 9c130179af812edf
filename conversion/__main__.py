"""`python -m conversion`: the command `vit convert`, by itself."""

from __future__ import annotations

import sys

import typer

from vit.cli.convert import command
from vit.errors import shown


def main() -> None:
    """Convert; an error is one line on stderr and the exit status 2."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name="conversion")(command)
    try:
        app()
    except (ValueError, ImportError, OSError) as error:
        typer.echo(f"conversion: {shown(error, None)}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
