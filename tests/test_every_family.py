"""Every command and the pipeline, on a small checkpoint of every family that has a row in the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
import torch
from flax import nnx
from PIL import Image

import conversion
import vit
from vit import CheckpointError, InputError, ViTImageProcessor, checkpoint, families, predict
from vit.cli import attention, main
from vit.config import to_pair
from vit.flops import forward_flops
from vit.inference import Forward
from vit.pipeline import POOLS

from .equivalence import tiny_config
from .tiny import HEADS, tiny_checkpoint, tiny_family

FAMILIES = pytest.mark.parametrize("model_type", families.CONFIGS)
CLASSES = pytest.mark.parametrize(("model_type", "head"), HEADS)
FRAMEWORKS = pytest.mark.parametrize("framework", families.PREFIXES)
CLASSIFIERS = [(each, head) for each, head in HEADS
               if "ForImageClassification" in families.config_class(each).heads[head].name]  # fmt: skip
PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 12}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str | None], Path]:
    """A checkpoint of every class of every family, with its image processor."""
    found = {}
    for model_type, head in HEADS:
        found[model_type, head] = folder = tmp_path_factory.mktemp(f"{model_type}-{head}")
        tiny_checkpoint(folder, model_type, head)
        (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return found


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 24, 3), dtype=np.uint8)).save(path)
    return path


def run(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(list(map(str, arguments)))
    return int(exit_.value.code or 0)


def pixels(photo: Path, folder: Path) -> np.ndarray:
    return ViTImageProcessor.from_pretrained(folder)(photo, return_tensors="np").pixel_values


# === Forward and predict ===


@CLASSES
def test_forward_runs_the_class_that_the_checkpoint_is_alike_in_every_framework(model_type, head, folders, photo):
    folder = folders[model_type, head]
    values = pixels(photo, folder)
    found = {framework: Forward(folder, framework) for framework in families.PREFIXES}
    outputs = {framework: forward(values) for framework, forward in found.items()}
    for framework, forward in found.items():
        assert forward.head == head
        assert type(forward.model) is families.model_class(framework, model_type, head)
        assert list(outputs[framework]) == list(outputs["pt"])
        for name, value in outputs[framework].items():
            np.testing.assert_allclose(value, outputs["pt"][name], atol=2e-5, err_msg=f"{framework} {name}")
        np.testing.assert_array_equal(found[framework](values)[0], outputs[framework][0])  # nothing is drawn


@FAMILIES
@FRAMEWORKS
def test_a_base_model_sees_every_patch_in_its_place(model_type, framework, folders, photo):
    folder = folders[model_type, None]
    forward = Forward(folder, framework, head=None)
    config = forward.config
    values = pixels(photo, folder)
    tokens = config.prefix_tokens + config.num_patches
    assert forward(values).last_hidden_state.shape == (1, tokens, config.hidden_size)
    row, column = 2, 1  # another pixel there changes the embedding of that patch and of no other
    changed = values.copy()
    changed[..., 4 * row, 4 * column] += 1
    first, second = (forward(each, output_hidden_states=True).hidden_states[0][0] for each in (values, changed))
    moved = np.flatnonzero(np.abs(first - second).max(axis=1) > 1e-6)
    assert moved.tolist() == [config.prefix_tokens + row * config.grid_size[1] + column]


@CLASSES
@pytest.mark.parametrize("pool", POOLS)
def test_vectors_are_those_of_the_base_model_behind_what_precedes_the_patches(model_type, head, pool, folders, photo):
    folder = folders[model_type, head]
    config = checkpoint.Checkpoint(folder).config
    parts = checkpoint.parts_of(checkpoint.Checkpoint(folder))
    if pool == "pooler" and not (config.pooler_output_size and parts.get("add_pooling_layer", True)):
        with pytest.raises(CheckpointError, match="no weights for the pool 'pooler'; take one of cls, mean, patches"):
            predict([photo], folder, "pt", task="embed", pool=pool)
        return
    (found,) = predict([photo], folder, "pt", task="embed", pool=pool)
    outputs = Forward(folder, "pt", head=None)(pixels(photo, folder))
    tokens = outputs.last_hidden_state[0]
    expected = {
        "cls": lambda: tokens[0],
        "mean": lambda: tokens[-config.num_patches :].mean(axis=0),
        "patches": lambda: tokens[-config.num_patches :],
        "pooler": lambda: outputs.pooler_output[0],
    }[pool]()
    np.testing.assert_allclose(found.vector, expected, atol=1e-6)


@pytest.mark.parametrize(("model_type", "head"), CLASSIFIERS)
@FRAMEWORKS
def test_images_are_classified_by_the_head_that_the_checkpoint_has(model_type, head, framework, folders, photo):
    folder = folders[model_type, head]
    (found,) = predict([photo], folder, framework, top_k=5)
    (logits,) = Forward(folder, "pt", head=head)(pixels(photo, folder)).logits
    assert found.labels == tuple(str(i) for i in np.argsort(-logits))
    again = Forward(families.model_class(framework, model_type, head).from_pretrained(folder))
    (loaded,) = predict([photo], again, top_k=5, processor=ViTImageProcessor.from_pretrained(folder))
    assert loaded.labels == found.labels


@pytest.mark.parametrize(("model_type", "head"), [each for each in HEADS if each not in CLASSIFIERS])
def test_what_has_no_classification_head_does_not_classify(model_type, head, folders, photo):
    with pytest.raises(CheckpointError, match="has no classification head, so there is nothing to classify by"):
        predict([photo], folders[model_type, head], "pt")


def test_a_loaded_model_that_does_not_see_every_patch_is_refused(folders):
    for model_type in families.CONFIGS:
        config = families.config_class(model_type)
        if config.seeing_all:
            for framework in families.PREFIXES:
                model = families.model_class(framework, model_type).from_pretrained(folders[model_type, None])
                with pytest.raises(InputError, match="with which the model does not see every patch; load it with"):
                    Forward(model)


@FAMILIES
def test_families_of_any_size_take_what_their_processor_gives(model_type, tmp_path, photo):
    config = tiny_checkpoint(tmp_path, model_type)
    size = {"height": 24, "width": 20}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, "size": size}))
    if not config.any_size:
        with pytest.raises(InputError, match="gives images of 3 x 24 x 20, and the model takes 3 x 16 x 12"):
            predict([photo], tmp_path, "pt", task="embed")
        return
    (found,) = predict([photo], tmp_path, "pt", task="embed", pool="patches")
    assert found.vector.shape == (6 * 5, config.hidden_size)
    assert run("embed", photo, "-m", tmp_path, "-f", "pt", "--pool", "patches", "-o", tmp_path / "v.npy", "-q") == 0
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy")[0], found.vector)
    assert run("attention", photo, "-m", tmp_path, "-f", "pt", "-o", tmp_path / "a.png", "-q") == 0


# === Commands ===


@CLASSES
def test_vit_classify_and_embed(model_type, head, folders, photo, tmp_path, capsys):
    folder, output = folders[model_type, head], tmp_path / "v.npy"
    expected = 0 if (model_type, head) in CLASSIFIERS else 2
    assert run("classify", photo, "-m", folder, "-f", "pt", "--json") == expected
    assert run("embed", photo, "-m", folder, "-f", "pt", "--pool", "mean", "-o", output, "-q") == 0
    (found,) = predict([photo], folder, "pt", task="embed", pool="mean")
    np.testing.assert_array_equal(np.load(output)[0], found.vector)
    capsys.readouterr()


@CLASSES
@pytest.mark.parametrize("rollout", [False, True])
def test_vit_attention_draws_what_the_tokens_before_the_patches_look_at(
    model_type, head, rollout, folders, photo, tmp_path, capsys, monkeypatch
):
    seen: list[attention.View] = []
    draw = attention.draw
    monkeypatch.setattr(attention, "draw", lambda path, view: (seen.append(view), draw(path, view)))
    folder = folders[model_type, head]
    options = ["--rollout"] * rollout
    assert run("attention", photo, "-m", folder, "-f", "pt", "-o", tmp_path / "a.png", "--json", *options) == 0
    assert (tmp_path / "a.png").stat().st_size > 10_000
    printed = json.loads(capsys.readouterr().out)
    (view,) = seen
    config = tiny_family(model_type)
    prefix, grid = config.prefix_tokens, config.grid_size
    outputs = Forward(folder, "pt", head=None)(pixels(photo, folder), output_attentions=True)
    means = [each[0].mean(axis=0).astype(np.float64) for each in outputs.attentions]
    rows = means[-1]
    if rollout:
        rows = np.linalg.multi_dot([(each + np.eye(len(each))) / 2 for each in reversed(means)])
    np.testing.assert_allclose(view.summary, rows[0, prefix:].reshape(grid), atol=1e-6)
    np.testing.assert_allclose(view.others, rows[1:prefix, prefix:].reshape(-1, *grid), atol=1e-6)
    assert len(view.parts) == (2 if rollout else 4)
    others = {key: value for key, value in printed.items() if key in ("registers", "distillation_tokens")}
    assert [len(value) for value in others.values()] == [prefix - 1] * (prefix > 1)
    labels = [label for label, _ in attention.panels(view)]
    assert len(labels) == len(view.parts) + prefix - 1
    assert all(config.prefix_name in label for label in labels[len(view.parts) :])


@FAMILIES
def test_vit_posemb(model_type, folders, tmp_path, capsys):
    for (family, head), folder in folders.items():
        if family == model_type and not families.config_class(model_type).grid_parameters:
            assert run("posemb", folder, "-o", tmp_path / f"{head}.png") == 2
            assert "queries and keys are rotated by theirs" in capsys.readouterr().err
        elif family == model_type:
            assert run("posemb", folder, "-o", tmp_path / f"{head}.png", "--json") == 0
            printed = json.loads(capsys.readouterr().out)
            assert printed["grid"] == [4, 3]
            assert (tmp_path / f"{head}.png").stat().st_size > 10_000


@CLASSES
def test_vit_verify(model_type, head, folders, photo, capsys):
    folder = folders[model_type, head]
    assert run("verify", folder, "--images", photo, "--json", "-f", "pt", "-f", "flax") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["architecture"] == families.config_class(model_type).heads[head].name
    assert bool(printed["answers"]) == ((model_type, head) in CLASSIFIERS)
    assert {stage["name"] for stage in printed["stages"]} > {"embeddings", "layer 0", "layer 0 attention", "layer 1"}


@FAMILIES
def test_vit_verify_in_float64_and_every_framework(model_type, folders):
    for (family, head), folder in folders.items():
        if family == model_type:
            found = conversion.verify(folder, dtype="float64", tolerance=1e-10)
            stages = [stage for stage in found.stages if "sdpa" not in stage.name]
            assert all(found.within(stage) for stage in stages), (head, found.worst)


@CLASSES
def test_vit_inspect(model_type, head, folders, capsys):
    folder = folders[model_type, head]
    assert run("inspect", folder, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    config = families.config_class(model_type)
    assert found["architecture"] == config.heads[head].name
    assert found["config"]["model_type"] == model_type
    assert found["tensors"] == len(checkpoint.Checkpoint(folder).tensors)
    assert run("inspect", folder) == 0
    capsys.readouterr()


@CLASSES
def test_vit_convert_copies_the_published_folder(model_type, head, folders, tmp_path, capsys):
    folder, target = folders[model_type, head], tmp_path / "copy"
    assert run("convert", folder, target, "--dtype", "float64") == 0
    assert run("convert", target, tmp_path / "back", "--dtype", "float32") == 0
    first, last = checkpoint.Checkpoint(folder), checkpoint.Checkpoint(tmp_path / "back")
    assert last.config == first.config
    assert list(last.tensors) == list(first.tensors)
    for name in first.tensors:
        np.testing.assert_array_equal(last.read(name), first.read(name))
    assert (target / "preprocessor_config.json").is_file()
    capsys.readouterr()


@FAMILIES
def test_vit_bench(model_type, folders, capsys):
    for (family, head), folder in folders.items():
        if family == model_type and head != "teacher":
            options = ("-f", "pt", "--batch-size", 1, "--seconds", 0.01, "--json")
            assert run("bench", "-m", folder, *options) == 0
            printed = json.loads(capsys.readouterr().out)
            assert printed["flops_per_image"] > 0
            assert "error" not in printed["rows"][0]


# === Operations ===


@CLASSES
def test_operations_are_those_that_pytorch_counts(model_type, head, folders, photo):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    folder = folders[model_type, head]
    opened = checkpoint.Checkpoint(folder)
    model = Forward(folder, "pt", attn_implementation="eager").model.requires_grad_(False)
    inputs = {"pixel_values": pixels(photo, folder), **model.config.fixed_inputs((1, 3, 16, 12))}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    parts = {} if head else checkpoint.parts_of(opened)
    resampled = 0  # registers: positions are resampled by two products, whatever the size
    if counter.get_total_flops() != (counted := forward_flops(model.config, head, **parts)):
        rows, columns = model.config.grid_size
        resampled = 2 * model.config.hidden_size * rows * columns * (rows + columns)
    assert counted + resampled == counter.get_total_flops()


def test_an_encoder_alone_gives_hidden_states_and_attentions_only_where_they_are_asked_for():
    config = tiny_config()
    x = np.random.default_rng(0).standard_normal((1, 17, config.hidden_size), np.float32)
    in_pytorch = vit.ViTModel(config).encoder(torch.from_numpy(x))
    in_flax = vit.FlaxViTModel(config, rngs=nnx.Rngs(0)).encoder(jnp.asarray(x))
    assert in_pytorch[1:] == in_flax[1:] == (None, None)
    in_keras = vit.TFViTModel(config).encoder(tf.convert_to_tensor(x))
    assert in_keras.get("hidden_states") is in_keras.get("attentions") is None


@pytest.mark.parametrize("model_type", families.CONFIGS)
def test_a_configuration_knows_the_size_of_what_its_models_pool(model_type):
    config = tiny_family(model_type)
    model, size = families.model_class("pt", model_type, None)(config).eval(), to_pair(config.image_size)
    with torch.inference_mode():
        outputs = model(torch.zeros(1, 3, *size))
    assert config.pooler_output_size == (outputs["pooler_output"].shape[-1] if "pooler_output" in outputs else 0)
