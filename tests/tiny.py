"""Small checkpoints of whatever family has a row in the table, every parameter random; no framework is needed."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from vit import checkpoint, families
from vit.config import PreTrainedConfig, keys_of

SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "mlp_ratio": 2,
    "image_size": (16, 12), "patch_size": 4, "encoder_stride": 4, "num_channels": 3, "num_labels": 5,
    "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32, "vocab_size": 7, "use_mask_token": True, "use_relative_position_bias": True,
    "num_register_tokens": 3, "pos_embed_rescale": None,
}  # fmt: skip
"""Of each family those keys that it has."""

HEADS = [(model_type, head) for model_type in families.CONFIGS for head in families.config_class(model_type).heads]
"""Every class of every family."""


def tiny_family(model_type: str, **overrides: Any) -> PreTrainedConfig:
    """A small configuration of a family; any of its keys overrides."""
    cls = families.config_class(model_type)
    return cls(**{**{key: value for key, value in SIZES.items() if key in keys_of(cls)}, **overrides})


def tiny_checkpoint(
    folder: str | os.PathLike[str], model_type: str, head: str | None = None, seed: int = 0, **overrides: Any
) -> PreTrainedConfig:
    """Write a checkpoint of one of a family's classes, with all its optional parts; gives its configuration."""
    config = tiny_family(model_type, **overrides)
    kind = config.heads[head]
    config = config.replace(architectures=(kind.name,), dtype="float32")
    parts = kind.parts if head else dict.fromkeys(kind.parts, True)
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in config.parameter_shapes(head=head, **parts).items():
        values = rng.standard_normal(shape) * (np.prod(shape[1:]) ** -0.5 if len(shape) in (2, 4) else 0.3)
        if "norm" in name.split(".")[-2] and name.endswith(".weight"):
            values += 1
        arrays[config.model_name(name, head)] = values.astype(np.float32)
    checkpoint.write(folder, config, {name: (a.shape, a.dtype) for name, a in arrays.items()}, arrays.__getitem__)
    return config
