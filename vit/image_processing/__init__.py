"""Image processing: photographs to `pixel_values`, as the published checkpoints expect them.

`ViTImageProcessor` needs NumPy and Pillow only.
"""

from .batch import BatchFeature
from .masking import random_patch_mask
from .processor import BeitImageProcessor, DeiTImageProcessor, ViTFeatureExtractor, ViTImageProcessor

__all__ = [
    "BatchFeature",
    "BeitImageProcessor",
    "DeiTImageProcessor",
    "ViTFeatureExtractor",
    "ViTImageProcessor",
    "random_patch_mask",
]
