"""Image processing: photographs to `pixel_values`, as the published checkpoints expect them.

`ViTImageProcessor` needs NumPy and Pillow only; `ViTImageProcessorFast` needs PyTorch and imports it when it is used.
"""

from .batch import BatchFeature
from .families import (
    AutoImageProcessor,
    BeitImageProcessor,
    BeitImageProcessorFast,
    BitImageProcessor,
    BitImageProcessorFast,
    DeiTImageProcessor,
    DeiTImageProcessorFast,
    DINOv3ViTImageProcessorFast,
)
from .fast import ViTImageProcessorFast
from .masking import random_patch_mask
from .processor import ViTFeatureExtractor, ViTImageProcessor
from .sources import FORMATS

__all__ = [
    "FORMATS",
    "AutoImageProcessor",
    "BatchFeature",
    "BeitImageProcessor",
    "BeitImageProcessorFast",
    "BitImageProcessor",
    "BitImageProcessorFast",
    "DINOv3ViTImageProcessorFast",
    "DeiTImageProcessor",
    "DeiTImageProcessorFast",
    "ViTFeatureExtractor",
    "ViTImageProcessor",
    "ViTImageProcessorFast",
    "random_patch_mask",
]
