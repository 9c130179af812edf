"""Random masks for masked image modelling."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..config import PreTrainedConfig
from ..errors import InputError, quoted
from .batch import check_tensor_type, to_tensor


def random_patch_mask(
    config: PreTrainedConfig,
    batch: int = 1,
    ratio: float = 0.5,
    generator: int | np.random.Generator | None = None,
    return_tensors: str | None = None,
) -> Any:
    """A `bool_masked_pos`: which patches of each image are hidden, the same in every framework for the same seed.

    Args:
        config: gives the number of patches.
        batch: number of images.
        ratio: share of hidden patches, from 0 to 1; each image hides `round(ratio * config.num_patches)` of them.
        generator: a seed, or a `numpy.random.Generator`, which moves on; fresh randomness when None.
        return_tensors: None or "np", "pt", "tf", "jax".

    Returns:
        (batch, num_patches) bool, True where hidden.

    Raises:
        InputError: an argument out of its range.
        MissingFrameworkError: the framework of `return_tensors` is not installed.
    """
    if not isinstance(batch, int | np.integer) or isinstance(batch, bool) or batch < 1:
        raise InputError(f"batch is {quoted(batch)}; expected an int of at least 1.")
    if isinstance(ratio, bool) or not isinstance(ratio, int | float | np.number) or not 0 <= ratio <= 1:
        raise InputError(f"ratio is {quoted(ratio)}; expected a number from 0 to 1.")
    if not (generator is None or isinstance(generator, np.random.Generator)):
        valid = isinstance(generator, int | np.integer) and not isinstance(generator, bool) and generator >= 0
        if not valid:
            raise InputError(
                f"generator is {quoted(generator)}; expected a seed of at least 0, or a numpy.random.Generator."
            )
    check_tensor_type(return_tensors)
    hidden = round(float(ratio) * config.num_patches)
    order = np.random.default_rng(generator).random((batch, config.num_patches)).argsort(axis=1, kind="stable")
    mask = np.zeros(order.shape, bool)
    np.put_along_axis(mask, order[:, :hidden], True, axis=1)
    return mask if return_tensors is None else to_tensor(mask, return_tensors)
