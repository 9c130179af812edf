"""`vit train`: fine-tune or pre-train a model, in any framework; each field of the recipe is an option."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, InputError, shown
from ..training.recipe import PRESETS, Recipe
from .evaluate import tell_skipped
from .frameworks import DIGITS, check_default, choose_one, import_quietly
from .images import find
from .options import (
    CacheDir,
    Device,
    Force,
    Framework,
    Json,
    Model,
    Quiet,
    Revision,
    Strict,
    Token,
    Workers,
)

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..training.run import Run

PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
"""Where Linux says who is given memory in pages of 2 MiB, instead of 4 KiB."""
KINDS = {"float": float, "int": int, "str": str, "bool": bool}


def command(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="A folder with one folder a class, a table, or a data set's name.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="RUN", help="The folder of the run.")],
    model: Model = None,
    revision: Revision = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    framework: Framework = None,
    variant: Annotated[
        str | None, typer.Option("--variant", metavar="SIZE", help="Begin with fresh weights: Ti/16, S/16, B/16, ...")
    ] = None,
    family: Annotated[
        str, typer.Option("--family", metavar="NAME", help="The model_type of --variant, such as deit or vit_mae.")
    ] = "vit",
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Take the network of --model, and none of its weights.")
    ] = False,
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="NAME", help=f"A published recipe: {', '.join(PRESETS)}.")
    ] = None,
    recipe_file: Annotated[
        Path | None, typer.Option("--recipe", metavar="FILE", help="The recipe.json of another run.")
    ] = None,
    device: Device = None,
    workers: Workers = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run, in any framework.")] = False,
    force: Force = False,
    strict: Strict = False,
    shard: Annotated[
        bool, typer.Option("--shard", help="Each of several processes holds a part of the parameters and moments.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    **fields: Any,
) -> int:
    """Train a model on images.

    RUN/last and RUN/best are checkpoints that every command reads; beside them stand the metrics, their curves, the
    recipe and a model card. Ctrl-C saves and stops, and --resume goes on as if nothing had been, even in another
    framework. The data: a folder with one folder a class, or with the folders train and val of these; a .csv, .jsonl
    or .parquet file with the columns path and label; a data set of the datasets library.
    """
    extra = choose_one(framework, "vit train")
    given = {name: value for name, value in fields.items() if value is not None}
    recipe = _recipe(preset, recipe_file, given, output if resume else None)
    if variant is not None and (model is not None or from_scratch):
        raise InputError("--variant begins with fresh weights of a published size; leave --model out.")
    if model is None and variant is None and not resume and os.path.isdir(data):
        for path in islice(find([data]), 1):
            check_default(path, "Or begin with fresh weights: --variant Ti/16 --image-size 64.")
    if recipe is not None and recipe.dtype == "float64":
        os.environ["JAX_ENABLE_X64"] = "1"
    import_quietly(extra)

    from .. import families, hub
    from ..inference import device_name
    from ..training.processes import place
    from ..training.run import train

    start: Any = model or DIGITS
    if revision or token or cache_dir:
        start = hub.resolve(start, revision=revision, token=token, cache_dir=cache_dir)
    if variant is not None:
        size = {} if recipe is None or recipe.image_size is None else {"image_size": recipe.image_size}
        start = families.config_class(family).variant(variant, **size)
    if device is not None:
        device = device_name(device, extra)
    hidden = quiet or as_json or place(extra)[0] > 0
    with _progress(hidden) as progress, _signals() as caught:
        bar = progress.add_task("Reading the data", total=None)

        def report(row: dict[str, Any]) -> None:
            score = "".join(f", {name} {row[name]:.2%}" for name in ("top1", "mean_average_precision") if name in row)
            text = f"Epoch {row['epoch']:.1f}, loss {row['loss']:.4f}{score}, {row['images_per_second']:,.0f} images/s"
            progress.update(bar, completed=row["step"], total=row["steps"], description=text)
            if progress.disable and not hidden and ("validation_loss" in row or row["step"] == row["steps"]):
                say(f"Step {row['step']:,} of {row['steps']:,}. {text}")  # for a log, which has no bar

        def say(text: str) -> None:
            progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

        def note(text: str) -> None:
            say(f"vit: {text}")

        if not (model or variant or resume):
            how = "trained from nothing" if from_scratch else "fine-tuned"
            note(f"Without --model, the bundled digits are {how}: a small network for grey images of 32 x 32 pixels.")
        run = train(
            data, start, output, extra, recipe, from_scratch=from_scratch, resume=resume, force=force, strict=strict,
            shard=shard, workers=workers, device=device, report=report, note=note, should_stop=lambda: bool(caught),
            command=shlex.join(["vit", *sys.argv[1:]]),
        )  # fmt: skip
    if not run.is_first:
        return 128 + caught[0] if caught and not run.is_done else 0
    tell_skipped(run.broken)
    if as_json:
        typer.echo(json.dumps(_described(run), indent=2))
    elif not quiet:
        typer.echo(_sentence(run))
    if caught and not run.is_done:
        typer.echo(f"vit: stopped after step {run.step:,} of {run.steps:,}; --resume goes on.", err=True)
        return 128 + caught[0]
    return 0


def _options() -> dict[str, Any]:
    """Field of the recipe -> its option, which is None where it is not given."""
    options = {}
    for field in dataclasses.fields(Recipe):
        name, kind = field.name.replace("_", "-"), KINDS[str(field.type).removesuffix(" | None")]
        names = f"--{name}/--no-{name}" if kind is bool else f"--{name}"
        short = ["-b"] if field.name == "batch_size" else []
        default = "" if field.default is None else f" [default: {field.default}]"
        text = f"{field.metadata['help'][0].upper()}{field.metadata['help'][1:]}.{default}"
        metavar = None if kind is bool else {int: "N", float: "X", str: "NAME"}[kind]
        options[field.name] = Annotated[kind | None, typer.Option(names, *short, help=text, metavar=metavar)]
    return options


_signature = inspect.signature(command, eval_str=True)
_own = [each for each in _signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
_added = [
    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
    for name, option in _options().items()
]
command.__signature__ = _signature.replace(parameters=[*_own, *_added])  # type: ignore[attr-defined]
command.__annotations__ = {each.name: each.annotation for each in (*_own, *_added)} | {"return": int}


def _recipe(preset: str | None, file: Path | None, fields: dict[str, Any], begun: Path | None) -> Recipe | None:
    if preset is not None and file is not None:
        raise ConfigError("--preset and --recipe are both recipes; give one.")
    if begun is not None and preset is None and file is None:
        file = begun / "recipe.json"  # the run's, which `train` compares the changes with
        if not fields or not file.is_file():
            return None
    if file is not None:
        return Recipe.from_json_file(file).replace(**fields)
    return Recipe.preset(preset, **fields) if preset is not None else Recipe(**fields)


def _described(run: Run) -> dict[str, Any]:
    values = dataclasses.asdict(run)
    return {**values, "folder": str(run.folder), "notes": list(run.notes), "done": run.is_done}


def _sentence(run: Run) -> str:
    text = f"{shown(run.folder)}: {run.step:,} of {run.steps:,} steps"
    for what, metrics in (("the last evaluation", run.metrics), ("the best", run.best.get("metrics", {}))):
        for name in ("top1", "mean_average_precision"):
            if name in metrics:
                text += f"; {what} {metrics[name]:.2%}"
        if "rmse" in metrics:
            text += f"; {what} rmse {metrics['rmse']:.4g}"
    return text


def large_pages() -> dict[str, str]:
    """The variables with which glibc asks for pages of 2 MiB; none where nobody has to ask, or the user chose.

    A training step takes all of its memory anew, which costs up to a quarter of the time of a step in Flax on a CPU in
    pages of 4 KiB, and a tenth in PyTorch: python -m benchmarks finetune.
    """
    chosen, name = os.environ.get("GLIBC_TUNABLES", ""), "glibc.malloc.hugetlb"
    with suppress(OSError):
        if "[madvise]" in PAGES.read_text() and name not in chosen:
            return {"GLIBC_TUNABLES": ":".join(filter(None, (chosen, f"{name}=1")))}
    return {}


def with_large_pages() -> None:
    """Begin the command's process anew with `large_pages`, which glibc reads when a program starts."""
    program = Path(sys.argv[0])
    is_command = program.stem in ("vit", "trivit") or program.parts[-2:] == ("vit", "__main__.py")
    if is_command and (variables := large_pages()):
        with suppress(OSError):
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **variables})


@contextmanager
def _progress(hidden: bool) -> Iterator[Progress]:
    """A progress bar on stderr, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with open(os.dup(2), "w") as stderr:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        disable = hidden or not stderr.isatty()
        with Progress(*columns, console=Console(file=stderr), transient=True, disable=disable) as bar:
            yield bar


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that ask to stop: the first saves after the step that is being taken, the second ends at once."""
    caught: list[int] = []

    def note(number: int, frame: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    earlier = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
