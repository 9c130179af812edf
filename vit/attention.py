"""Where a Vision Transformer looks: maps of its attention over the image, in NumPy, from any framework's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import InputError
from .image_processing.batch import to_array


def cls_attention(
    attentions: Sequence[Any], grid: tuple[int, int], layer: int = -1, prefix_tokens: int = 1, token: int = 0
) -> np.ndarray:
    """How much CLS, or another token before the patches, attends to each patch (Caron et al. 2021, Figure 3).

    Of one layer, head by head.

    Args:
        attentions: `outputs.attentions` of a model in any framework: for each layer (batch, heads, tokens, tokens).
        grid: (rows, columns) of the patches, such as `config.grid_size`.
        layer: which one, from 0; negative from the last.
        prefix_tokens: how many tokens precede the patches, CLS the first of them (`config.prefix_tokens`).
        token: which of these: 0 is CLS; the others are DeiT's distillation token, or registers.

    Returns:
        (batch, heads, rows, columns): probabilities, in the dtype of the attentions. They sum to 1 less what the CLS
        token gives to itself and to other tokens before the patches. `.mean(axis=1)` is the mean of the heads.

    Raises:
        InputError: there is no such layer or token, or the grid is not that of the attentions.
    """
    check_layer(layer, len(attentions))
    attention = _layer(attentions[layer])
    batch, heads, tokens, _ = attention.shape
    if tokens != prefix_tokens + grid[0] * grid[1]:
        raise InputError(
            f"The attentions are of {tokens} tokens; expected {prefix_tokens} for CLS"
            f"{' and its like' * (prefix_tokens > 1)} and {grid[0]} x {grid[1]} for the patches."
        )
    if not 0 <= token < prefix_tokens:
        raise InputError(f"token is {token}; expected 0 to {prefix_tokens - 1}, those before the patches.")
    return attention[:, :, token, prefix_tokens:].reshape(batch, heads, *grid)


def attention_rollout(attentions: Sequence[Any], tokens: Sequence[int] | None = None) -> np.ndarray:
    """How much of each token of the input reaches each token after some layers (Abnar & Zuidema 2020, Section 3).

    A layer passes on half of each token by its residual connection and half by its attention, the mean of its heads:
    A = (W + I) / 2. The rollout is the product of the layers' matrices, the last one's first.

    Args:
        attentions: `outputs.attentions` of a model in any framework, or its first layers': (batch, heads, tokens,
            tokens) each.
        tokens: after the last layer, which to follow back; all when None. [0], CLS alone, costs far less.

    Returns:
        (batch, followed tokens, tokens) float64; every row sums to 1. `[:, 0, prefix_tokens:]` are the
        patches that reach CLS.

    Raises:
        InputError: no layers, or no such token.
    """
    if not len(attentions):
        raise InputError("attentions holds no layer; expected at least one, of a call with output_attentions=True.")
    first = _layer(attentions[0])
    batch, _, count, _ = first.shape
    wrong = [token for token in tokens or () if not -count <= token < count]
    if wrong:
        raise InputError(f"tokens holds {wrong[0]}; expected -{count} to {count - 1}, as there are {count} tokens.")
    followed = np.eye(count) if tokens is None else np.eye(count)[list(tokens)]
    rollout = np.broadcast_to(followed, (batch, *followed.shape))  # (B, K, T)
    for each in reversed(attentions):  # from the top, so that a few rows stay a few rows
        rollout = (rollout @ _layer(each).mean(axis=1, dtype=np.float64) + rollout) / 2
    return rollout


def attention_mask(heat: np.ndarray, threshold: float) -> np.ndarray:
    """The fewest patches that together hold a share of the attention (Caron et al. 2021, Figure 4).

    Args:
        heat: (..., rows, columns), at least 0.
        threshold: the share of each map's sum to keep, 0 to 1.

    Returns:
        (..., rows, columns) bool. Of equal patches the first in reading order are kept.

    Raises:
        InputError: a threshold out of range, or heat that is negative or not finite.
    """
    check_threshold(threshold)
    heat = np.asarray(heat, np.float64)
    if not (np.isfinite(heat).all() and (heat >= 0).all()):
        raise InputError("heat has values that are negative, NaN or infinite; expected attention, which is not.")
    flat = heat.reshape(*heat.shape[:-2], -1)
    order = np.argsort(-flat, axis=-1, kind="stable")  # the strongest first
    held = np.cumsum(np.take_along_axis(flat, order, axis=-1), axis=-1)
    before = np.concatenate([np.zeros_like(held[..., :1]), held[..., :-1]], axis=-1)
    mask = np.zeros(flat.shape, bool)
    np.put_along_axis(mask, order, before < threshold * held[..., -1:], axis=-1)
    return mask.reshape(heat.shape)


def check_layer(layer: int, layers: int) -> None:
    """Refuse a layer that a model of so many layers has not.

    Raises:
        InputError: there is no such layer.
    """
    if not layers:
        raise InputError("The model has no layers, and so no attention.")
    if not -layers <= layer < layers:
        raise InputError(f"layer is {layer}; expected 0 to {layers - 1}, or -{layers} to -1 from the last.")


def check_threshold(threshold: float) -> None:
    """Refuse a share that is none.

    Raises:
        InputError: not in 0 to 1.
    """
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold is {threshold:g}; expected a share of the attention, 0 to 1.")


def _layer(attention: Any) -> np.ndarray:
    array = to_array(attention)
    if array.ndim != 4 or array.shape[2] != array.shape[3]:
        raise InputError(f"attentions has a layer of shape {array.shape}; expected (batch, heads, tokens, tokens).")
    return array
