"""The Vision Transformer in Flax NNX."""

from ..errors import missing_framework

try:
    import flax  # noqa: F401
    import jax  # noqa: F401
except ModuleNotFoundError as error:
    if error.name not in ("flax", "jax"):
        raise  # Flax is there, but broken
    raise missing_framework("vit.flax", "flax") from None

from .vit import FlaxViTForImageClassification, FlaxViTForMaskedImageModeling, FlaxViTModel

__all__ = ["FlaxViTForImageClassification", "FlaxViTForMaskedImageModeling", "FlaxViTModel"]
