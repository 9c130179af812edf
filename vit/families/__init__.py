"""The families, by the model_type of their config.json; nothing is imported until it is used.

A family is one file in each room, with the same name in each: its configuration and its parameters here, its classes in
vit/pt, vit/tf and vit/flax.
"""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import ConfigError, quoted

CONFIGS = {
    "vit": "vit.ViTConfig",
    "deit": "deit.DeiTConfig",
    "beit": "beit.BeitConfig",
    "vit_mae": "mae.ViTMAEConfig",
    "dinov2": "dinov2.Dinov2Config",
    "dinov2_with_registers": "dinov2.Dinov2WithRegistersConfig",
    "dinov3_vit": "dinov3.DINOv3ViTConfig",
}
"""model_type -> the family's file in each room, and its configuration."""

PREFIXES = {"pt": "", "tf": "TF", "flax": "Flax"}
"""Framework -> what precedes the names of its classes."""


def config_class(model_type: object) -> Any:
    """The configuration class of a model_type.

    Raises:
        ConfigError: no family has it; those that there are are named.
    """
    if not isinstance(model_type, str) or model_type not in CONFIGS:
        raise ConfigError(f"model_type is {quoted(model_type)}; expected one of {', '.join(map(repr, CONFIGS))}.")
    file, _, name = CONFIGS[model_type].partition(".")
    return getattr(importlib.import_module(f"{__name__}.{file}"), name)


def model_class(framework: str, model_type: str, head: str | None = None) -> Any:
    """The model class of a model_type in a framework; that is imported.

    Args:
        framework: "pt", "tf" or "flax".
        model_type: a key of `CONFIGS`.
        head: a key of the configuration's `heads`.

    Raises:
        ConfigError: no family has the model_type, or the family no such head.
        ImportError: a framework that is not installed, or cannot be imported.
    """
    config = config_class(model_type)
    if head not in config.heads:
        known = ", ".join(repr(each) for each in config.heads)
        raise ConfigError(f"head is {quoted(head)}; {config.__name__} has {known}.")
    return getattr(importlib.import_module(f"vit.{framework}"), PREFIXES[framework] + config.heads[head].name)


def heads_for(config: Any, task: str) -> list[str | None]:
    """The heads of a family for a task, that of the class that wrote the checkpoint first.

    Args:
        config: of the family.
        task: what follows the family in the names of their classes, such as "ForImageClassification"; "" for the base
            model.
    """
    if not task:
        return [None]
    heads = [head for head, each in config.heads.items() if task in each.name]
    return sorted(heads, key=lambda head: config.heads[head].name not in (config.architectures or ()))
