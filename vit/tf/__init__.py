"""The Vision Transformer in Keras 3 on TensorFlow."""

from contextlib import suppress

from ..errors import MissingFrameworkError, missing_framework

with suppress(ImportError):  # of PyTorch's CUDA builds: loaded after TensorFlow's, its LLVM ends the process
    import triton  # noqa: F401
try:
    import keras
    import tensorflow  # noqa: F401
except ModuleNotFoundError as error:
    if error.name not in ("keras", "tensorflow"):
        raise  # TensorFlow is there, but broken
    raise missing_framework("vit.tf", "tf") from None

if keras.config.backend() != "tensorflow":
    raise MissingFrameworkError(
        f"vit.tf needs Keras on TensorFlow, but Keras was started on {keras.config.backend()!r}. Set "
        "KERAS_BACKEND=tensorflow (or unset it) before Python imports keras."
    )

from .beit import TFBeitForImageClassification, TFBeitForMaskedImageModeling, TFBeitModel
from .deit import (
    TFDeiTForImageClassification,
    TFDeiTForImageClassificationWithTeacher,
    TFDeiTForMaskedImageModeling,
    TFDeiTModel,
)
from .dinov2 import (
    TFDinov2ForImageClassification,
    TFDinov2Model,
    TFDinov2WithRegistersForImageClassification,
    TFDinov2WithRegistersModel,
)
from .dinov3 import TFDINOv3ViTModel
from .mae import TFViTMAEForPreTraining, TFViTMAEModel
from .vit import TFViTForImageClassification, TFViTForMaskedImageModeling, TFViTModel

__all__ = [
    "TFBeitForImageClassification",
    "TFBeitForMaskedImageModeling",
    "TFBeitModel",
    "TFDINOv3ViTModel",
    "TFDeiTForImageClassification",
    "TFDeiTForImageClassificationWithTeacher",
    "TFDeiTForMaskedImageModeling",
    "TFDeiTModel",
    "TFDinov2ForImageClassification",
    "TFDinov2Model",
    "TFDinov2WithRegistersForImageClassification",
    "TFDinov2WithRegistersModel",
    "TFViTForImageClassification",
    "TFViTForMaskedImageModeling",
    "TFViTMAEForPreTraining",
    "TFViTMAEModel",
    "TFViTModel",
]
