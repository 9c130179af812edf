"""Where each parameter of a model comes from: a stored tensor, as it is or resampled, or a fresh start."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import families
from ..config import PreTrainedConfig
from ..errors import CheckpointError, summary
from ..files import CONFIG
from ..weights import Shape, to_local
from .copying import aligned_copy
from .reading import Checkpoint


@dataclass
class Fit:
    """How a checkpoint fills a model: for each parameter, under its canonical name, the tensor to load, or fresh."""

    checkpoint: Checkpoint
    config: PreTrainedConfig
    stored: dict[str, str]  # parameter -> stored tensor
    fresh: dict[str, Shape]  # parameters that the checkpoint lacks, or holds in another shape -> shape
    resampled: set[str]  # parameters whose stored grid is not the model's
    dtype: np.dtype  # what the model is to hold and compute in
    model_options: dict[str, bool]  # arguments of the model besides the configuration

    def read(self, name: str) -> np.ndarray:
        """The canonical array of a parameter, position embeddings resampled if the image size was overridden."""
        array = self.checkpoint.read(self.stored[name])
        if name in self.resampled:
            array = self.config.resample(name, array, self.checkpoint.config.grid_size)
        return array

    def start_reading(self, framework: str) -> dict[str, Future[np.ndarray]]:
        """Read every stored parameter as a framework stores it, in threads, while the caller builds the model.

        Returns:
            {parameter: future of its array}, each in memory of its own that TensorFlow and JAX take over as it is.
        """

        def read(name: str) -> np.ndarray:
            return aligned_copy(to_local(name, self.read(name), framework), self.dtype)

        pool = ThreadPoolExecutor(2)
        futures = {name: pool.submit(read, name) for name in self.stored}
        pool.shutdown(wait=False)
        return futures

    def loading_info(self) -> dict[str, list[Any]]:
        """What did not come from the checkpoint or go into the model, under transformers' names."""
        canonical = self.config.canonical_names(self.checkpoint.tensors)
        used, have = set(self.stored.values()), set(canonical.values())
        return {
            "missing_keys": sorted(name for name in self.fresh if name not in have),
            "unexpected_keys": sorted(name for name in self.checkpoint.tensors if name not in used
                                      and canonical.get(name) not in self.fresh),
            "mismatched_keys": sorted(name for name in self.fresh if name in have),
            "error_msgs": [],
        }  # fmt: skip

    def warning(self) -> str | None:
        """What the user should know about fresh parameters, in one sentence."""
        if not self.fresh:
            return None
        return (
            f"{self.checkpoint.folder} holds no fitting {summary(sorted(self.fresh))}: freshly initialised. "
            "Train the model before relying on what depends on them."
        )


@contextmanager
def garbage_uncollected() -> Iterator[None]:
    """Pause the garbage collector, which would go through all that a framework's import left, for nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def head_of(checkpoint: Checkpoint, task: str = "For") -> str | None:
    """The head whose parameters a checkpoint has: a key of its configuration's `heads`, None where it has none.

    Args:
        checkpoint: the open checkpoint.
        task: what is in the name of the head's class, such as "ForImageClassification"; of several the one that wrote
            the checkpoint comes first.
    """
    config = checkpoint.config
    names = set(config.canonical_names(checkpoint.tensors).values())
    for head in families.heads_for(config, task):
        own = [
            name
            for name in config.parameter_shapes(head=head, **config.heads[head].parts)
            if not name.startswith(f"{config.base_model_prefix}.")
        ]
        if own and names.issuperset(own):
            return head
    return None


def parts_of(checkpoint: Checkpoint) -> dict[str, bool]:
    """The optional parts of a base model: whether a checkpoint has the parameters of each."""
    config = checkpoint.config
    names = set(config.canonical_names(checkpoint.tensors).values())
    plain = dict.fromkeys(config.heads[None].parts, False)
    without = config.parameter_shapes(**plain).keys()
    return {part: names.issuperset(config.parameter_shapes(**{**plain, part: True}).keys() - without) for part in plain}


def check_family(checkpoint: Checkpoint, config_class: type[PreTrainedConfig], head: str | None) -> None:
    """Refuse a checkpoint of another family than a model's, or of one that has no such head.

    Raises:
        CheckpointError: it is; the class that fits is named.
    """
    config = checkpoint.config
    if config_class is not PreTrainedConfig and config.model_type != config_class.model_type:
        fits = config.heads.get(head, config.heads[None]).name
        raise CheckpointError(
            f"{checkpoint.folder} is of model_type {config.model_type!r}, not {config_class.model_type!r}: load it "
            f"with {fits}, TF{fits} or Flax{fits}."
        )
    if head not in config.heads:
        known = ", ".join(each.name for each in config.heads.values())
        raise CheckpointError(f"{checkpoint.folder} is of model_type {config.model_type!r}, which has {known} only.")


def fit(
    checkpoint: Checkpoint,
    config: PreTrainedConfig,
    head: str | None = None,
    ignore_mismatched_sizes: bool = False,
    **parts: bool,
) -> tuple[dict[str, str], dict[str, Shape], set[str]]:
    """Decide where each parameter of a model comes from.

    Args:
        checkpoint: the open checkpoint.
        config: the model's configuration: the checkpoint's, or one with overrides.
        head: the model's; with `parts` it says which parameters there are (`config.parameter_shapes`).
        ignore_mismatched_sizes: let mis-shaped parameters start fresh.
        **parts: the model's.

    Returns:
        {parameter: stored tensor}, {fresh parameter: shape}, and the parameters to resample to another grid.

    Raises:
        CheckpointError: parameters are missing, unexpected or mis-shaped; all of them are named.
    """
    old, new = checkpoint.config, config
    for name in checkpoint.buffers:
        try:
            old.check_buffer(name, checkpoint.read(name))
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint.folder}: {error}") from None
    canonical = new.canonical_names(checkpoint.tensors)
    available = {name: stored for stored, name in canonical.items()}
    if len(available) < len(canonical):
        doubled = sorted(name for name in canonical if canonical[name] != name and canonical[name] in canonical)
        raise CheckpointError(
            f"{checkpoint.folder} stores parameters with and without '{new.base_model_prefix}.' before: "
            f"{summary(doubled)}."
        )

    shapes = new.parameter_shapes(head=head, **parts)
    before = shapes
    if old.grid_size != new.grid_size:
        before = new.replace(image_size=old.image_size, patch_size=old.patch_size).parameter_shapes(head=head, **parts)
    stored: dict[str, str] = {}
    fresh: dict[str, Shape] = {}
    resampled: set[str] = set()
    missing, mismatched = [], []
    for name, shape in shapes.items():
        if name not in available:
            fresh[name] = shape
            if not name.startswith(new.optional):
                missing.append(name)
            continue
        stored_shape = checkpoint.tensors[available[name]].shape
        has_grid = name.endswith(new.grid_parameters) and stored_shape == before[name]
        if has_grid and old.grid_size != new.grid_size:
            stored[name] = available[name]
            resampled.add(name)
        elif stored_shape == shape:
            stored[name] = available[name]
        else:
            fresh[name] = shape
            new_head = name.startswith(new.label_parameters) and old.num_labels != new.num_labels
            if not (ignore_mismatched_sizes or new_head):
                mismatched.append(f"{name} is {stored_shape}, expected {shape}")
    if old.num_labels == new.num_labels and not ignore_mismatched_sizes:
        _check_heads(checkpoint, new, fresh, [name for name in available if name not in shapes])
    unexpected = [available[name] for name in available if name not in shapes and not name.startswith(new.optional)]

    lists = {"missing": missing, "unexpected": unexpected, "mis-shaped": mismatched}
    if any(lists.values()):
        problems = "; ".join(f"{what}: {summary(names)}" for what, names in lists.items() if names)
        remedy = " Pass ignore_mismatched_sizes=True to start the mis-shaped ones fresh." if mismatched else ""
        raise CheckpointError(
            f"{checkpoint.folder} does not fit the model that {CONFIG} and the arguments describe. {problems}.{remedy}"
        )
    return stored, fresh, resampled


def _check_heads(checkpoint: Checkpoint, config: PreTrainedConfig, fresh: Iterable[str], unused: Iterable[str]) -> None:
    """Refuse a checkpoint with the heads of another class, whose labels they give, where the model's would be fresh.

    Raises:
        CheckpointError: it is such a one; the class that has its heads is named.
    """
    fresh, unused = (sorted(n for n in names if n.startswith(config.label_parameters)) for names in (fresh, unused))
    if fresh and unused:
        fits = next(head.name for key, head in config.heads.items() if unused[0] in config.parameter_shapes(head=key))
        raise CheckpointError(
            f"{checkpoint.folder} holds no {summary(fresh)}, but {summary(unused)}: load it with {fits}, TF{fits} or "
            f"Flax{fits}, or pass ignore_mismatched_sizes=True to start a fresh head."
        )
