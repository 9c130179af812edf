"""A Flax model as exports have it: one input, and outputs by the names that every export has.

Side by side with vit/pt/export.py and vit/tf/export.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ..image_processing.steps import Steps
from .preprocessing import preprocess


def served(model: Any, task: str, pool: str = "cls") -> Callable[[Array], dict[str, Array]]:
    """What a model computes for a task: (batch, channels, height, width) -> {output: float32}; `labels` are int32.

    Args:
        model: with a classification head, or without a head for embeddings.
        task: "classify" or "embed".
        pool: what the embedding is: "cls", "mean", "pooler" or "patches".
    """
    config = model.config
    graphdef, state = nnx.split(model)

    def run(pixel_values: Array) -> dict[str, Array]:
        fixed = {
            name: jnp.broadcast_to(array, (pixel_values.shape[0], *array.shape[1:]))  # the same for every image
            for name, array in config.fixed_inputs((1, *pixel_values.shape[1:])).items()
        }
        outputs = nnx.merge(graphdef, state)(pixel_values, **fixed, return_dict=True)
        if task == "embed":
            return {"embedding": pooled(outputs, pool, config.prefix_tokens).astype(jnp.float32)}
        logits = outputs["logits"].astype(jnp.float32)
        several = config.problem_type == "multi_label_classification"
        probabilities = jax.nn.sigmoid(logits) if several else jax.nn.softmax(logits)
        return {"logits": logits, "probabilities": probabilities, "labels": logits.argmax(-1).astype(jnp.int32)}

    return run


def served_images(run: Callable[[Array], dict[str, Array]], steps: Steps) -> Callable[[Array], dict[str, Array]]:
    """As `served`, which `run` is, of (batch, height, width, channels) uint8: the processor's steps come first."""
    return lambda image_uint8: run(preprocess(image_uint8, steps))


def pooled(outputs: Any, pool: str, prefix: int) -> Array:
    """What `vit.pipeline.POOLS` makes of the outputs of a base model, of which `prefix` tokens precede the patches."""
    if pool == "pooler":
        return outputs["pooler_output"]
    tokens = outputs["last_hidden_state"]  # (batch, tokens, hidden_size)
    if pool == "cls":
        return tokens[:, 0]
    return tokens[:, prefix:].mean(1) if pool == "mean" else tokens[:, prefix:]
