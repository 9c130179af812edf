"""The PyTorch models that the tests load."""

from __future__ import annotations

from typing import Any

import pytest

from vit import ViTForImageClassification

from .common import Load


@pytest.fixture(scope="module")
def load(tiny_config: Any, random_checkpoint: Any, tmp_path_factory: Any) -> Load:
    """A loader of models in which every parameter is random; patches and images are not square."""

    def make(cls: type = ViTForImageClassification, **overrides: Any) -> Any:
        config = tiny_config(**{"image_size": (12, 8), "patch_size": (4, 2), **overrides})
        return cls.from_pretrained(random_checkpoint(tmp_path_factory.mktemp("checkpoint"), config, cls.head))

    return make


@pytest.fixture(scope="module")
def model(load: Load) -> ViTForImageClassification:
    """A model in evaluation mode, not to be changed."""
    return load()
