"""The `vit` command: help, version, errors, and how little it imports."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

import vit
from vit import cli

MAIN = "from vit.cli import main; main()"
HEAVY = ("torch", "tensorflow", "keras", "jax", "flax", "numpy", "PIL", "matplotlib", "safetensors", "huggingface_hub")


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(vit.__file__).parents[1])}
    return subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)


def error_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command writes to stderr, which must be one line, with the exit status 2 and nothing on stdout."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    out, err = capsys.readouterr()
    assert (exit_.value.code, out, err.count("\n")) == (2, "", 1)
    return err


# === Help ===


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_lists_every_command(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main(arguments)
    out = capsys.readouterr().out
    assert out.startswith("Usage: vit ")
    assert [line.split()[0] for line in out.partition("Commands:\n")[2].splitlines()] == list(cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_and_each_of_its_options_is_described(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main([name, "--help"])
    assert capsys.readouterr().out.startswith(f"Usage: vit {name} ")
    command = typer.main.get_command(cli.app).commands[name]
    assert command.help
    assert all(option.help for option in command.params if option.param_type_name == "option")


def test_version_is_that_of_the_package() -> None:
    result = python(MAIN, "--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"trivit {vit.__version__}\n", "")


# === Imports ===


@pytest.mark.parametrize("code", ["import vit", "import sys; sys.argv[1:] = ['--help']; " + MAIN])
def test_import_and_help_load_no_framework_and_no_array_or_image_library(code: str) -> None:
    report = (
        f"import atexit, sys; atexit.register(lambda: print(*(set({HEAVY}) & sys.modules.keys()), file=sys.stderr))"
    )
    result = python(f"{report}\n{code}")
    assert (result.returncode, result.stderr) == (0, "\n")


@pytest.mark.parametrize(("code", "arguments", "limit"), [("import vit", (), 0.3), (MAIN, ("--help",), 0.4)])
def test_import_and_help_are_quick_as_processes(code: str, arguments: tuple[str, ...], limit: float) -> None:
    times = []
    while len(times) < 15 and min(times, default=limit) >= limit:  # other processes can only make it slower
        start = time.perf_counter()
        assert python(code, *arguments).returncode == 0
        times.append(time.perf_counter() - start)
    assert min(times) < limit


# === Errors ===


def test_unknown_command_is_one_line_that_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_line(capsys, "xyz") == "vit: No such command 'xyz'. Try 'vit --help'.\n"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_unknown_option_is_one_line_that_names_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--no-such-option" in error_line(capsys, name, "--no-such-option")


def test_error_without_debug_has_no_traceback_and_with_debug_has_one() -> None:
    plain, debug = (python(MAIN, "demo", "--framework", "theano", *extra) for extra in ((), ("--debug",)))
    assert plain.returncode == 2
    assert plain.stderr == "vit: framework is 'theano'; expected one of pt, tf, flax.\n"
    assert debug.returncode == 2
    assert debug.stderr.startswith("Traceback")
    assert debug.stderr.splitlines()[-1].endswith("InputError: framework is 'theano'; expected one of pt, tf, flax.")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("of two\nlines"), "of two lines"),
        (FileNotFoundError(2, "No such file", "here"), "[Errno 2] No such file: 'here'"),
        (KeyError("a"), "KeyError: 'a' (add --debug for the traceback)"),
        (AssertionError(), "AssertionError (add --debug for the traceback)"),
    ],
)
def test_an_error_is_described_in_one_line_and_a_bug_with_its_type(error: Exception, line: str) -> None:
    assert cli.describe(error) == line
