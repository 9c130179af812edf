"""Processors of the families: what transformers 4.57.6 recorded of both forms, and what PyTorch's own kernels give.

torchvision, which transformers' Fast classes need, is not there: its recorded outputs are, and an independent
computation of what it does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from torch.nn.functional import interpolate

import vit
from vit import AutoImageProcessor

from .test_family_references import FOLDER, expected

FOLDERS = sorted(path.name for path in FOLDER.glob("processor_*"))
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def test_every_recorded_processor_has_its_folder():
    assert {name.partition("/")[0] for name in expected() if name.startswith("processor_")} == {*FOLDERS}


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("name", FOLDERS)
def test_pixels_are_those_that_transformers_recorded(name: str, fast: bool):
    processor = AutoImageProcessor.from_pretrained(FOLDER / name, use_fast=fast)
    assert type(processor).__name__.endswith("Fast") == fast
    for image in ("image", "tall_image"):
        found = processor(expected()[image], return_tensors="np").pixel_values
        recorded = expected()[f"{name}/{'fast_' * fast}{image.removesuffix('image')}pixel_values"]
        assert (found.dtype, found.shape) == (recorded.dtype, recorded.shape)
        np.testing.assert_allclose(found, recorded, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("name", [name for name in FOLDERS if "beit" in name])
def test_segmentation_maps_are_those_that_transformers_recorded(name: str, fast: bool):
    processor = AutoImageProcessor.from_pretrained(FOLDER / name, use_fast=fast)
    image, segmentation = expected()["image"], expected()["segmentation_map"]
    found = processor(image, segmentation.copy(), return_tensors="np")
    recorded = expected()[f"{name}/{'fast_' * fast}segmentation"]
    np.testing.assert_array_equal(np.asarray(found["labels"]).reshape(recorded.shape), recorded)


def computed(image: np.ndarray, size: tuple[int, int], mode: str, crop: tuple[int, int] | None, mean: Any, std: Any):
    """Resized as bytes with antialiasing, cut in the middle, and normalised in one step."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    pixels = interpolate(pixels[None], size=size, mode=mode, antialias=True, align_corners=False)[0]
    if crop is not None:
        top, left = (int((have - want) / 2) for have, want in zip(size, crop, strict=True))
        pixels = pixels[:, top : top + crop[0], left : left + crop[1]]
    mean, std = (torch.tensor(each).view(3, 1, 1) * 255 for each in (mean, std))
    return ((pixels.float() - mean) / std)[None].numpy()


@pytest.mark.parametrize("photo", ["astronaut", "chelsea", "coffee"])
def test_fast_processors_equal_pytorchs_own_kernels(photo: str):
    image = getattr(skimage.data, photo)()
    height, width = image.shape[:2]
    shorter = (256, int(256 * width / height)) if height <= width else (int(256 * height / width), 256)
    rows = [
        (vit.BitImageProcessorFast(size={"shortest_edge": 256}, image_mean=MEAN, image_std=STD), shorter, "bicubic",
         (224, 224), MEAN, STD),
        (vit.DeiTImageProcessorFast(image_mean=MEAN, image_std=STD), (256, 256), "bicubic", (224, 224), MEAN, STD),
        (vit.BeitImageProcessorFast(resample=2), (224, 224), "bilinear", None, [0.5] * 3, [0.5] * 3),
        (vit.BeitImageProcessorFast(do_center_crop=True, size={"height": 256, "width": 240}), (256, 240), "bicubic",
         (224, 224), [0.5] * 3, [0.5] * 3),
    ]  # fmt: skip
    for processor, *how in rows:
        found = processor(image, return_tensors="np").pixel_values
        np.testing.assert_allclose(found, computed(image, *how), rtol=0, atol=1e-6, err_msg=type(processor).__name__)


@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_saved_again_says_the_same(name: str, tmp_path: Path):
    AutoImageProcessor.from_pretrained(FOLDER / name).save_pretrained(tmp_path)
    before, after = (json.loads((path / "preprocessor_config.json").read_text()) for path in (FOLDER / name, tmp_path))
    assert {key: after.get(key) for key in before} == before
