"""How good answers are: what evaluation reports, from logits and targets in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from .examples import MULTI, SINGLE

BINS = 15
"""Of the calibration error (Guo et al. 2017)."""


def measure(problem_type: str, logits: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """What evaluation reports.

    Args:
        problem_type: of config.json.
        logits: (N, num_labels).
        targets: (N, num_labels): 1 for a label that an image has, or the numbers of a regression.

    Returns:
        images and loss; top1, top5 and calibration_error of one label an image; accuracy of several, each for itself,
        and mean_average_precision over the labels that an image has; rmse of a regression; score, of which more is
        better.
    """
    logits = logits.astype(np.float64)
    found: dict[str, Any] = {"images": len(logits)}
    if problem_type == SINGLE:
        log_probs = log_softmax(logits)
        truth = targets.argmax(axis=1)
        order = np.argsort(-logits, axis=1, kind="stable")
        found["loss"] = float(-log_probs[np.arange(len(truth)), truth].mean())
        found["top1"] = float((order[:, 0] == truth).mean())
        found["top5"] = float((order[:, :5] == truth[:, None]).any(axis=1).mean())
        found["calibration_error"] = calibration_error(np.exp(log_probs), truth)
        return found | {"score": found["top1"]}
    if problem_type == MULTI:
        found["loss"] = float((np.logaddexp(0, logits) - logits * targets).mean())
        found["accuracy"] = float(((logits > 0) == (targets > 0.5)).mean())
        has_it = targets > 0.5
        precisions = [average_precision(logits[:, i], has_it[:, i]) for i in np.flatnonzero(has_it.any(axis=0))]
        if not precisions:
            return found | {"score": found["accuracy"]}
        found["mean_average_precision"] = float(np.mean(precisions))
        return found | {"score": found["mean_average_precision"]}  # of rare labels the accuracy is high without any
    found["loss"] = float(((logits - targets) ** 2).mean())
    found["rmse"] = found["loss"] ** 0.5
    return found | {"score": -found["rmse"]}


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """The mean, over the images that have a label, of the precision among those of at least their score.

    Args:
        scores: (N,) of the label.
        truth: (N,) whether an image has it; one does.
    """
    every, right = np.sort(scores), np.sort(scores[truth])
    at_least, right_of_them = (len(each) - np.searchsorted(each, right) for each in (every, right))
    return float((right_of_them / at_least).mean())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Of each row."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def calibration_error(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The expected calibration error: how far confidence is from accuracy, over bins of equal width (Guo et al. 2017).

    Args:
        probabilities: (N, num_labels).
        truth: (N,) labels.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    total = 0.0
    for each in np.unique(bins):
        inside = bins == each
        total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return float(total)


def confusion(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(num_labels, num_labels) counts: rows are the truth, columns the answers."""
    table = np.zeros((logits.shape[1],) * 2, int)
    np.add.at(table, (targets.argmax(axis=1), logits.argmax(axis=1)), 1)
    return table


def per_class(table: np.ndarray, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Of each label: its images, and precision and recall, None where there is nothing to divide by."""
    rows = []
    for i, name in enumerate(names):
        true, answered, right = int(table[i].sum()), int(table[:, i].sum()), int(table[i, i])
        recall, precision = (right / count if count else None for count in (true, answered))
        rows.append({"label": name, "images": true, "precision": precision, "recall": recall})
    return rows
