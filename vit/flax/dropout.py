"""Dropout that follows the configuration, and stochastic depth; the same in all three frameworks."""

from __future__ import annotations

from flax import nnx

from ..config import PreTrainedConfig


class Dropout(nnx.Dropout):
    """Dropout of the rate that a key of the configuration has now, until `rate` is assigned."""

    # Of the class, since every call that compiles or splits a model walks over its objects' attributes.
    broadcast_dims, rng_collection, rngs = (), "dropout", None
    assigned: float | None = None

    def __init__(self, config: PreTrainedConfig, key: str) -> None:
        self.config, self.key, self.deterministic = config, key, False

    @property
    def rate(self) -> float:
        return getattr(self.config, self.key) if self.assigned is None else self.assigned

    @rate.setter
    def rate(self, value: float) -> None:
        self.assigned = value


class DropPath(nnx.Dropout):
    """Stochastic depth: in training drops all that a branch adds to an image (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__(rate, broadcast_dims=(1, 2))  # of a branch (B, T, D)
