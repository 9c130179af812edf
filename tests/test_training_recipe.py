"""The recipe, the schedule and the groups of parameters: what is allowed, what JSON holds, what is spared."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit import families
from vit.errors import CheckpointError, ConfigError
from vit.training import PRESETS, Recipe
from vit.training.schedule import ema_decay, learning_rate, parameter_groups, seed_of
from vit.training.state import STATE, TENSORS, TrainingState, expected_tensors

from .tiny import HEADS, tiny_family

WRONG = {
    "objective": "guessing", "epochs": 0, "steps": 0, "batch_size": 0, "accumulate": 0, "seed": -1, "dtype": "int8",
    "optimizer": "lion", "learning_rate": 0.0, "final_learning_rate": -1, "warmup": 1.0, "weight_decay": -0.1,
    "layer_decay": 0.0, "clip_norm": math.nan, "momentum": 1.0, "beta1": 1, "beta2": -0.1, "epsilon": 0, "ema": 1.0,
    "label_smoothing": 1.0, "mixup": -1, "cutmix": "0.5", "crop_scale": 0, "flip": 1.5, "randaugment": 1.5,
    "randaugment_magnitude": math.inf, "erasing": -0.1, "dropout": 1.0, "attention_dropout": 1.0, "drop_path": True,
    "image_size": 0, "gradient_checkpointing": 1, "freeze_backbone": "no", "freeze_layers": -1, "mask_ratio": 1.0,
    "teacher": "", "distillation": "warm", "distillation_weight": 2, "temperature": 0, "validation": 1.0,
    "evaluate_every": 0, "log_every": 0,
}  # fmt: skip


def test_every_field_refuses_a_value_and_says_what_it_takes() -> None:
    assert WRONG.keys() == {field.name for field in dataclasses.fields(Recipe)}
    for name, value in WRONG.items():
        with pytest.raises(ConfigError, match=rf"{name} is .*; expected "):
            Recipe(**{name: value})


EDGES: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "a number of at least 0": ((0, 1e300), (-1e-300, math.inf, True, "1")),
    "a number above 0": ((1e-300, 1e300), (0, -1.0, math.nan, True)),
    "a number of at least 0 and less than 1": ((0, 1 - 1e-16), (1.0, -1e-300, False)),
    "a number from 0 to 1": ((0, 1), (1 + 1e-15, -1e-300, False)),
    "a number above 0, of at most 1": ((1e-300, 1), (0, 1 + 1e-15, True)),
    "an int of at least 1": ((1, 10**9), (0, 1.0, True)),
    "an int of at least 0": ((0, 10**9), (-1, 0.0, False)),
    "true or false": ((True, False), (0, 1, "true")),
    "a text": (("a",), ("", 1)),
}


def test_every_range_of_a_field_ends_where_it_says() -> None:
    for field in dataclasses.fields(Recipe):
        rule, expected = field.metadata["rule"]
        if not expected.startswith("one of "):
            allowed, refused = EDGES[expected]
            assert all(rule(value) for value in allowed), field.name
            assert not any(rule(value) for value in refused), field.name
    assert Recipe(batch_size=6, accumulate=3).accumulate == 3
    assert not any(Recipe(**{name: None}).to_dict()[name] for name in ("steps", "dropout", "teacher", "image_size"))
    with pytest.raises(ConfigError, match="epochs is None"):
        Recipe(epochs=None)


PUBLISHED = {
    # Of how many images the batch is, to which learning rate the paper's formula comes, and what its table says.
    "vit-finetune": (512, 0.01, {"optimizer": "sgd", "momentum": 0.9, "steps": 2500, "image_size": 384,
                                 "weight_decay": 0, "clip_norm": 1, "label_smoothing": 0, "layer_decay": 1,
                                 "crop_scale": 0.05}),
    "deit": (1024, 0.0005 * 1024 / 512, {"epochs": 300, "warmup": 5 / 300, "weight_decay": 0.05, "label_smoothing": 0.1,
                                         "mixup": 0.8, "cutmix": 1, "randaugment": 2, "randaugment_magnitude": 9,
                                         "erasing": 0.25, "clip_norm": 0, "layer_decay": 1, "crop_scale": 0.08,
                                         "final_learning_rate": 1e-5}),
    "mae": (4096, 1.5e-4 * 4096 / 256, {"epochs": 800, "warmup": 40 / 800, "weight_decay": 0.05, "beta1": 0.9,
                                        "beta2": 0.95, "mask_ratio": 0.75, "clip_norm": 0, "layer_decay": 1,
                                        "label_smoothing": 0, "crop_scale": 0.2, "objective": "reconstruction"}),
    "mae-finetune": (1024, 1e-3 * 1024 / 256, {"epochs": 100, "optimizer": "adamw", "warmup": 5 / 100, "beta1": 0.9,
                                               "beta2": 0.999, "weight_decay": 0.05, "layer_decay": 0.75,
                                               "label_smoothing": 0.1, "mixup": 0.8, "cutmix": 1, "randaugment": 2,
                                               "randaugment_magnitude": 9, "clip_norm": 0, "crop_scale": 0.08}),
    "linear-probe": (1024, 0.001 * 1024 / 256, {"epochs": 100, "optimizer": "sgd", "momentum": 0.9, "weight_decay": 0,
                                                "freeze_backbone": True, "warmup": 0, "clip_norm": 0, "layer_decay": 1,
                                                "label_smoothing": 0, "crop_scale": 0.08}),
}  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_what_its_paper_says(preset: str) -> None:
    batch_size, rate, values = PUBLISHED[preset]
    recipe = Recipe.preset(preset)
    assert (recipe.batch_size, recipe.learning_rate) == (batch_size, pytest.approx(rate))
    assert {name: getattr(recipe, name) for name in values} == values
    assert set(PRESETS[preset]) <= {"batch_size", "learning_rate", *values}


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ConfigError, match="accumulate is 3, which does not divide batch_size 64"):
        Recipe(accumulate=3)
    with pytest.raises(ConfigError, match="needs a teacher"):
        Recipe(objective="distillation")
    with pytest.raises(ConfigError, match=r"preset is 'resnet'; expected one of .*deit"):
        Recipe.preset("resnet")
    with pytest.raises(ConfigError, match=r"'learning_rat'; did you mean 'learning_rate'"):
        Recipe.from_dict({"learning_rat": 1.0})


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_goes_through_json_and_takes_changes(preset: str, tmp_path: Path) -> None:
    recipe = Recipe.preset(preset, seed=3)
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    assert Recipe.from_json_file(tmp_path / "recipe.json") == recipe
    assert Recipe.preset(preset).differences(recipe) == {"seed": (0, 3)}


def test_epochs_that_are_asked_for_take_the_place_of_steps() -> None:
    for recipe in (Recipe.preset("vit-finetune", epochs=3), Recipe(steps=7).replace(epochs=3)):
        assert (recipe.epochs, recipe.steps) == (3, None)
    assert Recipe.preset("vit-finetune", seed=3).steps == 2500
    assert Recipe(steps=7).replace(epochs=3, steps=2).steps == 2  # of both


def test_a_broken_recipe_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text('{"epochs": -1}')
    with pytest.raises(ConfigError, match=r"recipe\.json: epochs is -1; expected a number above 0"):
        Recipe.from_json_file(path)


def test_the_learning_rate_rises_in_a_line_and_falls_along_half_a_cosine() -> None:
    recipe = Recipe(learning_rate=2.0, final_learning_rate=0.5, warmup=0.1)
    rates = [learning_rate(recipe, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == 2.0
    assert rates[55] == pytest.approx(1.25)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[99] == pytest.approx(0.5 + 0.75 * (1 + math.cos(math.pi * 89 / 90)))
    assert learning_rate(Recipe(warmup=0.0), 0, 1) == Recipe().learning_rate
    assert [ema_decay(Recipe(ema=0.5), step) for step in (0, 1, 100)] == [0.1, 2 / 11, 0.5]


def test_seeds_differ_by_place_and_fit_in_63_bits() -> None:
    seeds = {seed_of(Recipe(seed=seed), "dropout", step) for seed in (0, 1) for step in range(100)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)


TRAINABLE = [(model_type, head) for model_type, head in HEADS if head is not None]


@pytest.mark.parametrize(("model_type", "head"), TRAINABLE)
def test_weight_decay_spares_all_but_matrices_and_rates_follow_the_layers(model_type: str, head: str) -> None:
    config = tiny_family(model_type)
    groups = parameter_groups(config, head, Recipe(weight_decay=0.1, layer_decay=0.5))
    shapes = config.parameter_shapes(head=head, **config.heads[head].parts)
    decayed = {name for name, group in groups.items() if group.weight_decay}
    spared = ("norm", "token")
    assert decayed == {n for n in groups if n.endswith(".weight") and not any(s in n for s in spared)}
    left_out = shapes.keys() - groups.keys()
    assert all(name.endswith((".key.bias", "position_embeddings", "decoder_pos_embed")) for name in left_out)
    assert {"vit_mae": True}.get(model_type, False) == any("pos" in name for name in left_out)
    base = config.base_model_prefix
    for name, group in groups.items():
        depth = 3 if not name.startswith((f"{base}.embeddings.", f"{base}.encoder.layer.")) else 0
        depth += int(name.split(".")[3]) + 1 if ".encoder.layer." in name else 0
        assert group.scale == 0.5 ** (3 - depth), name


def test_freezing_leaves_what_it_names() -> None:
    config = tiny_family("vit")
    probe = parameter_groups(config, "classifier", Recipe(freeze_backbone=True))
    assert list(probe) == ["classifier.weight", "classifier.bias"]
    rest = parameter_groups(config, "classifier", Recipe(freeze_layers=1))
    assert not any(name.startswith(("vit.embeddings", "vit.encoder.layer.0")) for name in rest)
    assert any(name.startswith("vit.encoder.layer.1") for name in rest)
    with pytest.raises(ConfigError, match="freeze_layers is 3; the encoder has 2"):
        parameter_groups(config, "classifier", Recipe(freeze_layers=3))


# === The training state ===


def state_of(**values: Any) -> tuple[TrainingState, Any]:
    config, recipe = families.config_class("vit")(**{**SMALL, "num_labels": 3}), Recipe(ema=0.9)
    rng = np.random.default_rng(0)
    tensors = {n: rng.standard_normal(s) for n, s in expected_tensors(config, "classifier", recipe).items()}
    position = {"next_index": 5}
    return TrainingState(**{"step": 5, "steps": 9, "recipe": recipe, "position": position, "tensors": tensors,
                            "best": {"accuracy": 0.5, "step": 4}, **values}), config  # fmt: skip


SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
         "image_size": 8, "patch_size": 4}  # fmt: skip


def test_a_training_state_goes_through_its_files(tmp_path: Path) -> None:
    state, config = state_of()
    state.write(tmp_path)
    found = TrainingState.read(tmp_path, config, "classifier")
    assert (found.step, found.steps, found.recipe, found.position, found.best) == (
        5, 9, state.recipe, state.position, state.best)  # fmt: skip
    assert found.tensors is not None
    assert state.tensors is not None
    assert found.tensors.keys() == state.tensors.keys()
    assert all(np.array_equal(found.tensors[name], array) for name, array in state.tensors.items())


def test_a_broken_or_foreign_training_state_is_refused(tmp_path: Path) -> None:
    state, config = state_of()
    with pytest.raises(CheckpointError, match=STATE):
        TrainingState.read(tmp_path, config, "classifier")
    state.write(tmp_path)
    with pytest.raises(CheckpointError, match=r"another model or recipe .*classifier\.weight"):
        TrainingState.read(tmp_path, config.replace(num_labels=4), "classifier")
    (tmp_path / TENSORS).unlink()
    with pytest.raises(CheckpointError, match=f"lacks {TENSORS}"):
        TrainingState.read(tmp_path, config, "classifier")
    text = (tmp_path / STATE).read_text()
    for old, new, message in (
        ('"step": 5', '"step": -5', "other kinds"), ('"format": 1', '"format": 2', "its format is 2; expected 1"),
        ('"steps"', '"stages"', "it lacks 'steps'"), ('"epochs": 10', '"epochs": 0', "epochs is 0"),
    ):  # fmt: skip
        (tmp_path / STATE).write_text(text.replace(old, new, 1))
        with pytest.raises(CheckpointError, match=f"is no training state: .*{message}"):
            TrainingState.read(tmp_path, config, "classifier")
