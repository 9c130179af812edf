"""One optimiser step is the same in all three frameworks: parameters, moments and averages, in double precision."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vit import checkpoint, families
from vit.errors import FRAMEWORKS
from vit.training import Recipe
from vit.training.processes import ALONE
from vit.training.schedule import learning_rate, parameter_groups
from vit.training.state import TrainingState, expected_tensors

from .equivalence import random_checkpoint, tiny_config

STEPS = 20

PLAIN = {"weight_decay": 0.1, "layer_decay": 0.7, "learning_rate": 3e-3}
CASES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "AdamW, clipped at each step, averaged": ({}, "classifier", {**PLAIN, "clip_norm": 0.01, "ema": 0.9}),
    "AdamW of which epsilon matters, never clipped, in parts": (
        {},
        "classifier",
        {**PLAIN, "epsilon": 1e-2, "beta1": 0.5, "beta2": 0.9, "clip_norm": 0.0, "accumulate": 4},
    ),
    "SGD": ({}, "classifier", {**PLAIN, "optimizer": "sgd", "learning_rate": 0.1}),
    "SGD without momentum": ({}, "classifier", {**PLAIN, "optimizer": "sgd", "momentum": 0.0}),
    "linear probe": ({}, "classifier", {**PLAIN, "freeze_backbone": True, "accumulate": 2}),
    "frozen layers, recomputed layers": (
        {},
        "classifier",
        {**PLAIN, "freeze_layers": 1, "gradient_checkpointing": True},
    ),
    "several labels": ({"problem_type": "multi_label_classification"}, "classifier", PLAIN),
    "regression": ({"problem_type": "regression"}, "classifier", PLAIN),
    "hard distillation": ({"model_type": "deit"}, "teacher", {"objective": "distillation"}),
    "soft distillation, one head": ({}, "classifier", {"objective": "distillation", "distillation": "soft"}),
    "masked image modelling": ({}, "decoder", {**PLAIN, "objective": "reconstruction"}),
    "masked autoencoder": ({"model_type": "vit_mae"}, "decoder", {**PLAIN, "objective": "reconstruction"}),
    "BEiT": ({"model_type": "beit"}, "classifier", PLAIN),
    "DINOv2 with registers": ({"model_type": "dinov2_with_registers"}, "classifier", PLAIN),
}


def recipe_of(**fields: Any) -> Recipe:
    teacher = {"teacher": "somewhere"} if fields.get("objective") == "distillation" else {}
    return Recipe(**{"batch_size": 8, "dtype": "float64", **teacher, **fields})


def batches(config: Any, recipe: Recipe, count: int, dtype: Any = np.float64) -> Iterator[dict[str, np.ndarray]]:
    """Random batches, as the data pipeline gives them."""
    rng = np.random.default_rng(0)
    size, patches = recipe.batch_size, config.num_patches
    for _ in range(count):
        batch = {"pixel_values": rng.standard_normal((size, config.num_channels, 16, 16)).astype(dtype)}
        if recipe.objective == "reconstruction" and config.model_type == "vit_mae":
            batch["noise"] = rng.random((size, patches)).astype(dtype)
        elif recipe.objective == "reconstruction":
            batch["bool_masked_pos"] = rng.random((size, patches)) < 0.5
        else:
            batch["targets"] = rng.dirichlet(np.ones(config.num_labels), size).astype(dtype)
        if recipe.objective == "distillation":
            batch["teacher_logits"] = rng.standard_normal((size, config.num_labels)).astype(dtype)
        yield batch


@contextmanager
def doubles(framework: str, dtype: Any) -> Iterator[None]:
    """JAX computes in double precision where a test asks for it."""
    if framework == "flax":
        import jax

        with jax.enable_x64(True) if dtype == "float64" else nullcontext():
            yield
    else:
        yield


def train(folder: Path, framework: str, recipe: Recipe, first: int, end: int, total: int, out: Path | None = None,
          tensors: Any = None) -> dict[str, np.ndarray]:  # fmt: skip
    """Steps `first` to `end` of `total` from a checkpoint; what they left, saved to `out` if that is given."""
    opened = checkpoint.Checkpoint(folder)
    head = checkpoint.head_of(opened)
    dtype = {"mixed_bfloat16": "float32"}.get(recipe.dtype, recipe.dtype)
    with doubles(framework, dtype):
        model = families.model_class(framework, opened.config.model_type, head).from_pretrained(folder, dtype=dtype)
        trainer = importlib.import_module(f"vit.{framework}.training").Trainer(model, recipe, tensors, first)
        for step, batch in enumerate(batches(opened.config, recipe, end, np.dtype(dtype))):
            if step >= first:
                loss = trainer.step(batch, step, learning_rate(recipe, step, total))
        found = {"loss": np.asarray(float(loss)), **trainer.tensors()}
        trainer.save(out or folder.parent / framework)
    saved = checkpoint.Checkpoint(out or folder.parent / framework)
    return found | {f"parameter.{name}": saved.read(name) for name in saved.tensors}


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_agree_in_every_parameter_and_moment(case: str, tmp_path: Path) -> None:
    overrides, head, fields = CASES[case]
    recipe = recipe_of(**fields)
    config = tiny_config(**{"problem_type": "single_label_classification", **overrides})
    start = random_checkpoint(tmp_path / "start", config, head, dtype="float64")
    found = {framework: train(start, framework, recipe, 0, STEPS, STEPS) for framework in FRAMEWORKS}
    before = checkpoint.Checkpoint(start)
    groups = parameter_groups(config, head, recipe)
    assert found["pt"].keys() >= expected_tensors(config, head, recipe).keys()
    for name in found["pt"]:
        if name.startswith("parameter."):
            parameter = name.removeprefix("parameter.")
            moved = np.abs(found["pt"][name] - before.read(parameter)).max() > 0
            unused = head == "classifier" and parameter.endswith("mask_token")
            assert moved == (parameter in groups and not unused), name
    for framework in ("tf", "flax"):
        assert found[framework].keys() == found["pt"].keys()
        for name, expected in found["pt"].items():
            assert np.abs(found[framework][name] - expected).max() < 1e-9, (framework, name)


# === From one framework to another ===

CHANGES = {
    "AdamW with averages in float64": ("float64", {"ema": 0.9}),
    "SGD in float64": ("float64", {"optimizer": "sgd", "learning_rate": 0.1}),
    "AdamW in float32": ("float32", {}),
}


@pytest.mark.parametrize("first", FRAMEWORKS)
@pytest.mark.parametrize("change", CHANGES)
def test_ten_steps_in_one_framework_and_ten_in_any_other_are_twenty(change: str, first: str, tmp_path: Path) -> None:
    dtype, fields = CHANGES[change]
    recipe = recipe_of(**{**PLAIN, "dtype": dtype, **fields})
    config = tiny_config(problem_type="single_label_classification")
    start = random_checkpoint(tmp_path / "start", config, "classifier", dtype=dtype)
    whole = train(start, first, recipe, 0, 20, 20)
    middle = tmp_path / "middle"
    found = train(start, first, recipe, 0, 10, 20, middle)
    moments = {name: array for name, array in found.items() if name != "loss" and not name.startswith("parameter.")}
    TrainingState(10, 20, recipe, tensors=moments).write(middle)
    for second in FRAMEWORKS:
        state = TrainingState.read(middle, config, "classifier")
        found = train(middle, second, state.recipe, state.step, 20, state.steps, tmp_path / second, state.tensors)
        for name, expected in whole.items():
            if dtype == "float64" or name.startswith("parameter."):
                limit = 1e-9 if dtype == "float64" else 1e-5 * np.abs(expected).max()
                assert np.abs(found[name] - expected).max() <= (0 if second == first else limit), (second, name)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_weights_are_themselves_again_after_their_averages_whatever_happened(
    framework: str, tmp_path: Path
) -> None:
    random_checkpoint(tmp_path, tiny_config(), "classifier")
    recipe = Recipe(batch_size=8, ema=0.9)
    config = checkpoint.read_config(tmp_path)
    model = families.model_class(framework, config.model_type, "classifier").from_pretrained(tmp_path)
    trainer = importlib.import_module(f"vit.{framework}.training").Trainer(model, recipe)
    for batch in batches(config, recipe, 3, np.float32):
        trainer.step(batch, 0, 0.01)
    before = trainer.logits(batch["pixel_values"])
    try:
        with trainer.averaged():
            averaged = trainer.logits(batch["pixel_values"])
            raise OSError("the disk is full")
    except OSError:
        assert np.array_equal(trainer.logits(batch["pixel_values"]), before)
    assert not np.allclose(averaged, before)


def test_the_trainers_of_all_frameworks_take_the_same_and_leave_the_same_out() -> None:
    taken = {
        (name, str(parameter.default))
        for framework in FRAMEWORKS
        for name, parameter in inspect.signature(
            importlib.import_module(f"vit.{framework}.training").Trainer
        ).parameters.items()
    }
    assert len(taken) == 6
    assert {("tensors", "None"), ("step", "0"), ("processes", str(ALONE)), ("shard", "False")} <= taken


def test_the_logits_of_a_batch_on_several_devices_are_in_its_order() -> None:
    """In whatever order JAX lists what lies on this process's devices."""
    jax = pytest.importorskip("jax")
    logits = importlib.import_module("vit.flax.training").Trainer.logits
    expected = np.arange(12, dtype=np.float32).reshape(4, 3)
    rows = jax.sharding.NamedSharding(jax.make_mesh((4,), ("data",)), jax.sharding.PartitionSpec("data"))
    shards = jax.device_put(expected, rows).addressable_shards
    for order in (shards, shards[::-1], shards[2:] + shards[:2]):
        trainer = SimpleNamespace(is_averaged=False, state=None, _rows=np.asarray)
        trainer._forward = lambda *_, order=order: SimpleNamespace(addressable_shards=order)
        assert np.array_equal(logits(trainer, expected), expected)
