"""What each framework's users do with a model, done with every class of every family that has a row in the table.

PyTorch compiles the whole model and exports it; Keras fits, recomputing its layers, saves, loads and exports; NNX
splits, jits and shards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit import families
from vit.config import keys_of

from .tiny import HEADS, tiny_checkpoint

CLASSES = pytest.mark.parametrize(("model_type", "head"), HEADS)
BATCH = 4


def load(framework: str, model_type: str, head: str | None, folder: Path) -> Any:
    drop_path = {"drop_path_rate": 0.0} if "drop_path_rate" in keys_of(families.config_class(model_type)) else {}
    tiny_checkpoint(folder, model_type, head, num_hidden_layers=1, **drop_path)
    return families.model_class(framework, model_type, head).from_pretrained(folder)


def inputs_of(config: Any, head: str | None) -> dict[str, np.ndarray]:
    """The tensors of a call; with them a class that has a loss computes it."""
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((BATCH, 3, 16, 12), dtype=np.float32)
    inputs = {"pixel_values": pixels, **config.fixed_inputs(pixels.shape)}
    name = config.heads[head].name
    if "ForMaskedImageModeling" in name:
        inputs["bool_masked_pos"] = np.tile(np.arange(config.num_patches) % 3 == 0, (BATCH, 1))
        if "vocab_size" in keys_of(type(config)):
            inputs["labels"] = rng.integers(0, config.vocab_size, inputs["bool_masked_pos"].sum())
    if name.endswith("ForImageClassification"):
        inputs["labels"] = np.arange(BATCH) % config.num_labels
    return inputs


def assert_close(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        first, second = (
            np.asarray(each.detach() if hasattr(each, "detach") else each) for each in (found[name], value)
        )
        assert first.shape == second.shape, name
        np.testing.assert_allclose(first, second, rtol=0, atol=tolerance, err_msg=name)


# === PyTorch ===


@CLASSES
def test_pytorch_compiles_the_whole_model_with_its_gradients_and_exports_it(model_type, head, tmp_path):
    import torch

    torch._dynamo.reset()
    model = load("pt", model_type, head, tmp_path)
    inputs = {name: torch.from_numpy(value) for name, value in inputs_of(model.config, head).items()}
    outputs, gradients = [], []
    for call in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        output = call(**inputs)
        main = output["loss"] if "loss" in output else output[model.config.heads[head].output].square().mean()
        main.backward()
        outputs.append(dict(output))
        gradients.append({name: 0 * each.detach() if each.grad is None else each.grad.clone()
                          for name, each in model.named_parameters()})  # fmt: skip
    assert_close(outputs[1], outputs[0])
    assert_close(gradients[1], gradients[0])
    images = {name: value for name, value in inputs.items() if name in ("pixel_values", "noise", "bool_masked_pos")}
    batch = {name: {0: torch.export.Dim("batch", min=2)} for name in images}
    exported = torch.export.export(model.eval(), (), images, dynamic_shapes=batch).module()
    fewer = {name: value[:3] for name, value in images.items()}
    with torch.no_grad():
        assert_close(exported(**fewer), model(**fewer))


# === Keras ===


@CLASSES
def test_keras_fits_saves_loads_and_exports(model_type, head, tmp_path):
    import keras
    import tensorflow as tf

    model = load("tf", model_type, head, tmp_path / "hf")
    model.gradient_checkpointing_enable()
    inputs, config = inputs_of(model.config, head), model.config
    with_loss = "loss" in model(inputs) or head in ("decoder", "lm_head")
    if with_loss:
        fitted: tuple[Any, ...] = (inputs,)
        if config.model_type == "beit" and head == "lm_head":  # labels of all masked patches: no rows of a batch
            fitted = ({name: value for name, value in inputs.items() if name != "labels"},)
            target = np.zeros((BATCH, config.num_patches), np.int64)
            model.compile(keras.optimizers.SGD(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
            fitted = (*fitted, target)
        else:
            model.compile(keras.optimizers.SGD(0.01))
    else:
        target = np.zeros(model(inputs)[config.heads[head].output].shape, np.float32)
        model.compile(keras.optimizers.SGD(0.01), "mse")
        fitted = (inputs, target)
    history = model.fit(*fitted, batch_size=2, epochs=3, shuffle=False, verbose=0).history["loss"]
    assert np.isfinite(history).all()
    assert history[-1] < history[0]
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again) is type(model)
    assert again.config == config
    expected = model(inputs)
    assert_close(dict(again(inputs)), dict(expected), 0)
    model.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    served = exported.serve(inputs["pixel_values"][:3])
    plain = model(inputs["pixel_values"][:3])
    assert served.keys() == plain.keys()
    if "noise" in inputs:  # each call draws its own
        assert {name: value.shape for name, value in served.items()} == {n: v.shape for n, v in plain.items()}
    else:
        assert_close(dict(sorted(served.items())), dict(sorted(plain.items())))


# === Flax ===


@CLASSES
def test_nnx_splits_jits_and_shards_a_batch_and_the_parameters_over_two_devices(model_type, head, tmp_path):
    import jax
    from flax import nnx
    from jax.sharding import NamedSharding, PartitionSpec

    model = load("flax", model_type, head, tmp_path)
    inputs = inputs_of(model.config, head)
    expected = dict(model(**inputs))
    graphdef, state = nnx.split(model)
    main = model.config.heads[head].output

    def step(state: Any, inputs: Any) -> Any:
        def loss(state: Any) -> Any:
            output = nnx.merge(graphdef, state)(**inputs)
            return output["loss"] if "loss" in output else (output[main] ** 2).mean(), output

        return jax.grad(loss, has_aux=True, allow_int=True)(state)

    quick = jax.jit(step, compiler_options={"xla_backend_optimization_level": 0})
    gradients, outputs = quick(state, inputs)
    assert_close(dict(outputs), expected)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])

    def put(value: Any, axis: str | None) -> Any:
        return jax.device_put(value, NamedSharding(mesh, PartitionSpec(axis)))

    def spread(leaf: Any) -> Any:
        return put(leaf, "data" if leaf.ndim and leaf.shape[0] % 2 == 0 else None)

    shared = {name: put(value, "data" if len(value) == BATCH else None) for name, value in inputs.items()}
    sharded_gradients, sharded = quick(jax.tree.map(spread, state), shared)
    assert len(sharded[main].sharding.device_set) == 2
    assert_close(dict(sharded), expected)
    for first, second in zip(jax.tree.leaves(gradients), jax.tree.leaves(sharded_gradients), strict=True):
        if first.dtype != jax.dtypes.float0:
            np.testing.assert_allclose(first, second, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(nnx.merge(graphdef, state)(**inputs)[main], expected[main])
