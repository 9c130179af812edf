"""Real scans, in each framework: the first steps of what tests/long_training.py goes on with for minutes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from vit.cli.frameworks import DIGITS
from vit.errors import FRAMEWORKS
from vit.training import Recipe
from vit.training.run import train

from .long_training import SETS, digits, mnist, run, write


@pytest.fixture
def one_thread() -> Iterator[None]:
    """So small a network gains nothing by more in PyTorch, whose threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_mnist_is_learnt_alike_in_every_framework_from_the_bundled_digits(tmp_path: Path) -> None:
    data = write(mnist(), tmp_path / "scans", most=200)
    recipe = Recipe(batch_size=32, steps=16, learning_rate=3e-3, layer_decay=1.0, flip=0.0, crop_scale=0.7,
                    evaluate_every=100)  # fmt: skip
    found = {each: train(data, DIGITS, tmp_path / each, each, recipe).metrics for each in FRAMEWORKS}
    scores = [metrics["top1"] for metrics in found.values()]
    assert min(scores) > 0.35, found  # of ten labels; 92% after five epochs of all scans
    assert max(scores) - min(scores) <= 0.005 + 1e-9, found


def test_the_digits_are_learnt_from_nothing_by_the_command_of_the_docs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = [*SETS["digits"][1].split(), "--epochs", "14", "--evaluate-every", "14"]  # of 30, for want of time
    told = run(write(digits(), tmp_path / "scans"), tmp_path / "run", "pt", options)
    assert told["metrics"]["images"] == 360
    assert told["metrics"]["top1"] >= 0.98
