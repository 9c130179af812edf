"""A training run from top to bottom: data, model, loop, evaluation, and what the run folder holds.

RUN/last    the checkpoint of the last evaluation or stop, with the training state: what --resume goes on from
RUN/best    the checkpoint of the best evaluation, with the averages of the weights where the recipe has them
RUN/recipe.json, metrics.jsonl, README.md, curves.png, confusion.png
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__, checkpoint, families, picture
from ..config import PreTrainedConfig
from ..errors import FRAMEWORKS, ConfigError, InputError, MissingFrameworkError, install_line, shown, summary, warn
from ..files import STALE_WEIGHTS, read_json
from ..folders import read_current, replace_files, write_text
from ..image_processing import ViTImageProcessor
from ..image_processing.processor import available_cpus
from ..inference import choose_frameworks
from ..locks import locked
from . import measures, pictures
from .data import Data, size_of
from .examples import SINGLE, Examples, Split, read
from .processes import ALONE, Processes, place
from .recipe import Recipe
from .schedule import learning_rate
from .start import begin, labels_of
from .state import STATE, TrainingState
from .teacher import Teacher

LAST, BEST, METRICS, RECIPE, CARD = "last", "best", "metrics.jsonl", "recipe.json", "README.md"
STALE = rf"({STALE_WEIGHTS})|training_state\..*"
OUTCOME = r"README\.md|(curves|confusion)\.png"  # of an earlier run that is replaced
EVALUATED = 64  # images of a batch of evaluation, at most


class TrainingError(ValueError):
    """A run that cannot go on: its loss is not finite."""


@dataclass
class Run:
    """What a run has done when it ends.

    Attributes:
        folder: the run folder.
        step: how many steps were taken, of `steps`.
        steps: how many there are.
        metrics: the last evaluation's, as `measures.measure` gives them; empty where there was none.
        best: the best evaluation's score and step.
        notes: what the user should know about the data.
        broken: images that could not be used, and why.
        is_first: whether this process is the first of those that trained together, or the only one.
    """

    folder: Path
    step: int
    steps: int
    metrics: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    broken: dict[str, str] = field(default_factory=dict)
    is_first: bool = True

    @property
    def is_done(self) -> bool:
        """Whether all steps were taken; otherwise it was stopped, and can be resumed."""
        return self.step == self.steps


def train(
    data: Any,
    model: str | os.PathLike[str] | PreTrainedConfig,
    output: str | os.PathLike[str],
    framework: str | None = None,
    recipe: Recipe | None = None,
    *,
    from_scratch: bool = False,
    resume: bool = False,
    force: bool = False,
    strict: bool = False,
    shard: bool = False,
    workers: int | None = None,
    device: Any = None,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
    note: Callable[[str], None] = warn,
    should_stop: Callable[[], bool] = lambda: False,
    command: str | None = None,
) -> Run:
    """Train a model, in any framework, into a run folder.

    Processes that torchrun, TF_CONFIG or JAX_COORDINATOR_ADDRESS bring together train it together: each of them calls
    this with the same arguments, and the first writes the run folder, which all of them see.

    Args:
        data: a folder with one folder a class, or with train and val of these; a .csv, .jsonl or .parquet file of paths
            and labels; a data set of the `datasets` library, loaded, saved or by its name.
        model: the checkpoint to begin with, of any family, a folder or a name on the hub; or a configuration.
        output: the run folder.
        framework: "pt", "tf" or "flax"; None for the first that is installed. A resume may be in another.
        recipe: how; None for the defaults, or, with `resume`, for that of the run.
        from_scratch: take the network and the image processor of `model`, and fresh weights.
        resume: go on with the run in `output`.
        force: replace the run in `output`.
        strict: stop at the first image that cannot be read, instead of taking another.
        shard: hold a part of the parameters and moments in each process, instead of all of them (PyTorch, Flax).
        workers: threads that read images; None for one a CPU.
        device: as `from_pretrained` takes it.
        report: called with each row of metrics.jsonl, in the first process.
        note: called before the first step, in the first process, with each thing that the user should know of the data.
        should_stop: asked after each step; the run then saves and returns.
        command: what the model card says that the run was begun by.

    Returns:
        How it ended. The same data, recipe, framework and machine give the same weights, however often the run was
        stopped or killed in between.

    Raises:
        InputError: data that cannot be used, or a run folder that exists, or that another process writes.
        ConfigError: a recipe that does not fit the model, or another than the run was begun with.
        CheckpointError: a checkpoint that cannot be read.
        TrainingError: the loss is not finite; RUN/last is as it was before.
        ImportError: the framework or Grain is not installed.
    """
    (framework,) = choose_frameworks([framework] if framework else None, "vit train")[:1]
    _check_installed(framework)
    if shard and framework == "tf":
        raise ConfigError(
            "TensorFlow cannot shard: tf.distribute copies every parameter to every process, and Keras shards on JAX "
            "alone. Leave shard out, or train in PyTorch or Flax."
        )
    room = importlib.import_module(f"vit.{framework}.training")
    rank, size = place(framework)
    processes = room.join(rank, size) if size > 1 else ALONE
    folder, last = Path(output), Path(output) / LAST
    processes.by_first(lambda: _check_output(folder, resume, force))
    if resume:
        recipe = _same_recipe(folder, recipe)
    recipe = recipe or Recipe()
    _check_parts(recipe, processes)
    is_labelled = recipe.objective != "reconstruction"
    split = read(data, recipe.validation if is_labelled else 0.0, recipe.seed, labelled=is_labelled)
    if not is_labelled:  # nothing is measured of a reconstruction
        split = dataclasses.replace(split, validation=split.validation.take(np.arange(0)))
    if strict:
        refuse(split.skipped)
    for each in split.notes if processes.is_first else ():
        note(each)
    teacher = None
    if recipe.objective == "distillation":
        if split.training.problem_type != SINGLE:
            raise ConfigError(
                "The images have several labels each, or numbers; a teacher answers with one label. Leave the "
                "objective distillation out."
            )
        teacher = Teacher(recipe.teacher or "", framework, split.training.names, device)
        for each in teacher.notes if processes.is_first else ():
            note(each)
    with ExitStack() as stack:

        def enter() -> None:
            start = None if resume else begin(model, split.training, recipe, from_scratch)
            if teacher is not None and start is not None:
                teacher.check(start.config.num_channels, size_of(start.processor))
            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked([folder]))
            _check_output(folder, resume, force)  # again, as nobody else can change it now
            if start is not None:
                stack.enter_context(_undone(folder))
                for each in start.notes:
                    note(each)
                with replace_files(last, STALE) as staging:  # an earlier run is whole until this one can be resumed
                    start.write(staging)
                    TrainingState(0, _steps(recipe, split), recipe, split.identity()).write(staging)
                shutil.rmtree(folder / BEST, ignore_errors=True)
            with replace_files(folder, None if resume else OUTCOME) as staging:
                write_text(staging / RECIPE, recipe.to_json())

        processes.by_first(enter)
        opened = checkpoint.Checkpoint(last)
        head = checkpoint.head_of(opened)
        if head is None:
            raise InputError(f"{shown(last)} has no head; it is not what a run left.")
        state = TrainingState.read(last, opened.config, head)
        if state.data != split.identity():
            raise InputError(
                f"{shown(folder)} was begun with other images or labels than {shown(data)}; give the same."
            )
        split = _as_labelled(split, opened.config)
        processor = ViTImageProcessor.from_pretrained(last)
        loader = Data(split.training, recipe, processor, opened.config, workers or available_cpus(), strict, processes)
        loader.broken |= split.skipped
        network = load(last, framework, recipe, head, opened.config, device)
        trainer = room.Trainer(network, recipe, state.tensors, state.step, processes, shard)
        loop = _Loop(folder, framework, state, split, opened.config, loader, trainer, teacher, processes, command)
        return loop.run(report, should_stop)


# === Before the loop ===


def _check_installed(framework: str) -> None:
    """Refuse to begin without what training needs besides the framework, before anything is written.

    Raises:
        MissingFrameworkError: it is not installed; the line that installs it is given.
    """
    for module in ("grain", "optax") if framework == "flax" else ("grain",):
        if find_spec(module) is None:
            raise MissingFrameworkError(f"Training needs {module}. Install it with: {install_line('train')}")


def refuse(skipped: Mapping[str, str]) -> None:
    """Refuse files that would be skipped, where there are any.

    Raises:
        InputError: the first of them are named, and why.
    """
    if skipped:
        raise InputError(f"{summary((f'{name} {why}' for name, why in sorted(skipped.items())), 5)}.")


@contextmanager
def _undone(folder: Path) -> Iterator[None]:
    """Remove the folder of a run again, which was not there, where bad input ends it before its first checkpoint.

    Whoever enters this holds the lock: another's run, which is as new, is not touched.
    """
    is_new = not folder.exists()
    try:
        yield
    except (InputError, ConfigError):
        state = folder / LAST / STATE
        if is_new and state.is_file() and read_current(state, read_json)["step"] == 0:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _steps(recipe: Recipe, split: Split) -> int:
    return recipe.steps or max(1, round(recipe.epochs * len(split.training) / recipe.batch_size))


def _check_output(folder: Path, resume: bool, force: bool) -> None:
    """Refuse to replace what must not be replaced, and to resume nothing.

    Raises:
        InputError: that.
    """
    is_run = any((folder / LAST / where / STATE).is_file() for where in ("", ".complete"))
    if resume and force:
        raise InputError("--resume goes on with a run and --force replaces it; give one.")
    if resume and not is_run:
        raise InputError(f"{shown(folder)} holds no run to resume.")
    if folder.is_file():
        raise InputError(f"{shown(folder)} is a file; expected a folder for the run.")
    is_empty = not folder.exists() or not any(folder.iterdir())
    if not (resume or is_empty or (force and is_run)):
        what = "a run; give --resume to go on, or --force to begin again" if is_run else "other files; give another"
        raise InputError(f"{shown(folder)} holds {what}.")


def _check_parts(recipe: Recipe, processes: Processes) -> None:
    """Every batch has as many images for each process, device and part, and the partners of mixing with them.

    Raises:
        ConfigError: that cannot be.
    """
    mixing = 2 if recipe.mixup or recipe.cutmix else 1
    shares = processes.size * math.lcm(processes.devices * recipe.accumulate, mixing)
    if processes.size > 1 and recipe.batch_size % shares:
        raise ConfigError(
            f"batch_size is {recipe.batch_size}, which {processes.size} processes cannot share; expected a multiple of "
            f"{shares}."
        )


def _same_recipe(folder: Path, recipe: Recipe | None) -> Recipe:
    begun = Recipe.from_dict(read_current(folder / LAST / STATE, read_json)["recipe"])
    if recipe is not None and (changes := begun.differences(recipe)):
        listed = "; ".join(f"{name} was {old!r}, now {new!r}" for name, (old, new) in changes.items())
        raise ConfigError(f"{shown(folder)} was begun with another recipe: {listed}. Give its values, or none.")
    return begun


def _as_labelled(split: Split, config: PreTrainedConfig) -> Split:
    """The split with its labels in the order of the model's."""
    names = labels_of(config, split.training)
    if not split.training.names or names == split.training.names:
        return split
    return dataclasses.replace(
        split, training=split.training.renamed(names), validation=split.validation.renamed(names)
    )


def load(folder: Path, framework: str, recipe: Recipe, head: str, config: PreTrainedConfig, device: Any = None) -> Any:
    """The model in a folder, in the dtype of a recipe."""
    cls = families.model_class(framework, config.model_type, head)
    plain = "float32" if recipe.dtype == "mixed_bfloat16" else recipe.dtype
    if plain == "float64" and framework == "flax":
        import jax

        if not jax.config.jax_enable_x64:
            raise InputError("dtype is float64, which JAX has off: set JAX_ENABLE_X64=1, or take float32.")
    dtype = recipe.dtype if framework == "tf" else plain
    return cls.from_pretrained(folder, dtype=dtype, **({"device": device} if device is not None else {}))


# === The loop ===


class _Loop:
    def __init__(
        self, folder: Path, framework: str, state: TrainingState, split: Split, config: PreTrainedConfig, data: Data,
        trainer: Any, teacher: Teacher | None, processes: Processes, command: str | None,
    ) -> None:  # fmt: skip
        self.folder, self.framework, self.split, self.config = folder, framework, split, config
        self.data, self.trainer, self.teacher, self.processes = data, trainer, teacher, processes
        self.recipe, self.command = state.recipe, command
        self.state = dataclasses.replace(state, tensors=None)  # which the trainer has
        self.rows = _kept_rows(folder / METRICS, state.step) if processes.is_first else []
        self.answers: np.ndarray | None = None

    def run(self, report: Callable[[dict[str, Any]], None], should_stop: Callable[[], bool]) -> Run:
        recipe, state, steps = self.recipe, self.state, self.state.steps
        every = max(1, round(recipe.evaluate_every * len(self.split.training) / recipe.batch_size))
        batches = self.data.batches(state.position)
        losses: list[Any] = []
        processes = self.processes
        metrics: dict[str, Any] = {}
        began, first, step = time.perf_counter(), state.step, state.step
        while step < steps:
            rate = learning_rate(recipe, step, steps)
            losses.append(self.trainer.step(self._batch(next(batches)), step, rate))
            step += 1
            stopping = processes.any(should_stop())
            is_due = step % every == 0 or step == steps
            if step % recipe.log_every == 0 or is_due or stopping:
                values = self._checked(losses, step)
                seconds, began = time.perf_counter() - began, time.perf_counter()
                speed = len(values) * recipe.batch_size / seconds
                epoch = step * recipe.batch_size / len(self.split.training)
                row = {"step": step, "epoch": round(epoch, 3), "loss": float(np.mean(values)), "learning_rate": rate,
                       "images_per_second": round(speed, 1)}  # fmt: skip
                losses = []
                if is_due and len(self.split.validation):
                    metrics = self.evaluate(step)
                    row |= {"validation_loss" if name == "loss" else name: value for name, value in metrics.items()}
                if processes.is_first:
                    self._write_rows([row])
                    report({**row, "steps": steps})
                if is_due or stopping:
                    self._save(step, self.data.position(batches), metrics if is_due else {}, is_due)
                    began = time.perf_counter()
            if stopping:
                break
        if step > first:  # or the run was at its end already
            processes.by_first(lambda: self._finish(metrics if is_due else {}))  # not those of an earlier step
        best = dict(self.state.best)
        broken = {name: why for each in processes.told(self.data.broken) for name, why in each.items()}
        return Run(self.folder, step, steps, metrics, best, self.split.notes, broken, processes.is_first)

    def _batch(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.teacher is not None:
            names = tuple(self.config.id2label.values())
            logits = self.teacher.answers(batch["pixel_values"], names, self.data.processor)
            batch = {**batch, "teacher_logits": logits.astype(batch["targets"].dtype)}
        return batch

    def _checked(self, losses: list[Any], step: int) -> list[float]:
        values = self.processes.gather(np.array([float(loss) for loss in losses], np.float32)).mean(axis=0).tolist()
        for i, value in enumerate(values):
            self._check("loss", value, step - len(values) + i + 1)
        return values

    def _check(self, what: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"The {what} is {value} at step {step}; {shown(self.folder / LAST)} is as it was after step "
                f"{self.state.step}. Lower the learning rate, or clip the gradients."
            )

    def evaluate(self, step: int) -> dict[str, Any]:
        """What `measures.measure` says of the validation images after a step, with the averages of the weights."""
        with self.trainer.averaged():
            size = max(1, self.recipe.batch_size // self.processes.size)
            logits, indices = answers(self.trainer.logits, self.data, self.split.validation, size)
        self._check("sum of the answers to the validation images", float(logits.sum(dtype=np.float64)), step)
        examples = self.split.validation.take(indices)
        self.answers = measures.confusion(logits, examples.targets)
        return measures.measure(examples.problem_type, logits, examples.targets)

    # === What the folder holds ===

    def _save(self, step: int, position: Any, metrics: dict[str, Any], is_due: bool) -> None:
        tensors = self.trainer.tensors()

        def check() -> None:  # a step's loss may be finite, and its gradients not
            for name, array in tensors.items():
                self._check(f"sum of {name}", float(array.sum(dtype=np.float64)), step)

        self.processes.by_first(check)
        best = dict(self.state.best)
        improved = is_due and bool(metrics) and metrics["score"] > best.get("score", -math.inf)
        if improved:
            best = {"step": step, "score": metrics["score"], "metrics": metrics}
        if improved or (is_due and not metrics):  # without evaluation the last is the best
            with self.trainer.averaged():
                self.trainer.gather()
                self.processes.by_first(lambda: self._write(BEST, step, metrics))
        self.trainer.gather()
        state = dataclasses.replace(self.state, step=step, position=position, best=best)
        self.processes.by_first(lambda: self._write(LAST, step, metrics, dataclasses.replace(state, tensors=tensors)))
        self.state = state

    def _write(self, name: str, step: int, metrics: dict[str, Any], state: TrainingState | None = None) -> None:
        with replace_files(self.folder / name, STALE) as staging:
            self.trainer.save(staging)
            self.data.processor.save_pretrained(staging)
            write_text(staging / CARD, self._card(step, metrics))
            if state is not None:
                state.write(staging)

    def _write_rows(self, rows: list[dict[str, Any]]) -> None:
        """Append rows to metrics.jsonl; those of a run that was killed later than its checkpoint go first."""
        self.rows += rows
        with open(self.folder / METRICS, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def _finish(self, metrics: dict[str, Any]) -> None:
        with replace_files(self.folder) as staging:
            drawn = self._draw(staging) if picture.available() else []
            seen = "".join(f"\n![{Path(name).stem}]({name})\n" for name in drawn)
            write_text(staging / CARD, self._card(self.state.step, metrics) + seen)

    def _draw(self, folder: Path) -> list[str]:
        """Draw the run's pictures into a folder; their names."""
        name, images = self.folder.resolve().name, len(self.split.training)
        epochs, size = self.state.step * self.recipe.batch_size / images, self.recipe.batch_size
        kind = f"{self.config.heads[checkpoint_head(self.config)].name} in {FRAMEWORKS[self.framework][1]}"
        about = f"{kind}: {images:,} images, {epochs:.3g} epochs in batches of {size}"
        pictures.curves(folder / "curves.png", self.rows, name, about)
        if self.answers is None or self.split.validation.problem_type != SINGLE:
            return ["curves.png"]
        names = self.split.validation.names
        pictures.confusion(folder / "confusion.png", self.answers, names, f"{name}, the last evaluation")
        return ["curves.png", "confusion.png"]

    def _card(self, step: int, metrics: dict[str, Any]) -> str:
        from importlib.metadata import version

        recipe, training, held_out = self.recipe, self.split.training, self.split.validation
        module = {"pt": "torch", "tf": "keras", "flax": "flax"}[self.framework]
        shown_metrics = {name: value for name, value in metrics.items() if name not in ("score", "images")}
        results = "\n".join(f"| {name} | {value:.4f} |" for name, value in shown_metrics.items())
        averages = "\nOf the averages of the weights, which RUN/best has, and RUN/last has not.\n" if recipe.ema else ""
        values = "\n".join(f"| {name} | {value} |" for name, value in recipe.to_dict().items() if value is not None)
        labels = summary((shown(name, 40) for name in training.names), 20)
        tag = "image-feature-extraction" if recipe.objective == "reconstruction" else "image-classification"
        return (
            f"---\nlibrary_name: trivit\npipeline_tag: {tag}\ntags: [vision, vit]\n---\n\n"
            f"# {self.config.heads[checkpoint_head(self.config)].name}, {self.config.model_type}\n\n"
            f"Trained by trivit {__version__} ({module} {version(module)}), after step {step} of {self.state.steps}.\n"
            + (f"\n    {self.command}\n" if self.command else "")
            + f"\n## Data\n\n{len(training)} training and {len(held_out)} validation images"
            + (f"; labels: {labels}.\n" if labels else ".\n")
            + (f"\n## Result on the validation images\n{averages}\n| | |\n|---|---|\n{results}\n" if results else "")
            + f"\n## Recipe\n\n| | |\n|---|---|\n{values}\n"
        )


def checkpoint_head(config: PreTrainedConfig) -> str | None:
    """The head of the class that a configuration says wrote the checkpoint."""
    return next((head for head, each in config.heads.items() if each.name in (config.architectures or ())), None)


def _kept_rows(path: Path, step: int) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl up to a step; what a killed run wrote after its last checkpoint is cut off."""
    rows = []
    with suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(json.JSONDecodeError, TypeError, KeyError):
                if (row := json.loads(line))["step"] <= step:
                    rows.append(row)
    with replace_files(path.parent) as staging:
        write_text(staging / path.name, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def answers(
    logits_of: Callable[[np.ndarray], np.ndarray], data: Data, examples: Examples, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """(logits, indices) of the examples that can be read, of all processes; every call has a batch of the same size.

    Raises:
        InputError: none can be read.
    """
    found: list[np.ndarray] = []
    places: list[np.ndarray] = []
    devices, gather = data.processes.devices, data.processes.gather
    size = math.ceil(min(batch_size, EVALUATED, max(1, len(examples))) / devices) * devices
    batches: Iterator[tuple[np.ndarray, np.ndarray]] = data.evaluation(examples, size)
    for pixel_values, indices in batches:
        short = size - len(indices)
        padded = np.pad(pixel_values, [(0, short), (0, 0), (0, 0), (0, 0)])
        found.extend(gather(logits_of(padded)))
        places.extend(gather(np.pad(indices, (0, short), constant_values=-1)))
    logits, indices = (np.concatenate(each) if each else np.zeros(0, int) for each in (found, places))
    is_there = indices >= 0
    if not is_there.any():
        raise InputError(f"None of the {len(examples)} images can be read.")
    return logits[is_there], indices[is_there]
