"""`vit demo`: the shipped digit classifier on its held-out scans, in every installed framework."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from .. import picture
from ..errors import FRAMEWORKS, CheckpointError, install_line
from .frameworks import BUSY, DIGITS, best_seconds, busy_line, choose, open_model, version
from .options import Force, Frameworks, Json, Quiet

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console


def command(
    framework: Frameworks = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where the picture goes: a .png, .svg or .pdf file.")
    ] = Path("vit-demo.png"),
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Classify held-out handwritten digits everywhere.

    The digit classifier that comes with the package runs in every installed framework, on scans it was not trained on.
    It prints each answer, accuracy, time and how far the frameworks differ, and draws what the network looked at.
    """
    frameworks = choose(framework, "vit demo")
    picture.check_output(output, force)

    from rich.console import Console

    with open(os.dup(2), "w") as stderr, Console(file=stderr, quiet=quiet).status("Starting") as status:
        results = classify(DIGITS, frameworks, status.update, skip_broken=not framework)
        if picture.available():
            status.update("Drawing")
            draw(output, results)
            results.picture = output
    if not framework:
        results.missing = {extra: install_line(extra) for extra in FRAMEWORKS if extra not in frameworks}
    if as_json:
        typer.echo(json.dumps(results.to_dict(), indent=2))
    elif not quiet:
        show(results, Console())


class Run(NamedTuple):
    """What one framework computed."""

    version: str
    logits: np.ndarray  # (N, labels) float32
    seconds: float  # for all N, the best of several calls


@dataclass
class Results:
    """The scans, what each framework made of them, and where the network looked."""

    files: list[Path]
    labels: list[str]  # the truth
    names: list[str]  # of the logits
    images: np.ndarray  # (N, height, width), as the network sees them, in 0..1
    runs: dict[str, Run] = field(default_factory=dict)  # "pt", "tf", "flax"
    attention: Any = None  # (N, rows, columns): CLS to patches in the last layer, its heads averaged
    missing: dict[str, str] = field(default_factory=dict)  # framework -> the command that installs it
    broken: dict[str, str] = field(default_factory=dict)  # framework -> why it could not be imported
    picture: Path | None = None
    busy: float = 0.0  # the largest share of the processors that other programs had before a time was taken

    def answer(self, extra: str, i: int) -> tuple[str, float]:
        """The label that a framework gives scan `i`, and its probability."""
        import numpy as np

        logits = self.runs[extra].logits[i].astype(np.float64)
        best = int(logits.argmax())
        return self.names[best], float(1 / np.exp(logits - logits[best]).sum())

    def correct(self, extra: str) -> int:
        """How many scans a framework labels rightly."""
        return sum(self.answer(extra, i)[0] == label for i, label in enumerate(self.labels))

    @property
    def difference(self) -> float | None:
        """The largest difference of any logit between any two frameworks; None for a single framework."""
        import numpy as np

        logits = np.stack([run.logits for run in self.runs.values()])
        return float(np.ptp(logits, axis=0).max()) if len(logits) > 1 else None

    @property
    def largest_logit(self) -> float:
        """The largest absolute value of any logit, beside which `difference` is to be seen."""
        return max(float(abs(run.logits).max()) for run in self.runs.values())

    def to_dict(self) -> dict[str, Any]:
        """What --json prints."""
        images = []
        for i, (file, label) in enumerate(zip(self.files, self.labels, strict=True)):
            answers = {
                extra: dict(zip(("label", "probability"), self.answer(extra, i), strict=True)) for extra in self.runs
            }
            images.append({"file": file.name, "label": label, "answers": answers})
        count = len(self.files)
        frameworks = {
            extra: {
                "name": FRAMEWORKS[extra][1],
                "version": run.version,
                "correct": self.correct(extra),
                "accuracy": self.correct(extra) / count,
                "seconds": run.seconds,
                "images_per_second": count / run.seconds,
            }
            for extra, run in self.runs.items()
        }
        return {
            "images": images,
            "frameworks": frameworks,
            "largest_logit_difference": self.difference,
            "largest_logit": self.largest_logit,
            "busy": self.busy,
            "missing": self.missing,
            "broken": self.broken,
            "picture": None if self.picture is None else str(self.picture),
        }


def classify(
    folder: Path,
    frameworks: list[str],
    report: Callable[[str], object] = lambda text: None,
    skip_broken: bool = False,
) -> Results:
    """Classify the scans of a folder in each framework.

    Args:
        folder: a checkpoint with files digit-<true label>-<index>.png beside it.
        frameworks: some of "pt", "tf", "flax".
        report: called with what is about to be done.
        skip_broken: go on without a framework that cannot be imported, if another can.

    Raises:
        CheckpointError: no such files, or a broken checkpoint.
        ImportError: a framework that cannot be imported.
    """
    from ..config import PreTrainedConfig
    from ..image_processing import ViTImageProcessor
    from ..measure import busy

    files = sorted(folder.glob("digit-*-*.png"))
    if not files:
        raise CheckpointError(f"{folder} has no files digit-<label>-<index>.png; install the package again.")
    config = PreTrainedConfig.from_pretrained(folder)
    pixel_values = ViTImageProcessor.from_pretrained(folder)(files, return_tensors="np").pixel_values
    results = Results(
        files=files,
        labels=[file.stem.split("-")[1] for file in files],
        names=[config.id2label[i] for i in range(config.num_labels)],
        images=(pixel_values.mean(axis=1) + 1) / 2,  # back from -1..1
    )
    for extra in frameworks:
        report(f"{FRAMEWORKS[extra][1]}: importing and loading")
        try:
            forward = open_model(folder, extra)
        except ImportError as error:  # it is there, but itself or what it needs is not whole
            results.broken[extra] = str(error)
            if not skip_broken or len(results.broken) == len(frameworks):
                raise
            continue
        report(f"{FRAMEWORKS[extra][1]}: {len(files)} scans")
        logits = forward(pixel_values).logits  # the first call compiles
        results.busy = max(results.busy, busy())
        seconds = best_seconds(partial(forward, pixel_values))
        results.runs[extra] = Run(version(extra), logits, seconds)
        if results.attention is None:
            attention = forward(pixel_values, output_attentions=True).attentions[-1].mean(axis=1)  # (N, tokens, tokens)
            patches = attention[:, 0, config.prefix_tokens :]
            results.attention = patches.reshape(len(files), *config.grid_size)
    return results


def show(results: Results, console: Console) -> None:
    """Print the results as tables."""
    from rich.table import Table
    from rich.text import Text

    names = {extra: FRAMEWORKS[extra][1] for extra in results.runs}
    answers = Table("Scan", "True", *names.values(), title="Held-out handwritten digits", title_justify="left")
    for i, (file, label) in enumerate(zip(results.files, results.labels, strict=True)):
        given = [results.answer(extra, i) for extra in results.runs]
        cells = [Text(f"{name}  {value:7.2%}", "green" if name == label else "bold red") for name, value in given]
        answers.add_row(file.name, label, *cells)
    console.print(answers)

    count = len(results.files)
    timed = results.busy <= BUSY
    title = f"Accuracy, and time for {count} scans (best of up to 10 calls)" if timed else "Accuracy"
    speed = Table("Framework", title=title, title_justify="left")
    for heading in ("Version", "Right", "Accuracy", *(("Milliseconds", "Images/s") if timed else ())):
        speed.add_column(heading, justify="right")
    for extra, run in results.runs.items():
        correct = results.correct(extra)
        times = (f"{run.seconds * 1e3:.1f}", f"{count / run.seconds:,.0f}") if timed else ()
        speed.add_row(names[extra], run.version, f"{correct}/{count}", f"{correct / count:.1%}", *times)
    console.print(speed)
    if not timed:
        console.print(f"{busy_line(results.busy)}: times would mislead, and are left out.")

    if results.difference is not None:
        size = f"{results.difference:.1e}, of {results.largest_logit:.1f}"
        console.print(f"Largest difference of any logit between frameworks: {size}")
    if results.picture is None:
        console.print(f"No picture: it needs matplotlib. Install it with: {install_line('plot')}", markup=False)
    else:
        console.print(f"Picture: {results.picture}", markup=False)
    for extra, reason in results.broken.items():
        console.print(f"{FRAMEWORKS[extra][1]} is installed but cannot be imported: {reason}", markup=False)
    for extra, line in results.missing.items():
        console.print(f"{FRAMEWORKS[extra][1]} is not installed. Install it with: {line}", markup=False)


# === The picture ===

COLUMNS = 10
HEADER, CAPTION, FOOTER = 2.03, 0.68, 1.14  # inches; 30 scans fill 16 by 9
GAP = 0.24  # between panels


def draw(path: Path, results: Results) -> None:
    """Draw the results of `vit demo`: every scan with its answer and the CLS token's attention.

    Raises:
        InputError: the file cannot be written.
    """
    columns = min(COLUMNS, len(results.files))
    rows = -(-len(results.files) // columns)
    side = (picture.WIDTH - 2 * picture.MARGIN - (COLUMNS - 1) * GAP) / COLUMNS
    slide = picture.Slide(HEADER + rows * (side + CAPTION) + FOOTER)
    slide.write(picture.MARGIN, 0.97, title(results), fontsize=25, weight="bold")
    slide.write(picture.MARGIN, 1.45, summary(results), fontsize=15, color=picture.MUTED)
    for i in range(len(results.files)):
        column, row = divmod(i, rows)  # down the columns: with three scans of each digit, a column for each digit
        left, top = picture.MARGIN + column * (side + GAP), HEADER + row * (side + CAPTION)
        pixels = picture.overlay(results.images[i], results.attention[i], slide.colormap)
        slide.panel(left, top, side, side).imshow(pixels, aspect="auto")
        answer, right = caption(results, i)
        size, color = (15, picture.RIGHT) if right else (12.5, picture.WRONG)
        slide.write(left, top + side + 0.27, answer, weight="bold", fontsize=size, color=color)
        probability = max(results.answer(extra, i)[1] for extra in results.runs)
        slide.write(
            left + side, top + side + 0.27, f"{probability:.1%}", fontsize=11.5, color=picture.MUTED, ha="right"
        )
    top = slide.height - 0.6
    slide.bar(picture.MARGIN, top - 0.12, 1.5, 0.13)
    legend = (
        "the CLS token's attention to each patch: last layer, mean of its heads, from the least to the most in a scan"
    )
    slide.write(picture.MARGIN + 1.68, top, legend, fontsize=12, color=picture.MUTED)
    slide.save(path)


def title(results: Results) -> str:
    """What the frameworks have in common."""
    *names, last = (FRAMEWORKS[extra][1] for extra in results.runs)
    where = f"in {', '.join(names)} and {last}" if names else f"in {last}"
    answers = [[results.answer(extra, i)[0] for i in range(len(results.files))] for extra in results.runs]
    same = len(answers) > 1 and all(each == answers[0] for each in answers)
    return f"One checkpoint, the same answers {where}" if same else f"One checkpoint {where}"


def summary(results: Results) -> str:
    """What the picture shows, in a line."""
    right = ",  ".join(f"{FRAMEWORKS[extra][1]} {results.correct(extra)}" for extra in results.runs)
    text = f"Right of {len(results.files)} held-out handwritten digits:  {right}"
    return (
        text if results.difference is None else f"{text}.   Largest difference of any logit:  {results.difference:.1e}"
    )


def caption(results: Results, i: int) -> tuple[str, bool]:
    """What stands under a scan, and whether every framework is right."""
    answers = {extra: results.answer(extra, i)[0] for extra in results.runs}
    if set(answers.values()) == {results.labels[i]}:
        return results.labels[i], True
    if len(set(answers.values())) == 1:
        return f"{next(iter(answers.values()))}, is {results.labels[i]}", False
    return " ".join(f"{extra} {answer}" for extra, answer in answers.items()), False
