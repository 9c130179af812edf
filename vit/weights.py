"""The canonical parameters: every name and shape of the published checkpoint, and where each framework keeps them.

The modules of all three frameworks form the tree that the canonical names spell, so a parameter differs between them
in two things only: what its leaf is called ("weight", "kernel", "gamma", ...) and whether its matrix is stored as
(out, in) or (in, out). Both rules stand here, in NumPy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .config import ViTConfig, to_pair

Shape = tuple[int, ...]

BASE = "vit."
"""What precedes a base model's parameter names in a checkpoint that also has a head."""

OPTIONAL = ("vit.pooler.", "vit.embeddings.mask_token", "classifier.", "decoder.")
"""Parameters that a checkpoint may lack (they start fresh) or have without the model using them."""


def parameter_shapes(
    config: ViTConfig, *, head: str | None = None, add_pooling_layer: bool = False, use_mask_token: bool = False
) -> dict[str, Shape]:
    """Every canonical parameter name of a model and its canonical shape, in the order of the computation.

    Args:
        config: the model's configuration.
        head: None, "classifier" or "decoder".
        add_pooling_layer: whether the model has a pooler.
        use_mask_token: whether the model has a mask token.

    Returns:
        {name: shape}; linear weights are (out, in), convolutions (out, in, height, width).
    """
    width, mlp_width = config.hidden_size, config.intermediate_size
    shapes: dict[str, Shape] = {}

    def linear(name: str, size_in: int, size_out: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (size_out, size_in)
        if bias:
            shapes[f"{name}.bias"] = (size_out,)

    def layer_norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    shapes["vit.embeddings.cls_token"] = (1, 1, width)
    if use_mask_token:
        shapes["vit.embeddings.mask_token"] = (1, 1, width)
    shapes["vit.embeddings.position_embeddings"] = (1, config.num_patches + 1, width)
    projection = "vit.embeddings.patch_embeddings.projection"
    shapes[f"{projection}.weight"] = (width, config.num_channels, *to_pair(config.patch_size))
    shapes[f"{projection}.bias"] = (width,)
    for i in range(config.num_hidden_layers):
        layer = f"vit.encoder.layer.{i}"
        layer_norm(f"{layer}.layernorm_before")
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.attention.{part}", width, width, bias=config.qkv_bias)
        linear(f"{layer}.attention.output.dense", width, width)
        layer_norm(f"{layer}.layernorm_after")
        linear(f"{layer}.intermediate.dense", width, mlp_width)
        linear(f"{layer}.output.dense", mlp_width, width)
    layer_norm("vit.layernorm")
    if add_pooling_layer:
        linear("vit.pooler.dense", width, config.pooler_output_size)
    if head == "classifier" and config.num_labels:
        linear("classifier", width, config.num_labels)
    if head == "decoder":
        height, stride_width = to_pair(config.encoder_stride)
        shapes["decoder.0.weight"] = (height * stride_width * config.num_channels, width, 1, 1)
        shapes["decoder.0.bias"] = (height * stride_width * config.num_channels,)
    return shapes


def model_name(name: str, head: str | None) -> str:
    """The name of a canonical parameter in a model and its checkpoint: without "vit." where there is no head."""
    return name if head else name.removeprefix(BASE)


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


def local_name(name: str, framework: str) -> str:
    """Where a framework keeps a canonical parameter: the same dotted path, with its own name for the leaf."""
    layout = LAYOUTS[framework]
    path, _, leaf = name.rpartition(".")
    is_norm = "layernorm" in path
    if leaf == "weight":
        leaf = layout.norm_scale if is_norm else layout.kernel
    elif leaf == "bias" and is_norm:
        leaf = layout.norm_bias
    return ".".join([*(layout.renamed.get(part, part) for part in path.split(".")), leaf])


def to_local(array: np.ndarray, framework: str) -> np.ndarray:
    """A canonical array as a framework stores it; a view. Tokens, (1, tokens, width), stay as they are."""
    if not LAYOUTS[framework].in_out or array.ndim not in (2, 4):
        return array
    return array.reshape(array.shape[0], -1).T


def from_local(array: np.ndarray, shape: Shape, framework: str) -> np.ndarray:
    """The canonical array, of the canonical `shape`, of what a framework stores; a view where that is possible."""
    if not LAYOUTS[framework].in_out or len(shape) not in (2, 4):
        return array
    return array.T.reshape(shape)


def initial_value(name: str) -> str:
    """How a fresh parameter starts: "zeros", "ones" or "truncated_normal" of `config.initializer_range`, cut at 2 std.

    As in the published training code (Dosovitskiy et al. 2021, transformers' ViTPreTrainedModel).
    """
    if name.endswith((".bias", "mask_token")):
        return "zeros"
    return "ones" if "layernorm" in name else "truncated_normal"
