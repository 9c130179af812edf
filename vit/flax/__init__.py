"""The Vision Transformer in Flax NNX."""

from ..errors import missing_framework

try:
    import flax  # noqa: F401
    import jax  # noqa: F401
except ModuleNotFoundError as error:
    if error.name not in ("flax", "jax"):
        raise  # Flax is there, but broken
    raise missing_framework("vit.flax", "flax") from None

from .beit import FlaxBeitForImageClassification, FlaxBeitForMaskedImageModeling, FlaxBeitModel
from .deit import (
    FlaxDeiTForImageClassification,
    FlaxDeiTForImageClassificationWithTeacher,
    FlaxDeiTForMaskedImageModeling,
    FlaxDeiTModel,
)
from .dinov2 import (
    FlaxDinov2ForImageClassification,
    FlaxDinov2Model,
    FlaxDinov2WithRegistersForImageClassification,
    FlaxDinov2WithRegistersModel,
)
from .dinov3 import FlaxDINOv3ViTModel
from .mae import FlaxViTMAEForPreTraining, FlaxViTMAEModel
from .vit import FlaxViTForImageClassification, FlaxViTForMaskedImageModeling, FlaxViTModel

__all__ = [
    "FlaxBeitForImageClassification",
    "FlaxBeitForMaskedImageModeling",
    "FlaxBeitModel",
    "FlaxDINOv3ViTModel",
    "FlaxDeiTForImageClassification",
    "FlaxDeiTForImageClassificationWithTeacher",
    "FlaxDeiTForMaskedImageModeling",
    "FlaxDeiTModel",
    "FlaxDinov2ForImageClassification",
    "FlaxDinov2Model",
    "FlaxDinov2WithRegistersForImageClassification",
    "FlaxDinov2WithRegistersModel",
    "FlaxViTForImageClassification",
    "FlaxViTForMaskedImageModeling",
    "FlaxViTMAEForPreTraining",
    "FlaxViTMAEModel",
    "FlaxViTModel",
]
