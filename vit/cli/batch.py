"""What `vit classify` and `vit embed` share: `vit.predict` over whatever paths, into a file, the terminal or JSON."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..errors import FRAMEWORKS, InputError, shown
from ..locks import locked
from . import images, tables
from .frameworks import DIGITS, FOR_PHOTOGRAPHS, check_default, choose_one, open_model

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..inference import Forward
    from ..pipeline import Prediction
    from .tables import Row

SETTINGS = ("config.json", "preprocessor_config.json")
"""The files of a checkpoint that what a model gives depends on, beside its weights."""

TABLE_ROWS = 100  # images of one table on the terminal
PATIENCE = 3.0  # seconds that a signal gives the images that are being computed

CHANNELS = "channel(s); expected 1"  # in the error of an image in colour, for the bundled model


def run(
    sources: Sequence[str],
    task: str,
    setting: dict[str, Any],
    *,
    model: str | None,
    hub: Mapping[str, Any],
    framework: Sequence[str] | None,
    device: str | None,
    dtype: str | None,
    batch_size: int | None,
    workers: int | None,
    output: Path | None,
    suffixes: Sequence[str],
    resume: bool,
    force: bool,
    strict: bool,
    as_json: bool,
    quiet: bool,
    spreadsheet: bool = False,
    show: Callable[[list[Row]], None] | None = None,
) -> int:
    """Run a task over images and say how it went.

    Args:
        sources: files, folders, patterns, or "-".
        task: "classify" or "embed".
        setting: top_k, or pool.
        hub: options of `vit.hub.resolve`.
        suffixes: that `output` may have.
        spreadsheet: keep a spreadsheet from taking cells of a .csv file for formulas.
        show: prints rows for a person, where there is no `output`.

    Returns:
        The exit status: 0, 1 if an image could not be used, or 128 and the number of the signal that ended it.

    Raises:
        InputError, CheckpointError, MissingFrameworkError: what was asked for cannot be done.
    """
    extra = choose_one(framework, f"vit {task}")
    if resume and (force or output is None):
        raise InputError(f"--resume continues an --output{' and --force begins it again; give one' if force else ''}.")
    if output is not None:
        tables.check(output, suffixes, resume, force)
    total, passed_over = images.count(sources)
    paths = images.find(sources)
    if total is None:
        paths = _not_empty(paths)
    if model is None:
        first = next(paths)
        check_default(first)
        paths = chain([first], paths)

    from .. import pipeline
    from ..hub import resolve
    from ..image_processing import ViTImageProcessor

    with locked([] if output is None else tables.files(output)), _progress(quiet) as progress:
        if output is not None:
            tables.check(output, suffixes, resume, force)  # again: another process may have been there
        bar = progress.add_task(f"Loading {FRAMEWORKS[extra][1]}", total=total)
        folder = resolve(model or DIGITS, **hub)
        pool = setting.get("pool", "cls")
        parts = pipeline.parts_for(folder, task, pool)
        processor = ViTImageProcessor.from_pretrained(folder)
        forward = open_model(folder, extra, device=device, dtype=dtype, **parts)
        facts = {"model": model or "the bundled digits", "framework": extra, "device": forward.device_type,
                 "dtype": forward.config.dtype}  # fmt: skip
        shape = pipeline.shape_of_images(processor, forward.config)
        sink: Any
        if output is not None:
            settings = {"task": task, **facts, **setting, "spreadsheet": spreadsheet}
            sink = _File(output, settings, folder, batch_size, resume, forward, shape)
        else:
            sink = _Document() if as_json else _Terminal(progress, None if quiet else show)
        try:
            done, failed = _continue(sink.rows(), paths)
            before, begun, in_colour = done, time.perf_counter(), False
            batch_size = sink.batch_size or batch_size or pipeline.default_batch_size(forward, shape)
            progress.update(bar, completed=done, description="Classifying" if task == "classify" else "Embedding")
            with _signals(lambda: progress.update(bar, description="Stopping (again: at once)")) as caught:
                warnings.filterwarnings("ignore", module="PIL")  # odd files: what matters is in their rows
                predictions = pipeline.predict(
                    _until(caught, paths), forward, task=task, **setting, batch_size=batch_size, workers=workers,
                    on_error="raise" if strict else "row", processor=processor, start=done,
                )  # fmt: skip
                for prediction in predictions:
                    sink.append(_row(prediction, task), prediction.vector)
                    done, failed = done + 1, failed + (prediction.error is not None)
                    in_colour |= CHANNELS in (prediction.error or "")
                    progress.update(bar, completed=done)
            seconds = time.perf_counter() - begun
            if not caught:
                progress.update(bar, description="Finishing")
                sink.finish()
        finally:
            sink.close()
    rate = (done - before) / seconds if done > before else None
    report = {**facts, "batch_size": batch_size, **setting, "images": done, "failed": failed, "seconds": seconds,
              "images_per_second": rate, "output": None if output is None else str(output)}  # fmt: skip
    where = "done" if output is None else f"in {shown(output)}"
    if caught:
        count = f"{done:,} of {total:,}" if total else f"{done:,}"
        remedy = "" if output is None else "; --resume goes on"
        typer.echo(f"vit: stopped: {count} images are {where}{remedy}.", err=True)
    if model is None and in_colour:
        typer.echo(f"vit: {FOR_PHOTOGRAPHS}", err=True)
    if passed_over and not quiet:
        typer.echo(f"vit: {passed_over}.", err=True)
    if as_json:
        sink.report(report)
    elif output is not None and not quiet and not caught:
        earlier = f", {before:,} of them from before" * bool(before)
        errors = f", {failed:,} with an error" * bool(failed)
        speed = f"; {rate:,.1f} images/s" if rate else ""
        typer.echo(f"{shown(output)}: {done:,} images{earlier}{errors}{speed}")
    return 128 + caught[0] if caught else int(failed > 0)


# === Images ===


def _not_empty(paths: Iterator[str]) -> Iterator[str]:
    first = next(paths, None)
    if first is None:
        raise InputError("The list on stdin is empty; expected the path of an image in each line.")
    return chain([first], paths)


def _until(caught: list[int], paths: Iterable[str]) -> Iterator[str]:
    """The paths, until a signal: what is being computed then is still written."""
    for path in paths:
        if caught:
            return
        yield path


def _continue(rows: Iterator[Row], paths: Iterator[str]) -> tuple[int, int]:
    """Pass over the paths that have rows.

    Returns:
        How many these are, and how many of them have an error.

    Raises:
        InputError: the rows are not of these images in this order.
    """
    done = failed = 0
    for row in rows:
        path = next(paths, None)
        if row["path"] != path:
            raise InputError(
                f"Row {done + 1} of the output is of {shown(row['path'])}, where the images have "
                f"{shown(path or 'an end')}: they are "
                "not those that the run was begun with. Give the same, another --output, or --force to begin again."
            )
        done, failed = done + 1, failed + (row["error"] is not None)
    return done, failed


def _row(prediction: Prediction, task: str) -> Row:
    names = ("path", "labels", "probabilities", "error") if task == "classify" else ("path", "error")
    return {name: getattr(prediction, name) for name in names}


# === Where results go ===


class _File:
    """An --output file."""

    def __init__(
        self,
        output: Path,
        settings: dict[str, Any],
        folder: Path,
        batch_size: int | None,
        resume: bool,
        forward: Forward,
        image: tuple[int, ...],
    ) -> None:
        from ..pipeline import default_batch_size, vector_shape

        config = forward.config
        self._output = tables.Output(output)
        found = self._output.settings() if resume else {}
        self.batch_size = batch_size or found.get("batch_size") or default_batch_size(forward, image)
        wanted = {**settings, "batch_size": self.batch_size, "model_sha256": _digest(folder)}
        if settings["task"] == "classify":
            labels = min(settings["top_k"], config.num_labels)
            format = tables.make(output, labels=labels, spreadsheet=settings["spreadsheet"])
        else:
            dtype = "float64" if config.dtype == "float64" else "float32"
            format = tables.make(output, shape=vector_shape(config, settings["pool"], image), dtype=dtype)
        self._rows: Iterator[Row] = iter(())
        if found:
            del wanted["model"]  # which may lie elsewhere now
            self._rows = self._output.go_on(format, found, wanted)
        else:
            self._output.begin(format, wanted)

    def rows(self) -> Iterator[Row]:
        return self._rows

    def append(self, row: Row, vector: Any) -> None:
        self._output.append(row, vector)
        if self._output.count % self.batch_size == 0:  # the next is not there yet
            self._output.flush()

    def finish(self) -> None:
        self._output.finish()

    def close(self) -> None:
        self._output.close()

    def report(self, values: dict[str, Any]) -> None:
        typer.echo(json.dumps(values, indent=2))


class _Document:
    """One JSON document on stdout, written as the results come."""

    batch_size = None

    def __init__(self) -> None:
        typer.echo('{\n  "results": [', nl=False)
        self._separator = ""

    def rows(self) -> Iterator[Row]:
        return iter(())

    def append(self, row: Row, vector: Any) -> None:
        typer.echo(f"{self._separator}\n    {json.dumps(row)}", nl=False)
        self._separator = ","

    def finish(self) -> None:
        """Nothing: `report` ends it."""

    close = finish

    def report(self, values: dict[str, Any]) -> None:
        typer.echo("\n  ],\n" + json.dumps(values, indent=2).removeprefix("{\n"))


class _Terminal:
    """Tables on stdout, of `TABLE_ROWS` images each."""

    batch_size = None

    def __init__(self, progress: Progress, show: Callable[[list[Row]], None] | None) -> None:
        self._progress, self._show = progress, show
        self._rows: list[Row] = []

    def rows(self) -> Iterator[Row]:
        return iter(())

    def append(self, row: Row, vector: Any) -> None:
        self._rows.append(row)
        if len(self._rows) == TABLE_ROWS:
            self.finish()

    def finish(self) -> None:
        """Show what has not been shown, with the progress bar out of the way."""
        if self._show is not None and self._rows:
            self._progress.stop()
            self._show(self._rows)
            self._progress.start()
        self._rows = []

    close = finish


def _digest(folder: Path) -> str:
    """SHA-256 of the files that what a model gives depends on."""
    from ..loading import open_checkpoint

    weights = {tensor.file for tensor in open_checkpoint(folder).tensors.values()}  # of whatever form they are
    digest = hashlib.sha256()
    for path in sorted({*weights, *(path for name in SETTINGS for path in folder.glob(name))}, key=lambda at: at.name):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


# === The terminal and signals ===


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress]:
    """A progress bar on stderr, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Any:
            return "" if task.speed is None else f"{task.speed:,.1f} images/s"

    with open(os.dup(2), "w") as stderr:  # of its own, because `open_model` points 2 elsewhere for a while
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
        hidden = quiet or not stderr.isatty()
        with Progress(
            *columns, console=Console(file=stderr), transient=True, disable=hidden, refresh_per_second=4
        ) as bar:
            yield bar


@contextmanager
def _signals(say: Callable[[], None]) -> Iterator[list[int]]:
    """The signals that ask to stop, instead of an end in the middle of a batch.

    What is being computed is still written, unless that takes longer than `PATIENCE`, because a list or an image does
    not come, or there is a second signal: then KeyboardInterrupt is raised, which is no error here.
    """
    caught: list[int] = []

    def note(number: int, frame: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        say()

    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGALRM] if hasattr(signal, "SIGALRM") else [])]
    earlier = {number: signal.signal(number, note) for number in numbers}
    try:
        yield caught
    except KeyboardInterrupt:
        if not caught:
            raise
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in earlier.items():
            signal.signal(number, handler)
