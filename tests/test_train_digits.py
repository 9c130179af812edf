"""examples/train_digits.py, and the checkpoint it made for `vit demo`: reproducible, and as good as its card says."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vit import ViTForImageClassification, ViTImageProcessor
from vit.cli.frameworks import DIGITS

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "train_digits.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("train_digits", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_digits"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(script: Any) -> Any:
    return script.digits()


@pytest.fixture(autouse=True, scope="module")
def threads(script: Any) -> Any:
    """As few as the script uses; the other tests get theirs back."""
    before = torch.get_num_threads()
    torch.set_num_threads(script.THREADS)
    yield
    torch.set_num_threads(before)


# === The data ===


def test_the_split_holds_out_a_fifth_of_every_digit_and_shares_no_scan(data: Any) -> None:
    assert (len(data.scans), len(data.training), len(data.held_out)) == (1797, 1437, 360)
    assert sorted([*data.training, *data.held_out]) == list(range(1797))
    totals, held_out = (np.bincount(labels) for labels in (data.labels, data.labels[data.held_out]))
    assert np.abs(held_out - totals / 5).max() < 1


def test_scans_use_all_256_grey_values_in_the_proportions_of_the_counts(data: Any) -> None:
    assert data.scans.dtype == np.uint8
    assert sorted(np.unique(data.scans)) == [round(count * 255 / 16) for count in range(17)]


def test_a_scan_gives_the_same_pixel_values_from_memory_and_from_a_png_file(
    script: Any, data: Any, tmp_path: Path
) -> None:
    processor = ViTImageProcessor.from_pretrained(DIGITS)
    Image.fromarray(data.scans[7]).save(tmp_path / "scan.png")
    from_file = processor(tmp_path / "scan.png", return_tensors="np").pixel_values
    from_memory = script.to_pixel_values(processor, data.scans[7:8]).numpy()
    assert from_file.shape == (1, 1, 32, 32)
    assert np.array_equal(from_file, from_memory)


# === Augmentation ===


def test_augmentation_moves_an_image_a_little_and_keeps_its_range(script: Any) -> None:
    images = torch.full((64, 1, 32, 32), -1.0)
    images[..., 14:18, 14:18] = 1.0
    moved = script.augment(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert moved.min() >= -1
    assert moved.max() <= 1
    mass = (moved + 1).squeeze(1)
    mass = mass / mass.sum(dim=(1, 2), keepdim=True)
    centre = torch.stack([(mass.sum(dim=axis) * torch.arange(32)).sum(dim=1) for axis in (1, 2)], dim=1)
    offset = (centre - 15.5).abs()
    most = script.SHIFT * 32 * 1.5  # shifted in the axes of the turned and zoomed image
    assert 1 < offset.max() < most
    assert offset.std() > 0.5


def test_augmentation_is_the_same_from_the_same_generator_and_different_for_each_image(script: Any) -> None:
    images = torch.rand(1, 1, 32, 32).repeat(3, 1, 1, 1) * 2 - 1
    first, second = (script.augment(images, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


# === A short run ===


@pytest.fixture(scope="module")
def short_runs(script: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of two runs with the same seed: one a process of its own, one in this process."""
    folders = tmp_path_factory.mktemp("own"), tmp_path_factory.mktemp("this")
    arguments = [sys.executable, str(SCRIPT), "--epochs", "1", "--seed", "3", "--output", str(folders[0])]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert re.search(r"held-out accuracy \d+\.\d\d% of 360 scans", " ".join(result.stdout.split()))
    script.main(output=folders[1], epochs=1, seed=3)
    return folders


def test_the_same_seed_gives_the_same_bytes_in_every_file(short_runs: tuple[Path, Path]) -> None:
    own, this = ({file.name: file.read_bytes() for file in folder.iterdir()} for folder in short_runs)
    assert own.keys() == this.keys()
    assert own.keys() >= {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert [name for name in own if own[name] != this[name]] == []


def test_another_seed_gives_other_weights_and_other_images(
    short_runs: tuple[Path, Path], script: Any, data: Any
) -> None:
    pixel_values = script.to_pixel_values(ViTImageProcessor.from_pretrained(short_runs[0]), data.scans[:32])
    labels = torch.from_numpy(data.labels[:32])
    one, same, other = (script.train(pixel_values, labels, epochs=1, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["classifier.weight"], other["classifier.weight"])
    assert {file.name for file in short_runs[0].glob("*.png")} != {file.name for file in DIGITS.glob("*.png")}


def test_training_tells_zeros_from_ones_within_a_few_steps(script: Any, data: Any) -> None:
    chosen = np.flatnonzero(data.labels < 2)[:64]
    pixel_values = script.to_pixel_values(ViTImageProcessor.from_pretrained(DIGITS), data.scans[chosen])
    labels = torch.from_numpy(data.labels[chosen])
    answers = script.predict(script.train(pixel_values, labels, epochs=12, seed=0), pixel_values).argmax(axis=1)
    assert (answers == data.labels[chosen]).mean() > 0.9


# === What ships ===


def test_the_shipped_checkpoint_is_as_accurate_on_the_held_out_scans_as_its_card_says(script: Any, data: Any) -> None:
    card = (DIGITS / "README.md").read_text()
    claimed, correct, of = re.search(r"\*\*Held-out accuracy: ([\d.]+)%\*\* \((\d+) of (\d+) scans\)", card).groups()
    pixel_values = script.to_pixel_values(ViTImageProcessor.from_pretrained(DIGITS), data.scans[data.held_out])
    model = ViTForImageClassification.from_pretrained(DIGITS)
    with torch.inference_mode():
        answers = model(pixel_values).logits.argmax(dim=1).numpy()
    right = int((answers == data.labels[data.held_out]).sum())
    assert (right, len(data.held_out)) == (int(correct), int(of))
    assert float(claimed) == pytest.approx(100 * right / len(answers), abs=0.005)
    assert right / len(answers) >= 0.98

    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (data.labels[data.held_out], answers), 1)
    rows = re.findall(r"^\| \*\*\d\*\* \|(.*)\|$", card, re.MULTILINE)
    assert [[int(cell) if cell.strip() else 0 for cell in row.split("|")] for row in rows] == confusion.tolist()


def test_the_shipped_images_are_held_out_scans_with_their_true_labels(data: Any) -> None:
    held_out = set(data.held_out)
    files = sorted(DIGITS.glob("*.png"))
    labels = []
    for file in files:
        label, index = map(int, re.fullmatch(r"digit-(\d)-(\d{4})", file.stem).groups())
        assert index in held_out
        assert data.labels[index] == label
        with Image.open(file) as image:
            assert image.mode == "L"
            assert np.array_equal(np.asarray(image), data.scans[index])
        labels.append(label)
    assert len(files) >= 24
    assert np.bincount(labels).min() >= 2


def test_the_shipped_images_are_those_that_the_seed_of_the_card_draws(script: Any, data: Any, tmp_path: Path) -> None:
    seed = int(re.search(r"--seed (\d+)", (DIGITS / "README.md").read_text())[1])
    drawn = script.write_images(tmp_path, data, seed)
    assert [file.name for file in drawn] == sorted(file.name for file in DIGITS.glob("*.png"))


def test_the_shipped_folder_is_small_and_describes_itself() -> None:
    assert sum(file.stat().st_size for file in DIGITS.iterdir()) < 2e6
    config = ViTForImageClassification.from_pretrained(DIGITS).config
    assert config.id2label == {digit: str(digit) for digit in range(10)}
    assert (config.num_channels, config.dtype) == (1, "float32")
    card = (DIGITS / "README.md").read_text()
    for part in ("CC BY 4.0", "doi.org/10.24432/C50P49", "scikit-learn", "Seed", f"PyTorch {torch.__version__[:1]}"):
        assert part in card
