"""Data sets of the `datasets` library: loaded, saved, and by their name on a hub of our own on this machine."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vit import ViTImageProcessor, checkpoint
from vit.errors import InputError
from vit.training import Recipe
from vit.training.examples import Column, read
from vit.training.run import train

from .equivalence import random_checkpoint, tiny_config
from .test_hub import Handler, Hub, surroundings

datasets = pytest.importorskip("datasets", reason="an extra of the user's own")

RECIPE = Recipe(batch_size=4, steps=2, validation=0.25, log_every=1)


def encoded(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def rows(count: int, **changes: Any) -> Any:
    """A data set of two classes, whose images are encoded."""
    label = datasets.ClassLabel(names=["blue", "red"])
    features = datasets.Features({"image": datasets.Image(), "label": label})
    images = [{"bytes": encoded(i), "path": None} for i in range(count)]
    return datasets.Dataset.from_dict({"image": images, "label": [i % 2 for i in range(count)], **changes}, features)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    random_checkpoint(tmp_path / "model", tiny_config(), "classifier")
    ViTImageProcessor(size=16).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_no_image_is_decoded_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    monkeypatch.setattr(Column, "__getitem__", lambda self, index: decoded.append(index))
    split = read(datasets.DatasetDict(train=rows(8), validation=rows(4)), 0.25, 0)
    halves = read(rows(8), 0.25, 0)
    assert (len(split.training), len(split.validation)) == (8, 4)
    assert (len(halves.training), len(halves.validation), halves.training.names) == (6, 2, ("blue", "red"))
    assert split.identity() != halves.identity()
    assert decoded == []


def test_a_run_is_resumed_on_a_data_set_that_is_loaded_again(model: Path, tmp_path: Path) -> None:
    rows(12).save_to_disk(str(tmp_path / "saved"))
    asked = iter([True])
    stopped = train(tmp_path / "saved", model, tmp_path / "run", "pt", RECIPE, should_stop=lambda: next(asked))
    assert stopped.step == 1
    assert train(datasets.load_from_disk(str(tmp_path / "saved")), model, tmp_path / "run", "pt", resume=True).is_done
    with pytest.raises(InputError, match="begun with other images or labels"):
        train(rows(14), model, tmp_path / "run", "pt", resume=True)


def test_parts_without_labels_are_left_out_and_images_without_them_are_counted(tmp_path: Path) -> None:
    unlabelled = rows(4, label=[-1] * 4)
    assert len(read(datasets.DatasetDict(test=unlabelled, train=rows(8)), 0.25, 0).training) == 6
    parts = datasets.DatasetDict(train=rows(8), test=unlabelled)
    parts.save_to_disk(str(tmp_path / "parts"))
    split = read(tmp_path / "parts", 0.25, 0)
    assert (len(split.training), len(split.validation)) == (6, 2)
    assert split.notes == ("The images of test have no labels; they are left out.",)
    with pytest.raises(InputError, match="2 of the 8 images of the data set have no label"):
        read(rows(8, label=[0, 1, 0, -1, 1, 0, -1, 1]), 0.25, 0)


def test_lists_of_labels_are_several_labels_by_their_names() -> None:
    label = datasets.Sequence(datasets.ClassLabel(names=["sun", "sea", "sky"]))
    images = [{"bytes": encoded(i), "path": None} for i in range(3)]
    features = datasets.Features({"image": datasets.Image(), "label": label})
    data = datasets.Dataset.from_dict({"image": images, "label": [[2, 1], [0, 1], []]}, features)
    training = read(data, 0.0, 0).training
    assert (training.names, training.problem_type) == (("sun", "sea", "sky"), "multi_label_classification")
    assert training.targets.tolist() == [[0, 1, 1], [1, 1, 0], [0, 0, 0]]
    words = [
        datasets.Dataset.from_dict({"image": images, "label": each}) for each in (["a|b", "a", "b"], ["a", "b", "a"])
    ]
    with pytest.raises(InputError, match="of a multi_label_classification to train on, and of a single_label"):
        read(datasets.DatasetDict(train=words[0], validation=words[1]), 0.0, 0)


def test_what_is_no_data_set_of_labelled_images_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has the columns picture, label, none of images; expected one called path"):
        read(rows(4).rename_column("image", "picture"), 0.25, 0)
    with pytest.raises(InputError, match=r"none of labels; .* rename_column renames one"):
        read(rows(4).rename_column("label", "kind"), 0.25, 0)
    with pytest.raises(InputError, match="is streamed"):
        read(rows(4).to_iterable_dataset(), 0.25, 0)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "state.json").write_text("{}")
    with pytest.raises(InputError, match="broken cannot be read as a saved data set: "):
        read(tmp_path / "broken", 0.25, 0)


# === By name ===


class DataHandler(Handler):
    """Answers about data sets as about models."""

    def _renamed(self) -> None:
        path = self.path.replace("/api/datasets/", "/api/models/", 1)
        path = re.sub(r"^/datasets/", "/", path)
        self.path = re.sub(r"^(/api/models/[^/]+/[^/?]+)($|\?)", r"\1/revision/main\2", path)

    def respond(self, send_body: bool) -> None:
        self._renamed()
        super().respond(send_body)


def test_a_data_set_on_the_hub_is_trained_on_by_its_name(model: Path, tmp_path: Path) -> None:
    rows(12).to_parquet(str(tmp_path / "train.parquet"))
    (tmp_path / "published").mkdir()
    (tmp_path / "train.parquet").rename(tmp_path / "published" / "train-00000-of-00001.parquet")
    with Hub() as hub:
        hub.RequestHandlerClass = DataHandler
        hub.add("user/photos", tmp_path / "published")
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        command = [sys.executable, "-m", "vit", "train", "-m", str(model), "-f", "pt", "--steps", "1", "--json"]
        command += ["user/photos", "-o", "run"]
        done = subprocess.run(command, env=surroundings(hub, tmp_path), cwd=tmp_path, capture_output=True, text=True)
        hub.ended.set()
        hub.shutdown()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["images"] == 2
    assert list(checkpoint.read_config(tmp_path / "run" / "best").id2label.values()) == ["blue", "red"]
