"""The teacher of a distillation: a classifier that is asked about the images that a student is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import hub
from ..config import to_pair
from ..errors import ConfigError, shown, summary
from ..image_processing import ViTImageProcessor
from ..inference import Forward
from ..pipeline import CLASSIFICATION


class Teacher:
    """A checkpoint of any family with the labels of the data (Touvron et al. 2021, Section 4).

    Labels of the same names are put into the student's order; others are taken to be the data's, in their order.

    Args:
        name: a folder, or a model on the hub.
        framework: "pt", "tf" or "flax".
        names: the data's labels.
        device: where it computes; None for the framework's default.

    Attributes:
        notes: what of it its user may not expect.

    Raises:
        CheckpointError: no checkpoint or image processor there.
        ConfigError: no classifier of as many labels.
    """

    def __init__(self, name: str, framework: str, names: Sequence[str], device: Any = None) -> None:
        folder = hub.resolve(name)
        self.name, self.names = name, list(names)
        self.forward = Forward(folder, framework, device=device)
        self.processor = ViTImageProcessor.from_pretrained(folder)
        config = self.forward.config
        labels = config.num_labels if CLASSIFICATION in config.heads[self.forward.head].name else 0
        if labels != len(names):
            raise ConfigError(
                f"The teacher {shown(name)} has {labels} labels, and the data {len(names)}; expected a classifier of "
                "the same labels."
            )
        own = list(config.id2label.values())
        self.notes = []
        if sorted(own) == sorted(names):
            self.names = own
        elif own != [f"LABEL_{i}" for i in range(len(own))]:
            self.notes = [f"The teacher's labels {summary(own, 3)} are taken to be {summary(names, 3)}, in this order."]

    def check(self, channels: int, size: tuple[int, int]) -> None:
        """Refuse a student whose images this teacher cannot see.

        Args:
            channels: of the images.
            size: (height, width), which the student's image processor gives them.

        Raises:
            ConfigError: it has images of another size, or of other channels.
        """
        config = self.forward.config
        own, other = (config.num_channels, *to_pair(config.image_size)), (channels, *size)
        fits = (
            config.any_size
            and own[0] == other[0]
            and not any(size % patch for size, patch in zip(other[1:], to_pair(config.patch_size), strict=True))
        )
        if own != other and not fits:
            raise ConfigError(
                f"The teacher {shown(self.name)} takes images of (channels, height, width) = {own}, and the student of "
                f"{other}; expected the same. --image-size sets the student's height and width."
            )

    def answers(self, pixel_values: np.ndarray, names: Sequence[str], processor: ViTImageProcessor) -> np.ndarray:
        """What it says of images.

        Args:
            pixel_values: (batch, channels, height, width), as a student's processor gives them.
            names: the student's labels.
            processor: the student's.

        Returns:
            logits, (batch, num_labels) float32, in the order of `names`.
        """
        (scale, offset), (own_scale, own_offset) = map(_normalization, (processor, self.processor))
        if not (np.array_equal(scale, own_scale) and np.array_equal(offset, own_offset)):
            pixel_values = (pixel_values - offset) / scale * own_scale + own_offset
        logits = self.forward(np.asarray(pixel_values, np.float32)).logits
        return logits[:, [self.names.index(name) for name in names]]


def _normalization(processor: ViTImageProcessor) -> tuple[np.ndarray, np.ndarray]:
    """What a processor multiplies pixels by and adds then, of each channel: (channels or 1, 1, 1)."""
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    mean, std = (
        np.asarray(value if processor.do_normalize else neutral, np.float64).reshape(-1, 1, 1)
        for value, neutral in ((processor.image_mean, 0.0), (processor.image_std, 1.0))
    )
    return factor / std, -mean / std
