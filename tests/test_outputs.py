"""ModelOutput: access, absence, copies, and a pytree in every framework."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from vit import ModelOutput
from vit.outputs import FIELDS, collect, flatten, unflatten


@pytest.fixture
def output() -> ModelOutput:
    return collect(
        True,
        loss=None,
        logits=np.arange(6.0).reshape(2, 3),
        hidden_states=(np.zeros(2), np.ones(2)),
        attentions=None,
    )


# === Access ===


def test_a_value_is_the_same_by_attribute_key_and_position(output):
    assert output.logits is output["logits"] is output[0]
    assert output.hidden_states is output["hidden_states"] is output[1] is output[-1]


def test_only_what_was_computed_is_there_in_the_order_given(output):
    assert list(output) == ["logits", "hidden_states"]
    assert output.to_tuple() == (output.logits, output.hidden_states)
    assert output[:1] == (output.logits,)
    assert output[:] == output.to_tuple()
    assert len(output) == 2


def test_without_return_dict_it_is_the_tuple(output):
    result = collect(False, loss=None, logits=output.logits, attentions=None)
    assert type(result) is tuple
    assert result[0] is output.logits
    assert len(result) == 1


@pytest.mark.parametrize("name", FIELDS)
def test_what_a_call_left_out_is_none_as_an_attribute_and_absent_as_a_key(output, name):
    del output["hidden_states"]
    assert getattr(output, name) is None
    assert name not in output
    assert output.get(name) is None
    with pytest.raises(KeyError):
        output[name]


def test_a_name_that_no_call_gives_is_an_attribute_error(output):
    with pytest.raises(AttributeError, match=r"^This output holds logits, hidden_states, not nonsense\.$"):
        output.nonsense  # noqa: B018
    with pytest.raises(IndexError):
        output[2]


def test_setting_an_attribute_sets_the_field(output):
    output.logits = "new"
    output.loss = 1.0
    assert output["logits"] == output[0] == "new"
    assert output["loss"] == 1.0


def test_dir_lists_the_fields_for_completion(output):
    assert {"logits", "hidden_states", "to_tuple", "keys"} <= set(dir(output))


# === Copies ===


@pytest.mark.parametrize("clone", [
    copy.copy, copy.deepcopy, *(lambda o, p=p: pickle.loads(pickle.dumps(o, protocol=p)) for p in range(2, 6)),
])  # fmt: skip
def test_copies_and_pickles_are_outputs_with_the_same_fields(output, clone):
    result = clone(output)
    assert type(result) is ModelOutput
    assert list(result) == list(output)
    np.testing.assert_array_equal(result.logits, output.logits)


def test_a_deep_copy_shares_nothing(output):
    assert not np.shares_memory(copy.deepcopy(output).logits, output.logits)


def test_flatten_and_unflatten_are_inverse(output):
    values, names = flatten(output)
    assert names == ("logits", "hidden_states")
    assert unflatten(names, values) == output


# === Pytrees ===


def double(value):
    return value * 2


def check_doubled(result, output):
    assert type(result) is ModelOutput
    assert list(result) == list(output)
    np.testing.assert_array_equal(result.logits, output.logits * 2)
    np.testing.assert_array_equal(result.hidden_states[1], output.hidden_states[1] * 2)


def test_it_is_a_pytree_of_torch(output):
    from torch.utils import _pytree

    import vit.pt  # noqa: F401  (registers it)

    check_doubled(_pytree.tree_map(double, output), output)
    leaves, spec = _pytree.tree_flatten(output)
    assert len(leaves) == 3
    assert _pytree.tree_unflatten(leaves, _pytree.treespec_loads(_pytree.treespec_dumps(spec))) == output


def test_it_is_a_pytree_of_jax_with_named_paths(output):
    import jax

    import vit.flax  # noqa: F401

    check_doubled(jax.tree.map(double, output), output)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(output)[0]]
    assert paths == ["['logits']", "['hidden_states'][0]", "['hidden_states'][1]"]
    check_doubled(jax.jit(lambda o: jax.tree.map(double, o))(output), output)


def test_it_is_a_pytree_of_keras(output):
    import keras

    import vit.tf  # noqa: F401

    check_doubled(keras.tree.map_structure(double, output), output)
    paths = [path for path, _ in keras.tree.flatten_with_path(output)]
    assert paths == [("logits",), ("hidden_states", 0), ("hidden_states", 1)]
    assert len(keras.tree.flatten(output)) == 3


def test_it_is_a_structure_of_tensorflow(output):
    import tensorflow as tf

    import vit.tf  # noqa: F401

    result = tf.nest.map_structure(double, output)
    assert type(result) is ModelOutput
    assert set(result) == set(output)
    np.testing.assert_array_equal(result.logits, output.logits * 2)
    in_graph = tf.function(lambda o: tf.nest.map_structure(double, o))(tf.nest.map_structure(tf.constant, output))
    check_doubled(in_graph, output)


def test_all_frameworks_take_it_apart_into_the_same_leaves(output):
    import jax
    import keras
    from torch.utils import _pytree

    import vit.flax
    import vit.pt
    import vit.tf  # noqa: F401

    leaves = (_pytree.tree_leaves(output), jax.tree.leaves(output), keras.tree.flatten(output))
    for ours in leaves:
        assert all(a is b for a, b in zip(ours, [output.logits, *output.hidden_states], strict=True))


# === What rebuilds containers ===


def test_what_rebuilds_containers_one_by_one_gives_outputs_back(output):
    import torch
    from torch.distributed.utils import _apply_to_tensors  # as the first FSDP does with what a model gives

    tensors = ModelOutput(loss=torch.ones(()), logits=torch.ones(2, 3), hidden_states=(torch.zeros(2), torch.ones(2)))
    for result in (_apply_to_tensors(double, tensors), type(output)((key, tensors[key]) for key in tensors)):
        assert type(result) is ModelOutput
        assert list(result) == list(tensors)
    assert _apply_to_tensors(double, tensors).hidden_states[1].tolist() == [2, 2]


@pytest.mark.parametrize("clone", [lambda o: o.copy(), lambda o: o | {}, lambda o: ModelOutput(o)])
def test_copies_by_other_means_are_outputs(output, clone):
    assert type(clone(output)) is ModelOutput
    assert clone(output).logits is output.logits
