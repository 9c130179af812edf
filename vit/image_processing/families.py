"""The image processors of the other families, and the one way in for all: each is a row of defaults and little more."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from PIL import Image

from .. import hub
from ..errors import CheckpointError, InputError
from . import options as opts
from .batch import BatchFeature, is_array, is_torch, to_array, to_tensor
from .fast import ViTImageProcessorFast
from .inputs import LAST
from .processor import OldName, ViTImageProcessor, read_beside, read_file
from .sources import label_of, open_image


class DeiTImageProcessor(ViTImageProcessor):
    """ViTImageProcessor with DeiT's defaults: 256 bicubic, centre crop 224, ImageNet mean and std."""

    family = "DeiT"


class DeiTImageProcessorFast(ViTImageProcessorFast):
    """DeiTImageProcessor with PyTorch."""

    family = "DeiT"


class BitImageProcessor(ViTImageProcessor):
    """That of DINOv2: shortest edge 224 bicubic (their files say 256), centre crop 224, RGB, CLIP's mean and std."""

    family = "Bit"


class BitImageProcessorFast(ViTImageProcessorFast):
    """BitImageProcessor with PyTorch."""

    family = "Bit"


class DINOv3ViTImageProcessorFast(ViTImageProcessorFast):
    """That of DINOv3: 224 bilinear of floats, as it rescales before it resizes; ImageNet mean and std."""

    family = "DINOv3ViT"
    rescale_first = True


class _SegmentationMaps:
    """Beside images, a processor takes maps of labels, and resizes and crops them alike."""

    do_reduce_labels: bool

    def preprocess(self, images: Any, segmentation_maps: Any = None, **kwargs: Any) -> BatchFeature:
        """Make `pixel_values` of images, and `labels` of maps.

        Args:
            images: as ViTImageProcessor takes them.
            segmentation_maps: an array or Pillow image (height, width) of labels, 0 to 255 where it is resized; several
                in a list or in one array (batch, height, width).
            **kwargs: as ViTImageProcessor's; `do_reduce_labels=True` makes 255 of label 0, the background, and
                every other one less.

        Returns:
            `pixel_values`, and (batch, height, width) int64 `labels` where there are maps.

        Raises:
            InputError: an image or map that cannot be used; its index is named.
            ConfigError: an unknown option, or an impossible value.
        """
        batch = super().preprocess(images, **kwargs)  # type: ignore[misc]
        if segmentation_maps is None:
            return batch
        kind = kwargs.pop("return_tensors", None)
        reduce = kwargs.pop("do_reduce_labels", None)
        reduce = self.do_reduce_labels if reduce is None else reduce
        resizes = kwargs.get("do_resize")
        resizes = self.do_resize if resizes is None else resizes  # type: ignore[attr-defined]
        maps = [
            _labels(f"Segmentation map {i}", each, reduce, resizes) for i, each in enumerate(_maps(segmentation_maps))
        ]
        plain = {**kwargs, "do_rescale": False, "do_normalize": False, "do_convert_rgb": False, "data_format": LAST,
                 "input_data_format": LAST}  # fmt: skip
        found = super().preprocess(maps, **plain).pixel_values if maps else []  # type: ignore[misc]
        labels = [each[..., 0] for each in found]
        labels = [each.long() if is_torch(each) else each.astype(np.int64) for each in labels]
        if kind is not None and len({tuple(each.shape) for each in labels}) > 1:
            raise InputError("The segmentation maps come out in several sizes; give a height and a width, or a crop.")
        if kind is not None:
            import_torch = kind == "pt" and labels and is_torch(labels[0])
            labels = _stack(labels) if import_torch else to_tensor(np.stack([to_array(each) for each in labels]), kind)
        batch["labels"] = labels
        return batch

    def __call__(self, images: Any, segmentation_maps: Any = None, **kwargs: Any) -> BatchFeature:
        """`preprocess`, by another name."""
        return self.preprocess(images, segmentation_maps, **kwargs)


def _stack(labels: list[Any]) -> Any:
    import torch

    return torch.stack(labels)


def _maps(maps: Any) -> list[Any]:
    if isinstance(maps, list | tuple):
        return [each for entry in maps for each in _maps(entry)]
    return list(maps) if is_array(maps) and len(maps.shape) == 3 else [maps]


def _labels(name: str, labels: Any, reduce: bool, resizes: bool) -> Any:
    """A map as (height, width, 1) of integers."""
    if label_of(labels) is not None:
        labels = open_image(labels, name)
    array = np.asarray(labels) if isinstance(labels, Image.Image) else to_array(labels, name)
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "buif":
        raise InputError(
            f"{name} has the shape {array.shape} and dtype {array.dtype}; expected (height, width) of labels."
        )
    if array.dtype in (np.bool_, np.uint16):  # of 16 bits 65535 would be white
        array = array.astype(np.uint8 if array.dtype == np.bool_ else np.int32)
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high)) or (array.dtype.kind == "f" and (array != np.trunc(array)).any()):
        raise InputError(f"{name} has values that are no whole numbers; expected labels.")
    if resizes and (low < 0 or high > 255):
        raise InputError(f"{name} has labels from {low} to {high}; to be resized they have to be in 0 to 255.")
    if reduce:
        background = array == 0
        array = array - 1
        array[background | (array == 254)] = 255
    return array[..., None]


class BeitImageProcessor(_SegmentationMaps, ViTImageProcessor):
    """ViTImageProcessor with transformers' BEiT defaults: 256 bicubic, centre crop 224, mean and std 0.5."""

    family = "Beit"


class BeitImageProcessorFast(_SegmentationMaps, ViTImageProcessorFast):
    """BeitImageProcessor with PyTorch, whose published defaults are 224 bicubic without a crop."""

    family = "Beit"


class DeiTFeatureExtractor(OldName, DeiTImageProcessor):
    """The old name of DeiTImageProcessor; it warns and works."""


class BeitFeatureExtractor(OldName, BeitImageProcessor):
    """The old name of BeitImageProcessor; it warns and works."""


CLASSES: dict[tuple[str, bool], type[ViTImageProcessor]] = {
    (each.family, each.is_fast): each
    for each in (ViTImageProcessor, ViTImageProcessorFast, DeiTImageProcessor, DeiTImageProcessorFast,
                 BeitImageProcessor, BeitImageProcessorFast, BitImageProcessor, BitImageProcessorFast,
                 DINOv3ViTImageProcessorFast)
}  # fmt: skip
"""(family, whether it is Fast) -> class."""


class AutoImageProcessor:
    """The image processor that a checkpoint names: by the type in its preprocessor_config.json, else by its model."""

    def __init__(self) -> None:
        raise TypeError("AutoImageProcessor has no instances; use AutoImageProcessor.from_pretrained.")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *, use_fast: bool | None = None, **kwargs: Any
    ) -> ViTImageProcessor:
        """Read the image processor of a checkpoint of any family.

        Args:
            pretrained_model_name_or_path: a checkpoint folder, its preprocessor_config.json, or the name of a model on
                the hub.
            use_fast: True for the class that computes with PyTorch, False for the one that does not; what the file
                names when None.
            **kwargs: as those of `ViTImageProcessor.from_pretrained`.

        Raises:
            CheckpointError: no such file, no JSON, or the file of another kind of processor.
            ConfigError: impossible values; the file is named.
            MissingFrameworkError: a Fast processor without PyTorch.
        """
        path, values = read_file(pretrained_model_name_or_path, **hub.split_options(kwargs)[0])
        family, fast = opts.family_of(values, path)
        if family is None:
            model = read_beside(path).get("model_type", "")
            if model not in opts.FAMILIES:
                raise CheckpointError(
                    f"{path} has no image_processor_type, and no config.json lies beside it whose model_type is one of "
                    f"{', '.join(opts.FAMILIES)}. Use the class that made it, such as ViTImageProcessor."
                )
            family = opts.FAMILIES[model]
        fast = fast if use_fast is None else use_fast
        if (family, fast) not in CLASSES:
            if use_fast is False:
                raise CheckpointError(f"{family}ImageProcessorFast has no form without PyTorch; leave use_fast out.")
            fast = not fast
        return CLASSES[family, fast].from_pretrained(path, **kwargs)


class AutoFeatureExtractor(AutoImageProcessor):
    """The old name of AutoImageProcessor."""
