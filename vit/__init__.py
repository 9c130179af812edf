"""trivit: the Vision Transformer in PyTorch, TensorFlow and Flax, one checkpoint, proven to be the same function.

`import vit` imports no framework; each public name is imported when it is first used.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from . import (
    forks,  # before a fork, or it knows nothing
    placeholders,
)

__version__ = "0.1.0"

DEMO = os.path.join(os.path.dirname(__file__), "demo")
"""The folder of the bundled checkpoint, a small ViT that reads handwritten digits, with 30 images of them."""

_MODULES = {
    "vit.families.vit": ("ViTConfig",),
    "vit.families.deit": ("DeiTConfig",),
    "vit.families.beit": ("BeitConfig",),
    "vit.families.mae": ("ViTMAEConfig",),
    "vit.families.dinov2": ("Dinov2Config", "Dinov2WithRegistersConfig"),
    "vit.families.dinov3": ("DINOv3ViTConfig",),
    "vit.auto": (
        "AutoConfig",
        "AutoModel",
        "AutoModelForImageClassification",
        "AutoModelForMaskedImageModeling",
        "AutoModelForPreTraining",
        "TFAutoModel",
        "TFAutoModelForImageClassification",
        "TFAutoModelForMaskedImageModeling",
        "TFAutoModelForPreTraining",
        "FlaxAutoModel",
        "FlaxAutoModelForImageClassification",
        "FlaxAutoModelForMaskedImageModeling",
        "FlaxAutoModelForPreTraining",
    ),
    "vit.inference": ("Forward",),
    "vit.outputs": ("ModelOutput",),
    "vit.errors": ("CheckpointError", "ConfigError", "InputError", "MissingFrameworkError"),
    "vit.image_processing": (
        "ViTImageProcessor",
        "ViTImageProcessorFast",
        "ViTFeatureExtractor",
        "DeiTFeatureExtractor",
        "BeitFeatureExtractor",
        "AutoFeatureExtractor",
        "AutoImageProcessor",
        "BatchFeature",
        "BeitImageProcessor",
        "BeitImageProcessorFast",
        "BitImageProcessor",
        "BitImageProcessorFast",
        "DeiTImageProcessor",
        "DeiTImageProcessorFast",
        "DINOv3ViTImageProcessorFast",
        "random_patch_mask",
    ),
    "vit.attention": ("attention_mask", "attention_rollout", "cls_attention"),
    "vit.pipeline": ("Prediction", "predict"),
    "conversion": ("convert", "inspect", "verify"),
    "vit.exporting": ("export",),
    "vit.training.recipe": ("Recipe",),
    "vit.training.run": ("Run", "TrainingError", "train"),
    "vit.training.evaluation": ("Evaluation", "evaluate"),
    "vit.pt": (
        "ViTModel",
        "ViTForImageClassification",
        "ViTForMaskedImageModeling",
        "DeiTModel",
        "DeiTForImageClassification",
        "DeiTForImageClassificationWithTeacher",
        "DeiTForMaskedImageModeling",
        "BeitModel",
        "BeitForImageClassification",
        "BeitForMaskedImageModeling",
        "ViTMAEModel",
        "ViTMAEForPreTraining",
        "Dinov2Model",
        "Dinov2ForImageClassification",
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersForImageClassification",
        "DINOv3ViTModel",
    ),
    "vit.tf": (
        "TFViTModel",
        "TFViTForImageClassification",
        "TFViTForMaskedImageModeling",
        "TFDeiTModel",
        "TFDeiTForImageClassification",
        "TFDeiTForImageClassificationWithTeacher",
        "TFDeiTForMaskedImageModeling",
        "TFBeitModel",
        "TFBeitForImageClassification",
        "TFBeitForMaskedImageModeling",
        "TFViTMAEModel",
        "TFViTMAEForPreTraining",
        "TFDinov2Model",
        "TFDinov2ForImageClassification",
        "TFDinov2WithRegistersModel",
        "TFDinov2WithRegistersForImageClassification",
        "TFDINOv3ViTModel",
    ),
    "vit.flax": (
        "FlaxViTModel",
        "FlaxViTForImageClassification",
        "FlaxViTForMaskedImageModeling",
        "FlaxDeiTModel",
        "FlaxDeiTForImageClassification",
        "FlaxDeiTForImageClassificationWithTeacher",
        "FlaxDeiTForMaskedImageModeling",
        "FlaxBeitModel",
        "FlaxBeitForImageClassification",
        "FlaxBeitForMaskedImageModeling",
        "FlaxViTMAEModel",
        "FlaxViTMAEForPreTraining",
        "FlaxDinov2Model",
        "FlaxDinov2ForImageClassification",
        "FlaxDinov2WithRegistersModel",
        "FlaxDinov2WithRegistersForImageClassification",
        "FlaxDINOv3ViTModel",
    ),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}
placeholders.register(_MODULES["vit.tf"])

_ROOMS = ("pt", "tf", "flax")
__all__ = [  # of `import *`
    *(name for name, home in _HOMES.items() if home.removeprefix("vit.") not in _ROOMS),
    "DEMO",
    "__version__",
]

if TYPE_CHECKING:
    from conversion import convert, inspect, verify

    from . import flax, pt, tf
    from .attention import attention_mask, attention_rollout, cls_attention
    from .auto import (
        AutoConfig,
        AutoModel,
        AutoModelForImageClassification,
        AutoModelForMaskedImageModeling,
        AutoModelForPreTraining,
        FlaxAutoModel,
        FlaxAutoModelForImageClassification,
        FlaxAutoModelForMaskedImageModeling,
        FlaxAutoModelForPreTraining,
        TFAutoModel,
        TFAutoModelForImageClassification,
        TFAutoModelForMaskedImageModeling,
        TFAutoModelForPreTraining,
    )
    from .errors import CheckpointError, ConfigError, InputError, MissingFrameworkError
    from .exporting import export
    from .families.beit import BeitConfig
    from .families.deit import DeiTConfig
    from .families.dinov2 import Dinov2Config, Dinov2WithRegistersConfig
    from .families.dinov3 import DINOv3ViTConfig
    from .families.mae import ViTMAEConfig
    from .families.vit import ViTConfig
    from .flax import (
        FlaxBeitForImageClassification,
        FlaxBeitForMaskedImageModeling,
        FlaxBeitModel,
        FlaxDeiTForImageClassification,
        FlaxDeiTForImageClassificationWithTeacher,
        FlaxDeiTForMaskedImageModeling,
        FlaxDeiTModel,
        FlaxDinov2ForImageClassification,
        FlaxDinov2Model,
        FlaxDinov2WithRegistersForImageClassification,
        FlaxDinov2WithRegistersModel,
        FlaxDINOv3ViTModel,
        FlaxViTForImageClassification,
        FlaxViTForMaskedImageModeling,
        FlaxViTMAEForPreTraining,
        FlaxViTMAEModel,
        FlaxViTModel,
    )
    from .image_processing import (
        AutoFeatureExtractor,
        AutoImageProcessor,
        BatchFeature,
        BeitFeatureExtractor,
        BeitImageProcessor,
        BeitImageProcessorFast,
        BitImageProcessor,
        BitImageProcessorFast,
        DeiTFeatureExtractor,
        DeiTImageProcessor,
        DeiTImageProcessorFast,
        DINOv3ViTImageProcessorFast,
        ViTFeatureExtractor,
        ViTImageProcessor,
        ViTImageProcessorFast,
        random_patch_mask,
    )
    from .inference import Forward
    from .outputs import ModelOutput
    from .pipeline import Prediction, predict
    from .pt import (
        BeitForImageClassification,
        BeitForMaskedImageModeling,
        BeitModel,
        DeiTForImageClassification,
        DeiTForImageClassificationWithTeacher,
        DeiTForMaskedImageModeling,
        DeiTModel,
        Dinov2ForImageClassification,
        Dinov2Model,
        Dinov2WithRegistersForImageClassification,
        Dinov2WithRegistersModel,
        DINOv3ViTModel,
        ViTForImageClassification,
        ViTForMaskedImageModeling,
        ViTMAEForPreTraining,
        ViTMAEModel,
        ViTModel,
    )
    from .tf import (
        TFBeitForImageClassification,
        TFBeitForMaskedImageModeling,
        TFBeitModel,
        TFDeiTForImageClassification,
        TFDeiTForImageClassificationWithTeacher,
        TFDeiTForMaskedImageModeling,
        TFDeiTModel,
        TFDinov2ForImageClassification,
        TFDinov2Model,
        TFDinov2WithRegistersForImageClassification,
        TFDinov2WithRegistersModel,
        TFDINOv3ViTModel,
        TFViTForImageClassification,
        TFViTForMaskedImageModeling,
        TFViTMAEForPreTraining,
        TFViTMAEModel,
        TFViTModel,
    )
    from .training.evaluation import Evaluation, evaluate
    from .training.recipe import Recipe
    from .training.run import Run, TrainingError, train


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"vit.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'vit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # the next use is a plain look-up
    return value


def __dir__() -> list[str]:
    return sorted([*_HOMES, *_ROOMS, "DEMO", "__version__"])
