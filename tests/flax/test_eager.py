"""Outside of any transformation modules are compiled whole; nothing else about them changes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit import FlaxViTForImageClassification, FlaxViTModel
from vit.flax import eager, layers


@pytest.fixture
def model(tiny_config: Any) -> FlaxViTForImageClassification:
    config = tiny_config(num_labels=3, hidden_dropout_prob=0.5)
    model = FlaxViTForImageClassification(config, rngs=nnx.Rngs(0))
    model.eval()
    return model


@pytest.fixture
def pixel_values(model: FlaxViTForImageClassification) -> np.ndarray:
    shape = (2, model.config.num_channels, *np.broadcast_to(model.config.image_size, 2))
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def test_layers_alike_share_one_compilation(model, pixel_values):
    eager._compiled.clear_cache()
    first = model(pixel_values).logits
    assert len(model.vit.encoder.layer) > 1
    assert eager._compiled._cache_size() == 4  # embeddings, a layer, LayerNorm, the head
    np.testing.assert_array_equal(model(pixel_values).logits, first)
    assert eager._compiled._cache_size() == 4


def test_a_head_may_be_any_function(model, pixel_values):
    linear = model.classifier
    expected = model(pixel_values).logits
    model.classifier = lambda x: 2 * linear(x)
    np.testing.assert_allclose(model(pixel_values).logits, 2 * expected, rtol=1e-5)


def test_it_is_what_the_operations_one_by_one_give(model, pixel_values):
    found = model(pixel_values, output_hidden_states=True, output_attentions=True)
    with jax.disable_jit():
        expected = model(pixel_values, output_hidden_states=True, output_attentions=True)
    for one, other in zip(jax.tree.leaves(dict(found)), jax.tree.leaves(dict(expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_changed_weights_are_seen(model, pixel_values):
    before = model(pixel_values).logits
    kernel = model.vit.encoder.layer[1].output.dense.kernel
    kernel[...] = kernel[...] * 20
    assert abs(model(pixel_values).logits - before).max() > 1e-3


def test_masks_of_numpy_and_jax_and_dropout(tiny_config):
    model = FlaxViTModel(tiny_config(hidden_dropout_prob=0.5), use_mask_token=True, rngs=nnx.Rngs(0))
    config = model.config
    pixel_values = jnp.ones((1, config.num_channels, *np.broadcast_to(config.image_size, 2)))
    mask = np.zeros((1, config.num_patches), bool)
    mask[0, 0] = True
    model.eval()
    masked = model(pixel_values, mask).last_hidden_state
    np.testing.assert_array_equal(model(pixel_values, jnp.asarray(mask)).last_hidden_state, masked)
    assert abs(model(pixel_values, ~mask).last_hidden_state - masked).max() > 1e-3
    model.train()
    rngs = nnx.Rngs(dropout=0)
    one, other = (model(pixel_values, rngs=rngs).last_hidden_state for _ in range(2))
    assert abs(one - other).max() > 1e-3  # the stream of random numbers went on


@pytest.mark.parametrize(
    "transformed",
    [
        lambda model, x: jax.jit(lambda: model(x).logits)(),
        lambda model, x: jax.jit(lambda x: model(x).logits)(x),
        lambda model, x: jax.vmap(lambda x: model(x).logits)(jnp.asarray(x)[:, None])[:, 0],
        lambda model, x: jax.grad(lambda scale: (model(x).logits * scale).sum())(jnp.ones((2, 3))),
        lambda model, x: jax.lax.scan(lambda _, __: (None, model(x).logits), None, None, length=2)[1][1],
        lambda model, x: nnx.jit(lambda model, x: model(x).logits)(model, x),
        lambda model, x: nnx.remat(lambda model, x: model(x).logits)(model, x),
    ],
)
def test_transformations_around_it_give_the_same(model, pixel_values, transformed):
    np.testing.assert_allclose(transformed(model, pixel_values), model(pixel_values).logits, rtol=1e-5, atol=1e-6)


def test_a_gradient_of_some_weights_reaches_them(model, pixel_values):
    def loss(model):
        return (model(pixel_values).logits ** 2).sum()

    every = nnx.grad(loss)(model)
    for part in ("classifier", "encoder", "embeddings"):
        some = nnx.grad(loss, argnums=nnx.DiffState(0, nnx.PathContains(part)))(model)
        found = dict(nnx.to_flat_state(some))
        assert found
        expected = dict(nnx.to_flat_state(every))
        for path, value in found.items():
            np.testing.assert_allclose(value[...], expected[path][...], rtol=1e-4, atol=1e-5)


def test_what_a_changed_module_keeps_of_a_call_is_there_afterwards(model, pixel_values):
    class Watched(layers.ViTAttention):
        def __call__(self, *args):
            self.seen = nnx.Intermediate(args[0])
            return super().__call__(*args)

    expected = model(pixel_values).logits
    attention = model.vit.encoder.layer[1].attention
    attention.__class__ = Watched
    np.testing.assert_allclose(model(pixel_values).logits, expected, rtol=1e-5, atol=1e-6)
    assert attention.seen[...].shape == (2, model.config.num_patches + 1, model.config.hidden_size)
