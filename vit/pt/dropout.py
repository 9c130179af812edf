"""Dropout that follows the configuration, and stochastic depth; the same in all three frameworks."""

from __future__ import annotations

from torch import Tensor, nn

from ..config import PreTrainedConfig


class Dropout(nn.Dropout):
    """Dropout of the probability that a key of the configuration has now, until `p` is assigned."""

    def __init__(self, config: PreTrainedConfig, key: str) -> None:
        nn.Module.__init__(self)
        self.config, self.key, self.inplace = config, key, False
        self.assigned: float | None = None

    @property
    def p(self) -> float:
        return getattr(self.config, self.key) if self.assigned is None else self.assigned

    @p.setter
    def p(self, value: float) -> None:
        self.assigned = value


class DropPath(nn.Dropout):
    """Stochastic depth: in training drops all that a branch adds to an image (Huang et al. 2016)."""

    def forward(self, branch: Tensor) -> Tensor:  # (B, T, D)
        return branch * super().forward(branch.new_ones(branch.shape[0], 1, 1))
