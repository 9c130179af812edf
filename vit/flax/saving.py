"""What a Flax model computes with, under the names of its checkpoint.

Side by side with vit/pt/saving.py and vit/tf/saving.py.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from ..places import check_places, check_shape
from ..weights import local_name, local_shape

_LAYERS = (nnx.Linear, nnx.Dropout, nnx.List, nnx.LoRALinear, nnx.LoRA)
_NO_PARAMETERS = (nnx.RngState, nnx.Intermediate, nnx.Perturbation)


def parameters(model: Any) -> dict[str, jax.Array]:
    """Every parameter of a model under its name in a checkpoint, as Flax stores it; adapters of nnx.LoRA merged.

    Raises:
        CheckpointError: something that takes part in the computation has no place there.
    """
    shapes = model.config.parameter_shapes(head=model.head, **model._base().parts())
    found: dict[str, jax.Array] = {}
    missing: dict[str, str] = {}
    foreign, held = {}, {}
    for path, node in nnx.iter_graph(model):
        name = ".".join(map(str, path))
        if isinstance(node, nnx.Module) and path and (what := _foreign(model, node)):
            foreign[name] = what
        if isinstance(node, nnx.Variable) and not isinstance(node, _NO_PARAMETERS):
            held[id(node)] = name
    for full, shape in shapes.items():
        name = model.config.model_name(full, model.head)
        value = _computed(model, name, held)
        if isinstance(value, jax.Array):
            found[name] = value
            why = check_shape(value.shape, local_shape(full, shape, "flax"))
            if value.is_deleted():
                why = "was deleted: its memory was given to a compiled call"
            elif not value.is_fully_addressable:
                why = "lies in part on other processes; gather it first (jax.experimental.multihost_utils)"
        else:
            why = "is missing" if value is None else f"is a {type(value).__module__}.{type(value).__qualname__}"
        if why:
            missing[name] = why
    check_places(type(model).__name__, foreign, {} if foreign else missing, list(held.values()))
    return found


def _foreign(model: Any, module: Any) -> str | None:
    """What a module is, if not one of the model's own as they are."""
    kind = type(module)
    if kind not in _LAYERS and not kind.__module__.startswith(f"{__package__}."):
        return f"a {kind.__module__}.{kind.__qualname__}"
    if getattr(module, "epsilon", model.config.layer_norm_eps) != model.config.layer_norm_eps:
        return f"a LayerNorm with the epsilon {module.epsilon}"
    if getattr(module, "dot_general", jax.lax.dot_general) is not jax.lax.dot_general:
        return "a Linear with another product than jax.lax.dot_general"
    return None


def _computed(model: Any, name: str, held: dict[int, str]) -> Any:
    """The value that a module computes with under a name; its variables leave `held`."""
    *path, leaf = local_name(name, "flax").split(".")
    node: Any = model
    try:
        for part in path:
            node = node[int(part)] if part.isdigit() else getattr(node, part)
        adapters = []
        if type(node) is nnx.LoRALinear:
            adapters.append(node.lora)
        while type(node) is nnx.LoRA:
            adapters.append(node)
            node = node.base_module
        variable = getattr(node, leaf)
    except (AttributeError, IndexError, TypeError):
        return None
    if not isinstance(variable, nnx.Variable):
        return variable
    held.pop(id(variable), None)
    value = variable.get_value()
    for lora in adapters:
        if leaf == "kernel":
            held.pop(id(lora.lora_a), None)
            held.pop(id(lora.lora_b), None)
            value = (value + lora.lora_a[...] @ lora.lora_b[...]).astype(value.dtype)
    return value
