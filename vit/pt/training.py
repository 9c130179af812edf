"""Training in PyTorch: one step of a recipe, and the state that it carries from step to step.

Side by side with vit/tf/training.py and vit/flax/training.py: the same functions in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..training.processes import ALONE, Processes
from ..training.recipe import Recipe
from ..training.schedule import Group, ema_decay, parameter_groups, seed_of
from ..training.state import ONE_FILE, slots
from .attention import RelativePositionBias
from .saving import parameters

# === Processes ===


class Joined(Processes):
    """The processes that torchrun began, which speak by gloo, and by NCCL of what is on GPUs, one each."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")

    def gather(self, array: np.ndarray) -> np.ndarray:
        own = torch.from_numpy(np.ascontiguousarray(array))
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own)
        return np.stack([each.numpy() for each in found])


join = cache(Joined)  # once in a process


# === Loss ===


def loss_of(model: Any, recipe: Recipe, batch: Mapping[str, Tensor]) -> Tensor:
    """The loss of a batch: the model's own of a reconstruction, otherwise that of its logits and the targets.

    Args:
        model: in training mode.
        recipe: its objective.
        batch: pixel_values (batch, channels, height, width), and targets (batch, num_labels); teacher_logits
            (batch, num_labels) for distillation; bool_masked_pos or noise (batch, patches) for reconstruction.

    Returns:
        A scalar.
    """
    inputs = {name: batch[name] for name in ("pixel_values", "bool_masked_pos", "noise") if name in batch}
    outputs = model(**inputs, return_dict=True)
    if recipe.objective == "reconstruction":
        return outputs["loss"]
    if recipe.objective == "classification":
        return target_loss(model.config.problem_type, outputs["logits"], batch["targets"])
    student = outputs["distillation_logits"] if "distillation_logits" in outputs else outputs["logits"]
    logits = outputs["cls_logits"] if "cls_logits" in outputs else outputs["logits"]
    truth = target_loss(model.config.problem_type, logits, batch["targets"])
    taught = distillation_loss(recipe, student, batch["teacher_logits"])
    return (1 - recipe.distillation_weight) * truth + recipe.distillation_weight * taught


def target_loss(problem_type: str, logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with probabilities, binary cross-entropy or mean squared error, of (batch, num_labels)."""
    logits = logits.to(targets.dtype)
    if problem_type == "single_label_classification":
        return -(targets * F.log_softmax(logits, dim=-1)).sum(-1).mean()
    if problem_type == "multi_label_classification":
        return (F.softplus(logits) - logits * targets).mean()
    return ((logits - targets) ** 2).mean()


def distillation_loss(recipe: Recipe, logits: Tensor, teacher: Tensor) -> Tensor:
    """How far (batch, num_labels) logits are from a teacher's (Touvron et al. 2021, Equations 2 and 3)."""
    logits = logits.to(teacher.dtype)
    if recipe.distillation == "hard":
        return F.cross_entropy(logits, teacher.argmax(-1))
    log_p, log_q = (F.log_softmax(each / recipe.temperature, dim=-1) for each in (teacher, logits))
    return recipe.temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1).mean()


# === One step ===


class Trainer:
    """A model that a recipe trains, step by step.

    Args:
        model: a loaded one; it is trained in place.
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
        self.model, self.recipe, self.processes = model.train(), recipe, processes
        self.whole: dict[str, Tensor] | None = None  # of a model in shards, between `gather` and `save`
        if recipe.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        groups = parameter_groups(model.config, model.head, recipe)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in groups)
        self.called = _spread(model, processes, shard)
        self.parameters = {name: parameter for name, parameter in model.named_parameters() if name in groups}
        self.optimizer = _optimizer(recipe, self.parameters, groups)
        self.averages = {n: p.detach().clone() for n, p in self.parameters.items()} if recipe.ema else {}
        if tensors is not None:
            self._restore(tensors, step)

    def step(self, batch: Mapping[str, np.ndarray], step: int, rate: float) -> Tensor:
        """Take one step.

        Args:
            batch: as `loss_of` takes it, in NumPy; `recipe.accumulate` parts of it are computed one after another.
            step: its number, from 0, which dropout depends on.
            rate: the learning rate.

        Returns:
            The loss, a scalar that need not be computed yet.
        """
        recipe, device = self.recipe, self.model.device
        torch.manual_seed(seed_of(recipe, "dropout", step, self.processes.rank))
        tensors = {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in batch.items()}
        loss = torch.zeros((), device=device)
        for i in range(recipe.accumulate):
            part = {name: tensor.chunk(recipe.accumulate)[i] for name, tensor in tensors.items()}
            is_last = i == recipe.accumulate - 1
            with nullcontext() if is_last or self.called is self.model else self.called.no_sync():
                with torch.autocast(device.type, torch.bfloat16, enabled=recipe.dtype == "mixed_bfloat16"):
                    part_loss = loss_of(self.called, recipe, part) / recipe.accumulate
                part_loss.backward()
            loss = loss + part_loss.detach()
        if recipe.clip_norm:
            clip(list(self.parameters.values()), recipe.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.averages:
            keep = ema_decay(recipe, step)
            with torch.no_grad():
                torch._foreach_lerp_(list(self.averages.values()), list(self.parameters.values()), 1 - keep)
        return loss

    def logits(self, pixel_values: np.ndarray) -> np.ndarray:
        """What the model says of images in evaluation: (batch, num_labels)."""
        self.model.eval()
        with torch.inference_mode():
            logits = self.model(torch.from_numpy(pixel_values).to(self.model.device), return_dict=True)["logits"]
        self.model.train()
        return logits.float().cpu().numpy()

    # === State ===

    def gather(self) -> None:
        """Bring a model in shards to the first process, which may then `save` it. Every process calls this."""
        self.whole = parameters(self.model) if _is_sharded(self.model) else None

    def save(self, folder: Path) -> None:
        """Write the model's checkpoint, one file of weights, into a folder."""
        self.model.save_pretrained(folder, max_shard_size=ONE_FILE, state_dict=self.whole)
        self.whole = None

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model has the averages of its weights, where there are any, inside the block."""
        held = {name: parameter.detach().clone() for name, parameter in self.parameters.items() if self.averages}
        with torch.no_grad():
            for name, average in self.averages.items():
                self.parameters[name].copy_(average)
            try:
                yield
            finally:
                for name, value in held.items():
                    self.parameters[name].copy_(value)

    def tensors(self) -> dict[str, np.ndarray]:
        """What the optimiser carries, "slot.parameter" -> array, under the names and in the layout of a checkpoint.

        Every process calls this; of a model in shards the first alone has them.
        """
        found: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            state = self.optimizer.state[parameter]
            for slot in slots(self.recipe):
                value = state.get(slot)
                found[f"{slot}.{name}"] = torch.zeros_like(parameter) if value is None else value
        found |= {f"ema.{name}": average for name, average in self.averages.items()}
        arrays = ((name, _array(value, self.processes)) for name, value in found.items())
        return {name: array for name, array in arrays if array is not None}

    def _restore(self, tensors: Mapping[str, np.ndarray], step: int) -> None:
        for name, parameter in self.parameters.items():
            for slot in slots(self.recipe):
                self.optimizer.state[parameter][slot] = _like(parameter, tensors[f"{slot}.{name}"])
            if self.recipe.optimizer == "adamw":
                self.optimizer.state[parameter]["step"] = torch.tensor(float(step))
        for name, average in self.averages.items():
            average.copy_(_like(average, tensors[f"ema.{name}"]))


def _spread(model: Any, processes: Processes, shard: bool) -> Any:
    """What is called in the place of a model that several processes train: DDP's, or, with `shard`, FSDP 2's."""
    if processes.size == 1:
        return model
    if shard:
        from torch.distributed.fsdp import fully_shard

        biases = [each for each in model.modules() if isinstance(each, RelativePositionBias)]  # called before layers
        for module in (*biases, *model._stack().layer):
            fully_shard(module)
        return fully_shard(model, reshard_after_forward=True)
    spread = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    spread.config = model.config  # which the loss asks for
    return spread


def _is_sharded(model: torch.nn.Module) -> bool:
    return any(_is_part(each) for each in model.parameters())


def _is_part(value: Any) -> bool:
    return hasattr(value, "full_tensor")  # torch.distributed.tensor.DTensor, whose import takes long


def _array(value: Any, processes: Processes) -> np.ndarray | None:
    """The whole of what may be in shards; None where the first process alone has it."""
    if _is_part(value):
        value = value.full_tensor()
        return value.cpu().numpy() if processes.is_first else None
    return value.cpu().numpy()


def _like(parameter: Any, array: np.ndarray) -> Tensor:
    """The part of an array that a parameter has of its own, where it is."""
    value = torch.from_numpy(array)
    if _is_part(parameter):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value.to(parameter, copy=True)


def _optimizer(recipe: Recipe, parameters: Mapping[str, Tensor], groups: Mapping[str, Group]) -> torch.optim.Optimizer:
    params: list[dict[str, Any]] = [
        {"params": [parameters[name] for name in groups if groups[name] == group], **group._asdict()}
        for group in dict.fromkeys(groups.values())
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(params, lr=0.0, momentum=recipe.momentum, fused=True)
    betas = (recipe.beta1, recipe.beta2)
    return torch.optim.AdamW(params, lr=0.0, betas=betas, eps=recipe.epsilon, fused=True)


def clip(parameters: list[Tensor], most: float) -> None:
    """Scale the gradients so that their norm, all of them together, is at most `most`."""
    gradients = [each.grad for each in parameters if each.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    norm = norm.full_tensor() if _is_part(norm) else norm
    factor = (most / norm).clamp(max=1.0)
    torch._foreach_mul_(gradients, factor)
