"""Scripts of transformers' users run when their import lines are changed, and those lines alone.

Each script follows the published behaviour of one of transformers' examples. It is kept as such a user has it, with
transformers' imports; `with_vit` changes those lines. Where transformers still has the class, the script is run with
either import from the same seed, and both runs have to write the same files and reach the same losses.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

import vit

from .common import SIZE, needs, run, small_checkpoint

SCRIPTS = Path(__file__).parent / "scripts"
ATOL = 2e-3  # of losses and weights after several steps, in which Adam makes much of rounding


def with_vit(source: str) -> str:
    """The script with its import lines changed: what vit has comes from vit, and Keras is Keras 3."""
    lines = source.splitlines(keepends=True)
    imports = [node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom) and node.level == 0]
    for node in reversed(imports):
        if node.module == "transformers":
            names = [alias.name for alias in node.names]
            ours = [name for name in names if name in dir(vit)]
            theirs = [name for name in names if name not in ours]
            changed = [f"from vit import {', '.join(ours)}\n"] * bool(ours)
            changed += [f"from transformers import {', '.join(theirs)}\n"] * bool(theirs)
            lines[node.lineno - 1 : node.end_lineno] = changed
    return "".join(lines).replace("import tf_keras as keras\n", "import keras\n")


def body(source: str) -> list[str]:
    """Every statement of a script that is no import, as text."""
    return [ast.unparse(node) for node in ast.parse(source).body if not isinstance(node, ast.Import | ast.ImportFrom)]


def run_script(name: str, ours: bool, tmp_path: Path, *arguments: Any, **environment: str) -> tuple[Path, Any]:
    """Where a script wrote, and what it wrote into all_results.json."""
    source = (SCRIPTS / name).read_text()
    changed = with_vit(source) if ours else source
    assert body(changed) == body(source)
    assert ours == ("from vit import" in changed)
    place = tmp_path / ("vit" if ours else "transformers")
    place.mkdir(exist_ok=True)
    (place / name).write_text(changed)
    output = place / "output"
    run(place / name, "--output_dir", output, *arguments, cwd=place, **environment)
    return output, json.loads((output / "all_results.json").read_text())


def files(folder: Path) -> set[str]:
    """The names of the files below a folder, without the times and processes that logs have in theirs."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {re.sub(r"^runs/.*|/[\d.]{12,}/|events\..*", "", name) for name in found}


def test_imports_alone_are_changed():
    source = "from transformers import (\n    AutoConfig,\n    Trainer,\n)\nimport tf_keras as keras\nx = 1\n"
    assert with_vit(source) == "from vit import AutoConfig\nfrom transformers import Trainer\nimport keras\nx = 1\n"


TRAINING = (
    "--per_device_train_batch_size", 4, "--per_device_eval_batch_size", 4, "--learning_rate", 1e-3, "--seed", 3,
)  # fmt: skip
TRAINER = (*TRAINING, "--do_train", "--do_eval", "--num_train_epochs", 2, "--remove_unused_columns", "False",
           "--save_strategy", "epoch", "--logging_steps", 1, "--dataloader_num_workers", 0)  # fmt: skip


@needs("datasets", "accelerate", "tensorboard")
def test_run_image_classification_with_the_trainer(folder: Path, images: Path, tmp_path: Path):
    arguments = ("--model_name_or_path", folder, "--train_dir", images, "--train_val_split", 0.25, *TRAINER)
    (ours, results), (theirs, expected) = (
        run_script("run_image_classification.py", each, tmp_path, *arguments) for each in (True, False)
    )
    assert results.keys() == expected.keys()
    for name in ("train_loss", "eval_loss", "eval_accuracy"):
        assert results[name] == pytest.approx(expected[name], abs=ATOL), name
    assert files(ours) == files(theirs)
    model = vit.ViTForImageClassification.from_pretrained(ours)
    assert model.config.id2label == {0: "blue", 1: "green", 2: "red"}
    assert vit.ViTImageProcessor.from_pretrained(ours).size == {"height": SIZE, "width": SIZE}
    assert "image-classification" in (ours / "README.md").read_text()
    # A checkpoint of the way is a checkpoint, too, and the script goes on from it.
    vit.ViTForImageClassification.from_pretrained(max(ours.glob("checkpoint-*")))
    again = [each if each != 2 else 3 for each in arguments]
    run_script("run_image_classification.py", True, tmp_path, *again)
    state = json.loads((ours / "trainer_state.json").read_text())
    assert state["epoch"] == 3


@needs("datasets", "accelerate", "tensorboard")
def test_run_image_classification_with_accelerate(folder: Path, images: Path, tmp_path: Path):
    arguments = (
        "--model_name_or_path", folder, "--train_dir", images, "--validation_dir", images, *TRAINING,
        "--num_train_epochs", 2, "--gradient_accumulation_steps", 2, "--checkpointing_steps", "epoch",
        "--with_tracking", "--report_to", "tensorboard", "--num_warmup_steps", 1,
    )  # fmt: skip
    (ours, results), (theirs, expected) = (
        run_script("run_image_classification_no_trainer.py", each, tmp_path, *arguments) for each in (True, False)
    )
    assert results == pytest.approx(expected, abs=1e-6)
    assert files(ours) == files(theirs)
    weights = [vit.checkpoint.Checkpoint(each) for each in (ours, theirs)]
    for name in weights[1].tensors:
        assert abs(weights[0].read(name) - weights[1].read(name)).max() < ATOL, name
    resumed = ("--resume_from_checkpoint", ours / "epoch_0")
    _, results = run_script("run_image_classification_no_trainer.py", True, tmp_path, *arguments, *resumed)
    assert set(results) == {"eval_accuracy"}


@needs("datasets", "accelerate", "tensorboard")
def test_run_mim_with_the_trainer(images: Path, tmp_path: Path):
    begin = small_checkpoint(tmp_path / "begin", "decoder")
    arguments = ("--model_name_or_path", begin, "--train_dir", images, "--mask_patch_size", 8, *TRAINER)
    (ours, results), (theirs, expected) = (
        run_script("run_mim.py", each, tmp_path, *arguments) for each in (True, False)
    )
    assert results.keys() == expected.keys()
    assert results["train_loss"] == pytest.approx(expected["train_loss"], abs=ATOL)
    assert files(ours) == files(theirs)
    vit.ViTForMaskedImageModeling.from_pretrained(ours)


@needs("datasets", "accelerate", "tensorboard")
def test_run_mim_from_nothing(images: Path, tmp_path: Path):
    shape = ("hidden_size=32,num_hidden_layers=1,num_attention_heads=2,intermediate_size=48,image_size=16,"
             "patch_size=4,encoder_stride=4")  # fmt: skip
    arguments = ("--model_type", "vit", "--config_overrides", shape, "--train_dir", images, "--mask_patch_size", 4)
    ours, results = run_script("run_mim.py", True, tmp_path, *arguments, *TRAINER)
    assert 0 < results["train_loss"] < 2
    assert vit.ViTForMaskedImageModeling.from_pretrained(ours).config.hidden_size == 32


@needs("datasets")
def test_run_image_classification_in_tensorflow(folder: Path, images: Path, tmp_path: Path):
    arguments = (
        "--model_name_or_path", folder, "--train_dir", images, "--validation_dir", images, *TRAINING,
        "--do_train", "--do_eval", "--num_train_epochs", 2, "--overwrite_output_dir",
    )  # fmt: skip
    ours, results = run_script("run_image_classification_tf.py", True, tmp_path, *arguments)
    _, expected = run_script("run_image_classification_tf.py", False, tmp_path, *arguments, TF_USE_LEGACY_KERAS="1")
    assert results.keys() == expected.keys()
    for name in ("train_loss", "eval_loss", "eval_accuracy"):
        assert results[name] == pytest.approx(expected[name], abs=0.05), name
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= files(ours)
    vit.TFViTForImageClassification.from_pretrained(ours)


@needs("datasets")
def test_run_image_classification_in_flax(folder: Path, images: Path, tmp_path: Path):
    output = tmp_path / "output"
    run(
        SCRIPTS / "run_image_classification_flax.py", "--output_dir", output, "--model_name_or_path", folder,
        "--train_dir", images, "--validation_dir", images, "--image_size", SIZE, *TRAINING,
        "--do_train", "--do_eval", "--num_train_epochs", 4, "--warmup_steps", 2, cwd=tmp_path,
    )  # fmt: skip
    results = json.loads((output / "all_results.json").read_text())
    assert results.keys() == {"train_loss", "eval_loss", "eval_accuracy"}
    assert results["eval_loss"] < results["train_loss"]
    vit.FlaxViTForImageClassification.from_pretrained(output)
    assert vit.ViTImageProcessor.from_pretrained(output).size == {"height": SIZE, "width": SIZE}
