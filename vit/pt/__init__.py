"""The Vision Transformer in PyTorch."""

from ..errors import missing_framework

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise  # PyTorch is there, but broken
    raise missing_framework("vit.pt", "pt") from None

from .beit import BeitForImageClassification, BeitForMaskedImageModeling, BeitModel
from .deit import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    DeiTModel,
)
from .quantization import prepack, quantize
from .vit import ViTForImageClassification, ViTForMaskedImageModeling, ViTModel

__all__ = [
    "BeitForImageClassification",
    "BeitForMaskedImageModeling",
    "BeitModel",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
    "DeiTForMaskedImageModeling",
    "DeiTModel",
    "ViTForImageClassification",
    "ViTForMaskedImageModeling",
    "ViTModel",
    "prepack",
    "quantize",
]
