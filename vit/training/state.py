"""The canonical training state: all that a run carries from one step to the next, whatever framework goes on with it.

It stands in the folder of a checkpoint, beside model.safetensors, and takes its place together with it, in one step:

- training_state.safetensors: "slot.parameter" -> tensor, in the names, shapes and layout of model.safetensors: what the
  optimiser carries for each parameter (`SLOTS`), and "ema", the average of the weights, where there is one.
- training_state.json: the step, how many there are, the recipe, the position in the data, the best result so far.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import read_header, write_safetensors
from ..config import PreTrainedConfig
from ..errors import CheckpointError, ConfigError, summary
from ..files import read_json
from ..folders import Find, at_one_moment, write_text
from .recipe import Recipe
from .schedule import parameter_groups

STATE = "training_state.json"
TENSORS = "training_state.safetensors"
FORMAT = 1
ONE_FILE = "1000GB"
"""max_shard_size of a checkpoint that stands beside its state: one file."""

SLOTS = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}
"""Optimizer -> what it carries for each parameter, by PyTorch's names."""


@dataclass(frozen=True)
class TrainingState:
    """Where a run stands.

    Attributes:
        step: how many steps were taken.
        steps: how many there are.
        recipe: how it trains.
        data: which examples it trains on, as `Data.identity` says, so that a resume is of the same.
        position: of the iterator of batches, as its `get_state` gave it.
        best: the best result of an evaluation so far, and its step; empty before the first.
        tensors: "slot.parameter" -> array; None before the first step.
    """

    step: int
    steps: int
    recipe: Recipe
    data: Mapping[str, Any] = field(default_factory=dict)
    position: Mapping[str, Any] = field(default_factory=dict)
    best: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, np.ndarray] | None = None

    def write(self, folder: Path) -> None:
        """Write its files into a folder where nothing reads yet, as `replace_files` gives one."""
        values = {
            "format": FORMAT, "step": self.step, "steps": self.steps, "recipe": self.recipe.to_dict(),
            "data": dict(self.data), "position": dict(self.position), "best": dict(self.best),
        }  # fmt: skip
        if self.tensors is not None:
            headers = {name: (array.shape, array.dtype) for name, array in self.tensors.items()}
            write_safetensors(folder / TENSORS, headers, self.tensors.__getitem__)
        write_text(folder / STATE, json.dumps(values, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path, config: PreTrainedConfig, head: str) -> TrainingState:
        """Read the state beside a checkpoint.

        Args:
            folder: of the checkpoint.
            config: the checkpoint's.
            head: of the model that is trained.

        Raises:
            CheckpointError: there is none, or one that is broken or of another model.
        """

        def read(find: Find) -> TrainingState:
            values = read_json(find(STATE) or folder / STATE)
            try:
                if values["format"] != FORMAT:
                    raise ConfigError(f"its format is {values['format']!r}; expected {FORMAT}")
                recipe = Recipe.from_dict(values["recipe"])
                step, steps = values["step"], values["steps"]
                data, position, best = values["data"], values["position"], values["best"]
                if not all(type(number) is int and number >= 0 for number in (step, steps)) or not all(
                    isinstance(mapping, dict) for mapping in (data, position, best)
                ):
                    raise ConfigError("its values are of other kinds than a run writes")
            except (KeyError, TypeError, ConfigError) as error:
                what = f"it lacks {error}" if isinstance(error, KeyError) else error
                raise CheckpointError(f"{folder / STATE} is no training state: {what}.") from None
            path = find(TENSORS)
            if path is None and values["step"]:
                raise CheckpointError(f"{folder} lacks {TENSORS}, without which the run cannot go on.")
            tensors = None if path is None else _tensors(path, expected_tensors(config, head, recipe))
            return cls(step, steps, recipe, data, position, best, tensors)

        return at_one_moment(folder, read)


def expected_tensors(config: PreTrainedConfig, head: str, recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """The tensors of the state of a model that a recipe trains: "slot.parameter" -> shape."""
    shapes = config.parameter_shapes(head=head, **config.heads[head].parts)
    carried = (*slots(recipe), *(("ema",) if recipe.ema else ()))
    groups = parameter_groups(config, head, recipe)
    return {f"{slot}.{name}": shapes[name] for slot in carried for name in groups}


def slots(recipe: Recipe) -> tuple[str, ...]:
    """What a recipe's optimiser carries for each parameter: none for SGD without momentum."""
    return SLOTS[recipe.optimizer] if recipe.optimizer == "adamw" or recipe.momentum else ()


def _tensors(path: Path, expected: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    stored = {name: tensor.shape for name, tensor in read_header(path).items()}
    if stored != expected:
        odd = sorted(name for name in stored.keys() | expected.keys() if stored.get(name) != expected.get(name))
        raise CheckpointError(
            f"{path} is of another model or recipe than the checkpoint beside it: {summary(odd)} are missing, "
            "unexpected or of another shape."
        )
    return load_file(path)
