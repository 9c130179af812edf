"""The TensorFlow models that the tests load."""

from __future__ import annotations

from typing import Any

import pytest

from vit import TFViTForImageClassification

from ..common import Load


@pytest.fixture(scope="module")
def load(tiny_config: Any, random_checkpoint: Any, tmp_path_factory: Any) -> Load:
    """A loader of models of one layer in which every parameter is random; patches and images are not square."""

    def make(cls: type = TFViTForImageClassification, options: dict[str, Any] | None = None, **overrides: Any) -> Any:
        config = tiny_config(**{"num_hidden_layers": 1, "image_size": (12, 8), "patch_size": (4, 2), **overrides})
        folder = random_checkpoint(tmp_path_factory.mktemp("checkpoint"), config, cls.head)
        return cls.from_pretrained(folder, **(options or {}))

    return make


@pytest.fixture(scope="module")
def model(load: Load) -> TFViTForImageClassification:
    """A model not to be changed."""
    return load()
