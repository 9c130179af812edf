"""What a Keras model computes with, under the names of its checkpoint.

Side by side with vit/pt/saving.py and vit/flax/saving.py.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from ..places import check_places, check_shape
from ..weights import local_shape

_LAYERS = (keras.layers.Dense, keras.layers.Dropout)
_CODES = ("int8", "int4")


def parameters(model: Any, dequantize: bool = False) -> dict[str, Any]:
    """Every parameter of a model under its name in a checkpoint, as Keras stores it; adapters of `enable_lora` merged.

    Args:
        model: a built one.
        dequantize: give what quantised kernels stand for.

    Raises:
        CheckpointError: something that takes part in the computation has no place there.
    """
    shapes = model.config.parameter_shapes(head=model.head, **model._base().parts())
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    foreign = {
        layer.path: what
        for layer in model._flatten_layers(include_self=False)
        if (what := _foreign(model, layer, dequantize))
    }
    placed: set[int] = set()
    for full, shape in shapes.items():
        name = model.config.model_name(full, model.head)
        try:
            layer, leaf = model._owner(full)
            value = None if layer.path in foreign else _computed(layer, leaf)
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


def _foreign(model: Any, layer: Any, dequantize: bool) -> str | None:
    """What a layer is, if not one of the model's own as they are."""
    kind, mode = type(layer), getattr(layer, "quantization_mode", None)
    if mode and not (dequantize and mode in _CODES):
        return f"quantised to {mode}"
    if kind not in _LAYERS and not kind.__module__.startswith(f"{__package__}."):
        return f"a {kind.__module__}.{kind.__qualname__}"
    if kind is keras.layers.Dense and layer.activation is not keras.activations.linear:
        return f"a Dense with the activation {layer.activation.__name__}"
    if getattr(layer, "epsilon", model.config.layer_norm_eps) != model.config.layer_norm_eps:
        return f"a LayerNorm with the epsilon {layer.epsilon}"
    return None


def _computed(layer: Any, leaf: str) -> Any:
    """The value that a layer computes with under a name: of codes, the numbers that they stand for."""
    if leaf != "kernel" or not getattr(layer, "quantization_mode", None):
        return getattr(layer, leaf)
    kernel, scale = layer._kernel, layer.kernel_scale
    if layer.quantization_mode == "int4":  # two codes a byte
        kernel = keras.quantizers.unpack_int4(kernel, layer.units, axis=-1)
    kernel = ops.cast(kernel, scale.dtype)  # (in, units)
    if len(scale.shape) == 1:
        kernel = kernel / scale
    else:  # of groups of inputs, each with a scale and a zero
        groups = ops.cast(layer.g_idx, "int32")
        zero = ops.cast(layer.kernel_zero, scale.dtype)
        kernel = (kernel - ops.take(zero, groups, axis=0)) * ops.take(scale, groups, axis=0)
    if layer.lora_enabled:
        kernel += (layer.lora_alpha / layer.lora_rank) * ops.matmul(layer.lora_kernel_a, layer.lora_kernel_b)
    return kernel


def _parts(layer: Any, leaf: str) -> list[Any]:
    """The variables of a layer that its value of a name is made of."""
    return [each for each in layer.weights if each is not layer.bias] if leaf == "kernel" else [getattr(layer, leaf)]
