"""The image processor in the graphs of the three frameworks, beside ViTImageProcessor."""

from __future__ import annotations

import importlib
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image

from vit import BeitImageProcessor, BitImageProcessor, DeiTImageProcessor, ViTImageProcessor
from vit.errors import ConfigError, InputError
from vit.image_processing.steps import REACH, Steps

CAT = np.ascontiguousarray(skimage.data.chelsea())  # 300 x 451
GREY = np.ascontiguousarray(skimage.data.camera()[:211, :150])
FILTERS = ["NEAREST", *(each.name for each in REACH)]

FRAMES = {
    "photograph": CAT,
    "upright": CAT[:, :190],
    "small": CAT[100:117, 200:231],
    "one row": CAT[150:151, :97],
    "one column": CAT[:53, 7:8],
    "one pixel": CAT[5:6, 5:6],
    "same width": CAT[:90, :48],
    "same height": CAT[:32, :100],
}
PROCESSORS = {
    "vit": ViTImageProcessor(size=(32, 48)),
    "deit": DeiTImageProcessor(size=40, crop_size=32),
    "beit": BeitImageProcessor(size=(37, 50), crop_size=(31, 36), resample=Image.Resampling.LANCZOS),
    "bit": BitImageProcessor(size={"shortest_edge": 36}, crop_size=(28, 32)),
    "padded": BitImageProcessor(size={"shortest_edge": 17}, crop_size=(32, 30)),
    "cropped": ViTImageProcessor(do_resize=False, do_center_crop=True, crop_size=(33, 40)),
    "as it is": ViTImageProcessor(do_resize=False, do_rescale=False),
    "unnormalised": ViTImageProcessor(size=16, do_normalize=False),
    "one number": ViTImageProcessor(size=16, image_mean=0.25, image_std=[0.5, 0.25, 0.125]),
}


def run(framework: str, images: np.ndarray, steps: Steps) -> np.ndarray:
    """pixel_values of a batch of one size."""
    preprocess = importlib.import_module(f"vit.{framework}.preprocessing").preprocess
    if framework == "pt":
        import torch

        images = torch.from_numpy(np.ascontiguousarray(images))
    elif framework == "flax":
        import jax

        preprocess = jax.jit(preprocess, static_argnums=1)
    return np.asarray(preprocess(images, steps))


def check(framework: str, found: np.ndarray, expected: np.ndarray, steps: Steps, shape: tuple[int, ...]) -> None:
    """The same grey levels, to the bit but in JAX; where Pillow rounds between the passes in another order, one level.

    Args:
        framework: which one it is of.
        found: pixel_values.
        expected: those of the processor.
        steps: which it did.
        shape: (height, width, ...) of the image.
    """
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    level = (steps.factor or 1) / min(steps.std or (1,))
    difference = np.abs(found - expected)
    rows, columns = steps.axes(*shape[:2]) or ((1, 1), (1, 1))
    columns_first = rows[1] < rows[0] and rows[0] - rows[1] > 2 * (columns[0] - columns[1])
    if columns_first and steps.resample != Image.Resampling.NEAREST:
        assert difference.max() <= 1.001 * level
        assert (difference > level / 2).mean() <= 0.25
    else:
        np.testing.assert_allclose(found, expected, rtol=0, atol=0 if framework != "flax" else 5e-7)


def frames(framework: str) -> list[np.ndarray]:
    """What a framework is tested with: JAX compiles for each shape, which takes a second."""
    return [FRAMES["photograph"]] if framework == "flax" else list(FRAMES.values())


@pytest.mark.parametrize("framework", ["pt", "tf", "flax"])
@pytest.mark.parametrize("resample", FILTERS)
def test_every_filter_gives_pillows_pixels(framework: str, resample: str) -> None:
    processor = ViTImageProcessor(size=(32, 48), resample=resample, do_rescale=False, do_normalize=False)
    for frame in frames(framework):
        black_and_white = np.where(frame[::-1, ::-1] > 127, 255, 0).astype(np.uint8)  # filters overshoot its edges
        batch = np.stack([frame, black_and_white])
        expected = processor(batch, return_tensors="np", input_data_format="channels_last").pixel_values
        steps = Steps.of(processor)
        check(framework, run(framework, batch, steps), expected.astype(np.float32), steps, frame.shape)


@pytest.mark.parametrize("framework", ["pt", "tf", "flax"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_every_processor_gives_its_pixel_values(framework: str, name: str) -> None:
    processor = PROCESSORS[name]
    steps = Steps.of(processor)
    for frame in frames(framework):
        expected = processor(frame, return_tensors="np", input_data_format="channels_last").pixel_values
        check(framework, run(framework, frame[None], steps), expected, steps, frame.shape)
        channels, *sizes = steps.shape(3)
        assert expected.shape[1] == channels
        assert all(size in (None, found) for size, found in zip(sizes, expected.shape[2:], strict=True))


@pytest.mark.parametrize("framework", ["pt", "tf", "flax"])
def test_grey_becomes_colours_and_alpha_goes_as_the_processor_has_it(framework: str) -> None:
    coloured = ViTImageProcessor(size=24, image_mean=[0.1, 0.4, 0.7])
    alpha = np.concatenate([CAT, CAT[..., :1]], axis=2)
    for image in (GREY[..., None],) if framework == "flax" else (GREY[..., None], alpha, alpha[..., :2]):
        expected = coloured(image, return_tensors="np", input_data_format="channels_last").pixel_values
        steps = Steps.of(coloured)
        check(framework, run(framework, image[None], steps), expected, steps, image.shape)
    for grey in (ViTImageProcessor(size=24, image_mean=[0.3], image_std=[0.2]), ViTImageProcessor(do_normalize=False)):
        expected = grey(GREY[..., None], return_tensors="np", input_data_format="channels_last").pixel_values
        steps = Steps.of(grey)
        check(framework, run(framework, GREY[None, ..., None], steps), expected, steps, GREY.shape)


@pytest.mark.parametrize("framework", ["pt", "tf", "flax"])
def test_channels_that_the_steps_do_not_take_are_refused(framework: str) -> None:
    one = Steps.of(ViTImageProcessor(size=24, image_mean=[0.3], image_std=[0.2]))
    with pytest.raises(InputError, match=r"The images have 3 channel\(s\); expected 1"):
        run(framework, CAT[None], one)
    four = Steps.of(ViTImageProcessor(size=24, do_normalize=False))
    with pytest.raises(InputError, match="have 4 channels, of which Pillow takes the last one for alpha"):
        run(framework, np.zeros((1, 30, 30, 4), np.uint8), four)


def test_what_no_graph_holds_is_refused() -> None:
    with pytest.raises(ConfigError, match="not the longest"):
        Steps.of(ViTImageProcessor(size={"shortest_edge": 20, "longest_edge": 30}))
    for resample in set(Image.Resampling) - set(REACH) - {Image.Resampling.NEAREST}:  # those of a later Pillow
        with pytest.raises(ConfigError, match="in a graph it can be nearest, box, bilinear"):
            Steps.of(ViTImageProcessor(resample=resample))


# === Graphs whose sizes are open ===


def export_pt(steps: Steps) -> Callable[[np.ndarray], np.ndarray]:
    import torch

    from vit.pt.preprocessing import preprocess

    class Processor(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return preprocess(images, steps)

    sizes = dict.fromkeys(range(3), torch.export.Dim.DYNAMIC)
    example = torch.zeros(2, 70, 60, 3, dtype=torch.uint8)
    module = torch.export.export(Processor(), (example,), dynamic_shapes={"images": sizes}).module()
    return lambda images: module(torch.from_numpy(np.ascontiguousarray(images))).numpy()


def export_tf(steps: Steps) -> Callable[[np.ndarray], np.ndarray]:
    import tensorflow as tf

    from vit.tf.preprocessing import preprocess

    signature = [tf.TensorSpec((None, None, None, 3), tf.uint8)]
    function = tf.function(lambda images: preprocess(images, steps), input_signature=signature, autograph=False)
    return lambda images: function(images).numpy()


def export_flax(steps: Steps) -> Callable[[np.ndarray], np.ndarray]:
    import jax
    import jax.export

    from vit.flax.preprocessing import preprocess

    batch, height, width = jax.export.symbolic_shape("batch, height, width")
    example = jax.ShapeDtypeStruct((batch, height, width, 3), np.uint8)
    exported = jax.export.export(jax.jit(lambda images: preprocess(images, steps)))(example)
    return lambda images: np.asarray(exported.call(np.ascontiguousarray(images)))


@pytest.mark.parametrize("framework", ["pt", "tf", "flax"])
@pytest.mark.parametrize("name", ["padded", "nearest"])
def test_one_graph_takes_images_of_every_size(framework: str, name: str) -> None:
    processor = {**PROCESSORS, "nearest": ViTImageProcessor(size=20, resample="nearest")}[name]
    steps = Steps.of(processor)
    call = {"pt": export_pt, "tf": export_tf, "flax": export_flax}[framework](steps)
    names = ("photograph", "one row") if framework == "flax" else FRAMES  # JAX compiles for each
    for batch, frame in enumerate((FRAMES[each] for each in names), 1):
        expected = processor(frame, return_tensors="np", input_data_format="channels_last").pixel_values
        found = call(np.stack([frame] * batch))
        check(framework, found, np.repeat(expected, batch, axis=0), steps, frame.shape)


# === Files, which TensorFlow decodes ===


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    with io.BytesIO() as file:
        image.save(file, format, **options)
        return file.getvalue()


def turned(orientation: int, little: bool = True, kind: int = 3) -> bytes:
    """EXIF data of one tag more than the orientation, which is of a type of TIFF."""
    order: Any = "little" if little else "big"

    def number(value: int, size: int) -> bytes:
        return value.to_bytes(size, order)

    entries = [(0x010E, 2, 4, b"cat\0"), (0x0112, kind, 1, number(orientation, 2) + b"\0\0")]
    table = b"".join(number(tag, 2) + number(kind, 2) + number(count, 4) + value for tag, kind, count, value in entries)
    return (b"II*\0" if little else b"MM\0*") + number(8, 4) + number(len(entries), 2) + table + bytes(4)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(*chunks: bytes, image: Image.Image | None = None, last: bool = False) -> bytes:
    """A PNG file with more chunks, before its pixels or as the last ones."""
    file = encode(image or PHOTOGRAPH, "PNG")
    at = len(file) - 12 if last else 33
    return file[:at] + b"".join(chunks) + file[at:]


def png_of(pixels: np.ndarray, depth: int = 8, colour: int = 2, interlaced: bool = False, *chunks: bytes) -> bytes:
    """A PNG file of (height, width, channels) numbers of some bits."""
    height, width = pixels.shape[:2]
    passes = [(0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1)]
    rows = b""
    for top, down, left, right in passes if interlaced else [(0, 1, 0, 1)]:
        for row in pixels[top::down, left::right]:
            bits = (row.reshape(-1, 1) >> np.arange(depth - 1, -1, -1)) & 1
            rows += b"\0" + np.packbits(bits).tobytes() if row.size else b""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bmp_of(bits: int, packing: int, data: bytes, colours: bytes = b"", size: tuple[int, int] = (8, 4)) -> bytes:
    """A BMP file of (width, height) with its palette, or what else precedes the pixels."""
    offset = 54 + len(colours)
    header = struct.pack("<IiiHHIIiiII", 40, *size, 1, bits, packing, len(data), 0, 0, len(colours) // 4, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + header + colours + data


def xmp(orientation: str) -> bytes:
    return f"<x:xmpmeta><rdf:Description {orientation}/></x:xmpmeta>".encode()


def with_another(**options: Any) -> dict[str, Any]:
    return {"save_all": True, "append_images": [PHOTOGRAPH.rotate(90)], **options}


PHOTOGRAPH = Image.fromarray(CAT[40:141, 90:223])
SMALL = CAT[60:83, 100:137]
DEEP = np.asarray(SMALL, np.uint16) * 257 - np.random.default_rng(0).integers(0, 99, SMALL.shape, dtype=np.uint16)
RED = SMALL[..., :1]
FILES = {
    "jpeg": encode(PHOTOGRAPH, "JPEG"),
    "progressive": encode(PHOTOGRAPH, "JPEG", progressive=True, quality=30),
    "full colour": encode(PHOTOGRAPH, "JPEG", subsampling="4:4:4", quality=95),
    "half colour": encode(PHOTOGRAPH, "JPEG", subsampling="4:2:2"),
    "stored as RGB": encode(PHOTOGRAPH, "JPEG", keep_rgb=True),
    "grey jpeg": encode(PHOTOGRAPH.convert("L"), "JPEG"),
    "several pictures": encode(PHOTOGRAPH, "MPO", **with_another()),
    "padded": encode(PHOTOGRAPH, "JPEG").replace(b"\xff\xdb", b"\xff\xff\xff\xdb", 1),
    "png": encode(PHOTOGRAPH, "PNG"),
    "grey png": encode(PHOTOGRAPH.convert("L"), "PNG"),
    "black and white": encode(PHOTOGRAPH.convert("1"), "PNG"),
    "2 bits": png_of(RED >> 6, 2, 0),
    "4 bits": png_of(RED >> 4, 4, 0),
    "alpha": encode(PHOTOGRAPH.convert("RGBA"), "PNG"),
    "grey alpha": encode(PHOTOGRAPH.convert("LA"), "PNG"),
    "palette": encode(PHOTOGRAPH.quantize(50), "PNG"),
    "small palette": encode(PHOTOGRAPH.quantize(3), "PNG", bits=2),
    "transparent palette": encode(PHOTOGRAPH.quantize(50), "PNG", transparency=3),
    "one transparent grey": png_of(RED, 8, 0, False, chunk(b"tRNS", b"\0\x50")),
    "one transparent colour": png_of(SMALL, 8, 2, False, chunk(b"tRNS", bytes(6))),
    "interlaced": png_of(SMALL, interlaced=True),
    "gamma": png_with(chunk(b"gAMA", struct.pack(">I", 90000)), chunk(b"bKGD", bytes(6))),
    "16 bits": png_of(DEEP, 16),
    "16 bits, alpha": png_of(np.dstack([DEEP, DEEP[..., :1]]), 16, 6),
    "16 bits, grey": png_of(DEEP[..., :1], 16, 0),
    "16 bits, grey, interlaced": png_of(DEEP[..., :1], 16, 0, True),
    "16 bits, grey, dark": png_of(DEEP[..., :1] >> 8, 16, 0),
    **{f"16 bits, grey, of at most {most}": png_of(np.minimum(DEEP[..., :1] >> 7, most), 16, 0) for most in (255, 256)},
    "16 bits, grey, one transparent": png_of(DEEP[..., :1], 16, 0, False, chunk(b"tRNS", b"\x50\x50")),
    "16 bits, grey, alpha": png_of(DEEP[..., :2], 16, 4),
    "animated png": encode(PHOTOGRAPH, "PNG", **with_another()),
    "animated png, a picture of its own": encode(PHOTOGRAPH, "PNG", **with_another(default_image=True)),
    "gif": encode(PHOTOGRAPH.quantize(50), "GIF"),
    "grey gif": encode(PHOTOGRAPH.convert("L"), "GIF"),
    "gif by rows": encode(PHOTOGRAPH.quantize(50), "GIF", interlace=0),
    "animation": encode(PHOTOGRAPH.quantize(50), "GIF", **with_another(comment=b"x" * 999, loop=0, duration=40)),
    "bmp": encode(PHOTOGRAPH, "BMP"),
    "grey bmp": encode(PHOTOGRAPH.convert("L"), "BMP"),
    "32 bits": bmp_of(32, 0, bytes(range(128))),
    "from the top": bmp_of(24, 0, bytes(range(96)), size=(8, -4)),
    **{f"turned {i}": encode(PHOTOGRAPH, "JPEG", exif=b"Exif\0\0" + turned(i)) for i in range(10)},
    "turned, big end first": encode(PHOTOGRAPH, "JPEG", exif=b"Exif\0\0" + turned(6, little=False)),
    "filled before a segment": encode(PHOTOGRAPH, "JPEG", exif=b"Exif\0\0" + turned(6)).replace(
        b"\xff\xe1", b"\xff\xff\xe1", 1
    ),
    "turned png": encode(PHOTOGRAPH, "PNG", exif=turned(8)),
    "turned at the end": png_with(chunk(b"eXIf", turned(8)), last=True),
    "a comment of EXIF": encode(PHOTOGRAPH, "JPEG", comment=b"Exif\0\0" + turned(6)),
    "text of EXIF": png_with(chunk(b"tEXt", b"Comment\0eXIf" + turned(6))),
    "cut exif": encode(PHOTOGRAPH, "JPEG", exif=b"Exif\0\0" + turned(6)[:12]),
    "xmp": encode(PHOTOGRAPH, "JPEG", xmp=xmp('tiff:Orientation="6"')),
    "xmp element": encode(PHOTOGRAPH, "JPEG", xmp=xmp("a=''><tiff:Orientation>3</tiff:Orientation><b")),
    "xmp and exif": encode(PHOTOGRAPH, "JPEG", exif=b"Exif\0\0" + turned(1), xmp=xmp('tiff:Orientation="6"')),
    "xmp of something else": encode(PHOTOGRAPH, "JPEG", xmp=xmp('tiff:Make="6"')),
    "xmp of 0": encode(PHOTOGRAPH, "JPEG", xmp=xmp('tiff:Orientation="0"')),
    "xmp of a letter": encode(PHOTOGRAPH, "JPEG", xmp=xmp('tiff:Orientation="a"')),
    "xmp png of 0": png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp('tiff:Orientation="0"'))),
    "text that is no xmp": png_with(chunk(b"tEXt", b"Comment\0" + xmp('tiff:Orientation="5"'))),
    "xmp png": png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp('tiff:Orientation="5"'))),
}
REFUSED = {
    "CMYK": (encode(PHOTOGRAPH.convert("CMYK"), "JPEG"), "JPEG file is in CMYK"),
    "YCCK": (
        encode(PHOTOGRAPH.convert("CMYK"), "JPEG").replace(b"\0\xff\xdb", b"\2\xff\xdb", 1),
        "JPEG file is in CMYK",
    ),
    "black palette": (bmp_of(8, 0, bytes(range(32)), bytes(1024)), "BMP file has a palette"),
    "1 bit": (encode(PHOTOGRAPH.convert("1"), "BMP"), "BMP file has a palette"),
    "colours": (encode(PHOTOGRAPH.quantize(50), "BMP"), "BMP file has a palette"),
    "run lengths": (bmp_of(8, 1, b"\x08\x30" * 4 + b"\0\1", bytes(range(256)) * 4), "compressed"),
    "15 bits": (bmp_of(16, 0, bytes(64)), "BMP file has a palette"),
    "masks": (bmp_of(32, 3, bytes(128), struct.pack("<III", 0xFF, 0xFF00, 0xFF0000)), "compressed"),
    "clear gif": (encode(PHOTOGRAPH.quantize(50), "GIF", transparency=9), "GIF file has transparency"),
    "webp": (encode(PHOTOGRAPH, "WEBP"), "no JPEG, PNG, GIF or BMP"),
    "text": (b"no image", "no JPEG, PNG, GIF or BMP"),
    "nothing": (b"", "no JPEG, PNG, GIF or BMP"),
    "no exif": (encode(PHOTOGRAPH, "JPEG", exif=b"Exif\0\0nonsense"), "EXIF data of the file are broken"),
    "cut before": (
        encode(PHOTOGRAPH, "JPEG", exif=b"Exif\0\0" + turned(6).replace(b"\2\0\4\0", b"\2\0\x44\0")),
        "EXIF data of the file are broken",
    ),
    "long orientation": (encode(PHOTOGRAPH, "JPEG", exif=b"Exif\0\0" + turned(6, kind=4)), "EXIF data of the file"),
    "text of EXIF alone": (png_with(chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 8\n")), "EXIF or XMP data"),
    "packed xmp": (
        png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp('tiff:Orientation="5"')))),
        "EXIF or XMP data as text or compressed",
    ),
}
KEEP = ViTImageProcessor(do_resize=False, do_rescale=False, do_normalize=False, do_convert_rgb=True)


@pytest.fixture(scope="module")
def decode() -> Any:
    import tensorflow as tf

    from vit.tf.decoding import decode

    signature = [tf.TensorSpec((), tf.string)]
    return tf.function(lambda file: decode(file, 3), input_signature=signature, autograph=False)


@pytest.mark.parametrize("name", FILES)
def test_files_are_decoded_as_pillow_does(name: str, decode: Any) -> None:
    expected = KEEP(FILES[name], return_tensors="np", data_format="channels_last").pixel_values[0]
    np.testing.assert_array_equal(decode(FILES[name]).numpy(), expected)


def test_files_are_decoded_in_grey_for_a_model_of_one_channel_and_those_in_colour_are_refused() -> None:
    import tensorflow as tf

    from vit.tf.decoding import decode

    signature = [tf.TensorSpec((), tf.string)]
    grey = tf.function(lambda file: decode(file, 1), input_signature=signature, autograph=False)
    plain = ViTImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)
    for name in ("grey jpeg", "grey png", "16 bits, grey", "grey bmp"):
        expected = plain(FILES[name], return_tensors="np", data_format="channels_last").pixel_values[0]
        np.testing.assert_array_equal(grey(FILES[name]).numpy(), expected, err_msg=name)
    for name in ("jpeg", "png", "16 bits, grey, alpha"):
        with pytest.raises(tf.errors.InvalidArgumentError, match="The image has colours or alpha; expected a grey one"):
            grey(FILES[name])


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_a_graph_cannot_decode_as_pillow_does_are_refused_with_the_reason(name: str, decode: Any) -> None:
    import tensorflow as tf

    file, reason = REFUSED[name]
    with pytest.raises(tf.errors.InvalidArgumentError, match=reason):
        decode(file)
