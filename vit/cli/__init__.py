"""The `vit` command. Importing it imports no framework, no NumPy and no image library; commands do where they run.

To add a command, write a module here with a function `command` and add its name to `COMMANDS`.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from .. import __version__
from ..errors import shown
from .train import with_large_pages

COMMANDS = (
    "demo",
    "classify",
    "embed",
    "train",
    "evaluate",
    "convert",
    "export",
    "verify",
    "inspect",
    "attention",
    "posemb",
    "bench",
    "serve",
)
"""The modules that hold the commands, in the order of the help."""


class _Command(TyperCommand):
    """A command whose help names its arguments without Python's types behind them."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for parameter in self.params:
            if parameter.param_type_name == "argument":
                parameter.display_type = lambda ctx: ""  # type: ignore[attr-defined]


app = typer.Typer(
    name="vit",
    help="The Vision Transformer in PyTorch, TensorFlow and Flax: one checkpoint, the same function.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,  # plain help: importing what typer decorates it with takes longer than all the rest
)
for _name in COMMANDS:
    app.command(_name, cls=_Command)(importlib.import_module(f".{_name}", __name__).command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"trivit {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="After an error, show where it was raised.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; what a command returns is the exit status, None is 0.

    An error is one line on stderr and the exit status 2; with --debug, anywhere among the arguments, a traceback.

    Args:
        arguments: those of the command line when None.

    Raises:
        SystemExit: always.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    asked = [each for each in given if each != "--debug"]
    if arguments is None and asked[:1] == ["train"]:
        with_large_pages()
    try:
        name = "trivit" if os.path.basename(sys.argv[0]).startswith("trivit") else "vit"  # for completion and usage
        status = app(asked, prog_name=name, standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):  # Ctrl-C
        typer.echo("vit: stopped.", err=True)
        status = 130
    except Exception as error:
        if "--debug" in given:
            traceback.print_exc()
        else:
            typer.echo(f"vit: {describe(error)}", err=True)
        status = 2
    sys.exit(status or 0)


def describe(error: Exception) -> str:
    """An error in one line; one that is no user's mistake (a bug, most likely) with its type and how to see more."""
    if hasattr(error, "format_message"):  # typer's own: a missing argument, an unknown option
        context = getattr(error, "ctx", None)
        return f"{_one_line(error.format_message())} Try '{context.command_path if context else 'vit'} --help'."
    message = _one_line(str(error))
    if message and isinstance(error, ValueError | ImportError | OSError):
        return message
    return f"{type(error).__name__}{': ' * bool(message)}{message} (add --debug for the traceback)"


def _one_line(text: str) -> str:
    return shown(" ".join(text.split()), None)
