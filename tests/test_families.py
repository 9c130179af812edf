"""The house of families: a configuration that inherits the shared one, a row in a table, and no function changed."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest

import vit
from vit import CheckpointError, ConfigError, checkpoint, families
from vit.config import Head, PreTrainedConfig, keys_of
from vit.families.vit import ViTConfig
from vit.flops import forward_flops
from vit.loading import plan

FRAMEWORKS = {"pt": "", "tf": "TF", "flax": "Flax"}


@dataclass(eq=False)
class ToyConfig(ViTConfig):
    """A ViT of another name, with a token more before the patches and an MLP whose width follows from a ratio."""

    base_model_prefix: ClassVar[str] = "toy"
    heads: ClassVar[Mapping[str | None, Head]] = {
        None: Head("ToyModel", "last_hidden_state", {"add_pooling_layer": False, "use_mask_token": False}),
        "classifier": Head("ToyForImageClassification", "logits"),
    }
    optional: ClassVar[tuple[str, ...]] = ("toy.pooler.", "classifier.")
    prefix_tokens: ClassVar[int] = 2

    mlp_ratio: int = 4
    intermediate_size: int = dataclasses.field(init=False, default=0)
    model_type: str = "toy"

    def __post_init__(self) -> None:
        object.__setattr__(self, "intermediate_size", self.mlp_ratio * self.hidden_size)
        super().__post_init__()

    def parameter_shapes(self, head: str | None = None, **parts: bool) -> dict[str, tuple[int, ...]]:
        shapes = super().parameter_shapes(head, **parts)
        return {name.replace("vit.", "toy.", 1): shape for name, shape in shapes.items()}


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("vit.families.toy")
    module.ToyConfig = ToyConfig  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(families.CONFIGS, "toy", "toy.ToyConfig")


def small(**overrides: Any) -> ToyConfig:
    return ToyConfig(
        **{"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, **overrides}
    )


def saved(folder: Path, config: PreTrainedConfig, head: str | None = None) -> dict[str, np.ndarray]:
    """A checkpoint of random numbers, written into `folder`."""
    rng, shapes = np.random.default_rng(0), config.parameter_shapes(head=head)
    arrays = {
        config.model_name(name, head): rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    specs = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    checkpoint.write(folder, config, specs, arrays.__getitem__)
    return arrays


def test_a_configuration_of_any_family_is_read_by_its_model_type(tmp_path):
    config = small(mlp_ratio=3, extra={"unknown": [1]})
    config.save_pretrained(tmp_path)
    for cls in (ToyConfig, PreTrainedConfig):
        assert cls.from_pretrained(tmp_path) == config
        assert type(cls.from_pretrained(tmp_path, mlp_ratio=2)) is ToyConfig
    assert config != ViTConfig.from_dict({**config.to_dict(), "model_type": "vit"})


def test_a_key_that_a_family_computes_is_none_of_its_config_json(tmp_path):
    config = small(mlp_ratio=3)
    config.save_pretrained(tmp_path)
    assert "intermediate_size" not in json.loads((tmp_path / "config.json").read_text())
    assert "intermediate_size" not in keys_of(ToyConfig)
    assert "intermediate_size" in keys_of(ViTConfig)
    assert config.intermediate_size == 24
    assert config.replace(hidden_size=16).intermediate_size == 48
    with pytest.raises(ConfigError, match="Unknown configuration key 'intermediate_size'"):
        config.replace(intermediate_size=5)


def test_the_configuration_of_another_family_is_refused_with_the_class_that_fits(tmp_path):
    small().save_pretrained(tmp_path)
    with pytest.raises(
        ConfigError, match=r"config\.json: model_type is 'toy', which ToyConfig reads; ViTConfig reads 'vit'\."
    ):
        ViTConfig.from_pretrained(tmp_path)
    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"model_type is 'vit', which ViTConfig reads; ToyConfig reads 'toy'\."):
        ToyConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("model_type", ["clip", "", 5, ["vit"], {"vit": 1}])
def test_a_model_type_of_no_family_is_refused_with_those_there_are(tmp_path, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ConfigError, match=r"config\.json: model_type is .*; expected one of 'vit', .*'toy'"):
        PreTrainedConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_checkpoint_of_another_family_is_refused_with_the_classes_that_fit(tmp_path, framework):
    saved(tmp_path, small())
    for head, fits in ((None, "ToyModel"), ("classifier", "ToyForImageClassification"), ("decoder", "ToyModel")):
        cls = getattr(vit, FRAMEWORKS[framework] + ViTConfig.heads[head].name)
        with pytest.raises(CheckpointError, match=rf"'toy', not 'vit': load it with {fits}, TF{fits} or Flax{fits}\."):
            cls.from_pretrained(tmp_path)


def test_a_head_that_a_family_has_not_is_refused_with_those_it_has(tmp_path):
    saved(tmp_path, small())
    with pytest.raises(CheckpointError, match=r"'toy', which has ToyModel, ToyForImageClassification only\."):
        plan(tmp_path, "decoder")
    with pytest.raises(ConfigError, match="head is 'decoder'; ToyConfig has None, 'classifier'"):
        families.model_class("pt", "toy", "decoder")


def test_a_familys_checkpoint_is_fitted_by_its_own_tables(tmp_path):
    arrays = saved(tmp_path, small())
    assert "embeddings.cls_token" in arrays
    fit = plan(tmp_path, None, config_class=ToyConfig)
    assert fit.stored == {f"toy.{name}": name for name in arrays}
    assert not fit.fresh
    headed = plan(tmp_path, "classifier")
    assert set(headed.fresh) == {"classifier.weight", "classifier.bias"}
    assert headed.config.model_name("toy.layernorm.bias", "classifier") == "toy.layernorm.bias"


def test_every_token_before_the_patches_keeps_its_position_when_the_grid_changes(tmp_path):
    arrays = saved(tmp_path, small())
    name = "toy.embeddings.position_embeddings"
    fit = plan(tmp_path, None, image_size=(64, 48))
    positions = fit.read(name)
    assert fit.resampled == {name}
    assert positions.shape == (1, 2 + 4 * 3, 8)
    assert np.array_equal(positions[:, :2], arrays["embeddings.position_embeddings"][:, :2])


def test_operations_are_counted_from_the_parameters_of_whichever_family():
    toy, width, tokens = small(mlp_ratio=3, num_labels=5), 8, 4 + 2
    layer = tokens * (4 + 2 * 3) * width**2 + 2 * tokens**2 * width
    assert forward_flops(toy) == 2 * (4 * 3 * 16 * 16 * width + layer + 5 * width)
