"""What a run begins from: a whole checkpoint folder, the same for every framework, fresh parameters drawn in NumPy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import checkpoint, families, hub
from ..checkpoint import Fit
from ..config import PreTrainedConfig, keys_of, to_pair
from ..errors import ConfigError, InputError, summary
from ..image_processing import ViTImageProcessor
from ..loading import plan
from .examples import REGRESSION, Examples
from .recipe import Recipe
from .schedule import parameter_groups, seed_of
from .state import ONE_FILE

TASKS = {
    "classification": ("ForImageClassification",),
    "distillation": ("WithTeacher", "ForImageClassification"),
    "reconstruction": ("ForPreTraining", "ForMaskedImageModeling"),
}
"""Objective -> what is in the names of the classes that it trains, the first that a family has."""
DROPPED = {
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "drop_path_rate": "drop_path",
}
"""Key of a configuration -> the recipe's field that sets it."""
HEADS = ("decoder.", "lm_head.")
"""How the names of other heads' parameters begin, which may be fresh as a classifier may."""


class Start(NamedTuple):
    """The model that a run begins with.

    Attributes:
        config: its configuration, with the labels of the data.
        head: the class's key in `config.heads`.
        processor: the image processor, for `config.image_size`.
        arrays: canonical name -> array.
        fresh: the names of those that were drawn.
        notes: what the user should know of how the checkpoint fits the data.
    """

    config: PreTrainedConfig
    head: str
    processor: ViTImageProcessor
    arrays: dict[str, np.ndarray]
    fresh: list[str]
    notes: list[str]

    def write(self, folder: Path) -> None:
        """Write the checkpoint's files into a folder where nothing reads yet."""
        tensors = {name: (array.shape, array.dtype) for name, array in self.arrays.items()}
        checkpoint.write_files(folder, self.config, tensors, self.arrays.__getitem__, ONE_FILE)
        self.processor.save_pretrained(folder)


def begin(
    model: str | os.PathLike[str] | PreTrainedConfig,
    examples: Examples,
    recipe: Recipe,
    from_scratch: bool = False,
    **hub_options: Any,
) -> Start:
    """The model that a run begins with.

    Args:
        model: a checkpoint of any family, a folder or a name on the hub; or a configuration, for fresh weights.
        examples: their labels become the model's; a head of the same labels is kept.
        recipe: how it is trained.
        from_scratch: take the network and the image processor of `model`, and none of its weights.
        **hub_options: `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        CheckpointError: no checkpoint there, or one that does not fit.
        ConfigError: the family cannot do what the recipe asks for.
    """
    dtype = np.dtype("float64" if recipe.dtype == "float64" else "float32")
    folder = None if isinstance(model, PreTrainedConfig) else hub.resolve(model, **hub_options)
    old: PreTrainedConfig = model if isinstance(model, PreTrainedConfig) else checkpoint.read_config(folder)  # type: ignore[arg-type]
    old = old if _heads(old, recipe) else old.as_family("vit")  # a masked autoencoder's encoder is one
    head = _head(old, recipe)
    config = old.replace(**_overrides(old, examples, recipe), dtype=dtype.name)
    config = config.replace(architectures=(config.heads[head].name,))
    parameter_groups(config, head, recipe)  # or the recipe does not fit
    shapes = config.parameter_shapes(head=head, **config.heads[head].parts)
    arrays: dict[str, np.ndarray] = {}
    notes: list[str] = []
    if folder is not None and not from_scratch:
        # A head of as many labels, but others, would be taken for a fitting one.
        is_new, kind = _is_new(old, config), type(config)
        fit = plan(folder, head, dtype, config=config, config_class=kind, ignore_mismatched_sizes=is_new)
        kept = [name for name in fit.stored if not (is_new and name.startswith(config.label_parameters))]
        arrays = {name: np.array(fit.read(name), dtype) for name in kept}
        notes = _notes(fit, old, config)
    fresh = [name for name in shapes if name not in arrays]
    arrays |= {name: _drawn(name, shapes[name], config, recipe).astype(dtype) for name in fresh}
    arrays = {name: arrays[name] for name in shapes}
    return Start(config, head, _processor(folder, config, recipe), arrays, fresh, notes)


def _heads(config: PreTrainedConfig, recipe: Recipe) -> list[str]:
    """The family's classes for an objective, the first that it has first; BEiT's predicts tokens of a tokenizer."""
    if config.model_type == "beit" and recipe.objective == "reconstruction":
        return []
    return [head for task in TASKS[recipe.objective] for head in families.heads_for(config, task) if head is not None]


def _head(config: PreTrainedConfig, recipe: Recipe) -> str:
    if heads := _heads(config, recipe):
        return heads[0]
    can = [name for name in TASKS if _heads(config, recipe.replace(objective=name, teacher="any"))]
    remedy = f"it has one for {' and '.join(can)}" if can else "'vit evaluate --knn 20 --probe' asks its features"
    raise ConfigError(
        f"A {config.model_type} model has no class for the objective {recipe.objective!r} here; {remedy}."
    )


def _is_new(old: PreTrainedConfig, new: PreTrainedConfig) -> bool:
    return list(old.id2label.values()) != list(new.id2label.values())


def _notes(fit: Fit, old: PreTrainedConfig, new: PreTrainedConfig) -> list[str]:
    """What of a checkpoint is not trained on, which its user may not expect."""
    named = fit.checkpoint.config.canonical_names(fit.checkpoint.tensors).values()
    has_labels = any(name.startswith(old.label_parameters) for name in named)
    lacking = [name for name in fit.fresh if not name.startswith((*new.label_parameters, *HEADS))]
    notes = [f"The checkpoint lacks {summary(lacking, 4)}, which start fresh."] if lacking else []
    if has_labels and _is_new(old, new) and not all(name.startswith("LABEL_") for name in old.id2label.values()):
        before, after = (summary(each.id2label.values(), 3) for each in (old, new))
        notes.append(f"The checkpoint has the labels {before}, the data {after}: its head starts fresh.")
    return notes


def _overrides(config: PreTrainedConfig, examples: Examples, recipe: Recipe) -> dict[str, Any]:
    keys = keys_of(type(config))
    found: dict[str, Any] = {}
    wanted = {key: getattr(recipe, name) for key, name in DROPPED.items()} | {
        "image_size": recipe.image_size,
        "mask_ratio": recipe.mask_ratio if "mask_ratio" in keys and recipe.objective == "reconstruction" else None,
    }
    if recipe.freeze_backbone:  # the head sees features as they are
        found = {key: 0.0 for key in DROPPED if key in keys}
    for key, value in wanted.items():
        if value is None:
            continue
        if key not in keys:
            raise ConfigError(f"A {config.model_type} model has no {key}; leave the option out.")
        found[key] = value
    if recipe.objective == "reconstruction":
        return found
    if not examples.names:
        raise InputError("The images have no labels, which the objective needs; reconstruction needs none.")
    found["problem_type"] = examples.problem_type
    names = labels_of(config, examples)
    return {**found, "id2label": dict(enumerate(names))}


def labels_of(config: PreTrainedConfig, examples: Examples) -> tuple[str, ...]:
    """The labels of examples, in the order of a configuration that has the same."""
    known = tuple(config.id2label.values())
    same = examples.problem_type != REGRESSION and sorted(known) == sorted(examples.names)
    return known if same else examples.names


def _processor(folder: Path | None, config: PreTrainedConfig, recipe: Recipe) -> ViTImageProcessor:
    """The checkpoint's, for another size where the recipe has one; a plain one where there is no checkpoint."""
    height, width = to_pair(config.image_size)
    size = {"height": height, "width": width}
    if folder is None:
        mean = [0.5] * config.num_channels
        return ViTImageProcessor(size=size, image_mean=mean, image_std=mean, do_convert_rgb=config.num_channels == 3)
    processor = ViTImageProcessor.from_pretrained(folder)
    if recipe.image_size is not None and processor.do_center_crop:
        factor = height / processor.crop_size["height"]
        processor.size = {edge: round(length * factor) for edge, length in processor.size.items()}
        processor.crop_size = size
    elif recipe.image_size is not None:
        processor.size = size
    return processor


def _drawn(name: str, shape: tuple[int, ...], config: PreTrainedConfig, recipe: Recipe) -> np.ndarray:
    """A fresh parameter: a function of the seed and its name."""
    rng = np.random.default_rng(seed_of(recipe, "fresh", name))
    value = config.initial_value(name)
    if isinstance(value, str):  # "xavier_uniform", of a convolution as of a matrix
        bound = (6 / (shape[0] + int(np.prod(shape[1:])))) ** 0.5
        return rng.uniform(-bound, bound, shape)
    if value is not None:
        return np.broadcast_to(np.asarray(value, np.float64), shape)
    drawn = rng.standard_normal(shape)
    while (beyond := np.abs(drawn) > 2).any():  # truncated at 2 standard deviations
        drawn[beyond] = rng.standard_normal(int(beyond.sum()))
    return drawn * config.initializer_range
