"""What is assigned to a model or its configuration holds at once in every framework, compiled or not; or is refused."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import vit
from vit import ConfigError

PREFIXES = ("", "TF", "Flax")
CHANGES = {  # key: (value, what the output then holds)
    "output_attentions": (True, "attentions"),
    "output_hidden_states": (True, "hidden_states"),
    "return_dict": (False, None),
}


def build(prefix: str, config: vit.ViTConfig) -> Any:
    cls = getattr(vit, f"{prefix}ViTForImageClassification")
    if prefix != "Flax":
        return cls(config) if prefix else cls(config).eval()
    from flax import nnx

    model = cls(config, rngs=nnx.Rngs(0))
    model.eval()
    return model


def calls(prefix: str, model: Any) -> dict[str, Any]:
    """Ways to call a model on images, of which compiled ones keep what they compiled."""
    pixel_values = np.ones((2, 3, 16, 16), np.float32)
    if prefix == "":
        import torch

        compiled, images = torch.compile(model, fullgraph=True, backend="eager"), torch.from_numpy(pixel_values)
        return {"plain": lambda: model(images), "torch.compile": lambda: compiled(images)}
    if prefix == "TF":
        model.compile("sgd")
        return {"plain": lambda: model(pixel_values), "predict": lambda: model.predict(pixel_values, verbose=0)}
    import jax
    from flax import nnx

    by_nnx, by_jax = nnx.jit(lambda model, x: model(x)), jax.jit(lambda model, x: model(x))
    by_graph = jax.jit(lambda graph, state, x: nnx.merge(graph, state)(x), static_argnums=0)
    return {
        "plain": lambda: model(pixel_values),
        "nnx.jit": lambda: by_nnx(model, pixel_values),
        "jax.jit": lambda: by_jax(model, pixel_values),
        "split and merge": lambda: by_graph(*nnx.split(model), pixel_values),
    }


def holds(output: Any, key: str) -> bool:
    return not isinstance(output, dict) if CHANGES[key][1] is None else CHANGES[key][1] in output


@pytest.mark.parametrize("key", CHANGES)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_an_assigned_behaviour_holds_at_once_in_every_kind_of_call_and_can_be_undone(
    prefix: str, key: str, tiny_config: Any
):
    model = build(prefix, tiny_config())
    ways = calls(prefix, model)
    before = getattr(model.config, key)
    for value in (before, CHANGES[key][0], before, CHANGES[key][0]):
        setattr(model.config, key, value)
        for name, call in ways.items():
            assert holds(call(), key) is (value != before), name


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_configuration_assigned_to_a_model_holds_for_all_of_it(prefix: str, tiny_config: Any):
    model = build(prefix, tiny_config())
    ways = calls(prefix, model)
    for call in ways.values():
        call()
    model.config = model.config.replace(output_attentions=True)
    assert model.vit.config is model.config
    assert all("attentions" in call() for call in ways.values())
    model.config.output_attentions = False
    assert not any("attentions" in call() for call in ways.values())


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("overrides", [{"hidden_size": 64}, {"num_labels": 7}, {"layer_norm_eps": 1e-3}])
def test_a_configuration_of_another_shape_cannot_be_assigned(prefix: str, overrides: Any, tiny_config: Any):
    model = build(prefix, tiny_config())
    old = model.config
    with pytest.raises(ConfigError, match=f"The model has {next(iter(overrides))} .* build or load a model with"):
        model.config = old.replace(**overrides)
    with pytest.raises(ConfigError, match="config is a dict; expected a ViTConfig"):
        model.config = {}
    assert model.config is old


def logits(prefix: str, model: Any, seed: int) -> np.ndarray:
    """Of a call in training mode, with other random numbers for another seed."""
    pixel_values = np.ones((2, 3, 16, 16), np.float32)
    if prefix == "":
        import torch

        torch.manual_seed(seed)
        return model.train()(torch.from_numpy(pixel_values)).logits.detach().numpy()
    if prefix == "TF":
        return model(pixel_values, training=True).logits.numpy()
    from flax import nnx

    model.train()
    return np.asarray(nnx.jit(lambda model, rngs: model(pixel_values, rngs=rngs).logits)(model, nnx.Rngs(dropout=seed)))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("key", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_dropout_that_is_assigned_drops_and_can_be_switched_off(
    prefix: str, key: str, attention: str, tiny_config: Any
):
    model = build(prefix, tiny_config(attn_implementation=attention))
    np.testing.assert_array_equal(logits(prefix, model, 0), logits(prefix, model, 1))
    setattr(model.config, key, 0.5)
    assert not np.array_equal(logits(prefix, model, 0), logits(prefix, model, 1))
    setattr(model.config, key, 0.0)
    np.testing.assert_array_equal(logits(prefix, model, 0), logits(prefix, model, 1))


def test_a_keras_model_trains_on_after_dropout_was_assigned_and_is_saved_whole(tiny_config: Any, tmp_path: Any):
    import keras

    model = build("TF", tiny_config())
    x, y = np.ones((2, 3, 16, 16), np.float32), np.array([0, 1])
    model.compile("sgd")
    model.fit(x, y, verbose=0)
    model.config.hidden_dropout_prob = 0.5
    model.fit(x, y, verbose=0, epochs=2)
    model.save(tmp_path / "model.keras")
    same = keras.models.load_model(tmp_path / "model.keras")
    assert same.config == model.config
    np.testing.assert_allclose(same(x).logits, model(x).logits, atol=1e-6)


@pytest.mark.parametrize("prefix", ["", "Flax"])
def test_a_probability_assigned_to_one_dropout_holds_for_that_one(prefix: str, tiny_config: Any):
    model = build(prefix, tiny_config(hidden_dropout_prob=0.5))
    dropout, name = model.vit.embeddings.dropout, "rate" if prefix else "p"
    setattr(dropout, name, 0.25)
    model.config.hidden_dropout_prob = 0.1
    assert getattr(dropout, name) == 0.25
    assert getattr(model.vit.encoder.layer[0].output.dropout, name) == 0.1


def merged(model: Any) -> Any:
    from flax import nnx

    return nnx.merge(*nnx.split(model))


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model))}
FLAX_COPIES = {"merge": merged}


@pytest.mark.parametrize(
    ("prefix", "clone"),
    [(prefix, each) for prefix in PREFIXES for each in ({**COPIES, **FLAX_COPIES} if prefix == "Flax" else COPIES)],
)
def test_a_copy_of_a_model_has_a_configuration_of_its_own_that_is_guarded_as_well(
    prefix: str, clone: str, tiny_config: Any
):
    model = build(prefix, tiny_config())
    same = {**COPIES, **FLAX_COPIES}[clone](model)
    same.config.output_attentions = True
    assert same.vit.config is same.config
    assert not model.config.output_attentions
    with pytest.raises(ConfigError, match="hidden_size is part of what a model is made of"):
        same.config.update({"hidden_size": 64})
    with pytest.raises(ConfigError, match="The model has hidden_size 32"):
        same.config = same.config.replace(hidden_size=64)
    free = copy.deepcopy(same.config)  # no model has that one
    free.update({"hidden_size": 64})
    assert same.config.hidden_size == 32


def test_flax_modules_share_their_configuration_through_split_merge_and_transformations(tiny_config: Any):
    from flax import nnx

    model = build("Flax", tiny_config())
    graph, state = nnx.split(model)
    merged = nnx.merge(graph, state)
    assert merged.config is merged.vit.config is merged.vit.encoder.layer[1].output.dropout.config
    merged.config.return_dict = False
    assert model.config.return_dict
    assert nnx.merge(graph, state).config.return_dict
    nnx.jit(lambda model: setattr(model.config, "output_hidden_states", True))(model)
    assert model.config.output_hidden_states
    assert model.vit.config is model.config


def test_an_assigned_dtype_of_a_flax_model_is_that_of_its_computation(tiny_config: Any):
    import jax.numpy as jnp
    from flax import nnx

    model = build("Flax", tiny_config())
    run = nnx.jit(lambda model: model(np.ones((1, 3, 16, 16), np.float32), output_hidden_states=True))
    run(model)
    model.dtype = jnp.bfloat16
    for output in (run(model), model(np.ones((1, 3, 16, 16), np.float32), output_hidden_states=True)):
        assert {each.dtype.name for each in (output.logits, *output.hidden_states)} == {"bfloat16"}
    assert model.classifier.kernel.dtype == model.vit.embeddings.cls_token.dtype == jnp.float32
