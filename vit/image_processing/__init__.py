"""Image processing: photographs to `pixel_values`, as the published checkpoints expect them.

`ViTImageProcessor` needs NumPy and Pillow only; `ViTImageProcessorFast` needs PyTorch and imports it when it is used.
"""

from .batch import BatchFeature
from .fast import ViTImageProcessorFast
from .masking import random_patch_mask
from .processor import BeitImageProcessor, DeiTImageProcessor, ViTFeatureExtractor, ViTImageProcessor

__all__ = [
    "BatchFeature",
    "BeitImageProcessor",
    "DeiTImageProcessor",
    "ViTFeatureExtractor",
    "ViTImageProcessor",
    "ViTImageProcessorFast",
    "random_patch_mask",
]
