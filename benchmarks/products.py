"""The linear layers of trivit's encoder and nothing else: what no forward pass with a framework's kernels gets under.

Each function gives, in the peer's process, the layers' inputs and a function of them that runs every layer once. The
layers are those of a model, so weights come from memory as they do there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def tokens(config: Any, batch_size: int, size: int) -> np.ndarray:
    """(batch_size * (patches + 1), size) float32."""
    return np.random.default_rng(2).standard_normal((batch_size * (config.num_patches + 1), size), np.float32)


def layers_of(model: Any, output: str = "output") -> list[Any]:
    """In the order of the computation; `output` is what a framework calls the modules after attention and MLP."""
    return [
        linear
        for layer in model.vit.encoder.layer
        for linear in (
            layer.attention.attention.query, layer.attention.attention.key, layer.attention.attention.value,
            getattr(layer.attention, output).dense, layer.intermediate.dense, getattr(layer, output).dense)
    ]  # fmt: skip


def products_pt(model: Any, batch_size: int) -> tuple[Any, Callable[[Any], Any]]:
    """For PyTorch; of int8 layers the integer products, whose inputs are rounded already."""
    import torch

    from vit.pt.linear import InferenceLinear, linear

    inputs = {}
    for layer in layers_of(model):
        x = torch.from_numpy(tokens(model.config, batch_size, layer.in_features)).to(model.device, model.dtype)
        inputs[layer.in_features] = layer.prepare(x) if isinstance(layer, InferenceLinear) else x

    def run(inputs: Any) -> Any:
        for layer in layers_of(model):
            x = linear(layer, inputs[layer.in_features])
        return x

    return inputs, run


def products_tf(model: Any, batch_size: int) -> tuple[Any, Callable[[Any], Any]]:
    """For TensorFlow."""
    import tensorflow as tf

    def run(x: Any) -> Any:
        for layer in layers_of(model, "dense_output"):  # each takes what the one before gives, or it would be left out
            x = layer(x)
        return x

    x = tokens(model.config, batch_size, model.config.hidden_size)
    return tf.cast(tf.constant(x), model.compute_dtype), run


def products_flax(checkpoint: str, dtype: str, batch_size: int) -> tuple[Any, Any, Callable[[Any, Any], Any]]:
    """For Flax: the weights, too, which its function takes before the inputs."""
    import jax.numpy as jnp
    from flax import nnx

    import vit.flax

    model = vit.flax.FlaxViTForImageClassification.from_pretrained(checkpoint, dtype=dtype)
    graphdef, state = nnx.split(nnx.List(layers_of(model)))

    def run(state: Any, x: Any) -> Any:
        for layer in nnx.merge(graphdef, state):  # each takes what the one before gives, or it would be left out
            x = layer(x)
        return x

    return state, jnp.asarray(tokens(model.config, batch_size, model.config.hidden_size), model.dtype), run
