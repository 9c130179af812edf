"""`vit train` of every family: from a checkpoint, from fresh weights, and from a masked autoencoder's encoder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vit
from vit import ViTConfig, ViTImageProcessor, checkpoint, families
from vit.config import keys_of, to_pair
from vit.errors import FRAMEWORKS, CheckpointError, ConfigError
from vit.inference import Forward
from vit.training import Recipe, start
from vit.training.run import train

from .command import vit as run_vit
from .tiny import SIZES, tiny_checkpoint, tiny_family

TRAINED = {each: families.heads_for(tiny_family(each).as_family("vit"), "ForImageClassification")
           for each in families.CONFIGS}  # fmt: skip
KINDS = {"classification": "ForImageClassification", "reconstruction": ("ForPreTraining", "ForMaskedImageModeling")}
"""Objective -> how the names of the classes end that are trained."""
ONCE = ["--steps", "1", "-b", "4", "--validation", "0", "--learning-rate", "1e-30", "--optimizer", "sgd"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: Any) -> Path:
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for label in ("blue", "red"):
        (folder / label).mkdir()
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(folder / label / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: Any) -> dict[str, Path]:
    """A checkpoint of each family without labels, as those that are fine-tuned are published."""
    made = {}
    for model_type in families.CONFIGS:
        made[model_type] = folder = tmp_path_factory.mktemp(model_type)
        head = "decoder" if model_type == "vit_mae" else None
        processor_for(tiny_checkpoint(folder, model_type, head, num_hidden_layers=1)).save_pretrained(folder)
    return made


def processor_for(config: Any) -> ViTImageProcessor:
    height, width = to_pair(config.image_size)
    return ViTImageProcessor(size={"height": height, "width": width})


def weights(folder: Path) -> dict[str, np.ndarray]:
    opened = checkpoint.Checkpoint(folder)
    names = opened.config.canonical_names(opened.tensors)
    return {names[name]: opened.read(name) for name in opened.tensors}


@pytest.fixture
def eager() -> Iterator[None]:
    """TensorFlow runs a step as it is written: to make a graph of it takes longer."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(("model_type", "framework"), [
    (model_type, framework) for model_type, heads in TRAINED.items() for framework in FRAMEWORKS
    if heads and (framework != "flax" or model_type in ("deit", "vit_mae", "dinov2"))  # or test_training_steps.py does
])  # fmt: skip
def test_a_checkpoint_of_every_family_is_fine_tuned_in_every_framework(
    model_type: str, framework: str, photos: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    assert (
        run_vit("train", photos, "-m", folders[model_type], "-f", framework, "-o", tmp_path / "run", *ONCE, "-q") == 0
    )
    before, after = weights(folders[model_type]), weights(tmp_path / "run" / "best")
    config = checkpoint.read_config(tmp_path / "run" / "best")
    assert list(config.id2label.values()) == ["blue", "red"]
    base = [name for name in after if name.startswith(f"{config.base_model_prefix}.")]
    assert all(np.array_equal(after[name], before[name]) for name in base)  # at this learning rate
    assert {name.partition(".")[0] for name in after.keys() - set(base)} <= {
        each.rstrip(".") for each in config.label_parameters
    }


def test_a_family_without_a_classifier_says_what_can_be_asked(
    photos: Path, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model_type in (each for each, heads in TRAINED.items() if not heads):
        assert run_vit("train", photos, "-m", folders[model_type], "-f", "pt", "-o", tmp_path / "run", *ONCE) == 2
        assert f"A {model_type} model has no class for the objective 'classification'" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
        for part in ("train", "val"):
            (tmp_path / part).symlink_to(photos)
        asked = ["-m", folders[model_type], "-f", "pt", "--knn", "2", "--probe", "--json"]
        assert run_vit("evaluate", tmp_path, *asked) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["images"], found["knn"], found["probe"]) == (8, 1.0, 1.0)  # the images are those it knows


@pytest.mark.parametrize("model_type", families.CONFIGS)
def test_every_family_begins_from_fresh_weights_of_a_published_size(
    model_type: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = families.config_class(model_type)
    monkeypatch.setattr(cls, "variants", dict.fromkeys(cls.variants, (32, 1, 4, 64)))  # the published ones take long
    small = {key: value for key, value in SIZES.items() if key.startswith("decoder_") and key in keys_of(cls)}
    size = cls.variant(f"{next(iter(cls.variants))}/16", image_size=64, **small)
    for objective, can in {"classification": TRAINED[model_type], "reconstruction": "decoder" in cls.heads}.items():
        recipe, output = Recipe(objective=objective, steps=1, batch_size=4, validation=0.0), tmp_path / objective
        if can:
            config = checkpoint.read_config(train(photos, size, output, "pt", recipe).folder / "last")
            assert (config.hidden_size, config.image_size, config.patch_size) == (32, 64, 16)
            assert config.architectures[0].endswith(KINDS[objective])
        else:
            with pytest.raises(ConfigError, match=f"A {model_type} model has no class for the objective '{objective}'"):
                train(photos, size, output, "pt", recipe)


# === The encoder of a masked autoencoder ===


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_plain_vit_reads_the_encoder_of_a_masked_autoencoder(
    framework: str, folders: dict[str, Path], recwarn: pytest.WarningsRecorder
) -> None:
    folder = folders["vit_mae"]
    pixel_values = np.random.default_rng(0).standard_normal((2, 3, 16, 12), np.float32)
    expected = Forward(folder, framework, head=None)(pixel_values).last_hidden_state
    plain = Forward(getattr(vit, f"{families.PREFIXES[framework]}ViTModel").from_pretrained(folder), framework)
    assert np.abs(plain(pixel_values).last_hidden_state - expected).max() <= 1e-6
    cls = getattr(vit, f"{families.PREFIXES[framework]}ViTForImageClassification")
    model, info = cls.from_pretrained(folder, num_labels=7, output_loading_info=True)
    assert (model.config.model_type, model.config.num_labels) == ("vit", 7)
    assert (info["missing_keys"], info["mismatched_keys"]) == (["classifier.bias", "classifier.weight"], [])
    assert {name.partition(".")[0] for name in info["unexpected_keys"]} == {"decoder"}
    assert any("freshly initialised" in str(each.message) for each in recwarn)
    deit = getattr(vit, f"{families.PREFIXES[framework]}DeiTModel")
    with pytest.raises(CheckpointError, match="'vit_mae', not 'deit'"):
        deit.from_pretrained(folder)


def test_its_configuration_is_that_of_the_encoder(folders: dict[str, Path]) -> None:
    config = ViTConfig.from_pretrained(folders["vit_mae"], num_labels=3)
    theirs = checkpoint.read_config(folders["vit_mae"])
    assert (type(config), config.num_labels, config.hidden_size) == (ViTConfig, 3, theirs.hidden_size)
    assert (config.layer_norm_eps, config.encoder_stride) == (theirs.layer_norm_eps, theirs.patch_size)
    assert not {"mask_ratio", "decoder_hidden_size", "norm_pix_loss"} & config.to_dict().keys()
    model = vit.ViTForImageClassification.from_pretrained(folders["vit_mae"], config=theirs)
    assert model.config == theirs.as_family("vit").replace(dtype="float32")


def test_transformers_reads_the_same_classifier_from_it(folders: dict[str, Path], tmp_path: Path) -> None:
    import torch
    import transformers

    model = vit.ViTForImageClassification.from_pretrained(folders["vit_mae"], num_labels=3)
    model.save_pretrained(tmp_path)
    theirs = transformers.ViTForImageClassification.from_pretrained(folders["vit_mae"], num_labels=3)
    theirs.classifier.load_state_dict(model.classifier.state_dict())
    again = transformers.ViTForImageClassification.from_pretrained(tmp_path)
    pixels = torch.randn(2, 3, 16, 12)
    with torch.inference_mode():
        expected = model(pixels).logits
        assert (theirs.eval()(pixels).logits - expected).abs().max() <= 1e-5
        assert (again.eval()(pixels).logits - expected).abs().max() <= 1e-5


def test_pre_training_then_fine_tuning_is_one_story(photos: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    """Its positions are fixed while it is pre-trained, and trained as any of a ViT while it is fine-tuned."""
    recipe = Recipe(objective="reconstruction", batch_size=4, steps=3, learning_rate=1e-2)
    pretrained = train(photos, folders["vit_mae"], tmp_path / "mae", "pt", recipe).folder / "best"
    positions = "vit.embeddings.position_embeddings"
    assert np.array_equal(weights(pretrained)[positions], weights(folders["vit_mae"])[positions])
    tuned = Recipe(batch_size=4, steps=3, learning_rate=1e-2, layer_decay=1.0, validation=0.0, seed=1)
    run = train(photos, pretrained, tmp_path / "tuned", "pt", tuned)
    assert not np.array_equal(weights(run.folder / "best")[positions], weights(pretrained)[positions])
    assert checkpoint.read_config(run.folder / "best").architectures == ("ViTForImageClassification",)
    pixels = np.random.default_rng(0).standard_normal((2, 3, 16, 12), np.float32)
    answers = [Forward(run.folder / "best", framework)(pixels).logits for framework in FRAMEWORKS]
    assert max(np.abs(each - answers[0]).max() for each in answers) <= 1e-5


def test_fresh_weights_are_spread_as_the_family_says() -> None:
    config, recipe = tiny_family("vit_mae"), Recipe(seed=3)

    def drawn(name: str, *shape: int) -> np.ndarray:
        return start._drawn(name, shape, config, recipe)

    bound = (6 / (300 + 8 * 4 * 4)) ** 0.5
    of_patches = drawn("vit.embeddings.patch_embeddings.projection.weight", 300, 8, 4, 4)
    assert -bound <= of_patches.min() < -0.99 * bound
    assert 0.99 * bound < of_patches.max() <= bound
    assert abs(of_patches.mean()) < 0.01 * bound
    assert not drawn("vit.layernorm.bias", 8).any()
    assert (drawn("vit.layernorm.weight", 8) == 1).all()
    normal = drawn("vit.embeddings.cls_token", 1, 1, 10**5) / config.initializer_range
    assert 1.99 < np.abs(normal).max() <= 2  # standard deviations
    assert normal.std() == pytest.approx(0.8796, abs=0.01)  # of a normal distribution that ends there
    assert abs(normal.mean()) < 0.02
    assert np.array_equal(drawn("vit.embeddings.cls_token", 1, 1, 9), drawn("vit.embeddings.cls_token", 1, 1, 9))
    assert not np.array_equal(drawn("vit.embeddings.cls_token", 9), drawn("vit.embeddings.mask_token", 9))
