"""The keys of a configuration: those that its class has, those of transformers that mean nothing here, all others."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from ..errors import ConfigError, quoted

NEUTRAL: Mapping[str, Any] = {
    "is_encoder_decoder": False, "is_decoder": False, "add_cross_attention": False, "tie_encoder_decoder": False,
    "tie_word_embeddings": True, "torchscript": False, "use_bfloat16": False, "chunk_size_feed_forward": 0,
    "pruned_heads": {}, "finetuning_task": None, "task_specific_params": None, "transformers_version": None,
}  # fmt: skip
"""Keys of transformers' configurations that mean nothing here: what reading one gives that was never set."""


@cache
def _keys(cls: type) -> tuple[tuple[str, ...], frozenset[str]]:
    fields = dataclasses.fields(cls)
    return tuple(field.name for field in fields if field.init), frozenset(field.name for field in fields)


def keys_of(cls: type) -> tuple[str, ...]:
    """The keys that the config.json of a configuration class may have."""
    return _keys(cls)[0]


def fields_of(cls: type) -> frozenset[str]:
    """Those keys, and those that the class computes of others."""
    return _keys(cls)[1]


class ConfigType(type):
    """Takes what no field has a name for as a key of `extra`, as config.json may hold it."""

    def __call__(cls, *args: Any, **values: Any) -> Any:
        known, unknown = sorted_out(cls, values)
        if unknown:
            known["extra"] = {**(known.get("extra") or {}), **unknown}
        return super().__call__(*args, **known)


def sorted_out(cls: type, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(values of the keys that a class knows, values of others); `torch_dtype` is the older name of `dtype`."""
    known = {key: value for key, value in values.items() if key in keys_of(cls)}
    unknown = {key: value for key, value in values.items() if key not in known}
    torch_dtype = unknown.pop("torch_dtype", None)
    if torch_dtype is not None:
        known.setdefault("dtype", str(torch_dtype).removeprefix("torch."))
    return known, unknown


def split(cls: type, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(overrides of a configuration's keys, the others), as transformers' `return_unused_kwargs` has them."""
    known, unknown = sorted_out(cls, overrides)
    neutral = {name: value for name, value in unknown.items() if name in NEUTRAL}
    return {**known, **neutral}, {name: value for name, value in unknown.items()
                                  if name not in NEUTRAL and name not in ("_from_auto", "_from_pipeline")}  # fmt: skip


def check_keys(cls: type, keys: Iterable[str]) -> None:
    """Check that a configuration class has these keys.

    Raises:
        ConfigError: it has not; the nearest one that it has is named.
    """
    known = keys_of(cls)
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ConfigError(f"Unknown configuration key {quoted(key)}{hint}")
