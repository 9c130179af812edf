"""The Flax models are native Flax NNX and JAX; that their numbers are right, tests/test_equivalence.py shows."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export as jax_export

from vit import (
    FlaxViTForImageClassification,
    FlaxViTForMaskedImageModeling,
    FlaxViTModel,
    InputError,
    ModelOutput,
    weights,
)

from ..common import LABELS, Load, images, inputs_of, masks
from .common import MODELS, assert_close, call, loss_and_gradients

pytestmark = pytest.mark.usefixtures("quick_compilation")


# === Transformations ===


@pytest.mark.parametrize("cls", MODELS)
def test_split_and_merge_give_the_same_model_and_jit_the_same_numbers(load: Load, cls: type) -> None:
    model, inputs = load(cls), inputs_of(cls)
    graphdef, state = nnx.split(model)
    expected = model(**inputs, output_hidden_states=True)
    assert_close(nnx.merge(graphdef, state)(**inputs, output_hidden_states=True), expected, atol=0)
    assert_close(call(model, **inputs, output_hidden_states=True), expected)


def test_jax_jit_over_the_graph_and_the_state_traces_equal_models_once(load: Load, model: Any) -> None:
    traces = []

    def forward(graphdef: Any, state: Any, pixel_values: Any) -> Any:
        traces.append(pixel_values.shape)
        return nnx.merge(graphdef, state)(pixel_values)

    forward = jax.jit(forward, static_argnums=0)
    expected = call(model, pixel_values=images())
    for each in (model, load()):  # the same configuration, loaded twice
        outputs = forward(*nnx.split(each), images())
        assert isinstance(outputs, ModelOutput)
        assert_close(outputs, expected)
    assert len(traces) == 1
    assert_close(jax.jit(lambda model, pixel_values: model(pixel_values))(model, images()), expected)


def test_vmap_over_images_equals_the_batch(model: Any) -> None:
    each = jax.jit(jax.vmap(lambda image: model(image[None])))(images())
    assert isinstance(each, ModelOutput)
    assert_close(each.logits[:, 0], call(model, pixel_values=images()).logits)


def test_gradients_of_each_image_average_to_those_of_the_batch(model: Any) -> None:
    graphdef, state = nnx.split(model)

    def loss(state: Any, image: Any, label: Any) -> Any:
        return nnx.merge(graphdef, state)(image[None], labels=label[None]).loss

    of_each = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(state, images(), LABELS)
    _, of_batch = loss_and_gradients(model, inputs_of(type(model)))
    assert_close(jax.tree.map(lambda gradient: gradient.mean(0), of_each), of_batch)


def test_gradients_flow_back_from_an_output_as_a_pytree(model: Any) -> None:
    outputs, pullback = jax.vjp(jax.jit(lambda x: model(x, output_hidden_states=True)), jnp.asarray(images()))
    (from_pytree,) = pullback(jax.tree.map(jnp.ones_like, outputs))
    total = jax.jit(
        jax.grad(lambda x: sum(value.sum() for value in jax.tree.leaves(model(x, output_hidden_states=True))))
    )
    assert_close(from_pytree, total(jnp.asarray(images())), atol=1e-4)
    assert float(jnp.abs(from_pytree).max()) > 0.1


def test_eval_shape_makes_a_model_without_arrays_which_a_state_fills(model: Any) -> None:
    config = model.config
    other = nnx.eval_shape(lambda: FlaxViTForImageClassification(config, rngs=nnx.Rngs(0)))
    assert {type(leaf) for leaf in jax.tree.leaves(nnx.state(other))} == {jax.ShapeDtypeStruct}
    nnx.update(other, nnx.state(model))
    other.eval()
    assert_close(call(other, pixel_values=images()), call(model, pixel_values=images()), atol=0)


def test_exports_with_a_free_batch_size(load: Load) -> None:
    model = load(FlaxViTForMaskedImageModeling)
    (batch,) = jax_export.symbolic_shape("batch")
    forward = jax.jit(lambda pixel_values, mask: dict(model(pixel_values, bool_masked_pos=mask)))
    shapes = jax.ShapeDtypeStruct((batch, 3, 12, 8), jnp.float32), jax.ShapeDtypeStruct((batch, 12), jnp.bool_)
    exported = jax_export.deserialize(jax_export.export(forward)(*shapes).serialize())
    for size in (2, 3):
        expected = dict(call(model, pixel_values=images(size), bool_masked_pos=masks(size)))
        assert_close(exported.call(images(size), masks(size)), expected)


def test_scan_over_small_batches_gives_the_gradients_of_the_large_one(model: Any) -> None:
    graphdef, state = nnx.split(model)
    loss = lambda state, x, y: nnx.merge(graphdef, state)(x, labels=y).loss  # noqa: E731

    @jax.jit
    def accumulated(state: Any, x: Any, y: Any) -> Any:
        def step(total: Any, batch: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, jax.grad(loss)(state, *batch)), None

        total, _ = jax.lax.scan(step, jax.tree.map(jnp.zeros_like, state), (x, y))
        return jax.tree.map(lambda gradient: gradient / len(x), total)

    halves = images().reshape(2, 2, 3, 12, 8), LABELS.reshape(2, 2)
    assert_close(accumulated(state, *halves), loss_and_gradients(model, inputs_of(type(model)))[1])


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new", "quick_gelu"])
def test_model_can_be_copied_and_pickled(load: Load, hidden_act: str) -> None:
    model = load(hidden_act=hidden_act)
    graphdef, _ = nnx.split(model)
    assert pickle.loads(pickle.dumps(graphdef)) == graphdef
    expected = call(model, pixel_values=images())
    for other in (copy.deepcopy(model), nnx.clone(model), pickle.loads(pickle.dumps(model))):
        assert_close(call(other, pixel_values=images()), expected, atol=0)
        other.classifier.bias[...] += 1
        assert_close(call(other, pixel_values=images()).logits, expected.logits + 1)
    assert_close(call(model, pixel_values=images()), expected, atol=0)


# === Parameters and dtypes ===


@pytest.mark.parametrize("cls", MODELS)
def test_state_has_the_canonical_names(load: Load, cls: type) -> None:
    model = load(cls)
    parts = {"add_pooling_layer": cls.head is None, "use_mask_token": cls.head == "decoder"}
    names = model.config.parameter_shapes(head=cls.head, **parts)
    expected = {weights.local_name(name if cls.head else name.removeprefix("vit."), "flax") for name in names}
    state = nnx.to_pure_dict(nnx.state(model))  # all of it: no random state, no statistics
    assert {
        jax.tree_util.keystr(p, simple=True, separator=".") for p, _ in jax.tree.leaves_with_path(state)
    } == expected


def test_state_survives_the_way_to_numpy_and_back(model: Any) -> None:
    arrays = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
    assert {type(array) for array in jax.tree.leaves(arrays)} == {np.ndarray}
    other = FlaxViTForImageClassification(model.config, rngs=nnx.Rngs(1))
    state = nnx.state(other)
    nnx.replace_by_pure_dict(state, pickle.loads(pickle.dumps(arrays)))
    nnx.update(other, state)
    other.eval()
    assert_close(call(other, pixel_values=images()), call(model, pixel_values=images()), atol=0)


def test_mixed_precision_computes_in_bfloat16_and_trains_float32_parameters(load: Load, model: Any) -> None:
    mixed = FlaxViTForImageClassification(model.config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    nnx.update(mixed, nnx.state(model))
    mixed.eval()
    inputs = {"pixel_values": images(), "labels": LABELS}
    outputs = call(mixed, **inputs, output_hidden_states=True)
    assert {value.dtype for value in (outputs.logits, *outputs.hidden_states)} == {jnp.dtype(jnp.bfloat16)}
    assert outputs.loss.dtype == jnp.float32
    expected = call(model, **inputs)
    np.testing.assert_allclose(outputs.logits.astype(jnp.float32), expected.logits, rtol=0, atol=0.1)
    (loss, gradients), (_, expected_gradients) = (loss_and_gradients(each, inputs) for each in (mixed, model))
    assert abs(float(loss - expected.loss)) < 0.05
    assert_close(gradients, expected_gradients, atol=0.05)  # float32 too


@pytest.mark.parametrize(("dtype", "atol"), [("float16", 0.02), ("bfloat16", 0.15)])
@pytest.mark.parametrize("max_shard_size", ["5GB", "10KB"])
def test_half_precision_model_computes_saves_and_loads(
    load: Load, model: Any, tmp_path: Any, dtype: str, atol: float, max_shard_size: str
) -> None:
    half = load(options={"dtype": dtype})
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(half))} == {dtype}
    outputs, expected = (call(each, pixel_values=images(), labels=LABELS) for each in (half, model))
    assert outputs.logits.dtype == dtype
    assert outputs.loss.dtype == jnp.float32
    np.testing.assert_allclose(outputs.logits.astype(jnp.float32), expected.logits, rtol=0, atol=atol)
    half.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_size == "10KB")
    again = FlaxViTForImageClassification.from_pretrained(tmp_path)
    assert again.config.dtype == dtype
    assert_close(nnx.state(again), nnx.state(half), atol=0)


def test_float64_needs_x64_and_computes_in_it(load: Load, model: Any) -> None:
    with pytest.raises(InputError, match=r"float64, which JAX has .*jax_enable_x64"):
        load(options={"dtype": "float64"})
    with jax.enable_x64(True):
        double = load(options={"dtype": "float64"})
        outputs = call(double, pixel_values=images(), labels=LABELS)
        assert {value.dtype.name for value in outputs.values()} == {"float64"}
        np.testing.assert_allclose(outputs.logits, call(model, pixel_values=images()).logits, rtol=0, atol=1e-5)


def test_loading_draws_nothing(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    original, drawn = jax.nn.initializers.truncated_normal, []

    def watched(*args: Any, **kwargs: Any) -> Any:
        def init(key: Any, *shape: Any, **options: Any) -> Any:
            drawn.append(key)
            return original(*args, **kwargs)(key, *shape, **options)

        return init

    monkeypatch.setattr(jax.nn.initializers, "truncated_normal", watched)
    models = [load(cls) for cls in MODELS]
    assert all(isinstance(key, jax.core.Tracer) for key in drawn)  # at most shapes were computed
    drawn.clear()
    FlaxViTModel(models[0].config, rngs=nnx.Rngs(0))
    assert len(drawn) > 5
    assert not any(isinstance(key, jax.core.Tracer) for key in drawn)


def test_fresh_model_starts_as_published_and_in_training_mode(tiny_config: Any) -> None:
    config = tiny_config(hidden_size=64, intermediate_size=256, initializer_range=0.05)
    model = nnx.jit(lambda rngs: FlaxViTForImageClassification(config, rngs=rngs))(nnx.Rngs(0))
    names = {weights.local_name(name, "flax"): name for name in config.parameter_shapes(head="classifier")}
    state = nnx.to_pure_dict(nnx.state(model))
    for path, value in jax.tree.leaves_with_path(state):
        name = names[jax.tree_util.keystr(path, simple=True, separator=".")]
        start = weights.initial_value(name)
        if start is None:
            assert np.abs(value).max() <= 0.1, name
            assert value.size < 1000 or 0.04 < np.std(value) < 0.05, name  # 0.88 * 0.05
        else:
            np.testing.assert_array_equal(value, start, err_msg=name)
    assert model.vit.embeddings.dropout.deterministic is False
    model.eval()
    assert model.vit.embeddings.dropout.deterministic is True


# === Outputs ===


@pytest.mark.parametrize("cls", MODELS)
def test_return_dict_false_gives_the_same_values_as_a_tuple(load: Load, cls: type) -> None:
    model = load(cls)
    expected = call(model, **inputs_of(cls), output_hidden_states=True)
    outputs = call(model, **inputs_of(cls), output_hidden_states=True, return_dict=False)
    assert type(outputs) is tuple
    assert_close(outputs, expected.to_tuple(), atol=1e-6)


def test_configuration_sets_what_a_call_returns(load: Load) -> None:
    model = load(output_hidden_states=True, output_attentions=True)
    assert list(call(model, pixel_values=images())) == ["logits", "hidden_states", "attentions"]
    quiet = call(model, pixel_values=images(), output_hidden_states=False, output_attentions=False)
    assert list(quiet) == ["logits"]
    model = load(return_dict=False)
    assert isinstance(call(model, pixel_values=images()), tuple)
    assert isinstance(call(model, pixel_values=images(), return_dict=True), ModelOutput)


def test_output_is_a_pytree_whose_paths_are_its_keys(model: Any) -> None:
    outputs = call(model, pixel_values=images(), output_hidden_states=True)
    doubled = jax.tree.map(lambda value: 2 * value, outputs)
    assert isinstance(doubled, ModelOutput)
    assert list(doubled) == ["logits", "hidden_states"]
    assert_close(doubled.hidden_states[1], 2 * outputs.hidden_states[1], atol=0)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(outputs)]
    assert paths == ["['logits']", *(f"['hidden_states'][{i}]" for i in range(2))]


EXPORTED = """
import sys
import jax
import numpy as np
leaves = [np.load(f"{sys.argv[1]}/{i}.npy") for i in range(int(sys.argv[2]))]
call = jax.export.deserialize(bytearray(open(f"{sys.argv[1]}/call", "rb").read())).call
np.save(f"{sys.argv[1]}/logits.npy", call(leaves, np.load(f"{sys.argv[1]}/images.npy")))
assert not {"vit", "flax"} & set(sys.modules)
"""


def test_a_function_of_the_state_is_exported_and_called_where_neither_flax_nor_this_package_is(
    load: Load, tmp_path: Path
) -> None:
    model = load()
    graphdef, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(state)

    @jax.jit
    def logits(leaves: list[jax.Array], pixel_values: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, jax.tree.unflatten(tree, leaves))(pixel_values).logits

    (tmp_path / "call").write_bytes(jax_export.export(logits)(leaves, images()).serialize())
    for name, array in {"images": images(), **{str(i): np.asarray(leaf) for i, leaf in enumerate(leaves)}}.items():
        np.save(tmp_path / f"{name}.npy", array)
    code = "import jax.export\n" + EXPORTED
    subprocess.run([sys.executable, "-c", code, tmp_path, str(len(leaves))], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), model(images()).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cls", MODELS)
def test_a_model_computes_in_the_dtype_that_is_said_or_in_that_of_its_parameters(tiny_config: Any, cls: type) -> None:
    for said, dtype in (
        ({}, jnp.float32), ({"dtype": jnp.bfloat16}, jnp.bfloat16), ({"param_dtype": jnp.bfloat16}, jnp.bfloat16),
        ({"dtype": jnp.float32, "param_dtype": jnp.bfloat16}, jnp.float32),
    ):  # fmt: skip
        model = nnx.eval_shape(lambda said=said: cls(tiny_config(), **said, rngs=nnx.Rngs(0)))
        assert model.dtype == dtype, said
