"""ViTImageProcessorFast, against what transformers 4.57.6 with torchvision 0.28.0 computed.

torchvision's compiled part does not load beside a CPU build of torch, so fixtures/image_processing/freeze_fast.py ran
its Python part, which resizes by torch's own operators, once and froze what transformers' ViTImageProcessorFast
returned for CASES.
"""

import gc
import hashlib
import platform
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch.nn import functional

from vit import InputError
from vit.image_processing import ViTImageProcessor, ViTImageProcessorFast, fast, options

FIXTURE = Path(__file__).parent / "fixtures/image_processing/fast.npz"

COFFEE = skimage.data.coffee()  # (400, 600, 3)
IMAGES = {
    "pillow": lambda: Image.fromarray(COFFEE),
    "grey pillow": lambda: Image.fromarray(skimage.data.camera()),
    "hwc": lambda: COFFEE,
    "chw": lambda: np.ascontiguousarray(COFFEE.transpose(2, 0, 1)),
    "one channel": lambda: skimage.data.camera()[..., None],
    "torch": lambda: torch.from_numpy(COFFEE.copy()).permute(2, 0, 1),
    "unit32": lambda: (COFFEE / 255).astype(np.float32),
    "float64": lambda: COFFEE.astype(np.float64),
    "float16": lambda: COFFEE.astype(np.float16),
    "bfloat16": lambda: torch.from_numpy(COFFEE.copy()).bfloat16(),
    "int32": lambda: COFFEE.astype(np.int32),
    "int64": lambda: torch.from_numpy(COFFEE.astype(np.int64)),
    "large": lambda: skimage.data.retina(),
    "mixed": lambda: [Image.fromarray(COFFEE), COFFEE[:300], skimage.data.astronaut(), COFFEE],
    "batch": lambda: np.stack([COFFEE, COFFEE[::-1]]),
}
OPTIONS = {
    "default": {},
    "nearest": {"size": 24, "resample": 0},
    "lanczos": {"size": 24, "resample": 1},
    "bilinear": {"size": (20, 31), "resample": 2},
    "bicubic": {"size": 24, "resample": 3},
    "larger": {"size": (410, 620), "do_center_crop": True, "crop_size": 20},
    "bicubic larger": {"size": (410, 620), "resample": 3, "do_center_crop": True, "crop_size": 20},
    "shortest edge": {"size": {"shortest_edge": 25}, "do_center_crop": True, "crop_size": (22, 23)},
    "longest edge": {"size": {"shortest_edge": 25, "longest_edge": 30}, "do_center_crop": True, "crop_size": 21},
    "padded": {"size": (20, 31), "do_center_crop": True, "crop_size": (33, 24)},
    "padded both ways": {"size": (20, 31), "do_center_crop": True, "crop_size": (23, 32)},
    "not resized": {"do_resize": False, "do_center_crop": True, "crop_size": 25},
    "no rescale": {"size": 24, "do_rescale": False},
    "no normalize": {"size": 24, "do_normalize": False},
    "neither": {"size": 24, "do_rescale": False, "do_normalize": False},
    "imagenet": {"size": 24, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    "other factor": {"size": 24, "rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.1, 0.9]},
}
# Of 224 x 224 the digest is frozen, of the others the values.
CASES = [(image, options) for image in IMAGES for options in OPTIONS]

VECTORISED = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def digest(array: np.ndarray) -> np.ndarray:
    """What stands for a large array in the fixture: its shape and SHA-256."""
    digits = hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()
    return np.frombuffer(np.array(array.shape, np.int64).tobytes() + digits, np.uint8)


@pytest.fixture(scope="module")
def frozen():
    with np.load(FIXTURE) as file:
        return dict(file)


@pytest.mark.skipif(
    not VECTORISED, reason="the fixture is of a CPU with AVX2, without which torchvision's numbers differ"
)
@pytest.mark.filterwarnings("ignore:.*values between 0 and 1")
@pytest.mark.parametrize("image", IMAGES)
def test_equals_transformers_fast(frozen, image):
    compared = 0
    for case in (case for case in CASES if case[0] == image):
        if (name := "/".join(case)) not in frozen:
            continue  # transformers cannot
        found = ViTImageProcessorFast()(IMAGES[image](), return_tensors="pt", **OPTIONS[case[1]]).pixel_values
        found, expected = found.numpy(), frozen[name]
        if found.size > 2_000:
            found = digest(found)
        assert found.dtype == expected.dtype, case
        assert np.array_equal(found, expected), case
        compared += 1
    assert compared >= len(OPTIONS) - 2


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("photo", ["astronaut", "rocket", "retina"])
def test_equals_the_torch_operators_that_torchvision_calls(photo, mode):
    image = getattr(skimage.data, photo)()
    smooth = {"mode": mode, "antialias": True, "align_corners": False}
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
    if VECTORISED or mode == "bicubic" or platform.machine() in ("aarch64", "arm64"):
        pixels = functional.interpolate(pixels, (224, 224), **smooth)
    else:
        pixels = functional.interpolate(pixels.float(), (224, 224), **smooth).round()
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None] * (1 / (1 / 255))
    expected = (pixels.float() - mean) / std
    call = ViTImageProcessorFast(resample=mode, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    for given in (image, Image.fromarray(image)):
        assert torch.equal(call(given, return_tensors="pt").pixel_values, expected)


# === What transformers' fast processor cannot do, or does wrongly ===


@pytest.mark.parametrize("mode", ["1", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_mode_becomes_rgb(mode):
    # transformers refuses LA, RGBA and CMYK, and reads a palette's indices, or YCbCr, as if they were colours.
    image = Image.fromarray(COFFEE).convert(mode)
    found = ViTImageProcessorFast()(image, return_tensors="pt").pixel_values
    assert torch.equal(found, ViTImageProcessorFast()(image.convert("RGB"), return_tensors="pt").pixel_values)


def test_sixteen_bits_keep_their_brightness():
    wide = skimage.data.camera().astype(np.uint16) * 257
    expected = ViTImageProcessorFast()(skimage.data.camera(), return_tensors="pt").pixel_values
    for image in (wide, Image.fromarray(wide), torch.from_numpy(wide)):
        assert torch.equal(ViTImageProcessorFast()(image, return_tensors="pt").pixel_values, expected)


@pytest.mark.parametrize("resample", ["box", "hamming"])
def test_filters_that_torch_lacks_are_pillows(resample):
    options = {"resample": resample, "size": 50, "do_rescale": False, "do_normalize": False}
    expected = ViTImageProcessor(**options)(COFFEE, return_tensors="np").pixel_values
    for image in (COFFEE, Image.fromarray(COFFEE), torch.from_numpy(COFFEE.copy())):
        assert np.array_equal(ViTImageProcessorFast(**options)(image, return_tensors="np").pixel_values, expected)
    found = ViTImageProcessorFast(**options)(COFFEE.astype(np.float32), return_tensors="np").pixel_values
    assert np.abs(found - expected).max() <= 1  # rounded once, not twice


def test_lanczos_without_torchs_own_is_pillows(monkeypatch):
    monkeypatch.setattr(fast, "_has_lanczos", lambda: False)
    options = {"resample": "lanczos", "size": 50, "do_rescale": False, "do_normalize": False}
    found = ViTImageProcessorFast(**options)(COFFEE, return_tensors="np").pixel_values
    assert np.array_equal(found, ViTImageProcessor(**options)(COFFEE, return_tensors="np").pixel_values)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_where_torchvision_resizes_by_floats_so_does_this(monkeypatch, mode):
    # that is on every GPU, and for bilinear on a CPU without AVX2; integers are rounded, and overshoot is cut off
    image = np.where(COFFEE > 128, 255, 0).astype(np.uint8)
    smooth = {"mode": mode, "antialias": True, "align_corners": False}
    pixels = functional.interpolate(torch.from_numpy(image.transpose(2, 0, 1).copy())[None].float(), (90, 90), **smooth)
    assert (pixels.min() < -1) == (mode == "bicubic")
    monkeypatch.setattr(fast, "_resizes_uint8", lambda pixels, mode: False)
    call = ViTImageProcessorFast(resample=mode, size=90, do_normalize=False, do_rescale=False)
    found = call(image, return_tensors="pt").pixel_values
    assert torch.equal(found, pixels.round().clamp(0, 255).to(torch.uint8))


# === Memory and devices ===


def test_pillow_images_are_read_in_their_own_memory(monkeypatch):
    image = Image.fromarray(COFFEE)
    expected = ViTImageProcessorFast()(COFFEE, return_tensors="pt").pixel_values
    asarray = np.asarray
    monkeypatch.setattr(np, "asarray", lambda x, *a, **k: pytest.fail("copied") if x is image else asarray(x, *a, **k))
    assert torch.equal(ViTImageProcessorFast()(image, return_tensors="pt").pixel_values, expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK", "LA"])
def test_shared_memory_holds_the_pixels_and_keeps_them(mode):
    image = Image.fromarray(COFFEE).convert(mode)
    bands = len(image.getbands())
    expected = np.array(image).reshape(400, 600, bands)
    pixels = fast._shared(image)
    del image
    gc.collect()
    others = [Image.new("RGB", (600, 400), "red") for _ in range(20)]  # would take the place of freed memory
    assert np.array_equal(pixels[..., :bands], expected)
    assert len(others) == 20


def test_images_in_more_than_one_piece_are_copied():
    image = Image.fromarray(COFFEE).resize((3000, 2000))  # over Pillow's 16 MiB blocks
    found = ViTImageProcessorFast()(image, return_tensors="pt").pixel_values
    assert torch.equal(found, ViTImageProcessorFast()(np.asarray(image), return_tensors="pt").pixel_values)


def test_the_result_outlives_an_image_that_needs_no_resize():
    plain = {"size": (400, 600), "do_rescale": False, "do_normalize": False}
    found = ViTImageProcessorFast(**plain)(Image.fromarray(COFFEE), return_tensors="np").pixel_values
    gc.collect()
    assert np.array_equal(found[0], COFFEE.transpose(2, 0, 1))


def test_device_takes_the_work_there():
    found = ViTImageProcessorFast()(
        [torch.from_numpy(COFFEE.copy())] * 2, device="cpu", return_tensors="pt"
    ).pixel_values
    expected = ViTImageProcessorFast()([COFFEE] * 2, return_tensors="pt").pixel_values
    assert torch.equal(found, expected)
    ragged = ViTImageProcessorFast(size={"shortest_edge": 32})([COFFEE, COFFEE[:, :500]], data_format="channels_last")
    assert [tuple(image.shape) for image in ragged.pixel_values] == [(32, 48, 3), (32, 40, 3)]


def test_the_path_of_other_devices_gives_the_same(monkeypatch):
    # There is no GPU here: without its NumPy short cut the CPU takes the way of every device.
    images = [COFFEE, Image.fromarray(COFFEE), torch.from_numpy(COFFEE.copy()).float()]
    expected = ViTImageProcessorFast()(images, return_tensors="pt").pixel_values
    monkeypatch.setattr(fast, "_by_numpy", lambda out, pixels: False)
    assert torch.equal(ViTImageProcessorFast()(images, return_tensors="pt").pixel_values, expected)


def test_gradients_do_not_flow_and_the_result_can_be_trained_on():
    image = torch.from_numpy(COFFEE.copy()).float().requires_grad_()
    assert not ViTImageProcessorFast()(image, return_tensors="pt").pixel_values.requires_grad


def test_a_ragged_batch_is_refused_by_name():
    with pytest.raises(InputError, match="Image 1 of the batch came out 32 x 40"):
        ViTImageProcessorFast(size={"shortest_edge": 32})([COFFEE, COFFEE[:, :500]], return_tensors="pt")


# === The distance between the two, as docs/image_processing.md says ===


@pytest.mark.parametrize(
    ("resample", "by_floats", "most", "share"),
    [
        ("bilinear", False, 1, (0.0005, 0.005)),
        ("bicubic", False, 2, (0.0005, 0.01)),
        ("lanczos", False, 2, (0.0005, 0.01)),
        ("bilinear", True, 1, (0.05, 0.25)),
        ("bicubic", True, 8, (0.05, 0.25)),
    ],
)
def test_the_two_processors_are_as_far_apart_as_documented(monkeypatch, resample, by_floats, most, share):
    if by_floats:
        monkeypatch.setattr(fast, "_resizes_uint8", lambda pixels, mode: False)
    options = {"resample": resample, "do_rescale": False, "do_normalize": False}
    images = [getattr(skimage.data, photo)() for photo in ("astronaut", "chelsea", "coffee", "rocket")]
    slow = ViTImageProcessor(**options)(images, return_tensors="np").pixel_values.astype(int)
    quick = ViTImageProcessorFast(**options)(images, return_tensors="np").pixel_values.astype(int)
    distance = np.abs(slow - quick)
    assert 0 < distance.max() <= most
    assert share[0] < (distance > 0).mean() < share[1]


def test_without_a_resize_they_agree_to_rounding():
    slow = ViTImageProcessor(do_resize=False)(COFFEE, return_tensors="np").pixel_values
    quick = ViTImageProcessorFast(do_resize=False)(COFFEE, return_tensors="np").pixel_values
    assert 0 < np.abs(slow - quick).max() < 1e-7


@pytest.mark.parametrize(("capability", "machine", "bilinear"), [
    ("AVX2", "x86_64", True), ("AVX512", "x86_64", True), ("DEFAULT", "x86_64", False), ("DEFAULT", "arm64", True),
    ("DEFAULT", "aarch64", True),
])  # fmt: skip
def test_uint8_is_left_to_torch_where_that_is_faster(capability, machine, bilinear, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    pixels = torch.zeros(3, 2, 2, dtype=torch.uint8)
    assert fast._resizes_uint8(pixels, "bilinear") == bilinear
    assert fast._resizes_uint8(pixels, "bicubic")
    assert fast._resizes_uint8(pixels, "nearest-exact")
    assert not fast._resizes_uint8(pixels.to("meta"), "bicubic")
    assert fast._resizes_uint8(pixels.to("meta"), "nearest-exact")


def test_means_and_deviations_are_the_published_ones():
    from transformers import image_utils

    assert list(options.STANDARD) == image_utils.IMAGENET_STANDARD_MEAN == image_utils.IMAGENET_STANDARD_STD
    assert list(options.IMAGENET_MEAN) == image_utils.IMAGENET_DEFAULT_MEAN
    assert list(options.IMAGENET_STD) == image_utils.IMAGENET_DEFAULT_STD
    assert list(options.CLIP_MEAN) == image_utils.OPENAI_CLIP_MEAN
    assert list(options.CLIP_STD) == image_utils.OPENAI_CLIP_STD
