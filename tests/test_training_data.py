"""The data of a run: where it comes from, how it is split, what is drawn; and the objectives that need other data."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vit import ViTImageProcessor, checkpoint
from vit.config import keys_of
from vit.errors import FRAMEWORKS, ConfigError, InputError
from vit.inference import Forward
from vit.training import Recipe, augment
from vit.training.data import Data
from vit.training.evaluation import evaluate
from vit.training.examples import Examples, Split, _targets, read
from vit.training.run import _as_labelled, train
from vit.training.start import begin
from vit.training.teacher import Teacher

from .equivalence import random_checkpoint, tiny_config

RECIPE = Recipe(batch_size=4, steps=3, learning_rate=1e-3, validation=0.25, log_every=1)


def draw(folder: Path, count: int, seed: int = 0) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed, name in enumerate(("blue", "red")):
        draw(folder / name, 8, seed)
    return folder


def begun(folder: Path, model_type: str = "vit", head: str = "classifier", **overrides: Any) -> Path:
    random_checkpoint(folder, tiny_config(model_type, **overrides), head)
    ViTImageProcessor(size=16).save_pretrained(folder)
    return folder


# === Where it comes from ===


def test_a_split_holds_a_part_of_every_class_out_and_is_the_same_for_the_same_seed(photos: Path) -> None:
    first, again, other = read(photos, 0.25, 0), read(photos, 0.25, 0), read(photos, 0.25, 1)
    assert first.identity() == again.identity() != other.identity()
    assert first.validation.targets.sum(axis=0).tolist() == [2, 2]
    assert not set(first.training.images) & set(first.validation.images)
    assert len(read(photos, 0.0, 0).validation) == 0


def test_folders_train_and_val_are_the_split_and_what_both_hold_is_told(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "train")
    draw(tmp_path / "val" / "red", 2, 7)
    shutil.copy(photos / "blue" / "3.png", tmp_path / "val" / "red" / "copy.png")
    split = read(tmp_path, 0.5, 0)
    assert (len(split.training), len(split.validation)) == (16, 3)
    assert split.validation.targets.sum(axis=0).tolist() == [0, 3]
    assert len(split.notes) == 2
    assert "no images" not in split.notes[-1]
    assert "1 of the validation images are training images, too: " in split.notes[-1]
    assert "copy.png" in split.notes[-1]
    draw(tmp_path / "val" / "green", 1)
    with pytest.raises(InputError, match=r"has classes that .* has not: green"):
        read(tmp_path, 0.5, 0)


def test_small_and_empty_classes_are_told(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path, dirs_exist_ok=True)
    draw(tmp_path / "single", 1)
    (tmp_path / "empty").mkdir()
    split = read(tmp_path, 0.25, 0)
    assert split.training.names == ("blue", "red", "single")
    assert split.training.targets[:, 2].sum() == 1
    assert split.validation.targets[:, 2].sum() == 0
    assert any("The class empty has no images" in note for note in split.notes)
    assert any("The class single has one image" in note for note in split.notes)


@pytest.mark.parametrize(("files", "message"), [
    ({}, "has no folders; expected one folder a class"),
    ({"t.csv": "name,label\na.png,x\n"}, "no column of images; expected one called path"),
    ({"t.csv": "path,score\na.png,x\n"}, "no column of labels"),
    ({"t.csv": "path,label\n"}, "has no rows"), ({"t.csv": "path,label\na.png,\n"}, "row 1 has no path or no label"),
    ({"t.csv": "path,label,split\na.png,x,tset\n"}, "has the split tset"), ({"t.jsonl": "{"}, "cannot be read"),
    ({"t.jsonl": "[1]"}, "no JSON object"), ({"t.parquet": "PAR"}, "cannot be read"),
    ({"t.csv": "path,label\na.png,x\nb.png,x\n"}, "All images have the label x"),
    ({"t.csv": "path,label\na.png,x\nb.png,y\na.png,x\nb.png,y\n"}, r"names images that are not there, .*\.png"),
    ({"t.xlsx": ""}, "is no folder and no .csv"), ({"t.csv": "path,label\na.png,x\n"}, "too few to hold some out"),
])  # fmt: skip
def test_data_that_cannot_be_used_is_refused_with_the_reason(
    files: dict[str, str], message: str, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read(tmp_path / next(iter(files), ""), 0.25, 0)
    with pytest.raises(InputError, match=r"does not exist; expected a folder, a table"):
        read(tmp_path / "nowhere.csv", 0.25, 0)


def test_a_slip_in_the_name_of_a_folder_is_named_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"no folder or table fotos here; .*, pip install datasets$"):
        read("fotos", 0.1, 0)

    def nothing(name: str) -> None:
        raise FileNotFoundError(f"{name} doesn't exist on the hub")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=nothing))
    with pytest.raises(InputError, match=r"no folder or table fotos here, and .*: fotos doesn't exist on the hub"):
        read("fotos", 0.1, 0)


def test_a_data_set_of_the_datasets_library_is_read_loaded_and_saved(photos: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="an extra of the user's own")
    rows = datasets.load_dataset("imagefolder", data_dir=str(photos), split="train", cache_dir=str(tmp_path / "cache"))
    rows.save_to_disk(str(tmp_path / "saved"))
    for data in (rows, tmp_path / "saved"):
        split = read(data, 0.25, 0)
        assert (split.training.names, len(split.training), len(split.validation)) == (("blue", "red"), 12, 4)
        assert isinstance(split.training.images[0], Image.Image)


# === What is drawn ===


def pipeline(photos: Path, model: Path, workers: int = 1, **fields: Any) -> Data:
    recipe = RECIPE.replace(**fields)
    split = read(photos, recipe.validation, recipe.seed)
    return Data(split.training, recipe, ViTImageProcessor(size=16), checkpoint.read_config(model), workers)


EVERYTHING = {"mixup": 0.5, "cutmix": 0.5, "randaugment": 2, "erasing": 0.5, "crop_scale": 0.2}


def test_batches_go_on_from_a_position_and_are_the_same_for_any_number_of_workers(photos: Path, tmp_path: Path) -> None:
    model = begun(tmp_path)
    one, four = (pipeline(photos, model, workers, **EVERYTHING).batches() for workers in (1, 4))
    first = [next(one) for _ in range(3)]
    position = json.loads(json.dumps(one.get_state()))
    later = [next(one) for _ in range(4)]
    again = pipeline(photos, model, 2, **EVERYTHING).batches(position)
    for mine, theirs in zip([*first, *later], [*(next(four) for _ in range(3)), *(next(again) for _ in range(4))],
                            strict=True):  # fmt: skip
        assert mine.keys() == theirs.keys() == {"pixel_values", "targets"}
        assert all(np.array_equal(array, theirs[name]) for name, array in mine.items())
        assert mine["targets"].sum(axis=1) == pytest.approx(1)


def test_an_epoch_has_every_image_once_and_the_next_another_order(photos: Path, tmp_path: Path) -> None:
    data = pipeline(photos, begun(tmp_path), crop_scale=1.0, flip=0.0, label_smoothing=0.0)
    batches = data.batches()
    epochs = [np.concatenate([next(batches)["pixel_values"] for _ in range(3)]) for _ in range(2)]
    plain = np.concatenate([pixels for pixels, _ in data.evaluation(data.training, 5)])
    keys = [[image.tobytes() for image in images] for images in (*epochs, plain)]
    assert sorted(keys[0]) == sorted(keys[1]) == sorted(keys[2])
    assert keys[0] != keys[1]


def test_images_have_the_size_that_the_processor_gives_them(photos: Path, tmp_path: Path) -> None:
    """Published DINOv2s have an image_size of 518, and processors that give 224."""
    model = begun(tmp_path, "dinov2", None, image_size=32)
    data = pipeline(photos, model)
    evaluated, _ = next(data.evaluation(data.training, 5))
    assert next(data.batches())["pixel_values"].shape[2:] == evaluated.shape[2:] == (16, 16)
    ViTImageProcessor(size={"shortest_edge": 20}, do_center_crop=True, crop_size=16).save_pretrained(model)
    for image_size, sizes in ((None, (20, 16)), (24, (30, 24))):
        start = begin(model, data.training, RECIPE.replace(image_size=image_size))
        edge, crop = start.processor.size["shortest_edge"], start.processor.crop_size
        assert (edge, crop["height"], crop["width"]) == (sizes[0], sizes[1], sizes[1])
        assert start.config.image_size == (image_size or 32)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_every_depth_are_trained_on_and_evaluated_as_they_are_served(channels: int, tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 20 * 24).reshape(20, 24)
    wide = {"16.png": ramp.astype(np.uint16), "32.tiff": ramp.astype(np.int32)}
    arrays = {**wide, "8.png": np.uint8(ramp / 257), "float.tiff": np.float32(ramp / 257), "bit.png": ramp > 32767}
    images: list[Any] = list(map(Image.fromarray, arrays.values()))
    for name, image in zip(arrays, images, strict=True):
        image.save(tmp_path / name)
    images += [str(tmp_path / name) for name in arrays] + [arrays["16.png"]]
    processor = ViTImageProcessor(size=16, image_mean=[0.5] * channels, image_std=[0.5] * channels)
    examples = Examples(images, np.ones((len(images), 1), np.float32), ("grey",))
    recipe = RECIPE.replace(crop_scale=1.0, flip=0.0)
    data = Data(examples, recipe, processor, tiny_config(num_channels=channels), strict=True)
    (evaluated,) = (pixels for pixels, _ in data.evaluation(examples, len(images)))
    for i, image in enumerate(images):
        expected = processor(image, return_tensors="np").pixel_values[0]
        assert np.ptp(expected) > 1.5  # from black to white
        np.testing.assert_allclose(evaluated[i], expected, atol=0.02)  # of 8 bits
        np.testing.assert_allclose(data.example(0, i)["pixel_values"], expected, atol=0.02)


def test_augmentation_is_a_function_of_its_generator() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
    for name, operation in augment.OPERATIONS.items():
        for kind in (image, image.convert("L")):
            changed = operation(kind, 0.9, 1.0)
            assert (changed.size, changed.mode) == (kind.size, kind.mode), name
    boxes = [augment.random_crop_box(40, 30, 0.1, np.random.default_rng(seed)) for seed in range(200)]
    assert all(0 <= left < right <= 40 and 0 <= top < bottom <= 30 for left, top, right, bottom in boxes)
    areas = [(right - left) * (bottom - top) / 1200 for left, top, right, bottom in boxes]
    assert min(areas) < 0.2 < 0.8 < max(areas)
    batch = {"pixel_values": np.stack([np.full((3, 8, 8), i, np.float32) for i in range(4)]), "targets": np.eye(4)}
    for alphas in ((1.0, 0.0), (0.0, 1.0)):
        mixed = augment.mix(batch, *alphas, np.random.default_rng(1))
        means = mixed["pixel_values"].mean(axis=(1, 2, 3))
        assert means == pytest.approx(mixed["targets"] @ np.arange(4), abs=1e-5)  # as much of each as of its target


# === Other objectives ===


@pytest.mark.parametrize(("model_type", "head"), [("vit", "decoder"), ("vit_mae", "decoder"), ("deit", "decoder")])
def test_reconstruction_trains_without_labels(model_type: str, head: str, photos: Path, tmp_path: Path) -> None:
    flat = photos / "red"
    if model_type == "vit_mae":  # of data with a split, nothing is measured either
        flat = tmp_path / "data"
        shutil.copytree(photos, flat / "train")
        draw(flat / "val" / "red", 2, seed=9)
    recipe = RECIPE.replace(objective="reconstruction", steps=12, epochs=3, learning_rate=3e-3)
    run = train(flat, begun(tmp_path / "model", model_type, head), tmp_path / "run", "pt", recipe)
    losses = [json.loads(line)["loss"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    config = checkpoint.read_config(run.folder / "best")
    assert config.model_type == model_type
    assert getattr(config, "mask_ratio", 0.75) == 0.75  # the checkpoint's own


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_student_learns_from_a_teacher(framework: str, photos: Path, tmp_path: Path) -> None:
    teacher, student = begun(tmp_path / "teacher", num_labels=2), begun(tmp_path / "student", "deit", "teacher")
    recipe = RECIPE.replace(objective="distillation", teacher=str(teacher), mixup=0.2)
    run = train(photos, student, tmp_path / "run", framework, recipe)
    assert run.is_done
    assert checkpoint.read_config(run.folder / "best").architectures == ("DeiTForImageClassificationWithTeacher",)
    wrong = recipe.replace(teacher=str(begun(tmp_path / "wrong", num_labels=3)))
    with pytest.raises(ConfigError, match="has 3 labels, and the data 2"):
        train(photos, student, tmp_path / "other", framework, wrong)
    assert not (tmp_path / "other").exists()


def test_a_teacher_sees_its_own_normalisation_and_answers_in_the_students_order(photos: Path, tmp_path: Path) -> None:
    folder = begun(tmp_path / "teacher", id2label={0: "red", 1: "blue"})
    own = ViTImageProcessor(size=16, image_mean=[0.4, 0.5, 0.6], image_std=0.3, rescale_factor=1 / 200)
    own.save_pretrained(folder)
    photo = min(photos.rglob("*.png"))
    expected = Forward(folder, "pt")(own(photo, return_tensors="np").pixel_values).logits
    student = ViTImageProcessor(size=16, image_mean=[0.1, 0.2, 0.3], image_std=[0.7, 0.8, 0.9])
    teacher = Teacher(str(folder), "pt", ["blue", "red"])
    assert teacher.notes == []
    for names, columns in ((["blue", "red"], [1, 0]), (["red", "blue"], [0, 1])):
        found = teacher.answers(student(photo, return_tensors="np").pixel_values, names, student)
        np.testing.assert_allclose(found, expected[:, columns], atol=1e-5)
    plain = ViTImageProcessor(size=16, do_normalize=False, do_rescale=False)
    found = teacher.answers(plain(photo, return_tensors="np").pixel_values, ["red", "blue"], plain)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_teacher_of_other_names_is_told_of_and_one_of_none_has_the_datas(tmp_path: Path) -> None:
    folder = begun(tmp_path / "named", id2label={0: "rot", 1: "blau"})
    (note,) = Teacher(str(folder), "pt", ["blue", "red"]).notes
    assert "rot, blau are taken to be blue, red, in this order" in note
    assert Teacher(str(begun(tmp_path / "unnamed", num_labels=2)), "pt", ["blue", "red"]).notes == []
    with pytest.raises(ConfigError, match="has 0 labels, and the data 2"):  # whose logits are pixels
        Teacher(str(begun(tmp_path / "no classifier", "vit_mae", "decoder", num_labels=2)), "pt", ["blue", "red"])


@pytest.mark.parametrize(
    ("teacher", "reason"),
    [({"image_size": 24}, r"\(3, 24, 24\), and the student of \(3, 16, 16\)"), ({"num_channels": 1}, r"\(1, 16, 16\)")],
)
def test_a_teacher_that_cannot_see_the_students_images_is_refused_before_an_earlier_run_is_replaced(
    teacher: dict[str, Any], reason: str, photos: Path, tmp_path: Path
) -> None:
    student, run = begun(tmp_path / "student"), tmp_path / "run"
    train(photos, student, run, "pt", RECIPE)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    recipe = RECIPE.replace(objective="distillation", teacher=str(begun(tmp_path / "t", num_labels=2, **teacher)))
    with pytest.raises(ConfigError, match=reason):
        train(photos, student, run, "pt", recipe, force=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_teacher_that_takes_any_size_teaches_at_the_students(photos: Path, tmp_path: Path) -> None:
    teacher = begun(tmp_path / "teacher", "dinov2", num_labels=2, image_size=(24, 24))
    recipe = RECIPE.replace(objective="distillation", teacher=str(teacher))
    assert train(photos, begun(tmp_path / "student"), tmp_path / "run", "pt", recipe).is_done
    # What counts is what the image processor gives: 16 x 16, as the published DINOv2s' 224 for an image_size of 518.
    student, recipe = (
        begun(tmp_path / "dinov2", "dinov2", image_size=24),
        recipe.replace(teacher=str(tmp_path / "student")),
    )
    begun(tmp_path / "student", num_labels=2)
    assert train(photos, student, tmp_path / "another run", "pt", recipe).is_done


def test_several_labels_and_numbers_are_trained_on_and_evaluated(photos: Path, tmp_path: Path) -> None:
    files = sorted(photos.rglob("*.png"))
    for name, value, measure in (("several", ["a", "b"], "accuracy"), ("numbers", 0.5, "rmse")):
        table = tmp_path / f"{name}.jsonl"
        rows = [{"path": str(path), "label": value[: i % 3] if name == "several" else value + i}
                for i, path in enumerate(files)]  # fmt: skip
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
        run = train(table, begun(tmp_path / f"{name}-model"), tmp_path / name, "pt", RECIPE)
        assert measure in run.metrics
        assert evaluate(table, str(run.folder / "best"), "pt").metrics[measure] > 0
        taught = RECIPE.replace(objective="distillation", teacher=str(run.folder / "best"))
        with pytest.raises(ConfigError, match="a teacher answers with one label"):
            train(table, tmp_path / f"{name}-model", tmp_path / "taught", "pt", taught)


def test_what_a_family_cannot_do_is_refused(photos: Path, tmp_path: Path) -> None:
    model = begun(tmp_path / "model", "beit")
    with pytest.raises(ConfigError, match="A beit model has no class for the objective 'reconstruction'"):
        train(photos, model, tmp_path / "run", "pt", RECIPE.replace(objective="reconstruction"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model_type", ["vit", "beit", "dinov2"])
def test_nothing_drops_out_of_a_frozen_backbone_unless_it_is_asked_for(
    model_type: str, photos: Path, tmp_path: Path
) -> None:
    rates = ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate")
    own = {name: 0.3 for name in rates if name in keys_of(type(tiny_config(model_type)))}
    model, examples = begun(tmp_path / "model", model_type, **own), read(photos, 0.25, 0).training

    def found(**changes: Any) -> dict[str, float]:
        config = begin(model, examples, RECIPE.replace(**changes)).config
        return {name: getattr(config, name) for name in own}

    assert found() == own
    assert found(freeze_backbone=True) == dict.fromkeys(own, 0.0)
    assert found(freeze_backbone=True, dropout=0.2) == {name: 0.2 * (name == rates[0]) for name in own}


KINDS: dict[str, tuple[list[Any], tuple[str, ...], str]] = {
    "words": (["b", "a"], ("a", "b"), "single_label_classification"),
    "whole numbers": ([10, 9], ("9", "10"), "single_label_classification"),
    "whole numbers as text": (["10", "9"], ("9", "10"), "single_label_classification"),
    "numbers and a word": ([10, "9a"], ("10", "9a"), "single_label_classification"),
    "whole numbers as they are written": (["007", "7"], ("007", "7"), "single_label_classification"),
    "whole numbers of one value": (["+1", "1"], ("+1", "1"), "single_label_classification"),
    "what Python reads as 10": (["1_0", "10"], ("10", "1_0"), "single_label_classification"),
    "a word and a fraction": (["a", "1.50"], ("1.50", "a"), "single_label_classification"),
    "a word that is a number to Python": (["nan", "oat"], ("nan", "oat"), "single_label_classification"),
    "truths": ([True, False], ("False", "True"), "single_label_classification"),
    "fractions": (["1.5", 2], ("value",), "regression"),
    "fractions and a sign": (["-.5", "+3"], ("value",), "regression"),
    "fractions that are joined": (["0.5|1", "3|2"], ("value 0", "value 1"), "regression"),
    "whole numbers that are joined": (["1|3", "2"], ("1", "2", "3"), "multi_label_classification"),
    "lists of zeros and ones": ([[0, 1, 1], [1, 0, 0]], ("0", "1", "2"), "multi_label_classification"),
    "lists of numbers": ([[1, 2.5], [3, 4]], ("value 0", "value 1"), "regression"),
    "lists of words": ([["a"], ["a", "b"]], ("a", "b"), "multi_label_classification"),
    "lists of both": ([[1, "a"], [2]], ("1", "2", "a"), "multi_label_classification"),
    "words that are joined": (["a|b", "b"], ("a", "b"), "multi_label_classification"),
    "a list and a word": ([["a", "b"], "b"], ("a", "b"), "multi_label_classification"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_a_table_tell_what_they_are(kind: str) -> None:
    values, names, problem_type = KINDS[kind]
    targets, *found = _targets(values, "a.csv")
    assert found == [names, problem_type]
    assert targets.shape == (2, len(names))
    if problem_type != "regression":
        assert targets.sum(1).min() >= 1


@pytest.mark.parametrize("names", [("red", "blue"), ("blue", "red"), ("green", "red"), ()])
def test_labels_have_the_order_of_the_model_where_they_are_its_own(names: tuple[str, ...]) -> None:
    config = tiny_config(id2label={0: "red", 1: "blue"})
    examples = Examples(
        ["a", "b", "c"], np.eye(len(names), dtype=np.float32)[[0, 1, 0]] if names else np.empty((3, 0)), names
    )
    split = Split(examples, examples.take([1]))
    found = _as_labelled(split, config)
    turned = names == ("blue", "red")
    assert (found is split) == (not turned)
    assert found.training.names == found.validation.names == (("red", "blue") if turned else names)
    for old, new in ((split.training, found.training), (split.validation, found.validation)):
        assert np.array_equal(new.targets, old.targets[:, ::-1] if turned else old.targets)


@pytest.mark.parametrize("values", [[[1], [2, 3]], [[1, 3], [2, 5]], [[1.5], [2, 3]]])
def test_lists_of_numbers_that_may_mean_several_things_are_refused(values: list[Any]) -> None:
    with pytest.raises(InputError, match=r"a\.csv has lists of numbers, which may be labels or a regression"):
        _targets(values, "a.csv")


@pytest.mark.parametrize("values", [["1.5", "nan"], [1.5, float("inf")], [1.5, 1e39], [[1.5, 1], [2, float("nan")]]])
def test_a_regression_of_what_is_no_number_is_refused(values: list[Any]) -> None:
    with pytest.raises(InputError, match=r"a\.csv has 1 rows whose numbers are NaN, infinite or too large"):
        _targets(values, "a.csv")


def test_every_row_of_a_table_is_in_the_part_that_it_names(photos: Path, tmp_path: Path) -> None:
    files, table = sorted(photos.rglob("*.png")), tmp_path / "table.csv"

    def parts(*names: str) -> tuple[int, int]:
        rows = [f"{path},{path.parent.name},{names[i % len(names)]}\n" for i, path in enumerate(files)]
        table.write_text("path,label,split\n" + "".join(rows))
        split = read(table, 0.25, 0)
        return len(split.training), len(split.validation)

    assert parts("train", "training", "val", "valid") == parts("", "", "validation", "val") == (8, 8)
    with pytest.raises(InputError, match="row 2 has no split, and others have"):
        parts("train", "", "val", "val")


def test_parts_that_are_not_used_are_named(photos: Path, tmp_path: Path) -> None:
    for i, part in enumerate(("train", "val", "test", "dev")):
        for j, name in enumerate(("blue", "red")):
            draw(tmp_path / part / name, 2, seed=2 * i + j)
    assert read(tmp_path, 0.25, 0).notes == (
        "Beside train and val these folders are not read: dev.",
        "Of the data these parts are not used: test.",
    )


def test_a_copy_of_a_training_image_among_those_held_out_by_lot_is_told(photos: Path, tmp_path: Path) -> None:
    for i in range(8):
        draw(tmp_path / "data" / "ab"[i // 4] / str(i), 3, seed=i // 4)  # each image four times
    (note,) = read(tmp_path / "data", 0.25, 0).notes
    assert "of the validation images are training images, too" in note
    assert read(photos, 0.25, 0).notes == ()
