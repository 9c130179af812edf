"""What the values of a configuration may be, and the three keys of labels, which agree."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

from .. import budgets
from ..errors import ConfigError, quoted

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "selu", "silu", "tanh")
ATTENTION_IMPLEMENTATIONS = ("sdpa", "eager")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
DTYPES = ("float16", "bfloat16", "float32", "float64")
_MOST = 2**31 - 1  # what sizes may be: more is no size of an array


class Checked:
    """A configuration that checks its keys, which are named."""

    num_labels: Any
    id2label: Any
    label2id: Any

    def _check(self, name: str, valid: bool, expected: str) -> None:
        if not valid:
            raise ConfigError(f"{name} is {quoted(getattr(self, name))}; expected {expected}.")

    def _check_ints(self, *names: str, least: int = 1, most: int = _MOST) -> None:
        for name in names:
            value = getattr(self, name)
            self._check(name, is_int(value, least), f"an int of at least {least}")
            self._check(name, value <= most, f"an int of at most {most:,}")

    def _check_sizes(self, *names: str) -> None:
        for name in names:
            size = getattr(self, name)
            if isinstance(size, list):
                object.__setattr__(self, name, size := tuple(size))
            pair = size if isinstance(size, tuple) else (size, size)
            valid = len(pair) == 2 and all(is_int(length, 1) and length <= _MOST for length in pair)
            self._check(name, valid, "a positive int, or a (height, width) pair of them")

    def _check_probabilities(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            self._check(name, is_number(value) and 0 <= value < 1, "a probability of at least 0 and less than 1")

    def _check_numbers(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            self._check(name, is_number(value) and 0 <= value <= _MOST, "a finite number of at least 0")

    def _check_bools(self, *names: str) -> None:
        for name in names:
            self._check(name, isinstance(getattr(self, name), bool), "true or false")

    def _check_choice(self, name: str, allowed: Iterable[Any]) -> None:
        allowed = tuple(allowed)
        self._check(name, getattr(self, name) in allowed, "one of " + ", ".join(map(repr, allowed)))

    def _reconcile_labels(self) -> None:
        """Make num_labels, id2label and label2id agree, whichever of them were given."""
        for name in ("id2label", "label2id"):
            value = getattr(self, name)
            self._check(name, value is None or isinstance(value, Mapping), "a mapping between label indices and names")
        if self.num_labels is not None:
            self._check_ints("num_labels", least=0)
            if self.id2label is None and self.label2id is None and self.num_labels > budgets.LABELS:
                expected = f"at most {budgets.LABELS:,}, or id2label with the names of so many"
                self._check("num_labels", False, expected)
        given = "id2label" if self.id2label is not None else "label2id"
        default = {i: f"LABEL_{i}" for i in range(2 if self.num_labels is None else self.num_labels)}
        try:
            label2id = {str(label): label_index(index) for label, index in (self.label2id or {}).items()}
            id2label = {index: label for label, index in label2id.items()} if self.label2id is not None else default
            if self.id2label is not None:
                id2label = {label_index(index): str(label) for index, label in self.id2label.items()}
        except (TypeError, ValueError):
            raise ConfigError(
                f"id2label is {quoted(self.id2label)} and label2id {quoted(self.label2id)}; expected ints as label "
                "indices."
            ) from None
        names = self.label2id if self.id2label is None else self.id2label
        if sorted(id2label) != list(range(len(id2label))) or len(id2label) != len(id2label if names is None else names):
            raise ConfigError(
                f"{given} has the indices {quoted(sorted(id2label)[:10])}; expected 0 to {len(names or ()) - 1}."
            )
        if self.num_labels not in (None, len(id2label)):
            raise ConfigError(
                f"num_labels is {self.num_labels} but {given} names {len(id2label)} labels. Give one of them, or "
                "both with the same length."
            )
        id2label = dict(sorted(id2label.items()))
        object.__setattr__(self, "num_labels", len(id2label))
        object.__setattr__(self, "id2label", id2label)
        object.__setattr__(self, "label2id", label2id or {label: index for index, label in id2label.items()})


def label_index(value: Any) -> int:
    """The index of a label: an int, or its decimal digits, as JSON's keys are.

    Raises:
        TypeError, ValueError: it is neither.
    """
    if not isinstance(value, str):
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    if len(value) > 20 or not (value.isascii() and value.isdecimal()) or value != str(int(value)):
        raise ValueError
    return int(value)


def is_int(value: object, minimum: int) -> bool:
    """Whether it is an int of at least `minimum`; a truth value is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def is_number(value: object) -> bool:
    """Whether it is an int or a float; a truth value is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
