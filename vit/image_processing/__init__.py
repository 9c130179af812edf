"""Image processing: photographs to `pixel_values`, as the published checkpoints expect them.

`ViTImageProcessor` needs NumPy and Pillow only; `ViTImageProcessorFast` needs PyTorch and imports it when it is used.
"""

from .batch import BatchFeature
from .families import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    BeitFeatureExtractor,
    BeitImageProcessor,
    BeitImageProcessorFast,
    BitImageProcessor,
    BitImageProcessorFast,
    DeiTFeatureExtractor,
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
    "AutoFeatureExtractor",
    "AutoImageProcessor",
    "BatchFeature",
    "BeitFeatureExtractor",
    "BeitImageProcessor",
    "BeitImageProcessorFast",
    "BitImageProcessor",
    "BitImageProcessorFast",
    "DINOv3ViTImageProcessorFast",
    "DeiTFeatureExtractor",
    "DeiTImageProcessor",
    "DeiTImageProcessorFast",
    "ViTFeatureExtractor",
    "ViTImageProcessor",
    "ViTImageProcessorFast",
    "random_patch_mask",
]
