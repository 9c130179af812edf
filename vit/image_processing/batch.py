"""BatchFeature, what an image processor returns, and the way of an array from one framework to another."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from ..errors import InputError, missing_framework, quoted, shown

TENSOR_TYPES = {"np": None, "pt": "pt", "tf": "tf", "jax": "flax"}
"""Values of `return_tensors` and the extra that each needs."""


class BatchFeature(dict):
    """A dict that also gives its values as attributes; `model(**features)` takes it apart.

    An image processor's holds `pixel_values`.

    Args:
        data: names and values; more of them by keyword.
        tensor_type: as of `convert_to_tensors`.
    """

    def __init__(self, data: Mapping[str, Any] | None = None, tensor_type: str | None = None, **values: Any) -> None:
        super().__init__({**(data or {}), **values})
        self.convert_to_tensors(tensor_type)

    @property
    def data(self) -> dict[str, Any]:
        """Names and values, as a plain dict."""
        return dict(self)

    def convert_to_tensors(self, tensor_type: str | None = None) -> BatchFeature:
        """Make one tensor of each value that is a list of arrays or an array, in place.

        Args:
            tensor_type: None leaves all as it is, or "np", "pt", "tf" or "jax".

        Returns:
            This batch.

        Raises:
            InputError: an unknown type, or arrays of several shapes.
            MissingFrameworkError: its framework is not installed.
        """
        check_tensor_type(tensor_type)
        for name, value in self.items() if tensor_type is not None else ():
            try:
                parts = [to_array(each, name) for each in value] if isinstance(value, list | tuple) else None
                array = to_array(value, name) if parts is None else np.stack(parts)
            except ValueError as error:
                raise InputError(f"{name} makes no tensor: {shown(error)}") from None
            self[name] = to_tensor(array, str.__str__(tensor_type))
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"This batch holds {', '.join(self)}, not {name}.") from None

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *self]

    def to(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """Move every torch tensor, in place, as `torch.Tensor.to` does: `.to("cuda")`, `.to("cuda", torch.float16)`.

        A dtype applies to floating-point tensors alone. What is no tensor stays, beside one that is.

        Returns:
            This batch.

        Raises:
            InputError: it holds no torch tensor.
        """
        tensors = {name: value for name, value in self.items() if is_torch(value)}
        for name, value in (tensors or self).items():
            if not tensors:
                kind = f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}"
                raise InputError(f"{name} is a {kind}; .to() moves torch tensors. Pass return_tensors='pt'.")
            moved = value.to(*args, **kwargs)
            if not value.is_floating_point() and moved.dtype != value.dtype:
                moved = value.to(moved.device)
            self[name] = moved
        return self


def check_tensor_type(return_tensors: str | None) -> None:
    """Refuse a `return_tensors` that is unknown or whose framework is not installed, before any work is done.

    Raises:
        InputError: unknown.
        MissingFrameworkError: not installed.
    """
    if return_tensors is None:
        return
    if not isinstance(return_tensors, str) or return_tensors not in list(TENSOR_TYPES):
        raise InputError(
            f"return_tensors is {quoted(return_tensors)}; expected None, {', '.join(map(repr, TENSOR_TYPES))}."
        )
    module = {"np": "numpy", "pt": "torch", "tf": "tensorflow", "jax": "jax"}[str.__str__(return_tensors)]
    if module not in sys.modules and importlib.util.find_spec(module) is None:
        raise missing_framework(f"return_tensors={str.__str__(return_tensors)!r}", TENSOR_TYPES[return_tensors] or "")


def to_tensor(array: np.ndarray, return_tensors: str) -> Any:
    """An array as a tensor of the framework that `return_tensors` names; torch shares its memory."""
    if return_tensors == "pt":
        import torch

        return torch.from_numpy(array)
    if return_tensors == "tf":
        import tensorflow as tf

        return tf.convert_to_tensor(array)
    if return_tensors == "jax":
        import jax.numpy as jnp

        return jnp.asarray(array)
    return array


def is_torch(value: Any) -> bool:
    """Whether it is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def to_array(value: Any, name: str = "The array") -> np.ndarray:
    """A NumPy array, torch, TensorFlow or JAX tensor as a NumPy array; a view where that is possible.

    The bytes are in the machine's order; bfloat16 becomes float32, and floats of more than 64 bits have 64.

    Raises:
        InputError: it has no values, or none that are dense; `name` is what the error calls it.
    """
    try:
        if is_torch(value):
            with suppress(TypeError, RuntimeError):  # what stands in the way of most is looked for when something does
                return value.detach().cpu().numpy()
            value = dense(value, name).detach().cpu().resolve_conj().resolve_neg()
            value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
        array = np.asarray(value)
    except InputError:
        raise
    except Exception as error:  # of a symbolic or ragged tensor, a tracer, a dtype that NumPy lacks, ...
        raise InputError(
            f"{name} is a {type(value).__name__} that does not become a NumPy array ({shown(error)}); expected numbers "
            "in a dense array or tensor."
        ) from None
    if array.dtype.name == "bfloat16":
        return array.astype(np.float32)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        return array.astype(np.float64)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def dense(tensor: Any, name: str) -> Any:
    """A torch tensor, which has to have its values as plain numbers.

    Raises:
        InputError: it is sparse, quantised, nested, of another layout, or on the device "meta".
    """
    kinds = {"sparse or of another layout": lambda: str(tensor.layout) != "torch.strided",
             "quantised": lambda: tensor.is_quantized, "nested": lambda: tensor.is_nested,
             "without values, on the device meta": lambda: tensor.is_meta}  # fmt: skip
    if found := next((kind for kind, is_so in kinds.items() if is_so()), None):
        raise InputError(f"{name} is a torch tensor that is {found}; expected a dense tensor of numbers.")
    return tensor


def is_array(value: Any) -> bool:
    """Whether `to_array` takes it: an array or tensor of any of the frameworks."""
    return isinstance(value, np.ndarray) or is_torch(value) or (hasattr(value, "__array__") and hasattr(value, "shape"))
