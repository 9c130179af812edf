"""Dropout that follows the configuration; the same in all three frameworks."""

from __future__ import annotations

from flax import nnx

from ..config import PreTrainedConfig


class Dropout(nnx.Dropout):
    """Dropout of the rate that a key of the configuration has now, until `rate` is assigned."""

    def __init__(self, config: PreTrainedConfig, key: str) -> None:
        self.config, self.key = config, key
        super().__init__(getattr(config, key))
        self.assigned: float | None = None

    @property
    def rate(self) -> float:
        return getattr(self.config, self.key) if self.assigned is None else self.assigned

    @rate.setter
    def rate(self, value: float) -> None:
        self.assigned = value
