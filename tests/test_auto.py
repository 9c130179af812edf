"""The Auto classes, over the table of families: each has its row in `families.CONFIGS`, and nothing else is needed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vit
from vit import AutoConfig, CheckpointError, ConfigError, families
from vit.auto import TASKS

from .tiny import HEADS, tiny_checkpoint, tiny_family

frameworks = pytest.mark.parametrize("framework", families.PREFIXES)
LACKING = [
    (each, task) for each in families.CONFIGS for task in TASKS if not families.heads_for(tiny_family(each), task)
]
"""(model_type, task) of no class."""


def auto(framework: str, task: str) -> Any:
    return getattr(vit, f"{families.PREFIXES[framework]}Auto{TASKS[task]}")


def task_of(model_type: str, head: str | None) -> str:
    name = families.config_class(model_type).heads[head].name
    return next(task for task in reversed(TASKS) if task in name)


@frameworks
@pytest.mark.parametrize(("model_type", "head"), HEADS)
def test_every_class_of_every_family_is_chosen_by_its_checkpoint(framework, model_type, head, tmp_path):
    config = tiny_checkpoint(tmp_path, model_type, head)
    expected = families.model_class(framework, model_type, head)
    model = auto(framework, task_of(model_type, head)).from_pretrained(tmp_path)
    assert type(model) is expected
    assert model.config == config
    base = auto(framework, "").from_pretrained(tmp_path)  # a checkpoint with a head, too
    assert type(base) is families.model_class(framework, model_type)


@frameworks
@pytest.mark.parametrize("model_type", families.CONFIGS)
def test_a_class_is_chosen_by_a_configuration(framework, model_type):
    options: dict[str, Any] = {}
    if framework == "flax":
        from flax import nnx

        options["rngs"] = nnx.Rngs(0)
    config = tiny_family(model_type)
    for task in TASKS:
        heads = families.heads_for(config, task)
        if heads:
            model = auto(framework, task).from_config(config, **options)
            assert type(model) is families.model_class(framework, model_type, heads[0])


@frameworks
@pytest.mark.parametrize(("model_type", "task"), LACKING)
def test_a_family_without_the_class_is_refused_with_those_that_fit(framework, model_type, task, tmp_path):
    tiny_checkpoint(tmp_path, model_type)
    fits = f"{families.PREFIXES[framework]}AutoModel"
    reason = rf"{re.escape(str(tmp_path))} is of model_type '{model_type}', which has .*Model.* only: take {fits}"
    with pytest.raises(CheckpointError, match=reason):
        auto(framework, task).from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=rf"The \w+Config is of model_type '{model_type}', which has "):
        auto(framework, task).from_config(tiny_family(model_type))


@pytest.mark.parametrize("model_type", ["clip", "swin", "data2vec-vision", "", 3])
def test_another_model_type_is_refused_by_name_with_the_families_there_are(model_type, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    known = ", ".join(map(repr, families.CONFIGS))
    for cls in (AutoConfig, *(auto(framework, task) for framework in families.PREFIXES for task in TASKS)):
        with pytest.raises(ConfigError, match=rf"config\.json: model_type is {model_type!r}; expected one of {known}"):
            cls.from_pretrained(tmp_path)


@pytest.mark.parametrize("model_type", families.CONFIGS)
def test_the_configuration_of_every_family_is_read_and_made(model_type, tmp_path):
    config = tiny_checkpoint(tmp_path, model_type)
    assert AutoConfig.from_pretrained(tmp_path) == config
    assert AutoConfig.from_pretrained(tmp_path, hidden_act="relu").hidden_act == "relu"
    made = AutoConfig.for_model(model_type, num_labels=3)
    assert (type(made), made.num_labels) == (families.config_class(model_type), 3)
    with pytest.raises(ConfigError, match="Unknown configuration key 'hiden_size'; did you mean 'hidden_size'"):
        AutoConfig.for_model(model_type, hiden_size=3)


def test_options_reach_the_class(tmp_path):
    tiny_checkpoint(tmp_path, "vit", "classifier")
    model = vit.AutoModelForImageClassification.from_pretrained(tmp_path, dtype="bfloat16", num_labels=5)
    assert (str(model.dtype), model.config.num_labels) == ("torch.bfloat16", 5)
    assert vit.AutoModel.from_pretrained(tmp_path, add_pooling_layer=False).pooler is None
    with pytest.raises(ConfigError, match="Unknown configuration key 'dtyp'"):
        vit.AutoModel.from_pretrained(tmp_path, dtyp="float16")


def test_the_class_that_wrote_a_checkpoint_is_preferred_among_those_for_its_task(tmp_path):
    tiny_checkpoint(tmp_path, "deit", "teacher")
    model = vit.AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(model) is vit.DeiTForImageClassificationWithTeacher
    assert type(vit.AutoModelForImageClassification.from_config(tiny_family("deit"))) is vit.DeiTForImageClassification


def test_what_is_no_configuration_and_instances_are_refused():
    for cls in (auto(framework, task) for framework in families.PREFIXES for task in TASKS):
        with pytest.raises(ConfigError, match="expected a configuration, such as AutoConfig gives"):
            cls.from_config({"model_type": "vit"})
        with pytest.raises(TypeError, match=f"use {cls.__name__}.from_pretrained or .from_config"):
            cls(tiny_family("vit"))
    with pytest.raises(TypeError, match=r"use AutoConfig\.from_pretrained"):
        AutoConfig()


def test_no_framework_is_imported_before_a_model_is_made(tmp_path):
    tiny_checkpoint(tmp_path, "vit")
    code = """
import sys
import vit
names = [name for name in dir(vit) if "Auto" in name and "Processor" not in name]
assert len(names) == 14, names
for name in names:
    getattr(vit, name)
vit.AutoConfig.from_pretrained(sys.argv[1])
loaded = {"torch", "tensorflow", "keras", "jax", "flax"} & set(sys.modules)
assert not loaded, loaded
vit.AutoModel.from_pretrained(sys.argv[1])
assert "torch" in sys.modules
assert not {"tensorflow", "jax"} & set(sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=Path(vit.__file__).parents[1],
                         capture_output=True, text=True, check=False)  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_every_task_of_every_family_has_an_auto_class():
    for model_type in families.CONFIGS:
        config = tiny_family(model_type)
        reached = {head for task in TASKS for head in families.heads_for(config, task)}
        assert reached == set(config.heads)


@pytest.mark.parametrize("framework", families.PREFIXES)
def test_a_warning_points_at_the_line_that_loads(framework: str, tmp_path: Path):
    tiny_checkpoint(tmp_path, "vit", "classifier")
    prefix = families.PREFIXES[framework]
    auto = getattr(vit, f"{prefix}AutoModelForImageClassification")
    for load in (auto.from_pretrained, families.model_class(framework, "vit", "classifier").from_pretrained,
                 lambda folder, **options: vit.Forward(folder, framework, **options)):  # fmt: skip
        with pytest.warns(UserWarning, match="freshly initialised") as caught:
            load(tmp_path, num_labels=3)
        assert {Path(each.filename).name for each in caught if "freshly" in str(each.message)} == {Path(__file__).name}
