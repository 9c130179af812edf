"""What images and preprocessor_config.json files may do to a process: nothing but an error that names them.

Memory is measured in child processes, which are given a hostile input and report their peak.
"""

import base64
import io
import json
import math
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

import vit
from vit import CheckpointError, ConfigError, InputError, budgets
from vit.budgets import image_bytes
from vit.image_processing import (
    FORMATS,
    AutoImageProcessor,
    ViTImageProcessor,
    ViTImageProcessorFast,
    processor,
    sources,
)
from vit.image_processing.families import CLASSES

BOTH = (ViTImageProcessor, ViTImageProcessorFast)
PHOTO = np.random.default_rng(0).integers(0, 256, (24, 30, 3), np.uint8)


# === Memory ===

MEASURE = """
import resource, sys
import numpy as np
from PIL import Image
import vit
small = np.zeros((9, 9, 3), np.uint8)
makes = (vit.ViTImageProcessor, vit.ViTImageProcessorFast, vit.DINOv3ViTImageProcessorFast)
for make in makes:
    make()(small, return_tensors="np")
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
image = eval(sys.argv[1])
before, errors = peak(), []
for make in makes:
    for options in ({}, {"do_center_crop": True, "crop_size": 300}, {"resample": 1}, {"resample": 5},
                    {"size": {"shortest_edge": 32}}):
        try:
            make()(image, return_tensors="np", **options, **eval(sys.argv[2]))
        except vit.InputError as error:
            errors.append(str(error))
print(peak() - before, len(errors), sep="\\n")
"""


def flat(path, size, mode="RGB", **options):
    """A file of a few kilobytes that holds so many pixels."""
    Image.new(mode, size).save(path, **options)
    assert path.stat().st_size < 2**20
    return path


LARGE = {
    "tall": lambda path: flat(path / "tall.png", (1, 10_000_000)),
    "tall grey": lambda path: flat(path / "tall.png", (1, 10_000_000), "L"),
    "wide": lambda path: flat(path / "wide.png", (10_000_000, 1)),
    "webp": lambda path: flat(path / "large.webp", (12_000, 12_000), lossless=True, method=0),
    "palette": lambda path: flat(path / "large.png", (13_000, 13_000), "P"),
}


@pytest.mark.skipif(sys.platform == "win32", reason="resource is of Unix")
@pytest.mark.parametrize("kind", [*LARGE, "tall array", "wide array", "tall floats", "bands"])
def test_no_small_image_takes_a_gigabyte(tmp_path, kind):
    arrays = {
        "tall array": "np.zeros((10_000_000, 1, 3), np.uint8)",
        "wide array": "np.zeros((1, 10_000_000, 3), np.uint8)",
        "tall floats": "np.zeros((1_000_000, 1, 3), np.float32)",
        "bands": "np.zeros((2, 2, 200_000), np.uint8)",
    }
    image = arrays.get(kind) or repr(str(LARGE[kind](tmp_path)))
    options = "{'input_data_format': 'channels_last'}" if kind in arrays else "{}"
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, image, options]
    done = subprocess.run(command, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    grown, errors = done.stdout.split()
    assert float(grown) < 1000
    assert int(errors) > 0 or kind in ("wide", "wide array")


@pytest.mark.parametrize("make", CLASSES.values())
def test_a_resize_with_a_large_middle_is_refused_with_the_remedy(monkeypatch, make):
    image = np.zeros((100_000, 2, 3), np.uint8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2_000_000)
    options = {"size": {"height": 200, "width": 200}, "do_center_crop": False}
    for each in (image, Image.fromarray(image), torch.from_numpy(image)):
        with pytest.raises(InputError, match=r"^The image, 100000 x 2 .*on its way to 200 x 200.*MAX_IMAGE_PIXELS"):
            make()(each, **options)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000_000)
    assert make()(image, return_tensors="np", **options).pixel_values.shape == (1, 3, 200, 200)


def test_what_a_resize_takes_on_its_way_is_counted(monkeypatch):
    options = {"size": {"height": 5, "width": 40}, "resample": Image.Resampling.BICUBIC}
    needed = 1000 * 40 * 3 + 48 * (1000 + 10)  # rows of the new width, and weights of both edges
    for limit, resample, fits in ((needed, 3, True), (needed - 8, 3, False), (needed - 8, 0, True)):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit / 8)
        with nullcontext() if fits else pytest.raises(InputError, match="on its way to 5 x 40"):
            given = {**options, "resample": Image.Resampling(resample)}
            assert processor.resized_size("a", 1000, 10, 3, 3, given) == (5, 40)


@pytest.mark.parametrize("make", BOTH)
def test_many_channels_are_refused_where_the_result_is_large(make):
    image = np.zeros((2, 2, 100_000), np.uint8)
    call = make(do_normalize=False)
    with pytest.raises(InputError, match=r"would become 224 x 224.*at most"):
        call(image, input_data_format="channels_last")
    with pytest.raises(InputError, match="100000 channels and would be cropped or padded to 224 x 224"):
        call(image, input_data_format="channels_last", do_resize=False, do_center_crop=True)


@pytest.mark.parametrize("size", [10**9, 10**400, [10**9, 1], {"shortest_edge": 10**9}, {"height": 1, "width": 10**12}])
@pytest.mark.parametrize("name", ["size", "crop_size"])
def test_huge_sizes_in_a_file_are_refused_by_its_name(tmp_path, size, name):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({name: size}))
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json: (crop_)?size is ") as caught:
        ViTImageProcessor.from_pretrained(tmp_path)
    assert len(str(caught.value)) < 700


def test_what_decoders_and_conversions_take_is_counted(tmp_path, monkeypatch):
    # 10,000 pixels: the budget allows 8 bytes for each of 10,000, and a hundred for each byte of the file.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    small = {"size": 8, "crop_size": 8}
    for name, mode, fits in (
        ("a.png", "RGB", True),
        ("b.png", "RGBA", True),
        ("c.webp", "RGB", False),
        ("d.tiff", "F", False),
    ):
        side = 100 if fits else 90
        Image.new(mode, (side, side)).save(tmp_path / name, **({"compression": "tiff_lzw"} if name == "d.tiff" else {}))
        if fits:
            ViTImageProcessor(**small)(tmp_path / name)
        else:
            with pytest.raises(InputError, match=rf"\(.*{name}\) is too large: to read 90 x 90 pixels"):
                ViTImageProcessor(**small)(tmp_path / name)
    taken = {"WEBP": 16, "JPEG2000": 20, "AVIF": 12, "QOI": 8, "SGI": 6, "ICNS": 20, "PNG": 4, None: 4}
    converted = {"RGB": 4, "L": 4, "F": 36, "I": 13, "RGBA": 8, "CMYK": 8, "P": 8}
    for format, mode in product(taken, converted):
        needed = max(taken[format], converted[mode])
        image = Image.new(mode, (30, 40))
        image.format = format
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150 * needed)
        sources._check_memory("a", image)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150 * needed - 1)
        with pytest.raises(InputError, match=f"takes {1200 * needed:,} bytes; expected at most {1200 * needed - 8:,}"):
            sources._check_memory("a", image)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "e.webp", lossless=True)  # its bytes on disk warrant those in memory
    ViTImageProcessor(**small)(tmp_path / "e.webp")


def test_a_jpeg_of_too_many_scans_is_refused(tmp_path, monkeypatch):
    Image.fromarray(np.tile(PHOTO, (4, 4, 1))).save(tmp_path / "a.jpg", progressive=True)
    ViTImageProcessor()(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    first = data.index(b"\xff\xda")
    second = data.index(b"\xff\xda", first + 2)
    repeated = data[:first] + data[first:second] * 300_000
    monkeypatch.setattr("vit.image_processing.sources.IMAGE_SCANS", image_bytes() ** -1 * 96 * 120 * 1000)
    with pytest.raises(InputError, match=r"has \d+ scans of 96 x 120"):
        ViTImageProcessor()(repeated[: 2**22])


@pytest.mark.parametrize("make", BOTH)
def test_large_images_of_small_files_share_what_one_may_take_and_photographs_do_not_wait(tmp_path, monkeypatch, make):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2_000_000)  # 16 MB; of these two images fit at a time
    flat(tmp_path / "flat.png", (1400, 1400))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (1400, 1400, 3), dtype=np.uint8)).save(
        tmp_path / "photo.png", compress_level=1
    )
    now, most, lock, load = [0], [0], threading.Lock(), ImageFile.ImageFile.load

    def counted(self):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.05)
        try:
            return load(self)
        finally:
            with lock:
                now[0] -= 1

    pool = ThreadPoolExecutor(8)  # as many as asked for, whatever the machine has
    monkeypatch.setattr("vit.image_processing.processor._pool", lambda: pool)
    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    for name, expected in (("flat.png", {2}), ("photo.png", {3, 4, 5, 6, 7, 8})):
        most[0] = 0
        together = make(size=8)([tmp_path / name] * 8, return_tensors="np", threads=8).pixel_values
        assert most[0] in expected, name
        alone = make(size=8)(tmp_path / name, return_tensors="np").pixel_values
        np.testing.assert_array_equal(together, np.repeat(alone, 8, axis=0))
    pool.shutdown()
    assert not budgets._taken


# === Formats ===

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


def no_ghostscript(*args, **kwargs):
    raise AssertionError("Ghostscript was run")


@pytest.mark.parametrize("make", BOTH)
def test_postscript_is_never_run(tmp_path, monkeypatch, make):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", no_ghostscript)
    (tmp_path / "named.jpg").write_bytes(EPS)
    encoded = base64.b64encode(EPS).decode()
    with Image.open(tmp_path / "named.jpg") as opened:
        for image in (
            tmp_path / "named.jpg",
            EPS,
            io.BytesIO(EPS),
            encoded,
            f"data:image/jpeg;base64,{encoded}",
            opened,
        ):
            for batch in (image, [image, image]):
                with pytest.raises(InputError, match=r"not an image file that Pillow can read|does not exist"):
                    make()(batch)


def test_a_format_can_be_allowed(tmp_path, monkeypatch):
    Image.fromarray(PHOTO).save(tmp_path / "a.spider", format="DDS")
    with pytest.raises(InputError, match="is not an image file that Pillow can read"):
        ViTImageProcessor()(tmp_path / "a.spider")
    monkeypatch.setattr("vit.image_processing.sources.FORMATS", [*FORMATS, "dds", "no such format"])
    assert ViTImageProcessor()(tmp_path / "a.spider", return_tensors="np").pixel_values.shape == (1, 3, 224, 224)


SAVED = {"PNG": {}, "JPEG": {}, "GIF": {}, "BMP": {}, "WEBP": {}, "TIFF": {"compression": "tiff_lzw"}, "PPM": {},
         "ICO": {}, "JPEG2000": {}, "AVIF": {}, "TGA": {}, "SGI": {}, "PCX": {}, "DDS": {}, "BLP": {}, "EPS": {},
         "ICNS": {}, "IM": {}, "MSP": {}, "QOI": {}, "PDF": {}}  # fmt: skip
MODES = {"BLP": "P", "MSP": "1", "ICNS": "RGBA"}


def encoded(kind):
    file = io.BytesIO()
    Image.fromarray(PHOTO).convert(MODES.get(kind, "RGB")).save(file, format=kind, **SAVED[kind])
    return file.getvalue()


def mutants(data, rng, count):
    """Bytes changed, cut out, doubled and cut off."""
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(rng.choice([1, 2, 8, 64])):
            place = rng.randrange(len(changed))
            if rng.random() < 0.6:
                changed[place] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
            elif rng.random() < 0.5:
                del changed[place : place + rng.randrange(1, 9)]
            else:
                changed[place:place] = changed[place : place + rng.randrange(1, 9)]
            if not changed:
                changed = bytearray(b"\0")
        yield bytes(changed[: rng.randrange(1, len(changed) + 1)] if rng.random() < 0.3 else changed)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SAVED)
def test_a_damaged_file_of_any_format_is_read_or_named(kind, monkeypatch):
    """Every decoder of Pillow, allowed or not, raises whatever it likes on broken data."""
    if kind not in Image.SAVE and (Image.init() or kind not in Image.SAVE):
        pytest.skip(f"this Pillow writes no {kind}")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", no_ghostscript)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2_000_000)
    monkeypatch.setattr("vit.image_processing.sources.FORMATS", [*FORMATS, "DDS", "BLP", "IM", "MSP"])
    call, data = ViTImageProcessor(size=8), encoded(kind)
    rng, messages = random.Random(kind), []
    for mutant in mutants(data, rng, 150):
        try:
            values = call(mutant, return_tensors="np").pixel_values
        except InputError as error:
            messages.append(str(error))
        else:
            assert values.shape == (1, 3, 8, 8)
            assert np.isfinite(values).all()
    assert all(message.startswith("The image ") and message.isprintable() for message in messages)
    assert max(map(len, messages), default=0) < 600


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF"])
def test_truncated_files_are_named(tmp_path, kind):
    if kind not in Image.SAVE and (Image.init() or kind not in Image.SAVE):
        pytest.skip(f"this Pillow writes no {kind}")
    path = tmp_path / "half"
    path.write_bytes(encoded(kind)[: len(encoded(kind)) // 2])
    for make in BOTH:
        with pytest.raises(InputError, match=r"^Image 1 of the batch \(.*half\) "):
            make()([PHOTO, path])


def test_of_an_animation_the_first_picture_is_taken(tmp_path):
    pictures = [Image.new("RGB", (20, 20), colour) for colour in ("red", "green", "blue")]
    expected = ViTImageProcessor()(pictures[0], return_tensors="np").pixel_values
    for name in ("a.gif", "a.png", "a.webp", "a.tiff"):
        options = {"lossless": True} if name == "a.webp" else {}
        pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:], **options)
        assert np.array_equal(ViTImageProcessor()(tmp_path / name, return_tensors="np").pixel_values, expected), name


# === What is no file ===


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are of Unix")
@pytest.mark.parametrize("make", BOTH)
def test_a_pipe_device_or_folder_is_no_image(tmp_path, make):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", "/dev/null", tmp_path, str(tmp_path)):
        with pytest.raises(
            InputError, match=r"^Image 1 of the batch \(.*\) cannot be read: it is a folder, pipe or device"
        ):
            make()([PHOTO, path])


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "\udcff.png", "a\x1b[31m.png", "", "no/such\n.png"])
def test_names_that_no_file_has_are_quoted_so_that_they_print(name):
    for make in BOTH:
        with pytest.raises(InputError) as caught:
            make()(name)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 500
        str(caught.value).encode()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(InputError, match=r"\(.*a\.png\) cannot be read: Permission denied"):
        ViTImageProcessor()(tmp_path / "a.png")


# === Arrays and tensors ===

BAD_DTYPES = ["O", "S1", "U1", "M8[s]", "m8[s]", "V4", "complex64", "complex128", "clongdouble"]
GOOD_DTYPES = [">f4", ">f8", ">f2", ">u2", ">i8", ">i4", "longdouble", "uint64", "int8", "?", "float16", "uint32"]


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("dtype", BAD_DTYPES)
def test_arrays_of_no_numbers_are_named(make, dtype):
    image = np.zeros((8, 8, 3), dtype)
    for options in ({}, {"do_resize": False}, {"do_normalize": False, "do_resize": False}):
        with pytest.raises(InputError, match=r"^Image 1 of the batch has the dtype "):
            make(**options)([PHOTO, image])


@pytest.mark.filterwarnings("ignore:.*values between 0 and 1")
@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("dtype", GOOD_DTYPES)
def test_arrays_of_any_real_numbers_are_read_as_what_they_hold(make, dtype):
    image = (PHOTO // 128 if dtype in "?int8" else PHOTO).astype(dtype)
    plain = image.astype(np.float64 if dtype == "longdouble" else image.dtype.newbyteorder("="))
    for options in ({}, {"do_resize": False}, {"do_rescale": False}):
        found = make(**options)(image, return_tensors="np").pixel_values
        expected = make(**options)(plain, return_tensors="np").pixel_values
        assert np.array_equal(found, expected)
        assert np.isfinite(found).all()


def bad_tensors():
    dense = torch.rand(8, 8, 3)
    yield "sparse", dense.to_sparse()
    yield "sparse", dense[..., 0].to_sparse_csr()
    yield "sparse", dense.to_mkldnn()
    yield "quantised", torch.quantize_per_tensor(dense, 0.1, 0, torch.quint8)
    yield "meta", dense.to("meta")
    yield "nested", torch.nested.nested_tensor([dense, dense])
    yield "float8", dense.to(torch.float8_e4m3fn)
    yield "dtype", torch.complex(dense, dense)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", BOTH)
def test_tensors_without_plain_numbers_are_named(make):
    for word, tensor in bad_tensors():
        with pytest.raises(InputError, match=rf"(?is)^Image 1 of the batch .*{word}"):
            make()([PHOTO, tensor])
        if word != "nested" and tensor.ndim == 3 and word in ("quantised", "meta", "dtype"):
            with pytest.raises(InputError):
                make()(torch.stack([tensor, tensor]) if word != "quantised" else tensor)


def test_symbolic_and_ragged_tensors_and_tracers_are_named():
    import jax
    import keras
    import tensorflow as tf

    ragged = tf.ragged.constant([[1, 2], [3]])
    for image in (keras.Input((8, 8, 3)), ragged, tf.sparse.from_dense(tf.ones((8, 8))), tf.constant(["a"])):
        for make in BOTH:
            with pytest.raises(InputError, match=r"^(Image 1 of the|The) batch "):
                make()([PHOTO, image])
    with pytest.raises(InputError, match="does not become a NumPy array"):
        jax.jit(lambda image: ViTImageProcessor()(image, return_tensors="np").pixel_values)(PHOTO)


@pytest.mark.parametrize("make", BOTH)
def test_conjugated_and_negated_views_are_read(make):
    values = torch.rand(8, 8, 3)
    negated = torch.imag(torch.complex(values, -values).conj())
    assert negated.is_neg()
    options = {"do_rescale": False, "return_tensors": "np"}
    found = make()(negated, **options).pixel_values
    assert np.array_equal(found, make()(values, **options).pixel_values)


@pytest.mark.parametrize("make", BOTH)
def test_other_things_are_no_images(make):
    endless = []
    endless.append(endless)
    for image in (
        None,
        3,
        2.5,
        {"a": 1},
        {1},
        object(),
        endless,
        iter([PHOTO]),
        [[PHOTO, [None]]],
        np.float64(3),
        [[1, 2]],
    ):
        with pytest.raises(InputError):
            make()(image)


# === The odd pixel ===


@pytest.mark.parametrize("odd", [False, True])
def test_the_fast_processor_pads_the_odd_pixel_after_and_the_other_before(odd):
    image = np.full((4, 6, 3), 9, np.uint8)
    height, width = (7, 9) if odd else (8, 10)
    options = {"do_resize": False, "do_rescale": False, "do_normalize": False, "do_center_crop": True,
               "crop_size": (height, width), "return_tensors": "np"}  # fmt: skip
    rows, columns = {}, {}
    for make in BOTH:
        (values,) = make()(image, **options).pixel_values
        rows[make], columns[make] = np.flatnonzero(values[0].any(axis=1)), np.flatnonzero(values[0].any(axis=0))
        assert (len(rows[make]), len(columns[make])) == (4, 6)
    assert (rows[ViTImageProcessorFast][0], columns[ViTImageProcessorFast][0]) == ((1, 1) if odd else (2, 2))
    assert (rows[ViTImageProcessor][0], columns[ViTImageProcessor][0]) == (2, 2)


def test_the_fast_processor_pads_one_edge_alone():
    image = np.full((4, 6, 3), 9, np.uint8)
    options = {
        "do_resize": False,
        "do_rescale": False,
        "do_normalize": False,
        "do_center_crop": True,
        "return_tensors": "np",
    }
    (values,) = ViTImageProcessorFast()(image, crop_size=(4, 9), **options).pixel_values
    assert np.flatnonzero(values[0].any(axis=0)).tolist() == [1, 2, 3, 4, 5, 6]
    assert values.shape == (3, 4, 9)
    (values,) = ViTImageProcessorFast()(image, crop_size=(7, 3), **options).pixel_values
    assert np.flatnonzero(values[0].any(axis=1)).tolist() == [1, 2, 3, 4]
    assert values.shape == (3, 7, 3)


# === preprocessor_config.json ===

VALUES = [None, [], {}, "", "x", True, False, 0, -1, 1.5, math.inf, -math.inf, math.nan, 10**400, -(10**400), 1e308,
          [[]], [None], {"a": []}, "\ud800", "x" * 10_000, [0.5] * 3, [0.5] * 10_000, {"height": 1},
          {"height": 10**9, "width": 10**9},
          {"shortest_edge": None}, {"shortest_edge": 3, "longest_edge": math.inf}, [[0.5]], ["0.5"], [10**400] * 3,
          {"height": [], "width": {}}, {"": 1}, {"\ud800": 1}]  # fmt: skip


def documents():
    """Every JSON in which one key of a whole file has another value, and files that are no object."""
    yield from (json.dumps(value) for value in VALUES)
    yield from (
        "",
        "{",
        "[1",
        '{"size": 3,}',
        "\x00",
        '{"a":' * 5000,
        "nul",
        "\ufeff{}",
        '{"size": 1' + "0" * 5000 + "}",
    )
    for make in (ViTImageProcessor, vit.BeitImageProcessorFast, vit.BitImageProcessor):
        whole = json.loads(make().to_json_string())
        whole |= {"feature_extractor_type": "ViTFeatureExtractor", "default_to_square": True, "do_pad": None,
                  "crop_pct": 0.9, "processor_class": None, "reduce_labels": False,
                  "image_processor": None}  # fmt: skip
        yield from (json.dumps({**whole, key: value}) for key in whole for value in VALUES)
        yield from (json.dumps({k: v for k, v in whole.items() if k != key}) for key in whole)
        for key in ("size", "crop_size"):
            yield from (
                json.dumps({**whole, key: {**whole[key], edge: value}}) for edge in whole[key] for value in VALUES
            )
        for key in ("image_mean", "image_std"):
            yield from (json.dumps({**whole, key: [value, 0.5, 0.5]}) for value in VALUES)


@pytest.mark.filterwarnings("ignore")
def test_every_mutant_of_a_preprocessor_config_is_read_or_named(tmp_path):
    path = tmp_path / "preprocessor_config.json"
    refused = []
    for document in documents():
        path.write_text(document, encoding="utf-8", errors="surrogatepass")
        for cls in (AutoImageProcessor, vit.BeitImageProcessorFast):
            try:
                call = cls.from_pretrained(tmp_path)
                json.loads(call.to_json_string())
                assert "Processor" in repr(call)
            except (CheckpointError, ConfigError) as error:
                refused.append((str(error), document[:300]))
    for message, document in refused:
        assert "preprocessor_config.json" in message, document
        assert len(message) < 900, document
        assert message.isprintable(), document
    assert len(refused) > 300


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", [*VALUES, "vit", "clip"], ids=lambda value: repr(value)[:20])
def test_a_broken_config_beside_it_is_named(tmp_path, model_type):
    ViTImageProcessor().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path), ViTImageProcessor)
    (tmp_path / "config.json").write_text(json.dumps([model_type]))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        ViTImageProcessor.from_pretrained(tmp_path)
