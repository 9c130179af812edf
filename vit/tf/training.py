"""Training in TensorFlow (Keras 3): one step of a recipe, and the state that it carries from step to step.

Side by side with vit/pt/training.py and vit/flax/training.py: the same functions in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from ..errors import InputError
from ..training.processes import ALONE, Processes
from ..training.recipe import Recipe
from ..training.schedule import Group, ema_decay, parameter_groups, seed_of
from ..training.state import ONE_FILE, slots
from ..weights import from_local, to_local

# === Processes ===


class Joined(Processes):
    """The workers of TF_CONFIG, with a device each, which speak by the collectives of `tf.distribute`."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)
        self.strategy = tf.distribute.MultiWorkerMirroredStrategy()
        if self.strategy.num_replicas_in_sync != size:
            raise InputError(
                f"{size} workers have {self.strategy.num_replicas_in_sync} devices; give each its own, by "
                "CUDA_VISIBLE_DEVICES."
            )
        self._gather = tf.function(lambda tensor: self._by(_all_gather, tensor), reduce_retracing=True)

    def gather(self, array: np.ndarray) -> np.ndarray:
        return np.asarray(self._gather(tf.convert_to_tensor(array[None])))

    def mean(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """The means over the processes of tensors that all of them have."""
        return self._by(_all_mean, tensors)

    def _by(self, collective: Any, tensors: Any) -> Any:
        def replica() -> Any:
            placed = tf.nest.map_structure(tf.identity, tensors)  # on the device, whose others are asked
            return collective(tf.distribute.get_replica_context(), placed)

        return self.strategy.run(replica)


def _all_gather(context: Any, tensor: tf.Tensor) -> tf.Tensor:
    return context.all_gather(tensor, axis=0)


def _all_mean(context: Any, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    return context.all_reduce(tf.distribute.ReduceOp.MEAN, tensors)


join = cache(Joined)  # once in a process


# === Loss ===


def loss_of(model: Any, recipe: Recipe, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """The loss of a batch: the model's own of a reconstruction, otherwise that of its logits and the targets.

    Args:
        model: any, which is called in training mode.
        recipe: its objective.
        batch: pixel_values (batch, channels, height, width), and targets (batch, num_labels); teacher_logits
            (batch, num_labels) for distillation; bool_masked_pos or noise (batch, patches) for reconstruction.

    Returns:
        A scalar.
    """
    inputs = {name: batch[name] for name in ("pixel_values", "bool_masked_pos", "noise") if name in batch}
    outputs = model(**inputs, return_dict=True, training=True)
    if recipe.objective == "reconstruction":
        return outputs["loss"]
    if recipe.objective == "classification":
        return target_loss(model.config.problem_type, outputs["logits"], batch["targets"])
    student = outputs["distillation_logits"] if "distillation_logits" in outputs else outputs["logits"]
    logits = outputs["cls_logits"] if "cls_logits" in outputs else outputs["logits"]
    truth = target_loss(model.config.problem_type, logits, batch["targets"])
    taught = distillation_loss(recipe, student, batch["teacher_logits"])
    return (1 - recipe.distillation_weight) * truth + recipe.distillation_weight * taught


def target_loss(problem_type: str, logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Cross-entropy with probabilities, binary cross-entropy or mean squared error, of (batch, num_labels)."""
    logits = ops.cast(logits, targets.dtype)
    if problem_type == "single_label_classification":
        return -ops.mean(ops.sum(targets * ops.log_softmax(logits), axis=-1))
    if problem_type == "multi_label_classification":
        return ops.mean(ops.softplus(logits) - logits * targets)
    return ops.mean((logits - targets) ** 2)


def distillation_loss(recipe: Recipe, logits: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """How far (batch, num_labels) logits are from a teacher's (Touvron et al. 2021, Equations 2 and 3)."""
    logits = ops.cast(logits, teacher.dtype)
    if recipe.distillation == "hard":
        answers = ops.one_hot(ops.argmax(teacher, axis=-1), teacher.shape[-1], dtype=teacher.dtype)
        return -ops.mean(ops.sum(answers * ops.log_softmax(logits), axis=-1))
    log_p, log_q = (ops.log_softmax(each / recipe.temperature) for each in (teacher, logits))
    return recipe.temperature**2 * ops.mean(ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1))


# === One step ===


class Trainer:
    """A model that a recipe trains, step by step.

    Args:
        model: a loaded one; it is trained in place.
        recipe: how.
        tensors: "slot.parameter" -> array as `tensors` gave them, to go on; None to begin.
        step: how many steps there were.
        processes: those that train it together, each with its part of every batch.
        shard: nothing here, where each of them holds all of the parameters and moments.
    """

    def __init__(
        self, model: Any, recipe: Recipe, tensors: Mapping[str, np.ndarray] | None = None, step: int = 0,
        processes: Processes = ALONE, shard: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.recipe, self.processes = model, recipe, processes
        if recipe.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        groups = parameter_groups(model.config, model.head, recipe)
        self.parameters = {name: model._parameter(name) for name in groups}
        kind: Any = {"adamw": AdamW, "sgd": SGD}[recipe.optimizer]
        # Operations run where TensorFlow prefers, whatever holds the weights; a worker's are placed by its strategy.
        spec = tf.DeviceSpec.from_string(model.variables[0].value.device)
        self.place = f"/device:{spec.device_type}:{spec.device_index}" if processes is ALONE else None
        with tf.device(self.place):
            self.optimizer = kind(recipe, list(self.parameters.values()), list(groups.values()))
            self.averages = {n: tf.Variable(p.value) for n, p in self.parameters.items()} if recipe.ema else {}
        drawn = [layer for layer in model._flatten_layers() if hasattr(layer, "seed_generator")]
        self.seeds = [layer.seed_generator.state for layer in drawn]
        self._compiled = tf.function(self._step)
        self._forward = tf.function(lambda pixels: model(pixels, return_dict=True, training=False)["logits"])
        if tensors is not None:
            self._restore(tensors, step)

    def step(self, batch: Mapping[str, np.ndarray], step: int, rate: float) -> tf.Tensor:
        """Take one step.

        Args:
            batch: as `loss_of` takes it, in NumPy; `recipe.accumulate` parts of it are computed one after another.
            step: its number, from 0, which dropout depends on.
            rate: the learning rate.

        Returns:
            The loss, a scalar that need not be computed yet.
        """
        for i, state in enumerate(self.seeds):
            state.assign([seed_of(self.recipe, "dropout", step, i, self.processes.rank) & 0x7FFFFFFF, 0])
        self.optimizer.rate.assign(rate)
        with tf.device(self.place):
            tensors = {name: tf.convert_to_tensor(array) for name, array in batch.items()}
            return self._compiled(tensors, tf.constant(ema_decay(self.recipe, step), "float64"))

    def _step(self, batch: Mapping[str, tf.Tensor], keep: tf.Tensor) -> tf.Tensor:
        recipe, variables = self.recipe, [each.value for each in self.parameters.values()]
        parts = {name: tf.split(tensor, recipe.accumulate) for name, tensor in batch.items()}
        loss: Any = 0.0
        gradients: Any = None
        for i in range(recipe.accumulate):
            with tf.GradientTape() as tape:
                part_loss = loss_of(self.model, recipe, {n: part[i] for n, part in parts.items()}) / recipe.accumulate
            parted = tape.gradient(part_loss, variables, unconnected_gradients="zero")
            gradients = parted if gradients is None else [a + b for a, b in zip(gradients, parted, strict=True)]
            loss = loss + part_loss
        if isinstance(self.processes, Joined):
            gradients = self.processes.mean(gradients)
        if recipe.clip_norm:
            gradients = clip(gradients, recipe.clip_norm)
        self.optimizer.apply(gradients, list(self.parameters.values()))
        for average, variable in zip(self.averages.values(), variables, strict=bool(self.averages)):
            average.assign_add((variable - average) * tf.cast(1 - keep, average.dtype))
        return loss

    def logits(self, pixel_values: np.ndarray) -> np.ndarray:
        """What the model says of images in evaluation: (batch, num_labels)."""
        with tf.device(self.place):
            return np.asarray(tf.cast(self._forward(tf.convert_to_tensor(pixel_values)), "float32"))

    # === State ===

    def gather(self) -> None:
        """Nothing: every process has the whole model."""

    def save(self, folder: Path) -> None:
        """Write the model's checkpoint, one file of weights, into a folder."""
        self.model.save_pretrained(folder, max_shard_size=ONE_FILE)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model has the averages of its weights, where there are any, inside the block."""
        held = {name: tf.identity(parameter.value) for name, parameter in self.parameters.items() if self.averages}
        for name, average in self.averages.items():
            self.parameters[name].assign(average)
        try:
            yield
        finally:
            for name, value in held.items():
                self.parameters[name].assign(value)

    def tensors(self) -> dict[str, np.ndarray]:
        """What the optimiser carries, "slot.parameter" -> array, under the names and in the layout of a checkpoint."""
        found = {name: np.asarray(variable) for name, variable in self._variables().items()}
        shapes = self.model.config.parameter_shapes(head=self.model.head, **self.model._base().parts())
        return {name: from_local(name, array, shapes[name.partition(".")[2]], "tf") for name, array in found.items()}

    def _restore(self, tensors: Mapping[str, np.ndarray], step: int) -> None:
        for name, variable in self._variables().items():
            variable.assign(to_local(name, tensors[name], "tf"))
        self.optimizer.iterations.assign(step)

    def _variables(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for i, name in enumerate(self.parameters):
            found |= {f"{slot}.{name}": self.optimizer.slots[slot][i].value for slot in slots(self.recipe)}
        return found | {f"ema.{name}": average for name, average in self.averages.items()}


class AdamW(keras.optimizers.Adam):
    """AdamW (Loshchilov and Hutter 2019) to the letter, as PyTorch and optax compute it.

    Keras adds epsilon before it corrects the bias of the second moment, which makes it another number in early steps.
    """

    def __init__(self, recipe: Recipe, variables: list[keras.Variable], groups: list[Group]) -> None:
        super().__init__(0.0, recipe.beta1, recipe.beta2, recipe.epsilon)
        self.rate, self.groups = tf.Variable(0.0, dtype="float64"), groups
        self.build(variables)
        self.slots = {"exp_avg": self._momentums, "exp_avg_sq": self._velocities}

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: Any) -> None:
        i, dtype = self._get_variable_index(variable), variable.dtype
        step = tf.cast(self.iterations + 1, "float64")
        rate, group = self.rate * self.groups[i].scale, self.groups[i]
        if group.weight_decay:
            variable.assign(variable * tf.cast(1 - rate * group.weight_decay, dtype))
        root = tf.sqrt(1 - self.beta_2**step)  # which the kernel, told that all bias is gone, leaves out
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle, m=self._momentums[i].value.handle, v=self._velocities[i].value.handle, grad=gradient,
            lr=tf.cast(rate * root / (1 - self.beta_1**step), dtype), epsilon=tf.cast(self.epsilon * root, dtype),
            beta1=tf.constant(self.beta_1, dtype), beta2=tf.constant(self.beta_2, dtype),
            beta1_power=tf.zeros((), dtype), beta2_power=tf.zeros((), dtype),
        )  # fmt: skip


class SGD(keras.optimizers.SGD):
    """SGD with momentum as PyTorch and optax compute it: Keras has the learning rate in its momentum."""

    def __init__(self, recipe: Recipe, variables: list[keras.Variable], groups: list[Group]) -> None:
        super().__init__(0.0, recipe.momentum or 1e-12)  # of 0 it would keep no variables
        self.rate, self.groups, self.factor = tf.Variable(0.0, dtype="float64"), groups, recipe.momentum
        self.build(variables)
        self.slots = {"momentum_buffer": self.momentums}

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: Any) -> None:
        i = self._get_variable_index(variable)
        group, m = self.groups[i], self.momentums[i].value
        m.assign(m * self.factor + gradient + variable * group.weight_decay)
        variable.assign_sub(m * tf.cast(self.rate * group.scale, variable.dtype))


def clip(gradients: list[tf.Tensor], most: float) -> list[tf.Tensor]:
    """Scale gradients so that their norm, all of them together, is at most `most`."""
    factor = tf.minimum(most / tf.linalg.global_norm(gradients), 1.0)
    return [gradient * factor for gradient in gradients]
