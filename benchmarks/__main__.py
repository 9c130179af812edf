"""Measure this project beside its peers: `python -m benchmarks [--quick] [SUITE...]`, or all of a GPU: `... gpu`.

What was measured is printed, and replaces those suites' sections in benchmarks/RESULTS.md. Peers that are not
installed are named with the line that installs them, and left out: see benchmarks/peers.py.

On two cores with every peer, `inference` at B/16 takes about half an hour; all suites take some hours, most of them for
`inference` at L/16, and with --quick minutes. Each size of the model has a section of its own in each suite, written as
it ends, and it is said how long it took.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import SUITES

if TYPE_CHECKING:
    from .harness import Options

PROGRAMS = {
    "preprocess": ("Image processors beside transformers'", ["--seconds", "0.2", "--size", "640x480"], ["seconds"]),
    "pipeline": ("Whole folders of images", ["--quick"], ["variant", "frameworks", "batch_sizes"]),
    "serving": ("Serving over HTTP", ["--quick"], ["seconds", "variant", "frameworks", "batch_sizes"]),
    "convert": ("Converting a checkpoint beside copying it", ["--rounds", "2"], ["variant"]),
}
"""Suites that are programs of their own, on CPUs: what they measure, what makes them quick, which options they take."""

FLAGS = {"seconds": "--seconds", "frameworks": "--framework", "variant": "--variant", "batch_sizes": "--batch-size"}

SIZES = {
    "inference": ("Ti/16", "S/16", "B/16", "L/16"), "load": ("B/16", "L/16"), "pipeline": ("Ti/16",),
    "finetune": ("Ti/16", "B/16"),
    "serving": ("Ti/16", "B/16"),
    "convert": ("L/16",)}  # fmt: skip
"""The sizes that are measured unless the command line says otherwise; B/16 of the others, and Ti/16 to be quick."""

FOLDER = Path(__file__).parent


def command_line(suite: str, options: Options) -> list[str]:
    """The arguments of Python that run a program with what it takes of the options; of several batch sizes the last."""
    _, quick, takes = PROGRAMS[suite]
    command = ["-m", f"benchmarks.{suite}", *(quick if options.quick else [])]
    for name in takes:
        given = getattr(options, name)
        for value in [] if given is None else [given] if isinstance(given, str | float) else given:
            command += [FLAGS[name], str(value)]
    return command


def run_program(suite: str, options: Options) -> str:
    """Run a program, and give what it prints."""
    title, command = PROGRAMS[suite][0], command_line(suite, options)
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=FOLDER.parent)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    printed = done.stdout.strip()
    is_table = printed.startswith(("|", "#"))
    return f"## {title}\n\n" + (printed if is_table else f"```\n{printed}\n```")


def plan(suites: Sequence[str], variants: Sequence[str] | None, quick: bool) -> list[tuple[str, str]]:
    """What is measured one after the other: suites, each with a size of the model, or "" where it takes none."""
    found = []
    for suite in suites:
        usual = ("Ti/16",) if quick else SIZES.get(suite, ("B/16",))
        found += [(suite, "")] if suite == "preprocess" else [(suite, size) for size in variants or usual]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the suites; `gpu` is a program of its own, which says itself what a bare machine lacks."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["gpu"]:
        from .gpu import main as measure_gpu

        return measure_gpu(given[1:])
    from .harness import Options, heading, say, versions, write_results

    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("suites", metavar="SUITE", nargs="*", help=f"{', '.join(SUITES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="smaller models, fewer repeats, one peer each")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--framework", action="append", help="pt, tf, flax, openvino or onnxruntime; repeatable")
    parser.add_argument("--peer", action="append", help="timm, 'transformers 4' ...; repeatable (default: all)")
    parser.add_argument("--variant", action="append", help="such as B/16; repeatable (default: the suite's)")
    parser.add_argument("--dtype", action="append", help="repeatable (default: the suite's)")
    parser.add_argument("--batch-size", action="append", type=int, help="repeatable (default: the suite's)")
    parser.add_argument("--seconds", type=float, help="for each peer at each setting (default: the suite's)")
    parser.add_argument("--output", type=Path, default=FOLDER / "RESULTS.md", help="(default: %(default)s)")
    options = parser.parse_args(given)
    if unknown := [suite for suite in options.suites if suite not in SUITES]:
        parser.error(f"unknown suite {unknown[0]!r}; expected some of {', '.join(SUITES)}")
    failed = []
    with tempfile.TemporaryDirectory(prefix="trivit-benchmarks-") as folder:
        for suite, variant in plan(options.suites or SUITES, options.variant, options.quick):
            name = f"{suite} {variant}".strip()
            settings = Options(
                Path(folder), options.output.parent / "plots", variant, options.device, options.quick,
                options.framework, options.dtype, options.batch_size, options.peer, options.seconds,
            )  # fmt: skip
            if suite in PROGRAMS and options.device == "gpu":
                say(f"{suite} runs on CPUs: left out")
                continue
            say(name)
            command = command_line(suite, settings) if suite in PROGRAMS else ["-m", "benchmarks", *given]
            start = time.perf_counter()
            try:
                section = (
                    run_program(suite, settings)
                    if suite in PROGRAMS
                    else importlib.import_module(f".{suite.replace('-', '_')}", __package__).run(settings)
                )
                where = heading(settings, shlex.join(["python", *command]), versions())
            except Exception as error:  # one suite's failure is no reason to lose the others
                say(f"{name} failed: {type(error).__name__}: {error}")
                failed.append(name)
                continue
            say(f"{name} took {(time.perf_counter() - start) / 60:.1f} minutes")
            title, _, body = section.partition("\n")
            title += (f": ViT-{variant}" if variant else "") + (" on a GPU" if options.device == "gpu" else "")
            section = f"{title}\n\n{where}\n{body}"
            print(section + "\n", flush=True)
            write_results(options.output, [suite, options.device, *([variant] if variant else [])], section)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
