"""What evaluation measures, by hand; and `vit evaluate` on real digits, the same in every framework."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.metrics import average_precision_score

from vit import ViTImageProcessor
from vit.cli import evaluate
from vit.cli.frameworks import DIGITS
from vit.errors import FRAMEWORKS, InputError
from vit.inference import Forward
from vit.training import Recipe, evaluation, measures
from vit.training.evaluation import Evaluation, linear_probe, neighbours
from vit.training.examples import Examples, read
from vit.training.state import TrainingState

from .command import vit
from .equivalence import random_checkpoint, tiny_config


@pytest.fixture(scope="module")
def digits(tmp_path_factory: Any) -> Path:
    """The bundled held-out scans: two of each digit to train on, one for validation."""
    folder = tmp_path_factory.mktemp("digits")
    for i, path in enumerate(sorted(DIGITS.glob("digit-*.png"))):
        where = folder / ("val" if i % 3 == 2 else "train") / path.name.split("-")[1]
        where.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, where)
    return folder


@pytest.mark.parametrize("more", [0, 1])
def test_as_many_labels_are_shown_as_a_screen_has_room_for(more: int, capsys: pytest.CaptureFixture[str]) -> None:
    labels = evaluate.SHOWN + more
    names = tuple(f"label {i}" for i in range(labels))
    evaluate.show(Evaluation({"images": labels, "top1": 1.0}, "all", names, np.eye(labels, dtype=int)))
    printed = capsys.readouterr().out
    assert (printed.count("label "), "and 1 more labels" in printed) == (50, bool(more))


def test_the_bundled_digits_are_known_in_every_framework(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for framework in FRAMEWORKS:
        picture = tmp_path / f"{framework}.png"
        assert vit("evaluate", digits, "-f", framework, "--knn", "1", "--probe", "--confusion", picture, "--json") == 0
        assert picture.stat().st_size > 1000
        found[framework] = json.loads(capsys.readouterr().out)
    first = found["pt"]
    assert (first["images"], first["top1"], first["top5"], first["skipped"]) == (10, 1.0, 1.0, {})
    assert min(first["knn"], first["probe"]) >= 0.9
    assert [row["label"] for row in first["classes"]] == list("0123456789")
    assert np.array_equal(first["confusion"], np.eye(10))
    for framework in ("tf", "flax"):
        assert found[framework]["loss"] == pytest.approx(first["loss"], abs=1e-5)
        assert found[framework]["confusion"] == first["confusion"]


def test_of_the_images_of_a_run_those_are_taken_that_it_held_out(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--steps", "1", "-b", "4", "--learning-rate", "1e-4", "--validation", "0.4", "--seed", "3", "-f", "pt"]
    assert vit("train", digits / "train", "-o", tmp_path / "run", *options, "--json") == 0
    best = tmp_path / "run" / "best"
    trained = json.loads(capsys.readouterr().out)["metrics"]
    assert vit("evaluate", digits / "train", "-m", best, "-f", "pt", "--knn", "1", "--json") == 0
    out, err = capsys.readouterr()
    held = json.loads(out)
    assert (held["part"], held["images"], held["top1"]) == ("held out", 10, trained["top1"])
    assert held["loss"] == pytest.approx(trained["loss"], abs=1e-5)
    assert "all images" not in err
    shutil.copytree(best, tmp_path / "elsewhere" / "best")
    for data, model in ((digits / "train", tmp_path / "elsewhere" / "best"), (digits / "val", best)):
        assert vit("evaluate", data, "-m", model, "-f", "pt") == 0
        out, err = capsys.readouterr()
        assert "images: all" in out
        assert "all images of DATA were taken" in err
    assert vit("evaluate", digits, "-m", best, "-f", "pt") == 0
    assert "10 images: validation" in capsys.readouterr().out


def test_labels_of_one_name_are_refused_where_images_have_it() -> None:
    names = ("crane", "ox", "crane")
    plain = Examples(["a.png"], np.ones((1, 1), np.float32), ("ox",))
    assert evaluation._named(plain, names, None).targets.tolist() == [[0, 1, 0]]
    with pytest.raises(InputError, match="The checkpoint has 2 labels called crane, and the images do not tell which"):
        evaluation._named(dataclasses.replace(plain, names=("crane",)), names, None)


def test_copies_of_training_images_are_told_of(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(digits, tmp_path / "data")
    shutil.copy(next((digits / "train" / "3").iterdir()), tmp_path / "data" / "val" / "3" / "copy.png")
    told = "of the validation images are training images, too"
    assert vit("evaluate", tmp_path / "data", "-f", "pt") == 0
    assert f"vit: 1 {told}" in capsys.readouterr().err
    recipe, data = Recipe(validation=0.5), tmp_path / "data" / "val"
    for path in sorted(data.rglob("*.png")):
        shutil.copy(path, path.with_stem(f"{path.stem}-copy"))
    (tmp_path / "run" / "last").mkdir(parents=True)
    TrainingState(0, 1, recipe, read(data, recipe.validation, recipe.seed).identity()).write(tmp_path / "run" / "last")
    (tmp_path / "run" / "recipe.json").write_text(recipe.to_json())
    shutil.copytree(DIGITS, tmp_path / "run" / "best")
    assert vit("evaluate", data, "-m", tmp_path / "run" / "best", "-f", "pt") == 0
    out, err = capsys.readouterr()
    assert "images: held out" in out
    assert told in err


def test_labels_that_the_checkpoint_has_not_are_named(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(digits / "val", tmp_path / "data")
    (tmp_path / "data" / "9").rename(tmp_path / "data" / "nine")
    assert vit("evaluate", tmp_path / "data", "-f", "pt") == 2
    assert "The checkpoint has no labels nine; it has 0, 1, 2, 3, 4 and 5 more." in capsys.readouterr().err
    assert vit("evaluate", digits / "val", "-f", "pt", "--knn", "3") == 2
    assert "need training images" in capsys.readouterr().err


def test_a_broken_file_is_skipped_and_counted(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(digits / "val", tmp_path / "data")
    next((tmp_path / "data" / "3").iterdir()).write_bytes(b"")
    assert vit("evaluate", tmp_path / "data", "-f", "pt", "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["images"] == 9
    assert "vit: 1 file was skipped: " in err
    assert vit("evaluate", tmp_path / "data", "-f", "pt", "--strict") == 2


def test_several_labels_are_matched_by_their_names_and_what_the_checkpoint_does_not_answer_is_refused(
    digits: Path, tmp_path: Path
) -> None:
    images = sorted(map(str, digits.rglob("*.png")))[:6]
    names, several = ("sun", "sea", "sky"), tmp_path / "several"
    config = tiny_config(id2label=dict(enumerate(names)), problem_type="multi_label_classification")
    random_checkpoint(several, config, "classifier")
    processor = ViTImageProcessor(size=16)
    processor.save_pretrained(several)
    answers = Forward(several, "pt")(processor(images, return_tensors="np").pixel_values).logits > 0

    def table(*labels: Any) -> Path:
        rows = [{"path": path, "label": labels[i % len(labels)]} for i, path in enumerate(images)]
        (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return tmp_path / "table.jsonl"

    for labels in ((["sky", "sea"], ["sea"]), ("sea", "sky")):  # the second as of classes
        truth = [[name in labels[i % 2] for name in names] for i in range(len(images))]
        assert 0 < (accuracy := (answers == truth).mean()) < 1
        assert evaluation.evaluate(table(*labels), several, "pt").metrics["accuracy"] == pytest.approx(accuracy)
    with pytest.raises(InputError, match="no labels fog; it has sun, sea, sky"):
        evaluation.evaluate(table(["sky", "sea"], ["fog"]), several, "pt")
    with pytest.raises(InputError, match="images are of a regression, and the checkpoint of a multi_label_class"):
        evaluation.evaluate(table([0.5, 1.5, 2.5]), several, "pt")
    config = json.loads((several / "config.json").read_text()) | {"problem_type": "single_label_classification"}
    (several / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="images are of a multi_label_classification, and the checkpoint of a single"):
        evaluation.evaluate(table(["sky", "sea"], ["sea"]), several, "pt")
    weights = load_file(several / "model.safetensors")
    save_file(weights | {"classifier.bias": weights["classifier.bias"] * np.nan}, several / "model.safetensors")
    with pytest.raises(InputError, match="6 of the 6 images came out of the model as values that are NaN"):
        evaluation.evaluate(table("sky", "sea"), several, "pt")


def test_measures_are_those_of_their_definitions() -> None:
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]]))
    targets = np.eye(3)[[0, 1, 2, 0]]
    found = measures.measure("single_label_classification", logits, targets)
    assert found["top1"] == 0.5
    assert found["top5"] == 1.0
    assert found["loss"] == pytest.approx(-np.log([0.7, 0.3, 0.8, 0.3]).mean())
    # Each confidence lies in a bin of its own, but for none: |right - confidence| of each, averaged.
    assert found["calibration_error"] == pytest.approx((0.3 + 0.6 + 0.2 + 0.4) / 4)
    table = measures.confusion(logits, targets)
    assert table.tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 1]]
    rows = measures.per_class(table, ("a", "b", "c"))
    assert [(row["precision"], row["recall"]) for row in rows] == [(0.5, 0.5), (None, 0.0), (0.5, 1.0)]
    several = measures.measure("multi_label_classification", np.array([[1.0, -1.0], [2.0, 3.0]]), np.eye(2))
    assert several["accuracy"] == 0.75
    assert several["score"] == several["mean_average_precision"] == 0.75  # of the first label 0.5, of the second 1
    assert measures.measure("multi_label_classification", np.ones((2, 2)), np.zeros((2, 2)))["score"] == 0.0
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 9, 50) / 9, rng.random(50) < 0.3  # some scores more than once
    assert measures.average_precision(scores, truth) == pytest.approx(average_precision_score(truth, scores))
    numbers = measures.measure("regression", np.array([[1.0], [3.0]]), np.array([[1.0], [1.0]]))
    assert (numbers["loss"], numbers["score"]) == (2.0, -(2.0**0.5))


def test_five_answers_count_and_bins_of_calibration_are_fifteen() -> None:
    scores = np.array([[0, 1, 2, 3, 4, 5, 6.0]] * 3)
    found = measures.measure("single_label_classification", scores, np.eye(7)[[6, 2, 1]])
    assert (found["images"], found["top1"], found["top5"]) == (3, pytest.approx(1 / 3), pytest.approx(2 / 3))

    def error(*confidences: float) -> float:  # of answers of which the first is right
        probabilities = np.array([[value, 1 - value] for value in confidences])
        return measures.calibration_error(probabilities, np.arange(len(confidences)) > 0)

    assert error(0.61, 0.66) == pytest.approx(abs(0.5 - 0.635))  # from 9 to 10 fifteenths: one bin
    assert error(0.66, 0.67) == pytest.approx((0.34 + 0.67) / 2)  # on both sides of 10 fifteenths
    assert error(0.99, 1.0) == pytest.approx(abs(0.5 - 0.995))  # the last bin holds its end


def test_nearer_neighbours_weigh_more() -> None:
    known = np.array([[1, 0], [0.6, 0.8], [0.6, -0.8], [-1, 0.0]])
    votes = neighbours(known * 3, np.eye(4), np.array([[5.0, 0]]), 3)
    assert votes == pytest.approx(np.exp(np.array([[1, 0.6, 0.6, -np.inf]]) / 0.07))
    assert neighbours(known, np.eye(4), np.tile(known, (300, 1)), 1).argmax(axis=1).tolist() == [0, 1, 2, 3] * 300


def test_neighbours_and_probe_find_what_features_hold() -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((3, 8)) * 4
    labels = np.eye(3)[rng.integers(3, size=120)]
    features = labels @ centres + rng.standard_normal((120, 8))
    for scores in (neighbours(features[:90], labels[:90], features[90:], 5),
                   linear_probe(features[:90], labels[:90], features[90:])):  # fmt: skip
        assert (scores.argmax(axis=1) == labels[90:].argmax(axis=1)).all()
    assert neighbours(features, labels, features, 1).argmax(axis=1).tolist() == labels.argmax(axis=1).tolist()


def test_a_classifier_that_lacks_a_tensor_is_not_evaluated(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(DIGITS, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    save_file({name: array for name, array in load_file(path).items() if name != "vit.layernorm.bias"}, path)
    assert vit("evaluate", digits, "-m", tmp_path / "model", "-f", "pt") == 2
    assert "vit.layernorm.bias" in capsys.readouterr().err


def test_features_that_tell_nothing_harm_neither_neighbours_nor_probe() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.standard_normal((30, 4)), np.eye(2)[rng.integers(0, 2, 30)]
    constant = np.hstack([features, np.full((30, 1), 0.1)])
    scores = linear_probe(constant, labels, constant)
    assert np.abs(scores - linear_probe(features, labels, features)).max() < 1e-3
    votes = neighbours(np.vstack([features, np.zeros((1, 4))]), labels[[*range(30), 0]], np.zeros((1, 4)), 3)
    assert np.isfinite(votes).all()
