"""A run from data to a run folder: in every framework, stopped, killed, resumed and continued elsewhere; bad input."""

from __future__ import annotations

import itertools
import json
import shutil
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vit import ViTConfig, ViTImageProcessor, checkpoint
from vit.errors import FRAMEWORKS, CheckpointError, ConfigError, InputError
from vit.folders import replace_files
from vit.locks import locked
from vit.training import Recipe, run, start
from vit.training.examples import Examples, Split
from vit.training.processes import Processes
from vit.training.run import TrainingError, train
from vit.training.schedule import learning_rate
from vit.training.state import TrainingState

from .equivalence import random_checkpoint, tiny_config

COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (200, 40, 50)}
RECIPE = Recipe(batch_size=8, steps=6, learning_rate=2e-3, evaluate_every=0.5, validation=0.25, log_every=2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: Any) -> Path:
    """A folder a class, of twelve noisy images of its colour each."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for i in range(12):
            pixels = np.clip(rng.normal(colour, 30, (20 + i, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: Any) -> Path:
    """A checkpoint of five other labels, with its image processor."""
    folder = tmp_path_factory.mktemp("model")
    random_checkpoint(folder, tiny_config(), "classifier")
    ViTImageProcessor(size=16).save_pretrained(folder)
    return folder


def weights(folder: Path) -> dict[str, np.ndarray]:
    opened = checkpoint.Checkpoint(folder)
    return {name: opened.read(name) for name in opened.tensors}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_run_learns_and_leaves_checkpoints_metrics_and_a_card(
    framework: str, photos: Path, model: Path, tmp_path: Path
) -> None:
    recipe = RECIPE.replace(steps=40, evaluate_every=2, mixup=0.2, cutmix=0.2, randaugment=1, erasing=0.1, ema=0.5)
    reported: list[dict[str, Any]] = []
    run = train(photos, model, tmp_path / "run", framework, recipe, report=reported.append, workers=2)
    assert run.is_done
    assert run.metrics["top1"] > 0.8
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [{**row, "steps": 40} for row in rows] == reported
    assert [row["step"] for row in rows if "top1" in row] == [7, 14, 21, 28, 35, 40]
    assert [row["epoch"] for row in rows] == [round(row["step"] * 8 / 27, 3) for row in rows]
    assert [row["learning_rate"] for row in rows] == [learning_rate(recipe, row["step"] - 1, 40) for row in rows]
    assert all(row["images_per_second"] > 0 for row in rows)
    assert {"recipe.json", "README.md", "curves.png", "confusion.png"} <= {each.name for each in run.folder.iterdir()}
    for name in ("last", "best"):
        config = checkpoint.read_config(run.folder / name)
        assert list(config.id2label.values()) == list(COLOURS)
        ViTImageProcessor.from_pretrained(run.folder / name)
        card = (run.folder / name / "README.md").read_text()
        assert "27 training and 9 validation images" in card
        assert "Of the averages of the weights" in card
    assert Recipe.from_json_file(run.folder / "recipe.json") == recipe


def test_frameworks_make_the_same_run(photos: Path, model: Path, tmp_path: Path) -> None:
    found = {f: weights(train(photos, model, tmp_path / f, f, RECIPE).folder / "last") for f in FRAMEWORKS}
    for name, expected in found["pt"].items():
        for framework in ("tf", "flax"):
            difference = np.abs(found[framework][name] - expected).max()
            assert difference <= 1e-4 * np.abs(expected).max(), (framework, name)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(
    framework: str, photos: Path, model: Path, tmp_path: Path
) -> None:
    recipe = RECIPE.replace(dropout=0.1, crop_scale=0.3, mixup=0.5)
    whole = train(photos, model, tmp_path / "whole", framework, recipe)
    asked = iter([False, False, True])  # between two evaluations
    stopped = train(photos, model, tmp_path / "run", framework, recipe, should_stop=lambda: next(asked))
    assert (stopped.step, stopped.is_done, "top1" in stopped.metrics) == (3, False, True)
    cards = [(stopped.folder / each / "README.md").read_text() for each in ("", "last", "best")]
    assert [("after step 3" in card, "top1" in card) for card in cards] == [(True, False), (True, False), (False, True)]
    resumed = train(photos, model, tmp_path / "run", framework, resume=True)
    assert resumed.is_done
    assert resumed.best == whole.best
    expected = weights(whole.folder / "last")
    assert all(np.array_equal(array, expected[name]) for name, array in weights(resumed.folder / "last").items())
    rows = [json.loads(line)["step"] for line in (resumed.folder / "metrics.jsonl").read_text().splitlines()]
    assert rows == [2, 3, 4, 6]
    card = (resumed.folder / "README.md").read_text()
    assert "top1" in card
    ended = train(photos, model, tmp_path / "run", framework, resume=True)
    assert (ended.step, ended.best) == (6, whole.best)
    assert (ended.folder / "README.md").read_text() == card


def test_a_run_that_is_replaced_is_whole_until_the_new_one_can_be_resumed(
    photos: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(photos, model, tmp_path / "run", "pt", RECIPE).folder
    for place in (run, run / "last"):
        (place / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def fail(*arguments: Any) -> None:
        raise RuntimeError("killed")

    other = RECIPE.replace(seed=1)
    with monkeypatch.context() as patched:
        patched.setattr(TrainingState, "write", fail)  # within the save of the new checkpoint
        with pytest.raises(RuntimeError, match="killed"):
            train(photos, run / "best", run, "pt", other, force=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

    with monkeypatch.context() as patched:
        patched.setattr("vit.training.run.checkpoint.Checkpoint", fail)  # just after it
        with pytest.raises(RuntimeError, match="killed"):
            train(photos, run / "best", run, "pt", other, force=True)
    assert {path.name for path in run.iterdir()} == {"last", "recipe.json", "metrics.jsonl", "notes.txt"}
    again = train(photos, model, run, "pt", resume=True)
    assert (again.is_done, Recipe.from_json_file(run / "recipe.json")) == (True, other)
    rows = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows == [2, 4, 6]
    assert [(place / "notes.txt").read_text() for place in (run, run / "last")] == ["mine", "mine"]


def test_another_number_of_workers_gives_the_same_weights(
    photos: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(run, "time", SimpleNamespace(perf_counter=lambda: next(ticks) / 2))  # half a second a look
    one, three = (train(photos, model, tmp_path / str(n), "pt", RECIPE, workers=n).folder / "last" for n in (1, 3))
    rows = [json.loads(line) for line in (one.parent / "metrics.jsonl").read_text().splitlines()]
    assert [row["images_per_second"] for row in rows] == [2 * 8 / 0.5] * 3
    expected = weights(one)
    assert all(np.array_equal(array, expected[name]) for name, array in weights(three).items())


def test_a_head_of_the_same_labels_is_kept_and_one_of_others_is_fresh(
    photos: Path, model: Path, tmp_path: Path
) -> None:
    probe = RECIPE.replace(learning_rate=1e-30, steps=1)
    first = weights(train(photos, model, tmp_path / "first", "pt", probe).folder / "last")
    again = weights(train(photos, tmp_path / "first" / "last", tmp_path / "again", "pt", probe).folder / "last")
    assert first["classifier.weight"].shape == (3, 32)
    assert np.array_equal(first["classifier.weight"], again["classifier.weight"])
    other = probe.replace(seed=1)
    fresh = weights(train(photos, model, tmp_path / "other", "pt", other).folder / "last")
    assert not np.array_equal(first["classifier.weight"], fresh["classifier.weight"])
    scratch = weights(train(photos, model, tmp_path / "scratch", "pt", probe, from_scratch=True).folder / "last")
    name = "vit.encoder.layer.0.attention.attention.query.weight"
    assert np.array_equal(first[name], weights(model)[name])
    assert not np.array_equal(scratch[name], first[name])


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_mixed_precision_computes_in_bfloat16_and_keeps_weights_and_moments_in_float32(
    framework: str, photos: Path, model: Path, tmp_path: Path
) -> None:
    fields = {"steps": 3, "evaluate_every": 9, "gradient_checkpointing": True}
    found = {}
    for dtype in ("float32", "mixed_bfloat16"):
        run = train(photos, model, tmp_path / dtype, framework, RECIPE.replace(dtype=dtype, **fields))
        found[dtype] = weights(run.folder / "last")
        state = TrainingState.read(run.folder / "last", checkpoint.read_config(run.folder / "last"), "classifier")
        assert state.tensors is not None
        assert {array.dtype.name for array in (*found[dtype].values(), *state.tensors.values())} == {"float32"}
    distances = [np.abs(array - found["mixed_bfloat16"][name]).max() for name, array in found["float32"].items()]
    assert 0 < max(distances) < 3 * 3 * RECIPE.learning_rate  # AdamW moves a weight by about the rate, at most


def test_what_of_a_checkpoint_is_not_trained_on_is_told() -> None:
    def told(old: dict[int, str], new: dict[int, str], *fresh: str, head: str = "classifier.weight") -> list[str]:
        config = SimpleNamespace(canonical_names=lambda tensors: {"stored": head})
        fit: Any = SimpleNamespace(fresh=fresh, checkpoint=SimpleNamespace(tensors={}, config=config))
        return start._notes(fit, ViTConfig(id2label=old), ViTConfig(id2label=new))

    animals, others, unnamed = {0: "cat", 1: "dog"}, {0: "dog", 1: "cat"}, {0: "LABEL_0", 1: "LABEL_1"}
    (note,) = told(animals, others, "classifier.weight")
    assert note.startswith("The checkpoint has the labels cat")
    assert note.endswith("its head starts fresh.")
    assert told(animals, animals) == told(unnamed, others) == told(animals, others, head="vit.layernorm.weight") == []
    assert len(told({0: "LABEL_0", 1: "dog"}, others)) == 1
    (note,) = told(animals, animals, "vit.pooler.dense.weight", "classifier.weight")
    assert note == "The checkpoint lacks vit.pooler.dense.weight, which start fresh."


def test_a_run_has_the_steps_of_its_epochs_or_those_that_are_said() -> None:
    images = Examples(["a.png"] * 27, np.zeros((27, 2), np.float32), ("a", "b"))
    split = Split(images, images.take([]))
    for fields, steps in (({"epochs": 2.5}, 8), ({"epochs": 0.01}, 1), ({"epochs": 2.5, "steps": 3}, 3)):
        assert run._steps(Recipe(batch_size=8, **fields), split) == steps


@pytest.mark.parametrize(("size", "devices", "fields", "shares"), [
    (1, 4, {"batch_size": 3, "mixup": 0.5}, None), (2, 1, {"batch_size": 6}, None), (4, 1, {"batch_size": 6}, 4),
    (2, 2, {"batch_size": 8}, None), (2, 2, {"batch_size": 6}, 4), (2, 1, {"batch_size": 6, "mixup": 0.5}, 4),
    (2, 1, {"batch_size": 6, "cutmix": 0.5}, 4), (2, 2, {"batch_size": 4, "mixup": 0.5}, None),
    (2, 1, {"batch_size": 6, "accumulate": 3}, None), (2, 1, {"batch_size": 6, "accumulate": 3, "mixup": 1.0}, 12),
])  # fmt: skip
def test_every_process_device_and_part_of_a_batch_has_as_many_images_and_partners(
    size: int, devices: int, fields: dict[str, Any], shares: int | None
) -> None:
    processes = Processes(0, size)
    processes.devices = devices
    with pytest.raises(ConfigError, match=f"multiple of {shares}") if shares else nullcontext():
        run._check_parts(Recipe(**fields), processes)


def test_rows_after_the_last_checkpoint_and_broken_ones_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert run._kept_rows(path, 4) == []
    assert path.read_text() == ""
    path.write_text('{"step": 2}\n{"step": 4}\n{"epoch": 1}\n[]\n{"step": 5}\n{"step": 3, "lo')
    assert run._kept_rows(path, 4) == [{"step": 2}, {"step": 4}]
    assert path.read_text() == '{"step": 2}\n{"step": 4}\n'


# === Bad input ===


def test_what_ends_a_run_before_its_first_checkpoint_leaves_nothing(photos: Path, model: Path, tmp_path: Path) -> None:
    broken, ragged = tmp_path / "broken", tmp_path / "ragged"
    for label in "ab":
        (broken / label).mkdir(parents=True)
        for i in range(2):
            (broken / label / f"{i}.png").write_bytes(b"no image")
    shutil.copytree(model, ragged)
    ViTImageProcessor(size={"shortest_edge": 16}).save_pretrained(ragged)
    run = tmp_path / "run"
    for arguments, message in (
        ((broken, model), "None of the 2 training images can be read"),
        ((photos, ragged), "gives images of other proportions another size"),
    ):
        with pytest.raises(InputError, match=message):
            train(*arguments, run, "pt", RECIPE)
        assert not run.exists()
    with pytest.raises(InputError, match="device"):
        train(photos, model, run, "pt", RECIPE, device="cuda:77")
    assert not run.exists()
    train(photos, model, run, "pt", RECIPE.replace(steps=1))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="device"):
        train(photos, model, run, "pt", resume=True, device="cuda:77")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_run_folder_is_kept_unless_it_is_said_otherwise(photos: Path, model: Path, tmp_path: Path) -> None:
    once = RECIPE.replace(steps=1)
    train(photos, model, tmp_path / "run", "pt", once)
    with pytest.raises(InputError, match="holds a run; give --resume to go on, or --force"):
        train(photos, model, tmp_path / "run", "pt", once)
    with pytest.raises(ConfigError, match=r"another recipe: steps was 1, now 2; learning_rate was 0\.002, now 0\.1"):
        train(photos, model, tmp_path / "run", "pt", once.replace(steps=2, learning_rate=0.1), resume=True)
    with pytest.raises(InputError, match="give one"):
        train(photos, model, tmp_path / "run", "pt", once, resume=True, force=True)
    fewer = tmp_path / "fewer"
    shutil.copytree(photos, fewer)
    (fewer / "red" / "03.png").unlink()
    with pytest.raises(InputError, match="begun with other images or labels"):
        train(fewer, model, tmp_path / "run", "pt", resume=True)
    with pytest.raises(InputError, match="holds no run to resume"):
        train(photos, model, tmp_path / "none", "pt", resume=True)
    assert train(photos, model, tmp_path / "run", "pt", once.replace(seed=1), force=True).is_done
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="holds other files; give another"):
        train(photos, model, tmp_path / "mine", "pt", once, force=True)


def test_two_processes_do_not_write_one_run(photos: Path, model: Path, tmp_path: Path) -> None:
    run, once = tmp_path / "deep" / "run", RECIPE.replace(steps=1)
    assert train(photos, model, run, "pt", once).is_done
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with locked([run]):
        for more in ({"resume": True}, {"force": True}):
            with pytest.raises(InputError, match="is being written by another process"):
                train(photos, model, run, "pt", **more)
        with pytest.raises(InputError, match="holds a run; give --resume"):
            train(photos, model, run, "pt", once)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert train(photos, model, run, "pt", resume=True).is_done
    assert [path.name for path in run.parent.iterdir()] == ["run"]  # and no lock


def test_a_run_that_another_process_began_first_is_not_touched(
    photos: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, ours = tmp_path / "run", run.begin
    with ExitStack() as other:

        def overtaken(*arguments: Any) -> Any:
            start = ours(*arguments)
            other.enter_context(locked([folder]))
            with replace_files(folder / "last") as staging:
                start.write(staging)
                TrainingState(0, 8, RECIPE, {}).write(staging)
            return start

        monkeypatch.setattr(run, "begin", overtaken)
        with pytest.raises(InputError, match="is being written by another process"):
            train(photos, model, folder, "pt", RECIPE)
    assert (folder / "last" / "model.safetensors").is_file()


def test_broken_files_are_named_and_others_take_their_place_unless_strict(
    photos: Path, model: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    (data / "red" / "notes.txt").write_text("no image")
    for i in range(6):
        (data / "red" / f"{i:02}.png").write_bytes(b"broken")
    run = train(data, model, tmp_path / "run", "pt", RECIPE)
    assert run.is_done
    assert {Path(name).name for name in run.broken} == {"notes.txt", *(f"{i:02}.png" for i in range(6))}
    assert run.metrics["images"] < 9
    with pytest.raises(InputError, match=r"notes\.txt is no image file, by its name"):
        train(data, model, tmp_path / "strict", "pt", RECIPE, strict=True)
    assert not (tmp_path / "strict").exists()
    (data / "red" / "notes.txt").unlink()
    with pytest.raises(InputError, match=r"0\d\.png.* is not an image"):
        train(data, model, tmp_path / "strict", "pt", RECIPE, strict=True)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    framework: str, photos: Path, model: Path, tmp_path: Path
) -> None:
    recipe = RECIPE.replace(optimizer="sgd", learning_rate=1e12, warmup=0.0, clip_norm=0.0, evaluate_every=0.3)
    with pytest.raises(TrainingError, match=r"The .* is (nan|-?inf) at step [1-6]; .*as it was after step \d"):
        train(photos, model, tmp_path / "run", framework, recipe)
    assert all(np.isfinite(array).all() for array in weights(tmp_path / "run" / "last").values())


@pytest.mark.parametrize("what", ["answers", "ema"])
def test_what_is_not_finite_after_a_step_is_not_saved(
    what: str, photos: Path, model: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    from vit.pt.training import Trainer

    logits, tensors = Trainer.logits, Trainer.tensors
    factor = {name: np.nan if name == what else 1.0 for name in ("answers", "ema")}
    monkeypatch.setattr(Trainer, "logits", lambda self, pixels: logits(self, pixels) * factor["answers"])
    monkeypatch.setattr(Trainer, "tensors", lambda self: {n: a * factor["ema"] for n, a in tensors(self).items()})
    with pytest.raises(TrainingError, match=r"The sum of .* is nan at step 1; .*after step 0"):
        train(photos, model, tmp_path / "run", "pt", RECIPE.replace(steps=1, ema=0.9))
    assert not (tmp_path / "run" / "best").exists()


def test_a_full_disk_leaves_the_old_checkpoint(photos: Path, model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from vit.training import state

    real, calls = state.write_safetensors, []

    def full(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(state, "write_safetensors", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        train(photos, model, tmp_path / "run", "pt", RECIPE)
    monkeypatch.undo()
    assert train(photos, model, tmp_path / "run", "pt", resume=True).is_done
