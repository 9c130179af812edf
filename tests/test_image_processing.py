"""ViTImageProcessor and what the processors share, against transformers 4.57.6 on scikit-image's photographs."""

import io
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
import tensorflow as tf
import torch
import transformers
from PIL import Image

import vit.image_processing as ours
from vit import CheckpointError, ConfigError, InputError, MissingFrameworkError, ModelOutput, ViTConfig
from vit.image_processing import BatchFeature, ViTImageProcessor, ViTImageProcessorFast, processor, random_patch_mask

PHOTOS = {name: getattr(skimage.data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")}
CAT = PHOTOS["chelsea"]  # (300, 451, 3)
GREY = skimage.data.camera()  # (512, 512)

FORMS = {
    "pillow": Image.fromarray,
    "hwc": lambda a: a,
    "chw": lambda a: np.ascontiguousarray(a.transpose(2, 0, 1)),
    "flipped": lambda a: a[:, ::-1],
    "unit": lambda a: a / 255,
    "unit32": lambda a: (a / 255).astype(np.float32),
    "whole": lambda a: a.astype(np.float32),
    "int64": lambda a: a.astype(np.int64),
    "uint16": lambda a: a.astype(np.uint16),
    "torch": torch.from_numpy,
    "batch": lambda a: np.stack([a, a[::-1]]),
}

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
OPTIONS = [
    {},
    *[{"resample": resample, "size": 96} for resample in Image.Resampling],
    {"size": {"height": 65, "width": 131}, **IMAGENET},
    {"size": 700, "resample": 3},
    {"do_resize": False},
    {"do_rescale": False},
    {"do_normalize": False},
    {"do_rescale": False, "do_normalize": False},
    {"do_resize": False, "do_rescale": False},
    {"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0},
    {"image_mean": 0.4, "image_std": [0.2, 0.3, 0.4]},
    {"data_format": "channels_last", "size": 50},
]
CROPS = [
    {},
    {"crop_size": 97, "size": 128},
    {"crop_size": {"height": 301, "width": 40}, "size": 200},
    {"crop_size": (41, 300), "size": (64, 127), "resample": 1},
    {"do_resize": False, "crop_size": 1001},
    {"do_center_crop": False},
    {"do_rescale": False, "crop_size": 301},
]


def assert_same(found, expected, context=""):
    """Equal in every bit, and in shape and dtype."""
    assert found.shape == expected.shape, context
    assert found.dtype == expected.dtype, context
    assert np.array_equal(found, expected), (context, np.abs(found.astype(float) - expected).max())


# === The same bits as transformers ===


@pytest.mark.filterwarnings("ignore:.*values between 0 and 1")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("photo", PHOTOS)
def test_equals_transformers_vit(photo, form):
    image = FORMS[form](PHOTOS[photo])
    for options in OPTIONS if photo == "chelsea" else OPTIONS[:5]:
        expected = transformers.ViTImageProcessor()(image, return_tensors="np", **options).pixel_values
        assert_same(ViTImageProcessor()(image, return_tensors="np", **options).pixel_values, expected, options)


@pytest.mark.filterwarnings("ignore:.*values between 0 and 1")
@pytest.mark.parametrize("form", ["pillow", "hwc", "chw", "unit", "batch"])
@pytest.mark.parametrize("family", ["DeiT", "Beit"])
def test_equals_transformers_with_a_centre_crop(family, form):
    image = FORMS[form](CAT)
    # transformers' DeiT class starts from 0.5; ours, as every published DeiT checkpoint, from ImageNet's numbers.
    theirs = getattr(transformers, f"{family}ImageProcessor")(**(IMAGENET if family == "DeiT" else {}))
    for options in CROPS:
        expected = theirs(image, return_tensors="np", **options).pixel_values
        found = getattr(ours, f"{family}ImageProcessor")()(image, return_tensors="np", **options).pixel_values
        assert_same(found, expected, options)


@pytest.mark.parametrize("cpus", [1, 3])
@pytest.mark.parametrize("resample", list(Image.Resampling))
def test_an_image_in_strips_equals_transformers(monkeypatch, resample, cpus):
    monkeypatch.setattr(processor, "_cpus", lambda: cpus)
    image = np.ascontiguousarray(skimage.data.retina())  # 1411 x 1411: 6 MB
    assert image.nbytes > 2 * processor._STRIP
    for pixels in (image, image[..., :1].copy(), image.transpose(2, 0, 1), Image.fromarray(image)):
        for size in ((100, 224), (224, 1411), (1411, 100), (200, 1000)):  # by columns first, the last one
            options = {"resample": resample, "size": size, "do_normalize": False, "return_tensors": "np"}
            expected = transformers.ViTImageProcessor()(pixels, **options).pixel_values
            assert_same(ViTImageProcessor()(pixels, **options).pixel_values, expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "YCbCr", "HSV", "RGBA", "CMYK"])
def test_strips_keep_the_mode(monkeypatch, mode):
    image = Image.fromarray(np.ascontiguousarray(skimage.data.retina())).convert(mode)
    options = {"resample": "bicubic", "do_convert_rgb": False, "do_normalize": False, "return_tensors": "np"}
    monkeypatch.setattr(processor, "_cpus", lambda: 1)
    expected = ViTImageProcessor()(image, **options).pixel_values
    monkeypatch.setattr(processor, "_cpus", lambda: 4)
    assert_same(ViTImageProcessor()(image, **options).pixel_values, expected)


def test_a_large_array_with_alpha_equals_transformers():
    image = skimage.data.retina()
    image = np.dstack([image, image[::-1, :, 0]])  # alpha that is neither 0 nor 255
    options = {"image_mean": [0.5] * 4, "image_std": [0.5] * 4, "input_data_format": "channels_last"}
    expected = transformers.ViTImageProcessor()(image, return_tensors="np", **options).pixel_values
    assert_same(ViTImageProcessor()(image, return_tensors="np", **options).pixel_values, expected)


def test_floats_and_wide_integers_that_transformers_refuses():
    image = CAT.astype(np.float32)
    image[0, 0, 0] = 0.5  # floats in 0..255 that are not whole: transformers refuses them
    with pytest.raises(ValueError, match="outside the range"):
        transformers.ViTImageProcessor()(image)
    found = ViTImageProcessor()(image, return_tensors="np").pixel_values
    assert_same(found, ViTImageProcessor()(image.astype(np.uint8), return_tensors="np").pixel_values)

    wide = CAT.astype(np.uint16) * 257  # 16 bits: transformers refuses them
    with pytest.raises(ValueError, match="outside the range"):
        transformers.ViTImageProcessor()(wide)
    found = ViTImageProcessor()(wide, return_tensors="np").pixel_values
    assert_same(found, ViTImageProcessor()(CAT, return_tensors="np").pixel_values)


CONVERTED = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "LAB", "I", "F"]


def in_mode(mode):
    image = Image.fromarray(CAT)
    if mode in ("PA", "LAB", "RGBa"):
        return image.convert({"PA": "P", "LAB": "RGB", "RGBa": "RGBA"}[mode]).convert(mode)
    return image.convert(mode)


@pytest.mark.parametrize("mode", CONVERTED)
def test_every_mode_converts_to_rgb_as_in_transformers(mode):
    image = in_mode(mode)
    expected = transformers.ViTImageProcessor(do_convert_rgb=True)(image, return_tensors="np").pixel_values
    assert_same(ViTImageProcessor(do_convert_rgb=True)(image, return_tensors="np").pixel_values, expected)
    # With do_convert_rgb unset transformers refuses most of these, and takes HSV, LAB and YCbCr for RGB; users expect
    # what the published checkpoints were trained on.
    assert_same(ViTImageProcessor()(image, return_tensors="np").pixel_values, expected)


@pytest.mark.parametrize("mode", ["RGB", "YCbCr", "HSV", "LAB"])
def test_do_convert_rgb_false_keeps_three_channels_as_in_transformers(mode):
    image = in_mode(mode)
    expected = transformers.ViTImageProcessor(do_convert_rgb=False)(image, return_tensors="np").pixel_values
    assert_same(ViTImageProcessor(do_convert_rgb=False)(image, return_tensors="np").pixel_values, expected)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 2), ("RGBA", 4)])
def test_other_numbers_of_channels_equal_transformers(mode, channels):
    # transformers needs to be told where the channels are; the image says so itself.
    image = in_mode(mode)
    options = {"image_mean": [0.5] * channels, "image_std": [0.25] * channels, "size": 60}
    theirs = transformers.ViTImageProcessor(**options)
    expected = theirs(image, return_tensors="np", input_data_format="channels_last").pixel_values
    assert expected.shape == (1, channels, 60, 60)
    for convert in (None, False):
        found = ViTImageProcessor(**options, do_convert_rgb=convert)(image, return_tensors="np").pixel_values
        assert_same(found, expected, convert)
        found = ViTImageProcessor(**options, do_convert_rgb=convert)(
            np.asarray(image), return_tensors="np"
        ).pixel_values
        assert_same(found, expected, convert)


def test_sixteen_bit_images_keep_their_brightness():
    # transformers refuses them, or with do_convert_rgb clips at 255: a white image.
    wide = Image.fromarray(GREY.astype(np.uint16) * 257)
    assert wide.mode == "I;16"
    clipped = transformers.ViTImageProcessor(do_convert_rgb=True)(wide, return_tensors="np").pixel_values
    assert clipped.mean() > 0.9
    expected = ViTImageProcessor()(GREY, return_tensors="np").pixel_values
    for image in (wide, wide.convert("I"), np.asarray(wide), Image.fromarray(GREY).convert("I;16")):
        assert_same(ViTImageProcessor()(image, return_tensors="np").pixel_values, expected)


@pytest.mark.parametrize("cls", [ViTImageProcessor, ViTImageProcessorFast])
def test_sixteen_bits_keep_their_brightness_without_a_resize_too(cls):
    expected = cls(do_resize=False)(GREY, return_tensors="np").pixel_values
    found = cls(do_resize=False)(GREY.astype(np.uint16) * 257, return_tensors="np").pixel_values
    assert_same(found, expected)


@pytest.mark.parametrize("cls", [ViTImageProcessor, ViTImageProcessorFast])
def test_a_picture_of_floats_in_0_to_1_is_as_bright_as_a_training_has_it(cls, tmp_path):
    from vit.training import Recipe
    from vit.training.data import Data
    from vit.training.examples import Examples

    file = tmp_path / "a.tiff"
    Image.fromarray((GREY / 255).astype(np.float32)).save(file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = cls(size=32)(file, return_tensors="np").pixel_values
    assert np.abs(found - cls(size=32)(GREY, return_tensors="np").pixel_values).max() < 0.02  # a few levels of grey
    examples = Examples([str(file)], np.ones((1, 1), np.float32), ("cat",))
    trained = Data(examples, Recipe(), cls(size=32), ViTConfig(image_size=32), 1)._plain(examples, 0)
    assert_same(found[0], trained)


@pytest.mark.parametrize("cls", [ViTImageProcessor, ViTImageProcessorFast])
def test_values_that_no_pixels_have_are_told_where_they_are_rescaled(cls):
    processor = cls(do_resize=False)
    for image in (GREY.astype(np.int32) * 257, (GREY / 127.5 - 1).astype(np.float32)):
        low, high = image.min(), image.max()
        with pytest.warns(
            UserWarning, match=f"values from {low:g} to {high:g}, which do_rescale takes for pixels of 0"
        ):
            processor(image, return_tensors="np")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processor(GREY.astype(np.int32) * 257, rescale_factor=1 / 65535)
        processor(GREY.astype(np.uint16) * 257)
        processor((GREY / 127.5 - 1).astype(np.float32), do_rescale=False, do_normalize=False)


@pytest.mark.filterwarnings("ignore:.*values between 0 and 1")
def test_float_pillow_images_are_read_as_float_arrays():
    unit = (GREY / 255).astype(np.float32)
    expected = ViTImageProcessor()(unit, return_tensors="np", do_rescale=False).pixel_values
    found = ViTImageProcessor()(Image.fromarray(unit), return_tensors="np", do_rescale=False).pixel_values
    assert_same(found, expected)
    assert np.abs(found - ViTImageProcessor()(GREY, return_tensors="np").pixel_values).max() < 0.01
    options = {"do_convert_rgb": True, "do_rescale": False, "return_tensors": "np"}
    assert_same(ViTImageProcessor()(Image.fromarray(unit), **options).pixel_values, expected)
    black = transformers.ViTImageProcessor(do_convert_rgb=True)(Image.fromarray(unit), return_tensors="np").pixel_values
    assert black.max() < -0.99  # which truncates 0..1 to 0


@pytest.mark.parametrize("shape", [(512, 512), (512, 512, 1), (1, 512, 512)])
def test_grey_arrays_become_rgb_where_the_mean_has_three_channels(shape):
    expected = ViTImageProcessor()(np.stack([GREY] * 3, axis=-1), return_tensors="np").pixel_values
    assert_same(ViTImageProcessor()(GREY.reshape(shape), return_tensors="np").pixel_values, expected)


def test_rgba_and_la_arrays_lose_their_alpha():
    rgba, la = np.dstack([CAT, CAT[..., 0]]), np.dstack([GREY, GREY])
    assert_same(ViTImageProcessor()(rgba)["pixel_values"][0], ViTImageProcessor()(CAT)["pixel_values"][0])
    assert_same(ViTImageProcessor()(la)["pixel_values"][0], ViTImageProcessor()(GREY)["pixel_values"][0])


def test_a_large_photograph_is_resized_in_strips_unless_pillow_takes_its_columns_first(monkeypatch):
    strips: list[int] = []

    def noted(call, parts, threads):
        parts = list(parts)
        strips.append(len(parts))
        return [call(part) for part in parts]

    monkeypatch.setattr(processor, "spread", noted)
    rng = np.random.default_rng(0)
    for (height, width), size, expected in (
        ((1000, 1500), (300, 400), 4), ((1000, 1500), (999, 400), 4), ((1000, 1500), (300, 1200), None),
        ((1500, 1000), (100, 300), 4), ((1500, 1000), (99, 300), None), ((1000, 1500), (1000, 1600), 4),
        ((1000, 1500), (999, 1600), None), ((100, 150), (30, 40), None),
    ):  # fmt: skip
        strips.clear()
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        found = processor._resize(pixels, size, Image.Resampling.BILINEAR, 2)
        assert strips == ([] if expected is None else [expected]), (height, width, size)
        assert np.array_equal(found, Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))


def test_many_channels_are_resized_one_by_one():
    bands = np.dstack([CAT, CAT[::-1]])  # (300, 451, 6)
    options = {"do_normalize": False, "input_data_format": "channels_last", "return_tensors": "np", "size": 40}
    found = ViTImageProcessor()(bands, **options).pixel_values
    halves = [ViTImageProcessor()(half, **options).pixel_values for half in (CAT, CAT[::-1])]
    assert_same(found, np.concatenate(halves, axis=1))


# === Sizes ===


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        (30, (30, 30)),
        ((30, 41), (30, 41)),
        ([30, 41], (30, 41)),
        ({"height": 30, "width": 41}, (30, 41)),
        ({"shortest_edge": 100}, (100, 150)),
        ({"shortest_edge": 100, "longest_edge": 120}, (80, 120)),
        ({"shortest_edge": 300, "longest_edge": 1000}, (300, 451)),
    ],
)
def test_size_forms(size, shape):
    # transformers' ViTImageProcessor refuses shortest_edge; its fast one computes these heights and widths.
    found = ViTImageProcessor(size=size)(CAT, return_tensors="np").pixel_values
    expected = transformers.ViTImageProcessor(size={"height": shape[0], "width": shape[1]})(CAT, return_tensors="np")
    assert_same(found, expected.pixel_values)


def test_shortest_edge_follows_transformers_for_every_shape():
    from transformers.image_transforms import get_resize_output_image_size, get_size_with_aspect_ratio

    from vit.image_processing.options import output_size

    rng = np.random.default_rng(0)
    for height, width, short, more in rng.integers(1, 900, (3000, 4)).tolist():
        expected = get_resize_output_image_size(
            np.empty((height, width, 3)), short, default_to_square=False, input_data_format="channels_last"
        )
        assert output_size(height, width, {"shortest_edge": short}) == expected
        expected = get_size_with_aspect_ratio((height, width), short, short + more)
        assert output_size(height, width, {"shortest_edge": short, "longest_edge": short + more}) == expected


def test_arrays_are_cropped_and_padded_as_images_are_to_the_odd_pixel():
    for height, width in np.ndindex(4, 4):
        pixels = np.random.default_rng(0).integers(1, 256, (4 + height, 5 + width, 3), np.uint8)
        cropped = processor._center_crop(Image.fromarray(pixels), 6, 6)
        np.testing.assert_array_equal(processor._center_crop(pixels, 6, 6), cropped)


def test_the_result_of_shortest_edge_can_be_ragged_or_cropped():
    batch = [PHOTOS["astronaut"], CAT]
    ragged = ViTImageProcessor(size={"shortest_edge": 64})(batch).pixel_values
    assert [image.shape for image in ragged] == [(3, 64, 64), (3, 64, 96)]
    with pytest.raises(InputError, match=r"Image 1 of the batch came out 64 x 96 .* first image 64 x 64"):
        ViTImageProcessor(size={"shortest_edge": 64})(batch, return_tensors="np")
    cropped = ViTImageProcessor(size={"shortest_edge": 64}, do_center_crop=True, crop_size=60)(
        batch, return_tensors="pt"
    )
    assert_same(cropped.pixel_values[1].numpy(), ragged[1][:, 2:62, 18:78])


# === What goes in ===


def test_every_framework_goes_in():
    expected = ViTImageProcessor()(CAT, return_tensors="np").pixel_values
    for image in (
        torch.from_numpy(CAT),
        torch.from_numpy(CAT).permute(2, 0, 1),
        tf.constant(CAT),
        jnp.asarray(CAT),
        torch.from_numpy(CAT).to(torch.bfloat16).requires_grad_(),
        tf.cast(CAT, tf.bfloat16),
        jnp.asarray(CAT, jnp.bfloat16),
    ):
        found = ViTImageProcessor()(image, return_tensors="np").pixel_values
        if "bfloat16" in str(image.dtype):
            rounded = np.asarray(jnp.asarray(CAT, jnp.bfloat16).astype(jnp.float32))
            assert_same(found, ViTImageProcessor()(np.clip(rounded, 0, 255), return_tensors="np").pixel_values)
        else:
            assert_same(found, expected)


@pytest.mark.parametrize("make", [np.stack, lambda x: torch.from_numpy(np.stack(x)), lambda x: tf.stack(x)])
def test_a_batch_in_one_array(make):
    images = [CAT, CAT[::-1], CAT[:, ::-1]]
    assert_same(
        ViTImageProcessor()(make(images), return_tensors="np").pixel_values,
        ViTImageProcessor()(images, return_tensors="np").pixel_values,
    )


def test_a_batch_of_everything_equals_each_alone(tmp_path):
    Image.fromarray(CAT).save(tmp_path / "cat.png")
    images = [
        PHOTOS["rocket"],
        Image.fromarray(PHOTOS["coffee"]),
        np.ascontiguousarray(CAT.transpose(2, 0, 1)),
        tmp_path / "cat.png",
        str(tmp_path / "cat.png"),
        GREY,
        torch.from_numpy(CAT),
    ]
    batch = ViTImageProcessor()(images, return_tensors="np").pixel_values
    assert batch.shape == (7, 3, 224, 224)
    for image, found in zip(images, batch, strict=True):
        assert_same(found, ViTImageProcessor()(image, return_tensors="np").pixel_values[0])
    assert_same(ViTImageProcessor()([images[:3], [images[3]]], return_tensors="np").pixel_values, batch[:4])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_of_a_path_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(CAT).save(tmp_path / "cat.png", exif=exif)
    turned = {1: CAT, 2: CAT[:, ::-1], 3: CAT[::-1, ::-1], 4: CAT[::-1], 5: CAT.transpose(1, 0, 2)}
    turned |= {6: np.rot90(CAT, -1), 7: np.rot90(CAT, 2).transpose(1, 0, 2), 8: np.rot90(CAT)}
    found = ViTImageProcessor()(tmp_path / "cat.png", return_tensors="np").pixel_values
    assert_same(found, ViTImageProcessor()(turned[orientation], return_tensors="np").pixel_values)


@pytest.mark.parametrize("name", ["ViTImageProcessor", "ViTImageProcessorFast"])
def test_an_already_scaled_image_warns(name):
    with pytest.warns(UserWarning, match="Image 1 of the batch has values between 0 and 1") as caught:
        getattr(ours, name)()([CAT, CAT / 255])
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="values between 0 and 1"):
        getattr(ours, name)()((CAT > 128).astype(np.float32))


@pytest.mark.filterwarnings("error")
def test_nothing_else_warns():
    for image in (CAT, Image.fromarray(CAT), CAT.astype(float), jnp.asarray(CAT)):
        ViTImageProcessor()(image)
        ViTImageProcessorFast()(image)
    ViTImageProcessor()(CAT / 255, do_rescale=False)


# === What comes out ===


@pytest.mark.parametrize("name", ["ViTImageProcessor", "ViTImageProcessorFast"])
@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_every_return_type_holds_the_same_values(name, data_format):
    kinds = {"np": np.ndarray, "pt": torch.Tensor, "tf": tf.Tensor, "jax": jnp.ndarray}
    call = getattr(ours, name)()
    expected = np.stack([np.asarray(image) for image in call([CAT, CAT[::-1]]).pixel_values])
    expected = expected if data_format == "channels_first" else expected.transpose(0, 2, 3, 1)
    for kind, cls in kinds.items():
        found = call([CAT, CAT[::-1]], return_tensors=kind, data_format=data_format).pixel_values
        assert isinstance(found, cls)
        assert_same(np.asarray(found), expected)


def test_torch_shares_the_memory_of_the_batch(monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "from_numpy", lambda array, real=torch.from_numpy: seen.append(array) or real(array))
    found = ViTImageProcessor()(CAT, return_tensors="pt").pixel_values
    assert found.data_ptr() == seen[0].ctypes.data


def test_the_result_is_a_dict_with_attributes():
    features = ViTImageProcessor()(CAT, return_tensors="pt")
    assert isinstance(features, dict)
    assert list({**features}) == ["pixel_values"]
    assert features.pixel_values is features["pixel_values"]
    assert "pixel_values" in dir(features)
    with pytest.raises(AttributeError, match="holds pixel_values, not pixels"):
        features.pixels  # noqa: B018


def test_to_moves_and_casts_torch_tensors_alone():
    features = BatchFeature(pixel_values=torch.zeros(2), bool_masked_pos=torch.zeros(2, dtype=torch.bool))
    assert features.to("meta", torch.float16) is features
    assert features.pixel_values.dtype == torch.float16
    assert features.pixel_values.device.type == "meta"
    assert features.bool_masked_pos.dtype == torch.bool
    assert features.bool_masked_pos.device.type == "meta"
    with pytest.raises(InputError, match=r"numpy\.ndarray; \.to\(\) moves torch tensors"):
        ViTImageProcessor()(CAT, return_tensors="np").to("cpu")


@pytest.mark.parametrize("kind", [ViTImageProcessor, ViTImageProcessorFast])
def test_threads_change_nothing_but_which_thread_works(kind, monkeypatch):
    images = [CAT[:, i : i + 300] for i in range(8)]
    made, used = [], set()
    submit = processor._pool().submit
    monkeypatch.setattr(processor._pool(), "submit", lambda *args: made.append(args) or submit(*args))
    read = processor.Reader.read
    monkeypatch.setattr(processor.Reader, "read", lambda *args: used.add(threading.get_ident()) or read(*args))
    alone = kind()(images, return_tensors="np", threads=1).pixel_values
    assert not made
    assert used == {threading.get_ident()}
    assert_same(kind()(images, return_tensors="np", threads=3).pixel_values, alone)
    assert len(made) == 2
    assert_same(kind()(images, return_tensors="np").pixel_values, alone)
    for threads in (0, -1, 1.5, "2", True):
        with pytest.raises(InputError, match=f"threads is {threads!r}; expected an int of at least 1, or None"):
            kind()(images, threads=threads)


def test_the_first_of_several_bad_images_is_named(monkeypatch):
    monkeypatch.setattr(processor, "_cpus", lambda: 2)
    started, second_failed = [], threading.Event()

    def fail(i):
        started.append(i)
        if i == 0:
            assert second_failed.wait(timeout=60)
        second_failed.set()
        raise InputError(f"Image {i} is bad.")

    processor._pool.cache_clear()
    with pytest.raises(InputError, match="Image 0 is bad"):
        processor.spread(fail, range(9), 2)
    assert sorted(started) == [0, 1]  # none is begun after an error


def test_threads_wait_for_no_other_batch(monkeypatch):
    monkeypatch.setattr(processor, "_cpus", lambda: 2)
    pool, go = processor._pool(), threading.Event()
    busy = [pool.submit(go.wait) for _ in range(pool._max_workers)]
    try:
        assert processor.spread(lambda i: i * i, range(5), 4) == [0, 1, 4, 9, 16]
        assert not any(task.done() for task in busy)
    finally:
        go.set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_a_fork_has_threads_of_its_own():
    # A process of its own, which holds no framework that forbids to fork.
    script = """
import os, numpy as np
from vit.image_processing import ViTImageProcessor, processor
processor._cpus = lambda: 2
images = np.arange(8 * 64 * 64 * 3, dtype=np.uint8).reshape(8, 64, 64, 3)
expected = ViTImageProcessor()(images, return_tensors="np").pixel_values
child = os.fork()
same = np.array_equal(ViTImageProcessor()(images, return_tensors="np").pixel_values, expected)
if child == 0:
    os._exit(0 if same and len(processor._pool()._threads) == 1 else 1)
assert same
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_a_batch_of_several_dtypes_takes_the_widest(data_format):
    plain = {"do_resize": False, "do_rescale": False, "do_normalize": False, "data_format": data_format}
    images = [CAT, CAT.astype(np.float32), CAT.astype(np.float64)]
    for call in (ViTImageProcessor(), ViTImageProcessorFast()):
        found = call(images, return_tensors="np", **plain).pixel_values
        assert found.dtype == np.float64
        for image in found:
            assert_same(image if data_format == "channels_last" else image.transpose(1, 2, 0), images[2])


def test_a_data_loader_worker_stays_in_its_thread():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(processor._cpus) == 1
    assert processor._cpus() >= 1


def test_the_input_is_left_as_it_was():
    image, before = CAT.copy(), CAT.copy()
    tensor = torch.from_numpy(image)
    for options in ({}, {"do_resize": False, "do_normalize": False, "do_rescale": False}):
        for call in (ViTImageProcessor(**options), ViTImageProcessorFast(**options)):
            for given in (image, tensor, Image.fromarray(image)):
                out = call(given, return_tensors="np").pixel_values
                out[...] = 0
    assert_same(image, before)


# === Options ===


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"siz": 3}, "Unknown option 'siz'; did you mean 'size'"),
        ({"size": 0}, "size is 0; expected a positive int"),
        ({"size": (224, -1)}, "size is"),
        ({"size": (1, 2, 3)}, "size is"),
        ({"size": 224.0}, "size is"),
        ({"size": True}, "size is True"),
        ({"size": {"height": 3}}, "size is"),
        ({"size": {"longest_edge": 3}}, "size is"),
        ({"size": {"shortest_edge": 9, "longest_edge": 3}}, "longest_edge of at least the shortest_edge"),
        ({"size": 10**6}, "over the limit of 44.7.*MAX_IMAGE_PIXELS"),
        ({"crop_size": {"shortest_edge": 3}}, "crop_size is"),
        ({"crop_size": 0}, "crop_size is 0"),
        ({"resample": 9}, r"resample is 9; expected one of 0 \(nearest\)"),
        ({"resample": "cubic"}, "resample is 'cubic'"),
        ({"resample": True}, "resample is True"),
        ({"do_resize": "yes"}, "do_resize is 'yes'; expected true or false"),
        ({"do_convert_rgb": 1}, "do_convert_rgb is 1"),
        ({"rescale_factor": 0}, "rescale_factor is 0"),
        ({"rescale_factor": float("nan")}, "rescale_factor is nan"),
        ({"image_mean": "0.5"}, "image_mean is '0.5'"),
        ({"image_mean": []}, "image_mean is"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std is .* above 0"),
        ({"image_mean": [0.5], "image_std": [0.5, 0.5]}, "image_mean has 1 channels but image_std has 2"),
    ],
)
def test_an_impossible_option_is_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        ViTImageProcessor(**options)
    with pytest.raises(ConfigError, match=match):
        ViTImageProcessor()(CAT, **options)


def test_options_are_attributes_that_users_read_and_set():
    call = ViTImageProcessor(size=32, resample="bicubic", image_mean=np.array([0.1, 0.2, 0.3]))
    assert call.size == {"height": 32, "width": 32}
    assert call.resample is Image.Resampling.BICUBIC
    assert call.image_mean == [0.1, 0.2, 0.3]
    call.size = 16
    assert call(CAT, return_tensors="np").pixel_values.shape == (1, 3, 16, 16)
    assert call(CAT, return_tensors="np", size=8).pixel_values.shape == (1, 3, 8, 8)
    call.size = -1
    with pytest.raises(ConfigError, match="size is -1"):
        call(CAT)
    assert "resample=<Resampling.BICUBIC: 3>" in repr(call)


def test_defaults():
    theirs = transformers.ViTImageProcessor().to_dict()
    del theirs["_processor_class"]
    assert ViTImageProcessor().to_dict() == {**theirs, "do_center_crop": False, "crop_size": theirs["size"]}
    deit = ours.DeiTImageProcessor()
    assert (deit.size, deit.crop_size) == ({"height": 256, "width": 256}, {"height": 224, "width": 224})
    assert deit.do_center_crop
    assert deit.resample == Image.Resampling.BICUBIC
    assert (deit.image_mean, deit.image_std) == (IMAGENET["image_mean"], IMAGENET["image_std"])


@pytest.mark.parametrize("family", ["ViT", "DeiT", "Beit"])
def test_the_old_name_warns_and_works(family, tmp_path):
    new = getattr(ours, f"{family}ImageProcessor")(size=32)
    with pytest.warns(FutureWarning, match=f"use {family}ImageProcessor") as caught:
        old = getattr(ours, f"{family}FeatureExtractor")(size=32)
    assert caught[0].filename == __file__
    assert_same(old(CAT, return_tensors="np").pixel_values, new(CAT, return_tensors="np").pixel_values)
    old.save_pretrained(tmp_path)
    again = ours.AutoFeatureExtractor.from_pretrained(tmp_path)
    assert (type(again), again.to_dict()) == (type(new), new.to_dict())


# === Bad input ===


def corrupt(kind, tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(CAT).save(path)
    data = path.read_bytes()
    path.write_bytes({"truncated": data[: len(data) // 2], "text": b"not an image", "empty": b""}[kind])
    return path


nan = np.full((8, 8, 3), np.nan)
BAD = {
    "none": (None, "is a NoneType; expected a Pillow image"),
    "dict": ({"image": 1}, "is a dict"),
    "number": (7, "is a int"),
    "missing": ("no/such/file.png", r"\(no/such/file.png\) does not exist"),
    "folder": ("/", r"\(/\) cannot be read"),
    "zero width": (np.zeros((5, 0, 3), np.uint8), "has no pixels: it is 5 x 0"),
    "zero pillow": (Image.new("RGB", (0, 5)), "has no pixels: it is 5 x 0"),
    "vector": (np.zeros(5), r"has the shape \(5,\)"),
    "five axes": (np.zeros((1, 1, 8, 8, 3)), r"has the shape \(1, 1, 8, 8, 3\)"),
    "nan": (nan, "NaN or infinite"),
    "nan in torch": (torch.from_numpy(nan), "NaN or infinite"),
    "infinite": (np.full((8, 8, 3), np.inf), "NaN or infinite"),
    "complex": (np.zeros((8, 8, 3), complex), "has the dtype complex128"),
    "strings": (np.full((8, 8, 3), "a"), "has the dtype <U1"),
    "ambiguous": (np.zeros((3, 8, 3), np.uint8), r"ambiguous shape \(3, 8, 3\).*input_data_format"),
    "no channels": (np.zeros((7, 8, 9), np.uint8), r"shape \(7, 8, 9\), in which no axis"),
    "negative": (np.full((8, 8, 3), -1.5), "values from -1.5 to -1.5; expected 0 to 255"),
    "too high": (np.full((8, 8, 3), 256), "values from 256 to 256"),
    "16 bit and more": (Image.fromarray(np.full((8, 8), 70000, np.int32)), "values from 70000 to 70000"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_named(kind):
    image, match = BAD[kind]
    with pytest.raises(InputError, match=rf"^The image .*{match}" if "(" not in match[:3] else match):
        ViTImageProcessor()(image)
    with pytest.raises(InputError, match=r"^Image 2 of the batch .*" + match):
        ViTImageProcessor()([CAT, CAT, image, CAT])


@pytest.mark.parametrize("kind", [k for k in BAD if k not in ("negative", "too high")])
def test_a_bad_image_is_named_by_the_fast_one_too(kind):
    with pytest.raises(InputError, match=r"^Image 1 of the batch .*" + BAD[kind][1]):
        ViTImageProcessorFast()([CAT, BAD[kind][0]])


@pytest.mark.parametrize("kind", ["truncated", "text", "empty"])
def test_a_broken_file_is_named(tmp_path, kind):
    path = corrupt(kind, tmp_path)
    match = "cannot be read: .*truncated" if kind == "truncated" else "not an image file that Pillow can read"
    with pytest.raises(InputError, match=rf"Image 1 of the batch \(.*image\.png\).* {match}|Image 1.*{match}"):
        ViTImageProcessor()([CAT, path])
    if kind == "truncated":
        with Image.open(path) as image, pytest.raises(InputError, match=r"The image cannot be read: .*truncated"):
            ViTImageProcessor()(image)


@pytest.mark.parametrize("batch", [[], (), [[], []], np.zeros((0, 8, 8, 3), np.uint8)])
def test_an_empty_batch_is_refused(batch):
    with pytest.raises(InputError, match="batch of images is empty"):
        ViTImageProcessor()(batch)


def test_pillows_limit_stands(tmp_path, monkeypatch):
    Image.fromarray(CAT).save(tmp_path / "cat.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60_000)
    small = ViTImageProcessor(size=32, crop_size=32)
    with pytest.raises(InputError, match=r"too large: .*decompression bomb"):
        small(tmp_path / "cat.png")
    for image in (CAT, Image.fromarray(CAT)):
        with pytest.raises(InputError, match="300 x 451, over Pillow's limit of 120000 pixels"):
            small(image)
    with pytest.raises(InputError, match=r"would become 160 x 1600 .*at most 30,000 pixels"):
        small(np.zeros((2, 20, 3), np.uint8), size={"shortest_edge": 160})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert small(tmp_path / "cat.png", return_tensors="np").pixel_values.shape == (1, 3, 32, 32)


def test_different_channels_in_a_batch_are_refused():
    with pytest.raises(InputError, match=r"Image 1 of the batch has 4 channel.*expected 3"):
        ViTImageProcessor(do_convert_rgb=False)([CAT, np.dstack([CAT, CAT[..., :1]])])
    with pytest.raises(
        InputError, match=r"Image 1 of the batch came out 224 x 224 with 1 channels.*do_convert_rgb=True"
    ):
        ViTImageProcessor(do_normalize=False)([CAT, GREY])


@pytest.mark.parametrize(
    ("argument", "match"),
    [
        ({"return_tensors": "torch"}, "return_tensors is 'torch'; expected None, 'np', 'pt', 'tf', 'jax'"),
        ({"data_format": "NCHW"}, "data_format is 'NCHW'"),
        ({"input_data_format": "HWC"}, "input_data_format is 'HWC'"),
    ],
)
def test_a_bad_argument_is_refused(argument, match):
    with pytest.raises(InputError, match=match):
        ViTImageProcessor()(CAT, **argument)


def test_input_data_format_settles_what_is_ambiguous():
    image = CAT[:3, :8]  # (3, 8, 3)
    last = ViTImageProcessor(size=8)(image, return_tensors="np", input_data_format="channels_last").pixel_values
    first = ViTImageProcessor(size=8)(image, return_tensors="np", input_data_format="channels_first").pixel_values
    theirs = transformers.ViTImageProcessor(size=8)
    assert_same(last, theirs(image, return_tensors="np", input_data_format="channels_last").pixel_values)
    assert_same(first, theirs(image, return_tensors="np", input_data_format="channels_first").pixel_values)


@pytest.mark.parametrize(("kind", "module"), [("pt", "torch"), ("tf", "tensorflow"), ("jax", "jax")])
def test_a_framework_that_is_not_installed_is_named(monkeypatch, kind, module):
    monkeypatch.delitem(sys.modules, module)
    find = ours.batch.importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == module else find(name))
    with pytest.raises(MissingFrameworkError, match=rf"return_tensors='{kind}' needs .* pip install '"):
        ViTImageProcessor()(None, return_tensors=kind)
    if kind == "pt":
        with pytest.raises(MissingFrameworkError, match="ViTImageProcessorFast needs PyTorch"):
            ViTImageProcessorFast()


def test_no_framework_is_imported():
    code = (
        "import sys, numpy as np;"
        "from vit import ViTConfig, ViTImageProcessor, ViTImageProcessorFast, random_patch_mask;"
        "ViTImageProcessor()(np.zeros((9, 9, 3), np.uint8), return_tensors='np'); random_patch_mask(ViTConfig());"
        "ViTImageProcessorFast();"
        "print([m for m in ('torch', 'tensorflow', 'jax', 'keras', 'transformers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# === preprocessor_config.json ===

HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
PUBLISHED = {  # what these checkpoints' files say
    "google/vit-base-patch16-224": (
        {"do_normalize": True, "do_rescale": True, "do_resize": True, "image_processor_type": "ViTImageProcessor",
         **HALF, "resample": 2, "rescale_factor": 0.00392156862745098, "size": {"height": 224, "width": 224}},
        224,
    ),
    "google/vit-base-patch16-384": (
        {"do_normalize": True, "do_resize": True, "feature_extractor_type": "ViTFeatureExtractor", **HALF,
         "resample": 2, "size": 384},
        384,
    ),
    "facebook/deit-base-distilled-patch16-224": (
        {"crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True,
         "feature_extractor_type": "DeiTFeatureExtractor", **IMAGENET, "resample": 3, "size": 256},
        224,
    ),
    "facebook/dino-vitb16": (
        {"do_normalize": True, "do_resize": True, "feature_extractor_type": "ViTFeatureExtractor", **IMAGENET,
         "resample": 2, "size": 224},
        224,
    ),
    "microsoft/beit-base-patch16-224": (
        {"crop_size": 224, "do_center_crop": False, "do_normalize": True, "do_resize": True,
         "feature_extractor_type": "BeitFeatureExtractor", **HALF, "resample": 2, "size": 224},
        224,
    ),
    "a BEiT saved by transformers 4": (
        {"crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "do_normalize": True,
         "do_reduce_labels": False, "do_rescale": True, "do_resize": True, "image_processor_type": "BeitImageProcessor",
         **HALF, "resample": 3, "rescale_factor": 1 / 255, "size": {"height": 256, "width": 256}},
        224,
    ),
    "a DeiT saved by transformers 4": (
        {"crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "do_normalize": True, "do_rescale": True,
         "do_resize": True, "image_processor_type": "DeiTImageProcessor", **IMAGENET, "resample": 3,
         "rescale_factor": 1 / 255, "size": {"height": 256, "width": 256}},
        224,
    ),
}  # fmt: skip


def write(folder, values):
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.filterwarnings("ignore:The following named arguments")  # transformers, of feature_extractor_type
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_give_what_transformers_makes_of_them(tmp_path, name):
    values, size = PUBLISHED[name]
    folder = write(tmp_path, values)
    kind = values.get("image_processor_type") or values["feature_extractor_type"].replace(
        "FeatureExtractor", "ImageProcessor"
    )
    expected = getattr(transformers, kind).from_pretrained(folder)(CAT, return_tensors="np").pixel_values
    assert expected.shape[-1] == size
    found = ViTImageProcessor.from_pretrained(folder)
    assert_same(found(CAT, return_tensors="np").pixel_values, expected)
    assert "feature_extractor_type" not in found.to_dict()
    # and again from the file that is written, by both libraries
    found.save_pretrained(tmp_path / "saved")
    assert_same(ViTImageProcessor.from_pretrained(tmp_path / "saved")(CAT, return_tensors="np").pixel_values, expected)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path / "saved", use_fast=False)
    assert_same(theirs(CAT, return_tensors="np").pixel_values, expected)


@pytest.mark.parametrize("kind", ["ViTImageProcessorFast", "DeiTImageProcessorFast", "BeitImageProcessorFast"])
def test_a_file_of_a_fast_processor_is_read(tmp_path, kind):
    # The keys that transformers 4.57.6 writes for one; most are null.
    values = dict.fromkeys(("crop_size", "data_format", "device", "disable_grouping", "do_center_crop", "do_pad"))
    values |= {"do_convert_rgb": None, "image_processor_type": kind, "size": {"height": 48, "width": 48}, **IMAGENET}
    values |= {"default_to_square": True, "data_format": "channels_first", "return_tensors": None}
    for cls in (ViTImageProcessor, ViTImageProcessorFast):
        call = cls.from_pretrained(write(tmp_path, values))
        assert call.size == {"height": 48, "width": 48}
        assert call.image_mean == IMAGENET["image_mean"]
        assert call(CAT, return_tensors="np").pixel_values.shape[:2] == (1, 3)


def test_a_file_without_a_type_and_null_values(tmp_path):
    call = ViTImageProcessor.from_pretrained(write(tmp_path, {"size": 32, "do_convert_rgb": None, "resample": None}))
    assert call.to_dict() == ViTImageProcessor(size=32).to_dict()


def test_default_to_square_false_makes_an_int_the_shortest_edge(tmp_path):
    folder = write(tmp_path, {"image_processor_type": "ViTImageProcessorFast", "size": 32, "default_to_square": False})
    assert ViTImageProcessor.from_pretrained(folder).size == {"shortest_edge": 32}


def test_crop_pct_is_kept_and_said_to_have_no_effect(tmp_path):
    folder = write(tmp_path, {"feature_extractor_type": "ViTFeatureExtractor", "size": 32, "crop_pct": 0.9})
    with pytest.warns(UserWarning, match=r"has crop_pct 0\.9, which no ViT, DeiT or BEiT processor applies"):
        call = ViTImageProcessor.from_pretrained(folder)
    expected = transformers.ViTImageProcessor.from_pretrained(folder)(CAT, return_tensors="np").pixel_values
    assert_same(call(CAT, return_tensors="np").pixel_values, expected)
    assert call.to_dict()["crop_pct"] == 0.9


@pytest.mark.parametrize(
    "cls", [ViTImageProcessor, ViTImageProcessorFast, ours.DeiTImageProcessor, ours.BeitImageProcessor]
)
def test_round_trip(tmp_path, cls):
    call = cls(size=(40, 50), resample="lanczos", image_mean=0.1, image_std=[0.5, 0.6, 0.7], do_convert_rgb=True)
    call.extra = {"processor_class": "Mine"}
    call.save_pretrained(tmp_path / "new" / "folder")
    again = cls.from_pretrained(tmp_path / "new" / "folder")
    assert again.to_dict() == call.to_dict()
    assert again.extra == {"processor_class": "Mine"}
    assert cls.from_pretrained(tmp_path / "new" / "folder", size=8).size == {"height": 8, "width": 8}


def test_a_crop_is_saved_under_the_name_that_crops_in_transformers(tmp_path):
    # transformers' ViTImageProcessor ignores do_center_crop.
    call = ViTImageProcessor(size=64, do_center_crop=True, crop_size=48)
    call.save_pretrained(tmp_path)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path, use_fast=False)
    assert type(theirs).__name__ == "DeiTImageProcessor"
    assert_same(call(CAT, return_tensors="np").pixel_values, theirs(CAT, return_tensors="np").pixel_values)
    assert ViTImageProcessor().to_dict()["image_processor_type"] == "ViTImageProcessor"
    assert ViTImageProcessorFast().to_dict()["image_processor_type"] == "ViTImageProcessorFast"
    assert ViTImageProcessorFast(do_center_crop=True).to_dict()["image_processor_type"] == "DeiTImageProcessorFast"


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        (None, CheckpointError, r"has no preprocessor_config\.json, .* Save there the image processor that the model"),
        ("{", CheckpointError, "is not JSON"),
        ("[]", CheckpointError, "holds a JSON list"),
        (
            '{"image_processor_type": "CLIPImageProcessor"}',
            CheckpointError,
            "is of type 'CLIPImageProcessor'; expected ViT",
        ),
        ('{"size": -3}', ConfigError, r"preprocessor_config\.json: size is -3"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, error, match):
    if text is not None:
        (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(error, match=match):
        ViTImageProcessor.from_pretrained(tmp_path)


def test_an_unknown_override_is_refused(tmp_path):
    ViTImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'resample'"):
        ViTImageProcessor.from_pretrained(tmp_path, resampl=3)


# === Results ===

CONFIG = ViTConfig(id2label={0: "cat", 1: "dog", 2: "fish"})
LOGITS = np.array([[1.0, 3.0, 2.0], [5.0, -800.0, 900.0]], np.float32)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LOGITS,
        lambda: torch.tensor(LOGITS, requires_grad=True),
        lambda: tf.constant(LOGITS),
        lambda: jnp.asarray(LOGITS),
        lambda: jnp.asarray(LOGITS, jnp.bfloat16),
        lambda: torch.tensor(LOGITS, dtype=torch.bfloat16),
        lambda: ModelOutput(loss=np.float32(0), logits=LOGITS),
        lambda: {"logits": LOGITS},
        lambda: (LOGITS, "hidden states"),
        lambda: transformers.modeling_outputs.ImageClassifierOutput(logits=torch.tensor(LOGITS)),
    ],
)
def test_post_processing_gives_the_best_labels_first(make):
    outputs = make()
    best = ViTImageProcessor().post_process_image_classification(outputs, top_k=2, config=CONFIG)
    probabilities = torch.tensor(LOGITS.astype(np.float64)).softmax(-1).numpy()
    assert [[entry["label"] for entry in image] for image in best] == [["dog", "fish"], ["fish", "cat"]]
    expected = [probabilities[0, [1, 2]], probabilities[1, [2, 0]]]
    np.testing.assert_allclose([[entry["score"] for entry in image] for image in best], expected, rtol=1e-2)
    if getattr(outputs, "dtype", None) in (np.float32, torch.float32):
        np.testing.assert_allclose([[entry["score"] for entry in image] for image in best], expected, rtol=1e-12)


def test_post_processing_takes_labels_from_the_checkpoint(tmp_path):
    ViTImageProcessor().save_pretrained(tmp_path)
    CONFIG.replace(problem_type="multi_label_classification").save_pretrained(tmp_path)
    best = ViTImageProcessor.from_pretrained(tmp_path).post_process_image_classification(LOGITS, top_k=9)
    assert [entry["label"] for entry in best[1]] == ["fish", "cat", "dog"]
    np.testing.assert_allclose([e["score"] for e in best[1]], [1, 1 / (1 + np.exp(-5.0)), 0], rtol=1e-12, atol=0)
    plain = ViTImageProcessor().post_process_image_classification(LOGITS, top_k=1)
    assert plain[0][0]["label"] == "LABEL_1"


@pytest.mark.parametrize(
    ("outputs", "options", "match"),
    [
        (LOGITS, {"top_k": 0}, "top_k is 0"),
        (LOGITS[0], {}, r"logits of shape \(3,\)"),
        ({"last_hidden_state": LOGITS}, {}, "no logits"),
        (LOGITS * [[1.0], [np.nan]], {}, "logits of image 1 have values that are NaN"),
        (LOGITS[:, :2], {"config": CONFIG}, "2 logits but the config has 3 labels"),
    ],
)
def test_post_processing_refuses(outputs, options, match):
    with pytest.raises(InputError, match=match):
        ViTImageProcessor().post_process_image_classification(outputs, **options)


# === Masks ===


def test_masks_are_seeded_and_the_same_in_every_framework():
    config = ViTConfig(image_size=(64, 96), patch_size=16)
    mask = random_patch_mask(config, 5, 0.6, 7)
    assert mask.shape == (5, 24)
    assert mask.dtype == bool
    assert mask.sum(axis=1).tolist() == [14] * 5
    assert len({tuple(row) for row in mask.tolist()}) == 5
    for kind in ("np", "pt", "tf", "jax"):
        assert_same(np.asarray(random_patch_mask(config, 5, 0.6, 7, return_tensors=kind)), mask)
    assert np.flatnonzero(mask[0]).tolist() == [3, 4, 6, 9, 10, 11, 12, 13, 14, 15, 20, 21, 22, 23]  # on every machine
    generator = np.random.default_rng(7)
    assert_same(random_patch_mask(config, 5, 0.6, generator), mask)
    assert not np.array_equal(random_patch_mask(config, 5, 0.6, generator), mask)
    assert not np.array_equal(random_patch_mask(config, 5, 0.6, 8), mask)
    assert not np.array_equal(random_patch_mask(config, 64), random_patch_mask(config, 64))


def test_masks_hide_every_patch_as_often():
    mask = random_patch_mask(ViTConfig(image_size=64, patch_size=16), 4000, 0.25, 0)
    assert np.abs(mask.mean(axis=0) - 0.25).max() < 0.03
    assert random_patch_mask(ViTConfig(), 1, 0).sum() == 0
    assert random_patch_mask(ViTConfig(), 1, 1).all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"ratio": 1.5}, "ratio is 1.5"),
        ({"ratio": True}, "ratio is True"),
        ({"ratio": "0.5"}, "ratio is '0.5'"),
        ({"ratio": None}, "ratio is None"),
        ({"ratio": float("nan")}, "ratio is nan"),
        ({"generator": -1}, "generator is -1"),
        ({"generator": "seed"}, "generator is 'seed'"),
        ({"return_tensors": "torch"}, "return_tensors is 'torch'"),
    ],
)
def test_masks_refuse(options, match):
    with pytest.raises(InputError, match=match):
        random_patch_mask(ViTConfig(), **options)


def test_a_pillow_image_that_is_still_open_is_read():
    buffer = io.BytesIO()
    Image.fromarray(CAT).save(buffer, "png")
    with Image.open(buffer) as image:
        found = ViTImageProcessor()(image, return_tensors="np").pixel_values
    assert_same(found, ViTImageProcessor()(CAT, return_tensors="np").pixel_values)
