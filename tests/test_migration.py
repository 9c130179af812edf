"""docs/migration.md: its tables of names, held to the code by the tests of what they list."""

import inspect
import re
from pathlib import Path

import pytest

import vit

from .equivalence import tiny_config

PAGE = Path(__file__).parents[1] / "docs" / "migration.md"


def rows(section):
    """{name: "works", "another meaning" or "not"} of the table of names in a section."""
    text = PAGE.read_text(encoding="utf-8")
    body = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    found = {}
    for line in body.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[1] in ("works", "another meaning", "not"):
            found |= dict.fromkeys(re.findall(r"`(\w+)`", cells[0]), cells[1])
    return found


def test_the_table_of_image_processors_says_what_to_do_instead():
    text = PAGE.read_text(encoding="utf-8")
    assert len(rows("Image processors")) > 30
    assert not re.search(r"\| (not|another meaning) \| *\|", text)


# === Models and configurations ===

TIMM = {"group_matcher", "no_weight_decay", "forward_features", "forward_head", "get_classifier", "reset_classifier",
        "set_grad_checkpointing", "num_features", "num_classes", "default_cfg", "pretrained_cfg", "feature_info",
        "get_intermediate_layers", "forward_intermediates"}  # fmt: skip


def public(thing, *without):
    known = {name for each in without for name in dir(each)}
    return {name for name in dir(thing) if not name.startswith("_") and name not in known}


def pytorch():
    import torch
    import transformers

    return public(transformers.PreTrainedModel, torch.nn.Module) | TIMM, vit.ViTForImageClassification(tiny_config())


def tensorflow():
    import tf_keras
    import transformers

    return public(transformers.TFPreTrainedModel, tf_keras.Model), vit.TFViTForImageClassification(tiny_config())


def flax():
    import transformers
    from flax import nnx

    model = vit.FlaxViTForImageClassification(tiny_config(), rngs=nnx.Rngs(0))
    return public(transformers.FlaxPreTrainedModel), model


def configuration():
    import transformers

    return public(transformers.PretrainedConfig()), vit.ViTConfig()


@pytest.mark.parametrize(("section", "names_and_ours"), [
    ("PyTorch", pytorch), ("TensorFlow", tensorflow), ("Flax", flax), ("Configuration", configuration),
])  # fmt: skip
def test_every_public_name_of_transformers_is_in_a_table_that_says_what_is_so(section, names_and_ours):
    names, ours = names_and_ours()
    table = rows(section)
    assert not names - table.keys(), "names that docs/migration.md lacks"
    assert not table.keys() - names, "names that nobody has"
    for name, status in table.items():
        assert hasattr(ours, name) is (status != "not"), f"{name} is said to be: {status}"


def test_every_method_that_is_said_to_work_takes_the_arguments_of_transformers():
    import transformers

    theirs, ours = transformers.PreTrainedModel, vit.ViTForImageClassification
    for name, status in rows("PyTorch").items():
        if status != "works" or name in TIMM or not inspect.isfunction(inspect.unwrap(getattr(theirs, name))):
            continue
        parameters = inspect.signature(getattr(ours, name)).parameters
        takes_any = {each.kind for each in parameters.values()} & {inspect.Parameter.VAR_KEYWORD}
        expected = inspect.signature(getattr(theirs, name)).parameters
        lacking = {each for each in expected if each not in parameters} - {"args", "kwargs", "self"}
        assert takes_any or not lacking, f"{name} lacks {lacking}"
