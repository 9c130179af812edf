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
from .dinov2 import (
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
)
from .dinov3 import DINOv3ViTModel
from .mae import ViTMAEForPreTraining, ViTMAEModel
from .quantization import prepack, quantize
from .vit import ViTForImageClassification, ViTForMaskedImageModeling, ViTModel

__all__ = [
    "BeitForImageClassification",
    "BeitForMaskedImageModeling",
    "BeitModel",
    "DINOv3ViTModel",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
    "DeiTForMaskedImageModeling",
    "DeiTModel",
    "Dinov2ForImageClassification",
    "Dinov2Model",
    "Dinov2WithRegistersForImageClassification",
    "Dinov2WithRegistersModel",
    "ViTForImageClassification",
    "ViTForMaskedImageModeling",
    "ViTMAEForPreTraining",
    "ViTMAEModel",
    "ViTModel",
    "prepack",
    "quantize",
]
