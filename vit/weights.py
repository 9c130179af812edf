"""The canonical parameters: how they begin, and where each framework keeps them.

The modules of all three frameworks form the tree that the canonical names spell, so a parameter differs between them
in two things only: what its leaf is called ("weight", "kernel", "gamma", ...) and whether its matrix is stored as
(out, in) or (in, out). Both rules stand here, in NumPy.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

Shape = tuple[int, ...]


def linear_shapes(name: str, size_in: int, size_out: int, bias: bool = True) -> dict[str, Shape]:
    """The parameters of a linear layer."""
    weight: dict[str, Shape] = {f"{name}.weight": (size_out, size_in)}
    return {**weight, f"{name}.bias": (size_out,)} if bias else weight


def layer_norm_shapes(name: str, width: int) -> dict[str, Shape]:
    """The parameters of a LayerNorm."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


class Layout(NamedTuple):
    """How one framework calls and stores parameters."""

    kernel: str
    norm_scale: str
    norm_bias: str
    renamed: dict[str, str]  # parts of paths that the framework has another use for
    in_out: bool  # matrices are (in, out), and a convolution is the matrix over (channels, height, width)


LAYOUTS = {
    "pt": Layout(kernel="weight", norm_scale="weight", norm_bias="bias", renamed={}, in_out=False),
    "tf": Layout(
        kernel="kernel", norm_scale="gamma", norm_bias="beta", renamed={"output": "dense_output"}, in_out=True
    ),
    "flax": Layout(kernel="kernel", norm_scale="scale", norm_bias="bias", renamed={}, in_out=True),
}


def is_norm(name: str) -> bool:
    """Whether a parameter is that of a LayerNorm: of layernorm_before, norm1 and the like."""
    *_, layer, _ = ("", *name.split("."))
    return "norm" in layer


def local_name(name: str, framework: str) -> str:
    """Where a framework keeps a canonical parameter: the same dotted path, with its own name for the leaf."""
    layout = LAYOUTS[framework]
    path, _, leaf = name.rpartition(".")
    if leaf == "weight":
        leaf = layout.norm_scale if is_norm(name) else layout.kernel
    elif leaf == "bias" and is_norm(name):
        leaf = layout.norm_bias
    return ".".join([*(layout.renamed.get(part, part) for part in path.split(".")), leaf])


def is_matrix(name: str) -> bool:
    """Whether a parameter is a matrix, or a convolution, that multiplies vectors; tokens and tables are none."""
    return name.endswith(".weight") and not is_norm(name)


def to_local(name: str, array: np.ndarray, framework: str) -> np.ndarray:
    """A canonical array as a framework stores it; a view."""
    if not LAYOUTS[framework].in_out or not is_matrix(name):
        return array
    return array.reshape(array.shape[0], -1).T


def from_local(name: str, array: np.ndarray, shape: Shape, framework: str) -> np.ndarray:
    """The canonical array, of the canonical `shape`, of what a framework stores; a view where that is possible."""
    if not LAYOUTS[framework].in_out or not is_matrix(name):
        return array
    return array.T.reshape(shape)


def local_shape(name: str, shape: Shape, framework: str) -> Shape:
    """The shape in which a framework stores a parameter of a canonical shape."""
    in_out = LAYOUTS[framework].in_out and is_matrix(name)
    return (math.prod(shape[1:]), shape[0]) if in_out else shape


def initial_value(name: str) -> float | None:
    """The number that a fresh parameter starts from; None for a truncated normal, cut at 2 standard deviations.

    As in the published training code (Dosovitskiy et al. 2021, transformers' ViTPreTrainedModel).
    """
    if name.endswith((".bias", "mask_token")):
        return 0.0
    return 1.0 if is_norm(name) else None
