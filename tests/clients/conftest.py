"""A small checkpoint and a folder of images, made once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .common import image_folder, small_checkpoint


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of three labels with its image processor."""
    return small_checkpoint(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of each label, each in the label's folder."""
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(autouse=True)
def accelerate_of_its_own() -> Iterator[None]:
    """Accelerate keeps what one Trainer asked for, such as a precision, for all that come after it in a process."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()
