"""Training in Flax NNX: one step of a recipe, and the state that it carries from step to step.

Side by side with vit/pt/training.py and vit/tf/training.py: the same functions in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ..training.processes import ALONE, Processes
from ..training.recipe import Recipe
from ..training.schedule import Group, ema_decay, parameter_groups, seed_of
from ..training.state import ONE_FILE, slots
from ..weights import from_local, local_name, to_local

# === Processes ===


class Joined(Processes):
    """The processes that JAX_COORDINATOR_ADDRESS brings together."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)
        if not jax.distributed.is_initialized():
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
            jax.distributed.initialize(num_processes=size, process_id=rank)
        self.devices = jax.local_device_count()

    def gather(self, array: np.ndarray) -> np.ndarray:
        return np.asarray(multihost_utils.process_allgather(array))


join = cache(Joined)  # once in a process


# === Loss ===


def loss_of(model: Any, recipe: Recipe, batch: Mapping[str, Array], rngs: nnx.Rngs) -> Array:
    """The loss of a batch: the model's own of a reconstruction, otherwise that of its logits and the targets.

    Args:
        model: in training mode.
        recipe: its objective.
        batch: pixel_values (batch, channels, height, width), and targets (batch, num_labels); teacher_logits
            (batch, num_labels) for distillation; bool_masked_pos or noise (batch, patches) for reconstruction.
        rngs: of the dropout.

    Returns:
        A scalar.
    """
    inputs = {name: batch[name] for name in ("pixel_values", "bool_masked_pos", "noise") if name in batch}
    outputs = model(**inputs, return_dict=True, rngs=rngs)
    if recipe.objective == "reconstruction":
        return outputs["loss"]
    if recipe.objective == "classification":
        return target_loss(model.config.problem_type, outputs["logits"], batch["targets"])
    student = outputs["distillation_logits"] if "distillation_logits" in outputs else outputs["logits"]
    logits = outputs["cls_logits"] if "cls_logits" in outputs else outputs["logits"]
    truth = target_loss(model.config.problem_type, logits, batch["targets"])
    taught = distillation_loss(recipe, student, batch["teacher_logits"])
    return (1 - recipe.distillation_weight) * truth + recipe.distillation_weight * taught


def target_loss(problem_type: str, logits: Array, targets: Array) -> Array:
    """Cross-entropy with probabilities, binary cross-entropy or mean squared error, of (batch, num_labels)."""
    logits = logits.astype(targets.dtype)
    if problem_type == "single_label_classification":
        return -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()
    if problem_type == "multi_label_classification":
        return (jax.nn.softplus(logits) - logits * targets).mean()
    return ((logits - targets) ** 2).mean()


def distillation_loss(recipe: Recipe, logits: Array, teacher: Array) -> Array:
    """How far (batch, num_labels) logits are from a teacher's (Touvron et al. 2021, Equations 2 and 3)."""
    logits = logits.astype(teacher.dtype)
    if recipe.distillation == "hard":
        return optax.softmax_cross_entropy_with_integer_labels(logits, teacher.argmax(-1)).mean()
    log_p, log_q = (jax.nn.log_softmax(each / recipe.temperature) for each in (teacher, logits))
    return recipe.temperature**2 * (jnp.exp(log_p) * (log_p - log_q)).sum(-1).mean()


# === One step ===

AXES = ("data", "parameters")
"""Of the mesh of devices: a batch lies along both, and what is trained along the second."""


class Trainer:
    """A model that a recipe trains, step by step.

    Args:
        model: a loaded one; it has what was trained after `save` or `tensors`.
        recipe: how.
        tensors: "slot.parameter" -> array as `tensors` gave them, to go on; None to begin.
        step: how many steps there were.
        processes: those that train it together, each with its part of every batch.
        shard: whether each of them holds a part of the parameters and moments, instead of all.
    """

    def __init__(
        self, model: Any, recipe: Recipe, tensors: Mapping[str, np.ndarray] | None = None, step: int = 0,
        processes: Processes = ALONE, shard: bool = False,
    ) -> None:  # fmt: skip
        model.train()
        self.recipe, self.whole = recipe, None
        if recipe.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        if recipe.dtype == "mixed_bfloat16":
            model.dtype = jnp.bfloat16
        groups = parameter_groups(model.config, model.head, recipe)
        self.places = {local_name(name, "flax"): name for name in groups}  # where a parameter is -> its name
        self.trained = lambda path, _: _joined(path) in self.places
        tx = _transformation(recipe, {place: groups[name] for place, name in self.places.items()})
        optimizer = nnx.Optimizer(model, tx, wrt=self.trained)
        averages = jax.tree.map(jnp.copy, nnx.state(model, self.trained)) if recipe.ema else nnx.State({})
        self.model, self.optimizer, self.averages = model, optimizer, averages  # whole, until they are spread
        if tensors is not None:
            self._restore(tensors, step)
        self.graph, state = nnx.split((model, optimizer))
        devices = jax.devices() if processes.size > 1 else list(jax.tree.leaves(state)[0].devices())
        shape = (1, len(devices)) if shard else (len(devices), 1)
        self.mesh = jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)
        self.by_rows = NamedSharding(self.mesh, PartitionSpec(AXES))
        self.state, self.averages = (jax.tree.map(self._spread, each) for each in (state, averages))
        nnx.update((model, optimizer), self.state)
        out = (*(jax.tree.map(lambda each: each.sharding, each) for each in (self.state, self.averages)), None)
        self.is_averaged = False
        self._compiled = jax.jit(self._step, donate_argnums=(0, 1), out_shardings=out)
        self._forward = jax.jit(self._evaluate, out_shardings=self.by_rows)

    def step(self, batch: Mapping[str, np.ndarray], step: int, rate: float) -> Array:
        """Take one step.

        Args:
            batch: as `loss_of` takes it, in NumPy; `recipe.accumulate` parts of it are computed one after another.
            step: its number, from 0, which dropout depends on.
            rate: the learning rate.

        Returns:
            The loss, a scalar that need not be computed yet.
        """
        key = jax.random.key(seed_of(self.recipe, "dropout", step) & 0x7FFFFFFF)
        keep = ema_decay(self.recipe, step)
        arrays = jax.tree.map(self._rows, dict(batch))
        self.state, self.averages, loss = self._compiled(self.state, self.averages, arrays, rate, key, keep)
        return loss

    def _step(self, state: Any, averages: Any, batch: Any, rate: Any, key: Any, keep: Any) -> tuple[Any, Any, Array]:
        recipe, parts = self.recipe, self.recipe.accumulate
        model, optimizer = nnx.merge(self.graph, state)
        gradient = nnx.value_and_grad(loss_of, argnums=nnx.DiffState(0, self.trained))
        loss, gradients = 0.0, None
        for i in range(parts):
            part = jax.tree.map(partial(_part, i, parts, self.mesh.size), batch)
            part_loss, parted = gradient(model, recipe, part, nnx.Rngs(dropout=jax.random.fold_in(key, i)))
            parted = jax.tree.map(lambda each: each / parts, parted)
            gradients = parted if gradients is None else jax.tree.map(jnp.add, gradients, parted)
            loss = loss + part_loss / parts
        optimizer.update(model, gradients, rate=rate)
        if recipe.ema:
            now = nnx.state(model, self.trained)
            averages = jax.tree.map(lambda average, value: average + (value - average) * (1 - keep), averages, now)
        return nnx.state((model, optimizer)), averages, loss

    def logits(self, pixel_values: np.ndarray) -> np.ndarray:
        """What the model says of images in evaluation: (batch, num_labels)."""
        averages = self.averages if self.is_averaged else None
        logits = self._forward(self.state, averages, self._rows(pixel_values))
        own = sorted(logits.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        return np.concatenate([shard.data for shard in own])

    def _evaluate(self, state: Any, averages: Any, pixel_values: Any) -> Array:
        model, _ = nnx.merge(self.graph, state)
        if averages is not None:
            nnx.update(model, averages)
        model.eval()
        return model(pixel_values, return_dict=True)["logits"].astype(jnp.float32)

    def _rows(self, array: np.ndarray) -> Array:
        """This process's rows of an array that lies on all devices."""
        return jax.make_array_from_process_local_data(self.by_rows, array)

    def _spread(self, array: Any) -> Array:
        """An array on all devices: whole, or, along "parameters", its longest side that divides in parts."""
        parts, shape = self.mesh.shape["parameters"], array.shape
        divisible = [i for i, side in enumerate(shape) if side and side % parts == 0]
        longest = max(divisible, key=lambda i: shape[i], default=None)
        spec = PartitionSpec(*("parameters" if i == longest else None for i in range(len(shape))))
        held = np.asarray(array)
        return jax.make_array_from_callback(shape, NamedSharding(self.mesh, spec), lambda index: held[index])

    # === State ===

    def gather(self) -> None:
        """Bring a model in shards to the first process, which may then `save` it. Every process calls this."""
        nnx.update((self.model, self.optimizer), self.state)
        state = nnx.state(self.model)
        if self.is_averaged:
            state = nnx.merge_state(state, self.averages)
        self.whole = jax.tree.map(_whole, state)

    def save(self, folder: Path) -> None:
        """Write the model's checkpoint, one file of weights, into a folder."""
        if self.whole is None:
            self.gather()
        self.model.save_pretrained(folder, max_shard_size=ONE_FILE, params=self.whole)
        self.whole = None

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model has the averages of its weights, where there are any, inside the block."""
        self.is_averaged = bool(self.recipe.ema)
        try:
            yield
        finally:
            self.is_averaged = False

    def tensors(self) -> dict[str, np.ndarray]:
        """What the optimiser carries, "slot.parameter" -> array, under the names and in the layout of a checkpoint."""
        nnx.update((self.model, self.optimizer), self.state)
        shapes = self.model.config.parameter_shapes(head=self.model.head, **self.model._base().parts())
        return {
            name: from_local(name, np.asarray(_whole(variable[...])), shapes[name.partition(".")[2]], "flax")
            for name, variable in self._variables().items()
        }

    def _restore(self, tensors: Mapping[str, np.ndarray], step: int) -> None:
        for name, variable in self._variables().items():
            variable.set_value(jnp.asarray(to_local(name, tensors[name], "flax")))
        if self.recipe.optimizer == "adamw":
            optax.tree.get(self.optimizer.opt_state, "count").set_value(jnp.asarray(step, jnp.int32))

    def _variables(self) -> dict[str, nnx.Variable]:
        ours = {"exp_avg": "mu", "exp_avg_sq": "nu", "momentum_buffer": "trace"}  # optax's names
        states = {slot: optax.tree.get(self.optimizer.opt_state, ours[slot]) for slot in slots(self.recipe)}
        states |= {"ema": self.averages} if self.recipe.ema else {}
        return {
            f"{slot}.{self.places[_joined(path)]}": variable
            for slot, state in states.items()
            for path, variable in nnx.to_flat_state(state)
        }


def _part(number: int, parts: int, devices: int, array: Array) -> Array:
    """One of the parts of a batch (rows, ...), of the rows of every device as many."""
    split = array.reshape(devices, parts, -1, *array.shape[1:])
    return split[:, number].reshape(-1, *array.shape[1:])


def _whole(array: Array) -> Array:
    """The whole of an array that may be in shards, some of which other processes have."""
    if array.is_fully_addressable:
        return array
    return jnp.asarray(
        np.asarray(array) if array.is_fully_replicated else multihost_utils.process_allgather(array, tiled=True)
    )


def _transformation(recipe: Recipe, groups: Mapping[str, Group]) -> optax.GradientTransformationExtraArgs:
    """The optimiser; its `update` takes the learning rate as `rate`."""
    decay, scale = _decay(groups), _scale(groups)
    if recipe.optimizer == "sgd":
        chain = [decay, optax.trace(recipe.momentum), scale]
    else:
        chain = [optax.scale_by_adam(recipe.beta1, recipe.beta2, recipe.epsilon), decay, scale]
    return optax.chain(*([clip(recipe.clip_norm)] if recipe.clip_norm else []), *chain)


def _decay(groups: Mapping[str, Group]) -> optax.GradientTransformation:
    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        decayed = jax.tree_util.tree_map_with_path(
            lambda path, each, value: each + groups[_joined(path)].weight_decay * value, updates, params
        )
        return decayed, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _scale(groups: Mapping[str, Group]) -> optax.GradientTransformationExtraArgs:
    def update(updates: Any, state: Any, params: Any = None, *, rate: Any, **_: Any) -> tuple[Any, Any]:
        scaled = jax.tree_util.tree_map_with_path(
            lambda path, each: -rate * groups[_joined(path)].scale * each, updates
        )
        return scaled, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def clip(most: float) -> optax.GradientTransformation:
    """Scale gradients so that their norm, all of them together, is at most `most`."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        factor = jnp.minimum(most / optax.tree.norm(updates), 1.0)
        return jax.tree.map(lambda each: each * factor, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _joined(path: tuple[Any, ...]) -> str:
    """The dotted path of a variable, of a path of NNX's or of JAX's."""
    return ".".join(str(getattr(part, "key", getattr(part, "name", part))) for part in path)
