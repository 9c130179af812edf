"""ModelOutput: what every model returns, in every framework."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Literal, overload

FIELDS = ("loss", "pooler_output", "hidden_states", "attentions")
"""What a call may leave out: as an attribute it is None then, as a key it is absent."""


class ModelOutput(OrderedDict[str, Any]):
    """The results of a call: a dict that also gives its values as attributes and by position.

    `out.logits`, `out["logits"]` and `out[0]` are the same array. It holds only what was computed, in the order loss,
    then logits, reconstruction or last_hidden_state, then pooler_output, hidden_states, attentions. It is a pytree in
    PyTorch, JAX and Keras, and an OrderedDict, since what rebuilds containers one by one (FSDP's first version) makes a
    plain dict of any other.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            if name in FIELDS:
                return None
            raise AttributeError(f"This output holds {', '.join(self)}, not {name}.") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            return super().__getitem__(key)
        return self.to_tuple()[key]

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *self]

    def to_tuple(self) -> tuple[Any, ...]:
        """The values, in order."""
        return tuple(self.values())


def flatten(output: ModelOutput) -> tuple[tuple[Any, ...], tuple[str, ...]]:
    """(values, names) of an output: how the frameworks take it apart as a pytree."""
    return output.to_tuple(), tuple(output)


def unflatten(names: Iterable[str], values: Iterable[Any]) -> ModelOutput:
    """The output that `flatten` took apart."""
    return ModelOutput(zip(names, values, strict=True))


@overload
def collect(return_dict: Literal[True], **values: Any) -> ModelOutput: ...
@overload
def collect(return_dict: bool, **values: Any) -> ModelOutput | tuple[Any, ...]: ...
def collect(return_dict: bool, **values: Any) -> ModelOutput | tuple[Any, ...]:
    """The values that were computed (not None), as a ModelOutput, or as a tuple if not `return_dict`."""
    output = ModelOutput({name: value for name, value in values.items() if value is not None})
    return output if return_dict else output.to_tuple()
