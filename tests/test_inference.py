"""`vit.inference.Forward`: NumPy in, NumPy out, the same in every framework, of a name or a loaded model."""

from __future__ import annotations

import gc
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from tensorflow.python.framework.func_graph import FuncGraph

import vit
from vit import InputError, MissingFrameworkError, inference
from vit.inference import Forward

PREFIXES = {"pt": "", "tf": "TF", "flax": "Flax"}
frameworks = pytest.mark.parametrize("framework", PREFIXES)


@pytest.fixture(scope="module")
def folder(random_checkpoint: Any, tiny_config: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("checkpoint"), tiny_config(), head="classifier")


@pytest.fixture(scope="module")
def pixel_values() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((3, 3, 16, 16), np.float32)


def loaded(framework: str, folder: Path, name: str = "ViTForImageClassification") -> Any:
    return getattr(vit, PREFIXES[framework] + name).from_pretrained(folder)


@frameworks
def test_every_output_is_a_float32_array_and_the_same_in_every_framework(framework, folder, pixel_values):
    flags = {"output_hidden_states": True, "output_attentions": True}
    outputs = Forward(folder, framework)(pixel_values, **flags)
    expected = Forward(folder, "pt")(pixel_values, **flags)
    assert list(outputs) == ["logits", "hidden_states", "attentions"]
    assert [value.shape for value in outputs.attentions] == [(3, 4, 17, 17)] * 2
    for found, other in zip((outputs.logits, *outputs.hidden_states, *outputs.attentions),
                            (expected.logits, *expected.hidden_states, *expected.attentions), strict=True):  # fmt: skip
        assert (type(found), found.dtype) == (np.ndarray, np.float32)
        np.testing.assert_allclose(found, other, rtol=0, atol=1e-5)


@frameworks
def test_half_precision_comes_out_as_float32(framework, folder, pixel_values):
    half = Forward(folder, framework, dtype="bfloat16")
    assert half.config.dtype == "bfloat16"
    logits = half(pixel_values).logits
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, Forward(folder, framework)(pixel_values).logits, atol=0.2)


@frameworks
def test_other_sizes_are_interpolated_when_asked(framework, folder):
    larger = np.random.default_rng(2).standard_normal((1, 3, 24, 20), np.float32)
    with pytest.raises(InputError, match="interpolate_pos_encoding=True"):
        Forward(folder, framework)(larger)
    assert Forward(folder, framework)(larger, interpolate_pos_encoding=True).logits.shape == (1, 5)


@frameworks
def test_a_loaded_model_gives_what_its_folder_gives(framework, folder, pixel_values):
    forward = Forward(loaded(framework, folder))
    assert (forward.framework, forward.head, forward.device_type) == (framework, "classifier", "cpu")
    np.testing.assert_array_equal(forward(pixel_values).logits, Forward(folder, framework)(pixel_values).logits)


@frameworks
def test_threads_may_call_it_at_the_same_time(framework, folder):
    batches = np.random.default_rng(3).standard_normal((12, 2, 3, 16, 16), np.float32)
    forward = Forward(folder, framework)
    with ThreadPoolExecutor(4) as pool:
        found = [outputs.logits for outputs in pool.map(forward, batches)]
    np.testing.assert_array_equal(found, [forward(batch).logits for batch in batches])


def test_a_model_in_training_mode_is_refused_where_dropout_would_be_on(folder):
    model = loaded("pt", folder).train()
    with pytest.raises(InputError, match=r"call model\.eval\(\)"):
        Forward(model)


@pytest.mark.parametrize("framework", ["tf", "flax"])
def test_a_model_that_trains_answers_without_dropout_and_goes_on_training(
    framework, random_checkpoint, tiny_config, tmp_path, pixel_values
):
    random_checkpoint(tmp_path, tiny_config(hidden_dropout_prob=0.5), head="classifier")
    model = loaded(framework, tmp_path)
    if framework == "flax":
        model.train()
    found = Forward(model)(pixel_values).logits
    np.testing.assert_allclose(found, Forward(tmp_path, "pt")(pixel_values).logits, atol=1e-5)
    if framework == "flax":
        dropped = [np.asarray(model(pixel_values, rngs=nnx.Rngs(seed)).logits) for seed in range(2)]
        assert np.ptp(dropped, axis=0).max() > 0.01


def test_what_cannot_change_a_loaded_model_is_refused(folder):
    model = loaded("pt", folder)
    with pytest.raises(InputError, match="framework='flax', dtype cannot change a model that is loaded"):
        Forward(model, "flax", dtype="bfloat16")
    with pytest.raises(InputError, match=r"^framework='flax' cannot change"):
        Forward(model, "flax")
    with pytest.raises(InputError, match=r"^dtype cannot change"):
        Forward(model, dtype="bfloat16")
    assert Forward(model, "pt").model is Forward(model).model is model


def test_something_else_than_a_model_is_named(folder):
    with pytest.raises(InputError, match=r"model is a builtins\.dict; expected a checkpoint folder"):
        Forward({})


def test_an_unknown_framework_and_one_that_is_not_installed_are_named(folder, monkeypatch):
    with pytest.raises(InputError, match="framework is 'theano'; expected one of pt, tf, flax"):
        Forward(folder, "theano")
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(MissingFrameworkError, match=r"pip install .*tensorflow"):
        Forward(folder, "tf")


@pytest.mark.parametrize("framework", ["tf", "flax"])
def test_programs_for_many_image_sizes_are_kept_up_to_a_bound_and_those_used_last(framework, folder, monkeypatch):
    monkeypatch.setattr(inference, "PROGRAMS", 3)
    forward, traced = Forward(folder, framework), []
    call = forward.model.__class__.__call__ if framework == "flax" else forward.model.__class__.call

    def counted(self: Any, pixel_values: Any, *args: Any, **kwargs: Any) -> Any:
        traced.append(pixel_values.shape[2])
        return call(self, pixel_values, *args, **kwargs)

    monkeypatch.setattr(forward.model.__class__, call.__name__, counted)
    expected = Forward(folder, "pt")
    for height, is_new in [(16, True), (20, True), (24, True), (16, False), (28, True), (16, False), (20, True)]:
        image = np.random.default_rng(height).standard_normal((1, 3, height, 16), np.float32)
        before = len(traced)
        found = forward(image, interpolate_pos_encoding=True).logits
        assert (len(traced) > before) == is_new, height
        np.testing.assert_allclose(found, expected(image, interpolate_pos_encoding=True).logits, atol=1e-5)


@pytest.mark.parametrize("framework", ["tf", "flax"])
def test_a_program_that_is_dropped_is_freed(framework, folder, monkeypatch):
    monkeypatch.setattr(inference, "PROGRAMS", 2)
    forward = Forward(folder, framework)

    def programs() -> int:
        gc.collect()
        if framework == "flax":
            return len(jax.devices()[0].client.live_executables())
        return sum(type(each) is FuncGraph for each in gc.get_objects())

    counts = []
    gc.collect()
    gc.freeze()  # what was there before takes a second to look through, each time
    try:
        for height in range(16, 48, 4):
            forward(np.zeros((1, 3, height, 16), np.float32), interpolate_pos_encoding=True)
            counts.append(programs())
    finally:
        gc.unfreeze()
    assert counts[0] < counts[-1] == counts[3]


def test_tensorflow_has_nothing_to_warn_of_where_batches_of_many_sizes_come(folder, pixel_values):
    forward = Forward(folder, "tf")
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("tensorflow")
    logger.addHandler(handler)
    try:
        for size in (1, 2, 3, 4, 5, 6, 7):
            forward(np.repeat(pixel_values[:1], size, 0))
    finally:
        logger.removeHandler(handler)
    assert heard == []
