"""The proof: PyTorch, TensorFlow and Flax compute one function, from one checkpoint.

Every parameter is random, biases, LayerNorm, tokens and heads included. In float64 with eager attention the three agree
to 1e-10, outputs and gradients: no rounding to hide behind. In float32, with the attention users get, to 1e-5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest

from vit import weights
from vit.config import ACTIVATIONS, ViTConfig


class Case(NamedTuple):
    """One row of the table: a model, and how it is called."""

    head: str | None = None
    config: Mapping[str, Any] = MappingProxyType({})
    call: Mapping[str, Any] = MappingProxyType({})  # what is passed besides the tensors
    image_size: tuple[int, int] | None = None  # another size than the configuration's
    batch: int = 2
    masked: bool = False
    labels: Any = None
    parts: Mapping[str, bool] = MappingProxyType({})  # add_pooling_layer, use_mask_token


EVERYTHING = {"output_hidden_states": True, "output_attentions": True}
INTERPOLATED = {"interpolate_pos_encoding": True}

CASES = {
    "base": Case(call=EVERYTHING),
    "base without pooler": Case(parts={"add_pooling_layer": False}),
    "base with mask token": Case(masked=True, parts={"use_mask_token": True}),
    "pooler of another size": Case(config={"pooler_output_size": 24, "pooler_act": "relu"}),
    "batch of one": Case(batch=1, call=EVERYTHING),
    "non-square image": Case(config={"image_size": (16, 24)}, call=EVERYTHING),
    "non-square patch": Case(config={"image_size": (16, 24), "patch_size": (4, 8)}),
    "image that patches do not cover": Case(config={"image_size": (18, 23)}),
    "one channel": Case(config={"num_channels": 1}),
    "four channels": Case(config={"num_channels": 4}),
    "no query, key and value biases": Case(config={"qkv_bias": False}),
    "large epsilon": Case(config={"layer_norm_eps": 0.1}),
    "no encoder layer": Case(config={"num_hidden_layers": 0}, call=EVERYTHING),
    "interpolated up": Case(call=INTERPOLATED, image_size=(24, 36)),
    "interpolated down": Case(config={"image_size": 32}, call=INTERPOLATED, image_size=(16, 13)),
    "interpolated from a non-square grid": Case(
        config={"image_size": (16, 24), "patch_size": (4, 8)}, call=INTERPOLATED, image_size=(24, 16)
    ),
    "interpolated to the same size": Case(call=INTERPOLATED),
    "classification without labels": Case("classifier", call=EVERYTHING),
    "single label": Case("classifier", labels=np.array([1, 4])),
    "single label, one ignored": Case("classifier", labels=np.array([1, -100, 3]), batch=3),
    "multi label": Case("classifier", labels=np.array([[1, 0, 0, 1, 0], [0, 0, 1, 1, 1.0]])),
    "regression": Case("classifier", {"num_labels": 1}, labels=np.array([0.3, -1.2])),
    "regression of several": Case(
        "classifier", {"num_labels": 3, "problem_type": "regression"}, labels=np.array([[0.3, -1.2, 2], [1, 0, -0.5]])
    ),
    "no labels at all": Case("classifier", {"num_labels": 0}),
    "masked image": Case("decoder", masked=True, call=EVERYTHING),
    "masked image without a mask": Case("decoder"),
    "masked image, non-square": Case("decoder", {"image_size": (16, 24), "patch_size": (4, 8)}, masked=True),
    "masked image, one channel": Case("decoder", {"num_channels": 1}, masked=True),
    "masked image, interpolated": Case("decoder", call=INTERPOLATED, image_size=(24, 20), masked=True),
    **{f"activation {name}": Case(config={"hidden_act": name, "pooler_act": name}) for name in ACTIVATIONS},
}

Results = dict[str, np.ndarray]


def inputs_of(case: Case, config: ViTConfig, dtype: str) -> dict[str, np.ndarray]:
    """The tensors of a call, in NumPy."""
    rng = np.random.default_rng(7)
    height, width = case.image_size or (
        config.image_size if isinstance(config.image_size, tuple) else (config.image_size, config.image_size)
    )
    inputs = {"pixel_values": rng.standard_normal((case.batch, config.num_channels, height, width)).astype(dtype)}
    if case.masked:
        patch = config.patch_size if isinstance(config.patch_size, tuple) else (config.patch_size, config.patch_size)
        inputs["bool_masked_pos"] = rng.random((case.batch, (height // patch[0]) * (width // patch[1]))) < 0.4
    if case.labels is not None:
        labels = np.asarray(case.labels)
        inputs["labels"] = labels.astype(dtype) if labels.dtype.kind == "f" else labels
    return inputs


def named(output: Any) -> dict[str, Any]:
    """The arrays of an output, by name; tuples are spread out."""
    arrays = {}
    for name, value in output.items():
        if isinstance(value, tuple):
            arrays |= {f"{name}.{i}": part for i, part in enumerate(value)}
        else:
            arrays[name] = value
    return arrays


def objective(output: Any, total: Callable[[Any], Any], as_array: Callable[[np.ndarray], Any]) -> Any:
    """A scalar to differentiate: the loss, or else the main outputs, each weighted by fixed random numbers."""
    if "loss" in output:
        return output["loss"]
    value = 0
    for name in ("last_hidden_state", "pooler_output", "logits", "reconstruction"):
        if name in output:
            shape = tuple(int(size) for size in output[name].shape)
            direction = np.random.default_rng(len(name)).standard_normal(shape) / np.prod(shape) ** 0.5
            value = value + total(output[name] * as_array(direction))
    return value


def run_pt(folder: Path, case: Case, inputs: dict[str, np.ndarray], **options: Any) -> tuple[Results, Results]:
    import torch

    import vit

    cls = {None: vit.ViTModel, "classifier": vit.ViTForImageClassification, "decoder": vit.ViTForMaskedImageModeling}
    model = cls[case.head].from_pretrained(folder, **case.parts, **options).train()
    output = model(**{name: torch.from_numpy(value) for name, value in inputs.items()}, **case.call)
    dtype = model.dtype
    objective(output, torch.sum, lambda array: torch.from_numpy(array).to(dtype)).backward()
    gradients = {
        (name if case.head else weights.BASE + name): value.grad for name, value in model.named_parameters()
    }  # None where the call does not use the parameter
    return (
        {name: value.detach().float().numpy() if value.dtype is torch.bfloat16 else value.detach().numpy()
         for name, value in named(output).items()},
        {name: value.float().numpy() if value.dtype is torch.bfloat16 else value.numpy()
         for name, value in gradients.items() if value is not None},
    )  # fmt: skip


def run_tf(folder: Path, case: Case, inputs: dict[str, np.ndarray], **options: Any) -> tuple[Results, Results]:
    import tensorflow as tf

    import vit

    cls = {
        None: vit.TFViTModel,
        "classifier": vit.TFViTForImageClassification,
        "decoder": vit.TFViTForMaskedImageModeling,
    }
    model = cls[case.head].from_pretrained(folder, **case.parts, **options)
    shapes = parameter_shapes(model.config, case)
    variables = {name: model._parameter(name).value for name in shapes}
    with tf.GradientTape() as tape:
        output = model(**{name: tf.constant(value) for name, value in inputs.items()}, **case.call, training=True)
        value = objective(output, tf.reduce_sum, lambda array: tf.constant(array, model.compute_dtype))
    gradients = tape.gradient(value, variables)
    return (
        {name: value.numpy() for name, value in named(output).items()},
        {name: weights.from_local(value.numpy(), shapes[name], "tf")
         for name, value in gradients.items() if value is not None},
    )  # fmt: skip


def run_flax(folder: Path, case: Case, inputs: dict[str, np.ndarray], **options: Any) -> tuple[Results, Results]:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    import vit

    cls = {
        None: vit.FlaxViTModel,
        "classifier": vit.FlaxViTForImageClassification,
        "decoder": vit.FlaxViTForMaskedImageModeling,
    }
    model = cls[case.head].from_pretrained(folder, **case.parts, **options)
    model.train()
    shapes = parameter_shapes(model.config, case)
    graphdef, state = nnx.split(model)

    def loss(state: Any, inputs: Any) -> Any:
        output = nnx.merge(graphdef, state)(**inputs, **case.call)
        return objective(output, jnp.sum, lambda array: jnp.asarray(array, model.dtype)), output

    quick = {"xla_backend_optimization_level": 0}  # compiling is what takes the time here
    gradients, output = jax.jit(jax.grad(loss, has_aux=True), compiler_options=quick)(state, inputs)
    gradients = nnx.merge(graphdef, gradients)
    return (
        {name: np.asarray(value) for name, value in named(output).items()},
        {name: weights.from_local(np.asarray(gradients._parameter(name).get_value()), shapes[name], "flax")
         for name in shapes},
    )  # fmt: skip


RUN = {"pt": run_pt, "tf": run_tf, "flax": run_flax}


def parameter_shapes(config: ViTConfig, case: Case) -> dict[str, weights.Shape]:
    parts = {"add_pooling_layer": case.head is None, "use_mask_token": case.head == "decoder", **case.parts}
    return weights.parameter_shapes(config, head=case.head, **parts)


def compare(results: dict[str, tuple[Results, Results]], tolerance: float) -> None:
    """Every output and every gradient of every framework, against PyTorch's."""
    outputs, gradients = results["pt"]
    for framework, (other_outputs, other_gradients) in results.items():
        assert list(other_outputs) == list(outputs), framework
        for name, expected in outputs.items():
            actual = other_outputs[name]
            assert actual.shape == expected.shape, f"{framework} {name}"
            assert actual.dtype == expected.dtype, f"{framework} {name}"
            difference = np.abs(actual - expected).max(initial=0)
            assert difference <= tolerance, f"{framework} {name}: {difference:.3g}"
        for name in gradients.keys() | other_gradients.keys():
            actual, expected = other_gradients.get(name, 0.0), gradients.get(name, 0.0)  # a missing one is zero
            difference = np.abs(actual - expected).max()
            assert difference <= tolerance, f"{framework} gradient of {name}: {difference:.3g}"


@pytest.mark.parametrize("name", CASES)
def test_frameworks_agree_in_float64_to_1e_10(name: str, tiny_config: Any, random_checkpoint: Any, tmp_path: Path):
    import jax

    case = CASES[name]
    config = tiny_config(**case.config)
    random_checkpoint(tmp_path, config, case.head, **case.parts, dtype="float64")
    inputs = inputs_of(case, config, "float64")
    results = {}
    for framework, run in RUN.items():
        with jax.enable_x64(True) if framework == "flax" else nullcontext():
            results[framework] = run(tmp_path, case, inputs, attn_implementation="eager")
    compare(results, 1e-10)
    gradients = results["pt"][1]
    assert all(np.abs(value).max() > 0 for value in gradients.values()), "a gradient of zero compares nothing"


@pytest.mark.parametrize("name", CASES)
def test_frameworks_agree_in_float32_to_1e_5(name: str, tiny_config: Any, random_checkpoint: Any, tmp_path: Path):
    case = CASES[name]
    config = tiny_config(**case.config)
    random_checkpoint(tmp_path, config, case.head, **case.parts)
    inputs = inputs_of(case, config, "float32")
    compare({framework: run(tmp_path, case, inputs) for framework, run in RUN.items()}, 1e-5)


@pytest.mark.parametrize("framework", ["pt", "flax"])  # TensorFlow has one way for both
def test_sdpa_equals_eager_in_float64_to_1e_10(
    framework: str, tiny_config: Any, random_checkpoint: Any, tmp_path: Path
):
    import jax

    case = CASES["base"]._replace(call={})
    config = tiny_config(**case.config)
    random_checkpoint(tmp_path, config, dtype="float64")
    inputs = inputs_of(case, config, "float64")
    with jax.enable_x64(True):
        eager, sdpa = (RUN[framework](tmp_path, case, inputs, attn_implementation=name) for name in ("eager", "sdpa"))
    for ours, theirs in zip(eager, sdpa, strict=True):
        for name in ours:
            difference = np.abs(ours[name] - theirs[name]).max()
            assert difference <= 1e-10, f"{name}: {difference:.3g}"


# The largest error of an output of order one: 2 layers round some 20 times to 8 (bfloat16) or 11 (float16) bits.
HALF_PRECISION = {"bfloat16": 8e-2, "float16": 1e-2}


@pytest.mark.parametrize("dtype", HALF_PRECISION)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_half_precision_of_every_framework_is_near_the_float32_result(
    dtype: str, attention: str, tiny_config: Any, random_checkpoint: Any, tmp_path: Path
):
    case = CASES["base"]._replace(call={"output_hidden_states": True, **INTERPOLATED}, image_size=(20, 24))
    config = tiny_config(**case.config)
    random_checkpoint(tmp_path, config)
    inputs = inputs_of(case, config, "float32")
    expected, _ = run_pt(tmp_path, case, inputs, attn_implementation=attention)
    for framework, run in RUN.items():
        outputs, gradients = run(tmp_path, case, inputs, dtype=dtype, attn_implementation=attention)
        for name, value in expected.items():
            difference = np.abs(outputs[name].astype(np.float32) - value).max()
            assert 0 < difference <= HALF_PRECISION[dtype], f"{framework} {name}: {difference:.3g}"
        assert all(np.isfinite(value.astype(np.float32)).all() for value in gradients.values()), framework
