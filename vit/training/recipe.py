"""The recipe of a training run: every choice that changes its numbers, in one frozen object that JSON can hold."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ..errors import ConfigError, quoted

OBJECTIVES = ("classification", "distillation", "reconstruction")
OPTIMIZERS = ("adamw", "sgd")
DISTILLATIONS = ("hard", "soft")
DTYPES = ("float32", "float64", "mixed_bfloat16")

# === What a field may hold: (test, what errors call it) ===

Rule = tuple[Callable[[Any], bool], str]


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _int(least: int) -> Rule:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= least, f"an int of at least {least}"


def _choice(*allowed: str) -> Rule:
    return lambda value: value in allowed, "one of " + ", ".join(allowed)


NON_NEGATIVE: Rule = (lambda v: _number(v) and v >= 0, "a number of at least 0")
POSITIVE: Rule = (lambda v: _number(v) and v > 0, "a number above 0")
PROBABILITY: Rule = (lambda v: _number(v) and 0 <= v < 1, "a number of at least 0 and less than 1")
PART: Rule = (lambda v: _number(v) and 0 <= v <= 1, "a number from 0 to 1")
SOME: Rule = (lambda v: _number(v) and 0 < v <= 1, "a number above 0, of at most 1")
FLAG: Rule = (lambda v: isinstance(v, bool), "true or false")
TEXT: Rule = (lambda v: isinstance(v, str) and bool(v), "a text")


def _with_epochs(changes: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"steps": None, **changes} if "epochs" in changes else changes


def _field(default: Any, rule: Rule, text: str) -> Any:
    """A field of the recipe; one whose default is None may stay so."""
    return dataclasses.field(default=default, metadata={"rule": rule, "help": text})


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. Each field is an option of `vit train`, whose help says what it means.

    The defaults fine-tune a pre-trained checkpoint on some thousand photographs: AdamW with layer-wise decay of the
    learning rate as He et al. 2022 (Table 9) fine-tune, with mild augmentation and no mixing.

    Raises:
        ConfigError: a value that no run can have; what is allowed is said.
    """

    objective: str = _field("classification", _choice(*OBJECTIVES), f"one of {', '.join(OBJECTIVES)}")
    epochs: float = _field(10, POSITIVE, "passes over the training images")
    steps: int | None = _field(None, _int(1), "optimiser steps, instead of epochs")
    batch_size: int = _field(64, _int(1), "images of one step")
    accumulate: int = _field(1, _int(1), "parts that a step is computed in, for less memory; divides the batch size")
    seed: int = _field(0, _int(0), "of fresh weights, split, order, augmentation and dropout")
    dtype: str = _field("float32", _choice(*DTYPES), f"one of {', '.join(DTYPES)}")

    optimizer: str = _field("adamw", _choice(*OPTIMIZERS), "one of adamw, sgd")
    learning_rate: float = _field(5e-4, POSITIVE, "the highest; of the last layers, where layers have their own")
    final_learning_rate: float = _field(0.0, NON_NEGATIVE, "that of the end of the cosine")
    warmup: float = _field(0.05, PROBABILITY, "part of the steps over which the learning rate rises")
    weight_decay: float = _field(0.05, NON_NEGATIVE, "of matrices alone")
    layer_decay: float = _field(0.75, SOME, "factor of the learning rate from a layer to the one before")
    clip_norm: float = _field(1.0, NON_NEGATIVE, "the largest norm of all gradients together; 0 for any")
    momentum: float = _field(0.9, PROBABILITY, "of SGD")
    beta1: float = _field(0.9, PROBABILITY, "of AdamW: how slowly the mean of the gradients changes")
    beta2: float = _field(0.999, PROBABILITY, "of AdamW: how slowly the mean of their squares changes")
    epsilon: float = _field(1e-8, POSITIVE, "of AdamW")
    ema: float = _field(0.0, PROBABILITY, "how slowly the average of the weights changes; 0 for none")

    label_smoothing: float = _field(0.1, PROBABILITY, "probability spread over all labels")
    mixup: float = _field(0.0, NON_NEGATIVE, "alpha of mixup; 0 for none")
    cutmix: float = _field(0.0, NON_NEGATIVE, "alpha of CutMix; 0 for none")
    crop_scale: float = _field(0.5, SOME, "the least part of an image's area that a random crop has; 1 for no crop")
    flip: float = _field(0.5, PART, "how often an image is mirrored")
    randaugment: int = _field(0, _int(0), "operations of RandAugment on each image")
    randaugment_magnitude: float = _field(9, NON_NEGATIVE, "how strong they are, 0 to 10")
    erasing: float = _field(0.0, PART, "how often a random rectangle is erased")

    dropout: float | None = _field(None, PROBABILITY, "of tokens and MLPs; by default the checkpoint's")
    attention_dropout: float | None = _field(None, PROBABILITY, "of attention; by default the checkpoint's")
    drop_path: float | None = _field(None, PROBABILITY, "stochastic depth, of families that have it")
    image_size: int | None = _field(None, _int(1), "pixels; positions are resampled to another than the checkpoint's")
    gradient_checkpointing: bool = _field(False, FLAG, "recompute layers in the backward pass, for less memory")
    freeze_backbone: bool = _field(
        False, FLAG, "train the head alone (a linear probe), with nothing dropped out by default"
    )
    freeze_layers: int = _field(0, _int(0), "leave the embeddings and so many layers as they are; 0 for none")

    mask_ratio: float | None = _field(
        None, PROBABILITY, "part of the patches that reconstruction hides; by default the checkpoint's, else 0.6"
    )
    teacher: str | None = _field(None, TEXT, "the checkpoint that distillation learns from")
    distillation: str = _field("hard", _choice(*DISTILLATIONS), "one of hard (its answer), soft (its probabilities)")
    distillation_weight: float = _field(0.5, PART, "part of the loss that the teacher gives")
    temperature: float = _field(3.0, POSITIVE, "of soft distillation")

    validation: float = _field(0.1, PROBABILITY, "part of the images held out, where the data has no split")
    evaluate_every: float = _field(1.0, POSITIVE, "epochs between evaluations, each with a checkpoint")
    log_every: int = _field(10, _int(1), "steps between the rows of metrics.jsonl")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, (test, expected) = getattr(self, field.name), field.metadata["rule"]
            if not (value is None and field.default is None) and not test(value):
                raise ConfigError(f"{field.name} is {quoted(value)}; expected {expected}.")
        if self.batch_size % self.accumulate:
            raise ConfigError(f"accumulate is {self.accumulate}, which does not divide batch_size {self.batch_size}.")
        if self.objective == "distillation" and self.teacher is None:
            raise ConfigError("objective is 'distillation', which needs a teacher: the name or folder of a checkpoint.")

    # === Copies ===

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """A published recipe by its name in `PRESETS`, some fields changed; epochs take the place of its steps.

        Raises:
            ConfigError: an unknown preset or field, or an impossible value.
        """
        if name not in PRESETS:
            raise ConfigError(f"preset is {quoted(name)}; expected one of {', '.join(PRESETS)}.")
        return cls.from_dict({**PRESETS[name], **_with_epochs(overrides)})

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; epochs take the place of steps."""
        return self.from_dict({**self.to_dict(), **_with_epochs(changes)})

    def differences(self, other: Recipe) -> dict[str, tuple[Any, Any]]:
        """Field -> (its value here, in `other`), of those that differ."""
        mine, theirs = self.to_dict(), other.to_dict()
        return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}

    # === JSON ===

    def to_dict(self) -> dict[str, Any]:
        """Every field by its name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The recipe of some fields; the others have their defaults.

        Raises:
            ConfigError: an unknown field (the nearest is named), or an impossible value.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else "."
                raise ConfigError(f"Unknown field of a recipe {quoted(name)}{hint}")
        return cls(**values)

    def to_json(self) -> str:
        """The text of a recipe.json."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json_file(cls, path: str | Path) -> Self:
        """The recipe in a JSON file.

        Raises:
            CheckpointError: no such file, or no JSON.
            ConfigError: an unknown field, or an impossible value; the file is named.
        """
        from ..files import read_json

        try:
            return cls.from_dict(read_json(Path(path)))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Dosovitskiy et al. 2021, Appendix B.1.1: SGD with momentum, cosine, no weight decay, clipped at 1, at 384 pixels.
    "vit-finetune": {
        "optimizer": "sgd", "learning_rate": 0.01, "weight_decay": 0.0, "layer_decay": 1.0, "label_smoothing": 0.0,
        "batch_size": 512, "steps": 2500, "crop_scale": 0.05, "image_size": 384,
    },
    # Touvron et al. 2021, Table 9, at its batch size of 1024 (learning rate 0.0005 * 1024 / 512).
    "deit": {
        "epochs": 300, "batch_size": 1024, "learning_rate": 1e-3, "final_learning_rate": 1e-5, "warmup": 5 / 300,
        "weight_decay": 0.05, "layer_decay": 1.0, "clip_norm": 0.0, "label_smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0,
        "crop_scale": 0.08, "randaugment": 2, "randaugment_magnitude": 9, "erasing": 0.25,
    },
    # He et al. 2022, Table 8: pre-training of the masked autoencoder (learning rate 0.00015 * 4096 / 256).
    "mae": {
        "objective": "reconstruction", "epochs": 800, "batch_size": 4096, "learning_rate": 2.4e-3, "warmup": 40 / 800,
        "weight_decay": 0.05, "beta2": 0.95, "layer_decay": 1.0, "clip_norm": 0.0, "label_smoothing": 0.0,
        "crop_scale": 0.2, "mask_ratio": 0.75,
    },
    # He et al. 2022, Table 9: fine-tuning of its encoder, a base one (learning rate 0.001 * 1024 / 256); the CLS token
    # is the classifier's, and there is no drop path of 0.1, which a plain ViT has not here.
    "mae-finetune": {
        "epochs": 100, "batch_size": 1024, "learning_rate": 4e-3, "warmup": 5 / 100, "weight_decay": 0.05,
        "layer_decay": 0.75, "clip_norm": 0.0, "label_smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0,
        "crop_scale": 0.08, "randaugment": 2, "randaugment_magnitude": 9,
    },
    # Caron et al. 2021, Appendix F: a linear classifier on frozen features (learning rate 0.001 * 1024 / 256).
    "linear-probe": {
        "freeze_backbone": True, "optimizer": "sgd", "epochs": 100, "batch_size": 1024, "learning_rate": 0.004,
        "warmup": 0.0, "weight_decay": 0.0, "layer_decay": 1.0, "clip_norm": 0.0, "label_smoothing": 0.0,
        "crop_scale": 0.08,
    },
}  # fmt: skip
"""Name -> the fields in which a published recipe differs from the defaults."""
