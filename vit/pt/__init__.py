"""The Vision Transformer in PyTorch."""

from ..errors import missing_framework

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise  # PyTorch is there, but broken
    raise missing_framework("vit.pt", "pt") from None

from .quantization import prepack, quantize
from .vit import ViTForImageClassification, ViTForMaskedImageModeling, ViTModel

__all__ = ["ViTForImageClassification", "ViTForMaskedImageModeling", "ViTModel", "prepack", "quantize"]
