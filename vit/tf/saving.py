"""What a Keras model computes with, under the names of its checkpoint.

Side by side with vit/pt/saving.py and vit/flax/saving.py.
"""

from __future__ import annotations

from typing import Any

import keras

from ..places import check_places, check_shape
from ..weights import local_shape

_LAYERS = (keras.layers.Dense, keras.layers.Dropout)


def parameters(model: Any) -> dict[str, Any]:
    """Every parameter of a model under its name in a checkpoint, as Keras stores it; adapters of `enable_lora` merged.

    Raises:
        CheckpointError: something that takes part in the computation has no place there.
    """
    shapes = model.config.parameter_shapes(head=model.head, **model._base().parts())
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    foreign = {
        layer.path: what for layer in model._flatten_layers(include_self=False) if (what := _foreign(model, layer))
    }
    placed: set[int] = set()
    for full, shape in shapes.items():
        name = model.config.model_name(full, model.head)
        try:
            layer, leaf = model._owner(full)
            value = None if layer.path in foreign else getattr(layer, leaf)
        except (AttributeError, IndexError, TypeError):
            layer = value = None
        if value is None:
            missing[name] = "is missing"
            continue
        placed.update(map(id, _parts(layer, leaf)))
        found[name] = value
        if why := check_shape(value.shape, local_shape(full, shape, "tf")):
            missing[name] = why
    if foreign:
        missing = {}
    extra = [weight.path for weight in model.weights if id(weight) not in placed]
    check_places(type(model).__name__, foreign, missing, extra)
    return found


def _foreign(model: Any, layer: Any) -> str | None:
    """What a layer is, if not one of the model's own as they are."""
    kind = type(layer)
    if mode := getattr(layer, "quantization_mode", None):
        return f"quantised to {mode}"
    if kind not in _LAYERS and not kind.__module__.startswith(f"{__package__}."):
        return f"a {kind.__module__}.{kind.__qualname__}"
    if kind is keras.layers.Dense and layer.activation is not keras.activations.linear:
        return f"a Dense with the activation {layer.activation.__name__}"
    if getattr(layer, "epsilon", model.config.layer_norm_eps) != model.config.layer_norm_eps:
        return f"a LayerNorm with the epsilon {layer.epsilon}"
    return None


def _parts(layer: Any, leaf: str) -> list[Any]:
    """The variables of a layer that its value of a name is made of."""
    if leaf != "kernel":
        return [getattr(layer, leaf)]
    return [layer._kernel, *((layer.lora_kernel_a, layer.lora_kernel_b) if layer.lora_enabled else ())]
