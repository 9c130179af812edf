"""A Keras model as exports have it: one input, and outputs by the names that every export has.

Side by side with vit/pt/export.py and vit/flax/export.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from ..image_processing.steps import Steps
from .decoding import decode
from .preprocessing import preprocess

Served = Callable[[tf.Tensor], dict[str, tf.Tensor]]


def served(model: Any, task: str, pool: str = "cls", names: Sequence[str] | None = None) -> Served:
    """What a model computes for a task: (batch, channels, height, width) -> {output: float32}; `labels` are int64.

    Args:
        model: with a classification head, or without a head for embeddings.
        task: "classify" or "embed".
        pool: what the embedding is: "cls", "mean", "pooler" or "patches".
        names: of the labels, which then are strings.
    """
    config = model.config

    def run(pixel_values: tf.Tensor) -> dict[str, tf.Tensor]:
        fixed = {
            name: tf.tile(array, (tf.shape(pixel_values)[0], 1))  # the same for every image
            for name, array in config.fixed_inputs((1, *pixel_values.shape[1:])).items()
        }
        outputs = model(pixel_values, **fixed, return_dict=True, training=False)
        if task == "embed":
            return {"embedding": tf.cast(pooled(outputs, pool, config.prefix_tokens), tf.float32)}
        logits = tf.cast(outputs["logits"], tf.float32)
        several = config.problem_type == "multi_label_classification"
        labels = tf.argmax(logits, -1)
        return {
            "logits": logits,
            "probabilities": tf.sigmoid(logits) if several else tf.nn.softmax(logits),
            "labels": labels if names is None else tf.gather(tf.constant(list(names)), labels),
        }

    return run


def pooled(outputs: Any, pool: str, prefix: int) -> tf.Tensor:
    """What `vit.pipeline.POOLS` makes of the outputs of a base model, of which `prefix` tokens precede the patches."""
    if pool == "pooler":
        return outputs["pooler_output"]
    tokens = outputs["last_hidden_state"]  # (batch, tokens, hidden_size)
    if pool == "cls":
        return tokens[:, 0]
    return tf.reduce_mean(tokens[:, prefix:], 1) if pool == "mean" else tokens[:, prefix:]


def signatures(run: Served, image: tuple[int, ...], steps: Steps | None = None) -> dict[str, Any]:
    """{input: function of it} of what `served` gives, for batches of any size.

    Args:
        run: what `served` gives.
        image: (channels, height, width) of pixel_values.
        steps: those of the image processor, with which there are inputs of images: files, files as web-safe base64,
            and pixels.
    """
    functions: dict[str, tuple[Any, tf.TensorSpec]] = {"pixel_values": (run, tf.TensorSpec((None, *image)))}
    if steps is not None:
        known = steps  # for what is called later

        def one(file: tf.Tensor) -> tf.Tensor:
            return tf.ensure_shape(preprocess(decode(file, image[0])[None], known)[0], image)

        def files(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
            return run(tf.map_fn(one, image_bytes, fn_output_signature=tf.TensorSpec(image)))

        def pixels(images: tf.Tensor) -> dict[str, tf.Tensor]:
            return run(tf.ensure_shape(preprocess(images, known), (None, *image)))

        functions |= {
            "image_bytes": (files, tf.TensorSpec((None,), tf.string)),
            "string_input": (lambda encoded: files(tf.io.decode_base64(encoded)), tf.TensorSpec((None,), tf.string)),
            "image_uint8": (pixels, tf.TensorSpec((None, None, None, image[0]), tf.uint8)),
        }
    return {
        name: tf.function(function, input_signature=[tf.TensorSpec(spec.shape, spec.dtype, name)], autograph=False)
        for name, (function, spec) in functions.items()
    }
