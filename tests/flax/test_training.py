"""The Flax models train as NNX modules do; that their gradients are right, tests/test_equivalence.py shows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from vit import InputError

from ..common import LABELS, Load, images, inputs_of
from .common import MODELS, assert_close, call, loss_and_gradients

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_overfits_a_small_batch_with_optax(load: Load) -> None:
    model = load(hidden_dropout_prob=0.1)
    model.train()
    optimizer = nnx.Optimizer(model, optax.adam(5e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: Any, rngs: Any, x: Any, y: Any) -> Any:
        loss, gradients = nnx.value_and_grad(lambda model, rngs: model(x, labels=y, rngs=rngs).loss)(model, rngs)
        optimizer.update(model, gradients)
        return loss

    rngs = nnx.Rngs(dropout=0)
    losses = [float(step(model, optimizer, rngs, images(), LABELS)) for _ in range(60)]
    assert losses[-1] < 0.1 < losses[0]
    model.eval()
    outputs = call(model, pixel_values=images(), labels=LABELS)
    assert float(outputs.loss) < 0.05
    np.testing.assert_array_equal(outputs.logits.argmax(-1), LABELS)


def test_trains_with_a_donated_state_in_plain_jax(load: Load) -> None:
    graphdef, state = nnx.split(load())
    optimizer = optax.sgd(0.1)

    def step(state: Any, opt_state: Any, x: Any, y: Any) -> tuple[Any, Any, Any]:
        loss, gradients = jax.value_and_grad(lambda state: nnx.merge(graphdef, state)(x, labels=y).loss)(state)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return optax.apply_updates(state, updates), opt_state, loss

    step = jax.jit(step, donate_argnums=(0, 1))
    first, opt_state, losses = state, optimizer.init(state), []
    for _ in range(20):
        state, opt_state, loss = step(state, opt_state, images(), LABELS)
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_frozen_backbone_trains_the_head_alone(load: Load) -> None:
    model = load()
    head = nnx.All(nnx.Param, nnx.PathContains("classifier"))
    gradients = nnx.grad(lambda model: model(images(), labels=LABELS).loss, argnums=nnx.DiffState(0, head))(model)
    assert list(nnx.to_pure_dict(gradients)) == ["classifier"]
    before = nnx.to_pure_dict(jax.tree.map(jnp.copy, nnx.state(model)))
    nnx.Optimizer(model, optax.sgd(0.1), wrt=head).update(model, gradients)
    after = nnx.to_pure_dict(nnx.state(model))
    assert_close(after["vit"], before["vit"], atol=0)
    assert float(jnp.abs(after["classifier"]["kernel"] - before["classifier"]["kernel"]).max()) > 1e-4


@pytest.mark.parametrize("cls", MODELS[1:])
def test_every_parameter_gets_a_gradient(load: Load, cls: type) -> None:
    model = load(cls)
    _, gradients = loss_and_gradients(model, inputs_of(cls))
    for path, gradient in jax.tree.leaves_with_path(nnx.to_pure_dict(gradients)):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if "key.bias" not in name:  # softmax does not see what all keys share
            assert float(jnp.abs(gradient).max()) > 1e-7, name


def test_gradient_checkpointing_recomputes_each_layer_and_keeps_the_gradients(load: Load) -> None:
    model = load(num_hidden_layers=2, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    model.train()
    inputs = inputs_of(type(model))

    def remats() -> int:
        graphdef, state = nnx.split(model)
        forward = lambda state: nnx.merge(graphdef, state)(images(), rngs=nnx.Rngs(0)).logits  # noqa: E731
        return sum("remat" in equation.primitive.name for equation in jax.make_jaxpr(forward)(state).eqns)

    assert remats() == 0
    expected = loss_and_gradients(model, inputs, nnx.Rngs(dropout=1))
    model.gradient_checkpointing_enable()
    assert remats() == 2
    assert_close(loss_and_gradients(model, inputs, nnx.Rngs(dropout=1)), expected, atol=1e-6)
    outputs = call(model, pixel_values=images(), output_attentions=True, rngs=nnx.Rngs(dropout=1))
    assert [attentions.shape for attentions in outputs.attentions] == [(4, 4, 13, 13)] * 2
    model.gradient_checkpointing_disable()
    assert remats() == 0


def test_gradient_checkpointing_keeps_fewer_activations(load: Load) -> None:
    model = load()

    def kept() -> int:
        graphdef, state = nnx.split(model)
        _, pullback = jax.vjp(lambda state: nnx.merge(graphdef, state)(images()).logits, state)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state))
        return sum(leaf.size for leaf in jax.tree.leaves(pullback)) - parameters

    everything = kept()
    model.gradient_checkpointing_enable()
    assert kept() < everything / 4


@pytest.mark.parametrize("place", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_follows_its_key_in_training_and_is_off_in_evaluation(load: Load, place: str) -> None:
    model = load(**{place: 0.4})
    without = call(load(), pixel_values=images())
    assert_close(call(model, pixel_values=images()), without)
    model.train()
    first, same, other = (call(model, pixel_values=images(), rngs=nnx.Rngs(dropout=key)).logits for key in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert float(jnp.abs(first - other).max()) > 0.01
    with pytest.raises(ValueError, match="no `rngs` argument was provided to Dropout"):
        model(images())
    model.eval()
    assert_close(call(model, pixel_values=images()), without)


def test_dropout_advances_the_stream_it_is_given(load: Load) -> None:
    model, rngs = load(hidden_dropout_prob=0.4), nnx.Rngs(dropout=0)
    model.train()
    first, second = (call(model, pixel_values=images(), rngs=rngs).logits for _ in range(2))
    assert float(jnp.abs(first - second).max()) > 0.01


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [
        ("single_label_classification", np.array([3, 0, 2, 1])),
        ("multi_label_classification", np.eye(5, dtype=np.int32)[:4] + np.eye(5, k=1, dtype=np.int32)[:4]),
        ("regression", np.arange(20, dtype=np.float32).reshape(4, 5) / 10),
    ],
)
def test_loss_is_that_of_the_problem_type(load: Load, problem_type: str, labels: np.ndarray) -> None:
    outputs = call(load(problem_type=problem_type), pixel_values=images(), labels=labels)
    logits = np.asarray(outputs.logits, np.float64)
    shifted = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = {
        "single_label_classification": lambda: -shifted[np.arange(4), labels].mean(),
        "multi_label_classification": lambda: np.log1p(np.exp(np.where(labels == 1, -logits, logits))).mean(),
        "regression": lambda: ((logits - labels) ** 2).mean(),
    }[problem_type]()
    np.testing.assert_allclose(outputs.loss, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("label", [5, -1])
def test_label_out_of_range_is_named_and_gives_nan_under_jit(model: Any, label: int) -> None:
    labels = np.array([0, label, 1, 2])
    with pytest.raises(InputError, match=rf"labels holds {label}; expected 0 to 4 \(num_labels is 5\)"):
        model(images(), labels=labels)
    outputs = call(model, pixel_values=images(), labels=labels)
    assert np.isnan(outputs.loss)
    assert np.isfinite(outputs.logits).all()


def test_label_of_minus_100_is_left_out_of_the_loss(model: Any) -> None:
    expected = call(model, pixel_values=images()[:3], labels=LABELS[:3]).loss
    actual = call(model, pixel_values=images(), labels=np.array([*LABELS[:3], -100])).loss
    assert_close(actual, expected)
