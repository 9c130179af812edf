"""Models on several devices, and on one that is asked for."""

from __future__ import annotations

from typing import Any

import jax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vit import InputError

from ..common import Load, images, inputs_of
from .common import MODELS, assert_close, call, loss_and_gradients

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module", params=["Auto", "Explicit"])
def mesh(request: Any) -> jax.sharding.Mesh:
    """Four devices on one axis, whose sharding the compiler chooses or the types of arrays say."""
    return jax.make_mesh((4,), ("data",), axis_types=(getattr(AxisType, request.param),))


def put(mesh: jax.sharding.Mesh, tree: Any, *axes: str | None) -> Any:
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*axes)))


@pytest.mark.parametrize("cls", MODELS[1:])
def test_data_parallel_over_four_devices_equals_one(load: Load, mesh: jax.sharding.Mesh, cls: type) -> None:
    model, inputs = load(cls), inputs_of(cls)
    graphdef, state = nnx.split(model)

    @jax.jit
    def step(state: Any, inputs: Any) -> Any:
        outputs = nnx.merge(graphdef, state)(**inputs)
        return outputs, jax.grad(lambda state: nnx.merge(graphdef, state)(**inputs).loss)(state)

    outputs, gradients = step(put(mesh, state), put(mesh, inputs, "data"))
    assert outputs[1].sharding.spec[0] == "data"  # logits or reconstruction, as the images
    assert len(outputs[1].sharding.device_set) == 4
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(gradients))
    assert_close((outputs, gradients), (call(model, **inputs), loss_and_gradients(model, inputs)[1]))


def test_interpolates_data_parallel(model: Any, mesh: jax.sharding.Mesh) -> None:
    graphdef, state = nnx.split(model)
    forward = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x, interpolate_pos_encoding=True))
    x = images(4, 16, 10)
    outputs = forward(put(mesh, state), put(mesh, x, "data"))
    assert outputs.logits.sharding.spec[0] == "data"
    assert_close(outputs, call(model, pixel_values=x, interpolate_pos_encoding=True))


def test_loads_sharded_parameters_and_computes_with_them(load: Load, model: Any) -> None:
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    replicated = load(options={"device": NamedSharding(mesh, PartitionSpec())})
    leaves = jax.tree.leaves(nnx.state(replicated))
    assert all(leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) == 4 for leaf in leaves)
    graphdef, state = nnx.split(replicated)
    state = jax.tree.map(lambda leaf: put(mesh, leaf, *["data" if leaf.shape[0] % 4 == 0 else None]), state)
    kernel = state["vit"]["encoder"]["layer"][0]["intermediate"]["dense"]["kernel"].get_value()
    assert kernel.addressable_shards[0].data.shape == (8, 64)
    outputs = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))(state, put(mesh, images(), "data"))
    assert_close(outputs, call(model, pixel_values=images()))


def test_loads_to_the_device_that_is_asked_for(load: Load) -> None:
    for device in ("cpu:2", jax.devices()[2]):
        model = load(options={"device": device})
        assert {leaf.device for leaf in jax.tree.leaves(nnx.state(model))} == {jax.devices()[2]}
    with pytest.raises(InputError, match=r"device is 'cpu:9'; JAX sees cpu:0, cpu:1"):
        load(options={"device": "cpu:9"})
