"""The libraries that JAX's users bring: optax, Orbax, and JAX's own export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state

import vit

from .common import pixels, targets


def load(folder: Path) -> Any:
    return vit.FlaxViTForImageClassification.from_pretrained(folder)


OPTIMISERS = {
    "clipped, warmed up, without decay of vectors": optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            optax.warmup_cosine_decay_schedule(0.0, 1e-3, 2, 8), mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
        ),
    ),
    "accumulated": optax.MultiSteps(optax.lamb(1e-3), every_k_schedule=2),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_optax_trains_a_model_and_a_pure_function_alike(name: str, folder: Path):
    inputs, labels = jnp.asarray(pixels()), jnp.asarray(targets())
    model = load(folder)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss_of(params: Any) -> Any:
        return nnx.merge(graphdef, params, rest)(inputs, labels=labels).loss

    state = train_state.TrainState.create(apply_fn=None, params=params, tx=OPTIMISERS[name])

    @jax.jit
    def step(state: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(state.params)
        return state.apply_gradients(grads=gradients), loss

    optimizer = nnx.Optimizer(model, OPTIMISERS[name], wrt=nnx.Param)

    @nnx.jit
    def nnx_step(model: Any, optimizer: Any) -> Any:
        loss, gradients = nnx.value_and_grad(lambda m: m(inputs, labels=labels).loss)(model)
        optimizer.update(model, gradients)
        return loss

    losses = []
    for _ in range(4):
        state, loss = step(state)
        losses.append((float(loss), float(nnx_step(model, optimizer))))
    np.testing.assert_allclose(*zip(*losses, strict=True), atol=1e-5)
    assert losses[-1][0] < losses[0][0]


def test_orbax_saves_a_state_and_puts_it_back(folder: Path, tmp_path: Path):
    import orbax.checkpoint as ocp

    model = load(folder)
    optimizer = nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param)
    with ocp.StandardCheckpointer() as saver:
        saver.save(tmp_path / "model", nnx.state(model))
        saver.save(tmp_path / "optimizer", nnx.state(optimizer))
        saver.wait_until_finished()
        config = model.config
        abstract = nnx.eval_shape(lambda: vit.FlaxViTForImageClassification(config, rngs=nnx.Rngs(1)))
        graphdef, state = nnx.split(abstract)
        restored = nnx.merge(graphdef, saver.restore(tmp_path / "model", state))
        moments = saver.restore(tmp_path / "optimizer", nnx.state(optimizer))
    assert jax.tree.structure(moments) == jax.tree.structure(nnx.state(optimizer))
    np.testing.assert_array_equal(restored(pixels()).logits, model(pixels()).logits)
    restored.save_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(load(tmp_path / "saved")(pixels()).logits, model(pixels()).logits)


def test_orbax_manages_the_checkpoints_of_a_run(folder: Path, tmp_path: Path):
    import orbax.checkpoint as ocp

    model = load(folder)
    with ocp.CheckpointManager(tmp_path / "run", options=ocp.CheckpointManagerOptions(max_to_keep=2)) as manager:
        for step in range(3):
            manager.save(step, args=ocp.args.StandardSave(nnx.state(model)))
        manager.wait_until_finished()
        assert manager.all_steps() == [1, 2]
        state = manager.restore(2, args=ocp.args.StandardRestore(nnx.state(model)))
    nnx.update(model, state)
    np.testing.assert_array_equal(model(pixels()).logits, load(folder)(pixels()).logits)


def test_jax_exports_a_whole_call_and_a_function_of_the_parameters(folder: Path):
    model = load(folder)
    graphdef, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(state)  # JAX writes no dict whose keys are ints, and layers have numbers

    @jax.jit
    def whole(pixel_values: Any) -> Any:
        return model(pixel_values)

    @jax.jit
    def pure(leaves: Any, pixel_values: Any) -> Any:
        return nnx.merge(graphdef, jax.tree.unflatten(tree, leaves))(pixel_values)

    (batch,) = jax.export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((batch, 3, 16, 16), jnp.float32)
    shapes = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in leaves]
    for exported, arguments in (
        (jax.export.export(whole)(shape), ()),
        (jax.export.export(pure)(shapes, shape), (leaves,)),
    ):
        again = jax.export.deserialize(exported.serialize())
        for count in (1, 4):
            outputs = again.call(*arguments, pixels(count))
            assert isinstance(outputs, vit.ModelOutput)
            np.testing.assert_allclose(outputs.logits, model(pixels(count)).logits, atol=1e-5)
