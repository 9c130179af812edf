"""What Keras finds of this package after `import vit` alone: placeholders for its TensorFlow classes.

Keras looks for the class of a saved model among those that were registered, and imports nothing. The classes register
themselves when vit.tf is imported, which takes seconds; until then a placeholder of each name imports them for whoever
asks. It is in place as soon as both packages are imported, whichever comes first.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

REGISTRY = "keras.src.saving.object_registration"
"""The module that holds Keras's table of registered names."""


def register(names: Iterable[str]) -> None:
    """Let Keras find classes of vit.tf by their names, now or when it is imported."""
    if REGISTRY in sys.modules:
        _fill(sys.modules[REGISTRY], names)
    else:
        sys.meta_path.insert(0, _Waiting(tuple(names)))


def _fill(registry: Any, names: Iterable[str]) -> None:
    for name in names:
        for registered in (f"trivit>{name}", name):  # .h5 files of whole models say the second
            registry.GLOBAL_CUSTOM_OBJECTS.setdefault(registered, _placeholder(name))


def _placeholder(name: str) -> type:
    def from_config(config: dict[str, Any], custom_objects: Any = None) -> Any:
        return getattr(importlib.import_module("vit.tf"), name).from_config(config, custom_objects)

    return type(name, (), {"from_config": staticmethod(from_config)})


class _Waiting:
    """Finds no module; the import of Keras's registry passes through it, once."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                _fill(module, self.names)

            loader.exec_module = exec_module
        return spec
