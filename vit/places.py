"""Whether all that a model computes with has its place in a checkpoint: what `save_pretrained` asks before it writes.

A checkpoint that reproduces the model's outputs is all that is ever written. What takes part in the computation and is
neither a canonical parameter nor merged into one by a rule that is known is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping

from .errors import CheckpointError, shown
from .weights import Shape

_DEQUANTIZE = "Save it before it is quantised, or pass dequantize=True."
_REMEDIES = {
    "peft": "Merge the adapters first: model = peft_model.merge_and_unload().",
    "torchao": _DEQUANTIZE,
    "lora": "Merge the adapters into the layers first.",
    "quantised to int8": _DEQUANTIZE,
    "quantised to int4": _DEQUANTIZE,
    "quant": "Save it before it is quantised, or dequantise it first.",
    "ao.": "Save it before it is quantised, or dequantise it first.",
    "int8": "Save it before it is quantised, or dequantise it first.",
    "int4": "Save it before it is quantised, or dequantise it first.",
    "packed": "Save it before it is prepacked.",
    "fullyshardeddataparallel": "Gather the parameters first (FullyShardedDataParallel.summon_full_params), or shard "
    "with fully_shard, whose parameters are gathered here.",
    "dataparallel": "Save the model that is wrapped: wrapped.module.",
    "meta": "Load or initialise it first.",
}
"""Part of what is in the way, in lower case -> what to do."""


def check_places(model: str, foreign: Mapping[str, str], missing: Mapping[str, str], extra: list[str]) -> None:
    """Refuse a model that computes with something else than its canonical parameters.

    Args:
        model: the class's name.
        foreign: layers that are not the model's own, by their path -> what they are.
        missing: canonical parameters that it has not, or not as they are stored -> why not.
        extra: its parameters that have no canonical name.

    Raises:
        CheckpointError: there are any; they are named, with what to do.
    """
    lines = [f"{path or 'the model'} is {what}" for path, what in foreign.items()]
    lines += [f"{name} {why}" for name, why in missing.items()]
    lines += [f"{name} is no parameter of a {model}" for name in extra]
    if lines:
        text = "\n".join(lines).lower()
        remedy = next(
            (remedy for part, remedy in _REMEDIES.items() if part in text), "Take it out, or keep it elsewhere."
        )
        more = f"; and {len(lines) - 3} more" if len(lines) > 3 else ""
        raise CheckpointError(
            f"{model} computes with what a checkpoint has no place for: {'; '.join(map(shown, lines[:3]))}{more}. "
            f"{remedy} Nothing was written."
        )


def check_shape(shape: tuple[int, ...], expected: Shape) -> str | None:
    """Why a parameter of a shape cannot be stored as one of another; None if they are the same."""
    return None if tuple(shape) == tuple(expected) else f"has the shape {tuple(shape)}, not {tuple(expected)}"
