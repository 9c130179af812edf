"""Latency of a forward pass beside transformers 4.57.6 in the same framework: `python -m benchmarks.inference`.

Both models hold the same random weights and run in one process, in turn; a ratio is the median of the pairwise ratios.
PyTorch runs eagerly under inference_mode, TensorFlow under tf.function, Flax under jax.jit: what each framework's users
serve with.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from vit import ViTConfig, checkpoint, weights


def random_checkpoint(folder: str, config: ViTConfig, seed: int = 0) -> None:
    """Write a classification checkpoint of random weights."""
    rng = np.random.default_rng(seed)
    shapes = weights.parameter_shapes(config, head="classifier")
    tensors = {name: (shape, np.dtype(np.float32)) for name, shape in shapes.items()}

    def values(name: str) -> np.ndarray:
        return 0.02 * rng.standard_normal(shapes[name], np.float32) + np.float32("layernorm" in name)

    checkpoint.write(folder, config, tensors, values)


def runners_pt(folder: str, pixel_values: np.ndarray) -> dict[str, Callable[[], Any]]:
    """The forward passes of both libraries in PyTorch."""
    import torch
    from transformers import ViTForImageClassification as TransformersViT

    from vit import ViTForImageClassification

    inputs = torch.from_numpy(pixel_values)
    ours = ViTForImageClassification.from_pretrained(folder)
    theirs = TransformersViT.from_pretrained(folder).eval()

    def run(model: Any) -> np.ndarray:
        with torch.inference_mode():
            return model(inputs).logits.numpy()

    return {"trivit": lambda: run(ours), "transformers": lambda: run(theirs)}


def runners_tf(folder: str, pixel_values: np.ndarray) -> dict[str, Callable[[], Any]]:
    """The forward passes of both libraries in TensorFlow."""
    import tensorflow as tf
    from transformers import TFViTForImageClassification as TransformersViT

    from vit import TFViTForImageClassification

    inputs = tf.constant(pixel_values)
    ours = TFViTForImageClassification.from_pretrained(folder)
    theirs = transformers_tf(TransformersViT, folder)
    ours_graph = tf.function(lambda x: ours(x).logits)
    theirs_graph = tf.function(lambda x: theirs(x).logits)
    return {"trivit": lambda: ours_graph(inputs).numpy(), "transformers": lambda: theirs_graph(inputs).numpy()}


def transformers_tf(cls: Any, folder: str) -> Any:
    """A TensorFlow model of transformers 4.57.6, whose own reader fails on current safetensors: through PyTorch."""
    return cls.from_pretrained(folder, from_pt=True)


def runners_flax(folder: str, pixel_values: np.ndarray) -> dict[str, Callable[[], Any]]:
    """The forward passes of both libraries in Flax."""
    import jax
    from flax import nnx
    from transformers import FlaxViTForImageClassification as TransformersViT

    from vit import FlaxViTForImageClassification

    inputs = jax.numpy.asarray(pixel_values)
    graphdef, state = nnx.split(FlaxViTForImageClassification.from_pretrained(folder))
    theirs = TransformersViT.from_pretrained(folder)
    ours_jit = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x).logits)
    theirs_jit = jax.jit(lambda params, x: theirs(x, params=params).logits)
    return {
        "trivit": lambda: np.asarray(ours_jit(state, inputs)),
        "transformers": lambda: np.asarray(theirs_jit(theirs.params, inputs)),
    }


RUNNERS = {"pt": runners_pt, "tf": runners_tf, "flax": runners_flax}


def measure(runners: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run of each runner, in turn, after two runs that do not count."""
    outputs = {}
    for name, run in runners.items():
        run()
        outputs[name] = run()
    ours, theirs = outputs.values()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(repeats):
        for name, run in runners.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--framework", choices=RUNNERS, action="append", help="default: all three")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--variant", default="B/16")
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    config = ViTConfig.variant(args.variant, num_labels=1000)
    print("| framework | batch | trivit, images/s | transformers 4.57.6, images/s | ratio |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        random_checkpoint(folder, config)
        for framework in args.framework or RUNNERS:
            for batch in args.batch_size:
                shape = (batch, config.num_channels, config.image_size, config.image_size)
                pixel_values = np.random.default_rng(1).standard_normal(shape, np.float32)
                seconds = measure(RUNNERS[framework](folder, pixel_values), args.repeats)
                ours, theirs = (statistics.median(values) for values in seconds.values())
                ratio = statistics.median(t / o for o, t in zip(*seconds.values(), strict=True))
                print(
                    f"| {framework} | {batch} | {batch / ours:.2f} | {batch / theirs:.2f} | {ratio:.2f} |", flush=True
                )


if __name__ == "__main__":
    main()
