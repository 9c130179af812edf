"""The table of the equivalence suite, and how each framework runs a row of it: on any device, and without pytest.

`test_equivalence.py` runs it on the CPU, `python -m benchmarks gpu` on a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from vit import checkpoint, families, weights
from vit.config import ACTIVATIONS, keys_of, to_pair

TINY: dict[str, dict[str, Any]] = {
    "vit": {},
    "deit": {},
    "beit": {"vocab_size": 11, "use_relative_position_bias": True, "drop_path_rate": 0.0},
    "vit_mae": {
        "decoder_hidden_size": 24,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 3,
        "decoder_intermediate_size": 40,
    },
    "dinov2": {"mlp_ratio": 2},
    "dinov2_with_registers": {"mlp_ratio": 2, "num_register_tokens": 3},
    "dinov3_vit": {"num_register_tokens": 3, "pos_embed_rescale": None},
}
"""model_type -> what a small configuration has of its own."""


def tiny_config(model_type: str = "vit", **overrides: Any) -> Any:
    """A small configuration of a family: any key of it overrides."""
    config = families.config_class(model_type)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    images = {"image_size": 16, "patch_size": 4, "num_channels": 3}
    images["encoder_stride"] = overrides.get("patch_size", images["patch_size"])
    known = {key: value for key, value in {**sizes, **images}.items() if key in keys_of(config)}
    labels = {} if {"id2label", "label2id"} & overrides.keys() else {"num_labels": 5}
    return config(**{**known, **labels, **TINY[model_type], **overrides})


def random_checkpoint(
    folder: str | os.PathLike[str],
    config: Any,
    head: str | None = None,
    seed: int = 0,
    dtype: Any = "float32",
    max_shard_size: int | str = "5GB",
    **parts: bool,
) -> Path:
    """Write a checkpoint in which every parameter is random, and give its folder; no framework is needed.

    It has the optional parts that its class has, unless `parts` say otherwise.
    """
    dtype = checkpoint.dtype_of(dtype)
    shapes = config.parameter_shapes(head=head, **{**config.heads[head].parts, **parts})
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in shapes.items():
        is_matrix = len(shape) in (2, 4)
        values = rng.standard_normal(shape) * (np.prod(shape[1:]) ** -0.5 if is_matrix else 0.3)
        if weights.is_norm(name) and name.endswith(".weight"):
            values += 1
        arrays[config.model_name(name, head)] = values.astype(dtype)
    tensors = {name: (array.shape, dtype) for name, array in arrays.items()}
    config = config.replace(architectures=(config.heads[head].name,), dtype=dtype.name)
    checkpoint.write(folder, config, tensors, arrays.__getitem__, max_shard_size)
    return Path(folder)


# === The table ===


class Case(NamedTuple):
    """One row of the table: a model, and how it is called."""

    head: str | None = None
    config: Mapping[str, Any] = MappingProxyType({})  # of `tiny_config`, the model_type among them
    call: Mapping[str, Any] = MappingProxyType({})  # what is passed besides the tensors
    image_size: tuple[int, int] | None = None  # another size than the configuration's
    batch: int = 2
    masked: bool = False
    labels: Any = None  # "visual tokens" for one of each masked patch
    parts: Mapping[str, bool] = MappingProxyType({})  # of the base model


EVERYTHING = {"output_hidden_states": True, "output_attentions": True}
INTERPOLATED = {"interpolate_pos_encoding": True}

DEIT = {"model_type": "deit"}
BEIT = {"model_type": "beit"}
SHARED = {**BEIT, "use_relative_position_bias": False, "use_shared_relative_position_bias": True}
FLAGS = {**BEIT, "use_shared_relative_position_bias": True, "use_absolute_position_embeddings": True,
         "use_mask_token": True, "use_mean_pooling": False, "layer_scale_init_value": 0.0}  # fmt: skip

DINOV3 = {"model_type": "dinov3_vit"}
GATED = {**DINOV3, "use_gated_mlp": True, "hidden_act": "silu", "rope_theta": 30.0}

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
    "deit": Case(config=DEIT, call=EVERYTHING),
    "deit with mask token": Case(config=DEIT, masked=True, parts={"use_mask_token": True, "add_pooling_layer": False}),
    "deit, interpolated": Case(config={**DEIT, "image_size": (16, 24)}, call=INTERPOLATED, image_size=(24, 16)),
    "deit classification": Case("classifier", DEIT, labels=np.array([1, 4])),
    "deit with teacher": Case("teacher", DEIT, call=EVERYTHING),
    "deit with teacher, no labels at all": Case("teacher", {**DEIT, "num_labels": 0}),
    "deit masked image": Case("decoder", {**DEIT, "image_size": (16, 24)}, masked=True),
    "deit masked image, interpolated": Case("decoder", DEIT, call=INTERPOLATED, image_size=(24, 20), masked=True),
    "beit": Case(config=BEIT, call=EVERYTHING),
    "beit, shared biases": Case(config=SHARED, call=EVERYTHING),
    "beit, no biases": Case(config={**BEIT, "use_relative_position_bias": False}),
    "beit, all biases, positions, mask token and CLS": Case(config=FLAGS, masked=True, call=EVERYTHING),
    "beit, larger image": Case(config=FLAGS, image_size=(24, 36)),
    "beit, smaller image": Case(config={**BEIT, "image_size": 32}, image_size=(16, 13)),
    "beit, from a non-square window": Case(config={**FLAGS, "image_size": (16, 24)}, image_size=(24, 16)),
    "beit, non-square window and patch": Case(config={**BEIT, "image_size": (16, 24), "patch_size": (4, 8)}),
    "beit, one layer without pooler": Case(config={**BEIT, "num_hidden_layers": 1}, parts={"add_pooling_layer": False}),
    "beit classification": Case("classifier", BEIT, labels=np.array([1, 4])),
    "beit classification by CLS": Case("classifier", FLAGS, labels=np.array([[1, 0, 0, 1, 0], [0, 0, 1, 1, 1.0]])),
    "beit visual tokens": Case("lm_head", {**SHARED, "use_mask_token": True}, masked=True, labels="visual tokens"),
    "beit visual tokens without labels": Case("lm_head", {**FLAGS, "use_mean_pooling": True}, call=EVERYTHING),
    "mae": Case(config={"model_type": "vit_mae"}, call=EVERYTHING),
    "mae pre-training": Case("decoder", {"model_type": "vit_mae"}, call=EVERYTHING),
    "mae pre-training, normalised pixels": Case("decoder", {"model_type": "vit_mae", "norm_pix_loss": True}),
    "mae pre-training, larger": Case("decoder", {"model_type": "vit_mae"}, call=INTERPOLATED, image_size=(20, 24)),
    "dinov2": Case(config={"model_type": "dinov2"}, masked=True, call=EVERYTHING),
    "dinov2, larger": Case(config={"model_type": "dinov2", "use_swiglu_ffn": True}, image_size=(20, 24)),
    "dinov2 classification": Case("classifier", {"model_type": "dinov2"}, labels=np.array([1, 4])),
    "registers": Case(config={"model_type": "dinov2_with_registers"}, call=EVERYTHING),
    "registers, larger": Case(config={"model_type": "dinov2_with_registers"}, image_size=(20, 24)),
    "registers, classification": Case("classifier", {"model_type": "dinov2_with_registers"}, labels=np.array([1, 4])),
    "dinov3": Case(config=DINOV3, masked=True, call=EVERYTHING),
    "dinov3, gated, larger": Case(config=GATED, image_size=(20, 24), call=EVERYTHING),
    "dinov3, keys with biases": Case(config={**DINOV3, "key_bias": True, "proj_bias": False, "mlp_bias": False}),
    "dinov3 without biases and registers": Case(
        config={**GATED, "query_bias": False, "value_bias": False, "num_register_tokens": 0}
    ),
    "dinov3, non-square": Case(config={**DINOV3, "image_size": (16, 24), "patch_size": (4, 8)}),
    **{f"activation {name}": Case(config={"hidden_act": name, "pooler_act": name}) for name in ACTIVATIONS},
}

Results = dict[str, np.ndarray]
Change = Callable[[Any], Any] | None


def inputs_of(case: Case, config: Any, dtype: str) -> dict[str, np.ndarray]:
    """The tensors of a call, in NumPy."""
    rng = np.random.default_rng(7)
    height, width = case.image_size or (
        config.image_size if isinstance(config.image_size, tuple) else (config.image_size, config.image_size)
    )
    inputs = {"pixel_values": rng.standard_normal((case.batch, config.num_channels, height, width)).astype(dtype)}
    if case.masked:
        patch = config.patch_size if isinstance(config.patch_size, tuple) else (config.patch_size, config.patch_size)
        inputs["bool_masked_pos"] = rng.random((case.batch, (height // patch[0]) * (width // patch[1]))) < 0.4
    if config.model_type == "vit_mae":
        rows, columns = (
            size // length for size, length in zip((height, width), to_pair(config.patch_size), strict=True)
        )
        inputs["noise"] = rng.random((case.batch, rows * columns)).astype(dtype)
    if case.labels is not None:
        labels = np.asarray(case.labels)
        if labels.dtype.kind == "U":
            labels = rng.integers(0, config.vocab_size, inputs["bool_masked_pos"].sum())
            labels[1] = -100
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
    for name in ("last_hidden_state", "pooler_output", "logits", "cls_logits", "reconstruction"):
        if name in output:
            shape = tuple(int(size) for size in output[name].shape)
            direction = np.random.default_rng(len(name)).standard_normal(shape) / np.prod(shape) ** 0.5
            value = value + total(output[name] * as_array(direction))
    return value


def changed(model: Any, change: Change) -> Any:
    """What is called in the place of a model."""
    found = None if change is None else change(model)
    return model if found is None else found  # some have a length of zero


def run_pt(
    folder: Path, case: Case, inputs: Results, device: str = "cpu", change: Change = None, **options: Any
) -> tuple[Results, Results]:
    """Outputs and gradients of a call, under canonical names.

    Args:
        device: "cpu" or "gpu".
        change: what is done to the model first; gives what is called in its place, if anything.
        **options: those of `from_pretrained`.
    """
    import torch

    where = "cuda" if device == "gpu" else device
    model = model_class("pt", case).from_pretrained(folder, device=where, **case.parts, **options).train()
    call = changed(model, change)
    output = call(**{name: torch.from_numpy(value).to(where) for name, value in inputs.items()}, **case.call)
    dtype = model.dtype
    objective(output, torch.sum, lambda array: torch.from_numpy(array).to(where, dtype)).backward()
    gradients = {
        (name if case.head else f"{model.config.base_model_prefix}.{name}"): value.grad
        for name, value in model.named_parameters()
    }  # None where the call does not use the parameter

    def to_numpy(value: Any) -> np.ndarray:
        value = value.detach().cpu()
        return value.float().numpy() if value.dtype is torch.bfloat16 else value.numpy()

    return (
        {name: to_numpy(value) for name, value in named(output).items()},
        {name: to_numpy(value) for name, value in gradients.items() if value is not None},
    )


def run_tf(
    folder: Path, case: Case, inputs: Results, device: str = "cpu", change: Change = None, **options: Any
) -> tuple[Results, Results]:
    """As `run_pt`."""
    import tensorflow as tf

    with tf.device(f"{device.upper()}:0"):
        model = model_class("tf", case).from_pretrained(folder, **case.parts, **options)
        shapes = parameter_shapes(model.config, case)
        variables = {name: model._parameter(name).value for name in shapes}
        call = changed(model, change)
        with tf.GradientTape() as tape:
            output = call(**{name: tf.constant(value) for name, value in inputs.items()}, **case.call, training=True)
            value = objective(output, tf.reduce_sum, lambda array: tf.constant(array, model.compute_dtype))
        gradients = tape.gradient(value, variables)
    return (
        {name: value.numpy() for name, value in named(output).items()},
        {name: weights.from_local(name, value.numpy(), shapes[name], "tf")
         for name, value in gradients.items() if value is not None},
    )  # fmt: skip


def run_flax(
    folder: Path, case: Case, inputs: Results, device: str = "cpu", change: Change = None, **options: Any
) -> tuple[Results, Results]:
    """As `run_pt`."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    model = model_class("flax", case).from_pretrained(folder, device=device, **case.parts, **options)
    model.train()
    shapes = parameter_shapes(model.config, case)
    graphdef, state = nnx.split(changed(model, change))

    def loss(state: Any, inputs: Any) -> Any:
        output = nnx.merge(graphdef, state)(**inputs, **case.call)
        return objective(output, jnp.sum, lambda array: jnp.asarray(array, model.dtype)), output

    quick = {"xla_backend_optimization_level": 0} if device == "cpu" else None  # compiling is what takes the time
    gradients, output = jax.jit(jax.grad(loss, has_aux=True), compiler_options=quick)(state, inputs)
    gradients = nnx.merge(graphdef, gradients)
    return (
        {name: np.asarray(value) for name, value in named(output).items()},
        {name: weights.from_local(name, np.asarray(gradients._parameter(name).get_value()), shapes[name], "flax")
         for name in shapes},
    )  # fmt: skip


RUN: dict[str, Callable[..., tuple[Results, Results]]] = {"pt": run_pt, "tf": run_tf, "flax": run_flax}


def model_class(framework: str, case: Case) -> Any:
    return families.model_class(framework, case.config.get("model_type", "vit"), case.head)


def parameter_shapes(config: Any, case: Case) -> dict[str, weights.Shape]:
    return config.parameter_shapes(head=case.head, **{**config.heads[case.head].parts, **case.parts})
