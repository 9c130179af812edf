"""How good a checkpoint is on a data set: its answers, and what its features know, in any framework."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import checkpoint, hub, pipeline
from ..errors import ConfigError, InputError, shown, summary
from ..files import read_json
from ..folders import find, read_current
from ..image_processing import ViTImageProcessor
from ..image_processing.processor import available_cpus
from ..inference import Forward
from ..loading import open_checkpoint
from . import measures
from .data import Data
from .examples import MULTI, REGRESSION, SINGLE, Examples, Split, read, shared, split
from .recipe import Recipe
from .run import LAST, RECIPE, answers, refuse
from .state import STATE

VALIDATION, HELD_OUT, ALL = "validation", "held out", "all"
TEMPERATURE = 0.07  # of the weights of neighbours (Wu et al. 2018, Section 3.4)


@dataclass
class Evaluation:
    """What `evaluate` finds.

    Attributes:
        metrics: as `measures.measure` gives them, and knn and probe where they were asked for.
        part: which images these are: "validation" by the data's own split, "held out" by the run that trained the
            checkpoint, or "all".
        names: of the labels.
        confusion: (labels, labels) counts, rows are the truth; None where images have several labels, or numbers.
        broken: images that could not be used, and why.
        notes: what the user should know about the data.
    """

    metrics: dict[str, Any]
    part: str
    names: tuple[str, ...]
    confusion: np.ndarray | None
    broken: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """What --json prints."""
        table = self.confusion
        classes = {} if table is None else {"classes": measures.per_class(table, self.names),
                                            "confusion": table.tolist()}  # fmt: skip
        values = {name: value for name, value in self.metrics.items() if name != "score"}
        return {**values, "part": self.part, **classes, "skipped": self.broken}


def evaluate(
    data: Any,
    model: str | os.PathLike[str],
    framework: str | None = None,
    *,
    knn: int | None = None,
    probe: bool = False,
    batch_size: int = 32,
    workers: int | None = None,
    strict: bool = False,
    **options: Any,
) -> Evaluation:
    """Evaluate a checkpoint on images that it was not trained on, as far as that is known.

    Those are the validation images of a data set that has a split, and of the data of a run what the run held out;
    without either, all images are taken.

    Args:
        data: as `train` takes it.
        model: a checkpoint of any family, a folder or a name on the hub; RUN/best or RUN/last of a run.
        framework: "pt", "tf" or "flax"; None for the first that is installed.
        knn: also classify by so many nearest neighbours among the training images, by the features (CLS tokens).
        probe: also classify by a linear map that is fitted to the features of the training images.
        batch_size: images of one call.
        workers: threads that read images; None for one a CPU.
        strict: stop at the first image that cannot be read.
        **options: of `Forward`: device, dtype, ...

    Raises:
        InputError: data that cannot be used, other labels than the checkpoint's, or nothing to classify by or with.
        CheckpointError: no checkpoint, or one that is broken.
    """
    if knn is not None and knn < 1:
        raise ConfigError(f"knn is {knn}; expected an int of at least 1.")
    folder = hub.resolve(model)
    found, part = _split(data, Path(folder))
    if strict:
        refuse(found.skipped)
    examples = found.training if part == ALL else found.validation
    if (knn or probe) and part == ALL:
        raise InputError("Neighbours and probes need training images beside those of the evaluation: a split in DATA.")
    if (knn or probe) and examples.problem_type != SINGLE:
        raise InputError("Neighbours and probes classify images of one label each; leave knn and probe out.")
    opened = open_checkpoint(folder)
    has_head = checkpoint.head_of(opened, pipeline.CLASSIFICATION) is not None
    if not (has_head or knn or probe):
        raise InputError(
            f"{shown(folder)} has no classification head, so there is nothing to evaluate: train one first, or give "
            "knn or probe (--knn 20, --probe), which classify by its features."
        )
    names = tuple(opened.config.id2label.values()) if has_head else examples.names
    kind = opened.config.problem_type if has_head else None
    examples = _named(examples, names, kind)
    processor = ViTImageProcessor.from_pretrained(folder)
    loader = Data(examples, Recipe(), processor, opened.config, workers or available_cpus(), strict)
    loader.broken |= found.skipped
    metrics, table = {}, None
    if has_head:
        parts = pipeline.parts_for(folder, "classify", "cls") if examples.problem_type == SINGLE else {}
        forward = Forward(folder, framework, **parts, **options)
        logits, indices = _answers(lambda pixels: forward(pixels).logits, loader, examples, batch_size)
        seen = examples.take(indices)
        metrics = measures.measure(seen.problem_type, logits, seen.targets)
        table = measures.confusion(logits, seen.targets) if seen.problem_type == SINGLE else None
    if knn or probe:
        training = _named(found.training, names, kind)
        metrics |= _by_features(folder, framework, loader, training, examples, batch_size, knn, probe, options)
    return Evaluation(metrics, part, names, table, dict(loader.broken), found.notes)


def _split(data: Any, folder: Path) -> tuple[Split, str]:
    """The split of the data, and what of it is evaluated; of the images of the run in whose folder `folder` lies, what
    the run held out."""
    whole = read(data, 0.0, 0)
    if len(whole.validation):
        return whole, VALIDATION
    state = folder.parent / LAST / STATE
    if find(state.parent, STATE) is not None:
        recipe = Recipe.from_json_file(folder.parent / RECIPE)
        training, held_out = split(whole.training, recipe.validation, recipe.seed, [])
        notes = (*whole.notes, *shared(training, held_out))
        again = replace(whole, training=training, validation=held_out, notes=notes)
        if len(held_out) and read_current(state, read_json).get("data") == again.identity():
            return again, HELD_OUT
    return whole, ALL


def _named(examples: Examples, names: tuple[str, ...], kind: str | None) -> Examples:
    """The examples with the labels of a checkpoint, which may have more, and whose problem_type may be unknown."""
    kind = kind or examples.problem_type
    if kind != examples.problem_type and (examples.problem_type, kind) != (SINGLE, MULTI):
        raise InputError(
            f"The images are of a {examples.problem_type}, and the checkpoint of a {kind}, by its problem_type."
        )
    if kind == REGRESSION:
        if examples.targets.shape[1] != len(names):
            raise InputError(f"The images have {examples.targets.shape[1]} numbers each, the checkpoint {len(names)}.")
        return examples
    if odd := sorted(set(examples.names) - set(names)):
        raise InputError(
            f"The checkpoint has no labels {summary((shown(n, 40) for n in odd), 5)}; it has "
            f"{summary((shown(n, 40) for n in names), 5)}. Name the folders as the labels, or train a head first."
        )
    if odd := [name for name in examples.names if names.count(name) > 1]:
        raise InputError(
            f"The checkpoint has {names.count(odd[0])} labels called {shown(odd[0], 40)}, and the images do not tell "
            "which they are of. Give them names of their own in the id2label of its config.json."
        )
    targets = np.zeros((len(examples), len(names)), np.float32)
    targets[:, [names.index(name) for name in examples.names]] = examples.targets
    return Examples(examples.images, targets, names, kind)


def _answers(call: Callable[[np.ndarray], np.ndarray], *what: Any) -> tuple[np.ndarray, np.ndarray]:
    """As `answers`, of numbers alone: of NaN every measure would be wrong, and look like one."""
    found, indices = answers(call, *what)
    if odd := int((~np.isfinite(found)).any(axis=1).sum()):
        raise InputError(f"{odd:,} of the {len(found):,} images {pipeline.NOT_FINITE}")
    return found, indices


# === Features ===


def _by_features(
    folder: Any, framework: str | None, loader: Data, training: Examples, examples: Examples, batch_size: int,
    knn: int | None, probe: bool, options: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    base = Forward(folder, framework, **pipeline.parts_for(folder, "embed", "cls"), **options)
    sets = []
    for each in (training, examples):
        features, indices = _answers(lambda pixels: base(pixels).last_hidden_state[:, 0], loader, each, batch_size)
        sets.append((features.astype(np.float64), each.targets[indices]))
    (known, labels), (asked, truth) = sets
    found: dict[str, Any] = {"images": len(asked)}
    if knn:
        found["knn"] = _accuracy(neighbours(known, labels, asked, min(knn, len(known))), truth)
    if probe:
        found["probe"] = _accuracy(linear_probe(known, labels, asked), truth)
    return found


def neighbours(known: np.ndarray, labels: np.ndarray, asked: np.ndarray, count: int) -> np.ndarray:
    """Votes (N, labels) of the nearest by cosine, weighted by exp(cosine / 0.07) (Wu et al. 2018, Section 3.4)."""
    known, asked = (each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-12) for each in (known, asked))
    votes = []
    for part in np.array_split(asked, max(1, len(asked) // 256)):
        cosine = part @ known.T
        nearest = np.argpartition(-cosine, count - 1, axis=1)[:, :count]
        weights = np.exp(np.take_along_axis(cosine, nearest, axis=1) / TEMPERATURE)
        votes.append((weights[:, :, None] * labels[nearest]).sum(axis=1))
    return np.concatenate(votes)


def linear_probe(known: np.ndarray, labels: np.ndarray, asked: np.ndarray, ridge: float = 1e-2) -> np.ndarray:
    """Scores (N, labels) of the linear map of least squares, with a ridge, of standardised features to labels."""
    mean, deviation = known.mean(axis=0), known.std(axis=0) + 1e-12
    known, asked = ((each - mean) / deviation for each in (known, asked))
    gram = known.T @ known / len(known) + ridge * np.eye(known.shape[1])
    return asked @ np.linalg.solve(gram, known.T @ labels / len(known)) + labels.mean(axis=0)  # as the features' are 0


def _accuracy(scores: np.ndarray, targets: np.ndarray) -> float:
    return float((scores.argmax(axis=1) == targets.argmax(axis=1)).mean())
