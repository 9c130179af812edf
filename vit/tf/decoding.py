"""Image files in TensorFlow's graphs: the pixels that ViTImageProcessor gives of a file, or an error that says why not.

TensorFlow decodes JPEG, PNG, GIF and BMP files as Pillow does, but for some: these are told by their headers, which are
read here, and refused. What EXIF and XMP say of the orientation is followed, as Pillow follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

MOST_PARTS = 2**16
"""Parts of a file that are looked at, at most: a PNG file of 12 megapixels has some thousands."""
ROOM = 64
"""Zeros behind a file, so that a header that it ends in can be read."""
ORIENTATION = 0x0112  # of EXIF
SHORT = 3
BYTES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0)
"""Of a number of each type that TIFF has; the last one stands for all others."""
COLOURS = "The image has colours or alpha; expected a grey one."


class Part(NamedTuple):
    """Where a part of a file lies, of which there may be none: then it has no bytes."""

    begin: Any
    size: Any

    def when(self, condition: tf.Tensor, begin: Any, size: Any) -> Part:
        """Another part, if that is so."""
        return Part(tf.where(condition, begin, self.begin), tf.where(condition, size, self.size))


def decode(image_bytes: tf.Tensor, channels: int) -> tf.Tensor:
    """The pixels of a JPEG, PNG, GIF or BMP file, turned as its EXIF orientation says; of a GIF the first image.

    What would come out otherwise than Pillow has it fails in the graph: JPEG in CMYK, GIF with transparency or a first
    image that does not fill it, BMP with a palette of colours or compressed, orientations in compressed text.

    Args:
        image_bytes: a scalar, the bytes of the file.
        channels: 1, for which the file has to be grey, or 3, whose alpha goes.

    Returns:
        (height, width, channels) uint8.
    """
    data = tf.pad(tf.io.decode_raw(image_bytes, tf.uint8), [[0, ROOM]])
    pixels, orientation = tf.case(
        [
            (starts(data, 0, magic), lambda kind=kind: kind(image_bytes, data))
            for magic, kind in ((b"\xff\xd8\xff", jpeg), (b"\x89PNG\r\n\x1a\n", png), (b"GIF8", gif), (b"BM", bmp))
        ],
        default=lambda: other(image_bytes, data),
    )
    found = tf.shape(pixels)[2]
    if channels == 1:
        with tf.control_dependencies([tf.debugging.Assert(found == 1, [COLOURS])]):
            return turn(tf.ensure_shape(pixels, (None, None, 1)), orientation)
    pixels = tf.gather(pixels, tf.where(found < 3, [0, 0, 0], [0, 1, 2]), axis=2)
    return turn(tf.ensure_shape(pixels, (None, None, 3)), orientation)


def turn(pixels: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """(height, width, channels) as it is to be looked at, whose rows and columns EXIF says are another's."""

    def when(values: list[int], change: Any, pixels: tf.Tensor) -> tf.Tensor:
        return tf.cond(tf.reduce_any(orientation == values), lambda: change(pixels), lambda: pixels)

    pixels = when([5, 6, 7, 8], lambda each: tf.transpose(each, (1, 0, 2)), pixels)
    pixels = when([2, 3, 6, 7], lambda each: tf.reverse(each, [1]), pixels)
    return when([3, 4, 7, 8], lambda each: tf.reverse(each, [0]), pixels)


# === Kinds of files: each gives (height, width, any number of channels) uint8 and the orientation ===

Decoded = tuple[tf.Tensor, tf.Tensor]


def other(image_bytes: tf.Tensor, data: tf.Tensor) -> Decoded:
    """Nothing: an error."""
    with need(tf.size(data) < 0, "The file is no JPEG, PNG, GIF or BMP."):
        return tf.zeros((0, 0, 0), tf.uint8), tf.constant(1)


def jpeg(image_bytes: tf.Tensor, data: tf.Tensor) -> Decoded:
    """Segments of a marker, two bytes of length and data, to where the pixels begin (ITU-T T.81, Annex B)."""

    def step(at: tf.Tensor, components: tf.Tensor, exif: Part, xmp: Part) -> tuple[Any, ...]:
        marker, size = number(data, at + 1), number(data, at + 2, 2)
        stray = (number(data, at) != 0xFF) | (marker == 0xFF)
        bare = (marker < 2) | ((marker >= 0xD0) & (marker <= 0xD8))
        frame = (marker >= 0xC0) & (marker <= 0xCF) & ~one_of(marker, (0xC4, 0xC8, 0xCC))
        application = (marker == 0xE1) & ~stray
        is_exif = application & (exif.size == 0) & starts(data, at + 4, b"Exif\0\0")
        is_xmp = application & starts(data, at + 4, b"http://ns.adobe.com/xap/1.0/\0")
        last = ~stray & one_of(marker, (0xD9, 0xDA))
        ahead = tf.where(stray, 1, tf.where(bare, 2, 2 + tf.maximum(size, 2)))
        return (
            tf.where(last, tf.size(data), at + ahead),
            tf.where(frame & ~stray, number(data, at + 9), components),
            exif.when(is_exif, at + 10, size - 8),
            xmp.when(is_xmp, at + 4, size - 2),
        )

    components, exif, xmp = walk(data, 2, step, tf.constant(0), NONE, NONE)
    with need(one_of(components, (1, 3)), "The JPEG file is in CMYK, or of another kind than grey and RGB."):
        # As Pillow has it; with channels=0, as many as there are.
        return tf.io.decode_jpeg(image_bytes, dct_method="INTEGER_ACCURATE"), orientation(data, exif, xmp)


def png(image_bytes: tf.Tensor, data: tf.Tensor) -> Decoded:
    """Chunks of a length, a type, data and a checksum (ISO/IEC 15948)."""

    def step(at: tf.Tensor, exif: Part, xmp: Part, has_text: tf.Tensor, packed: tf.Tensor) -> tuple[Any, ...]:
        size, begin = number(data, at, 4), at + 8
        is_text = starts(data, at + 4, b"tEXt")
        is_international = starts(data, at + 4, b"iTXt")
        any_text = is_text | is_international | starts(data, at + 4, b"zTXt")
        is_xmp = any_text & starts(data, begin, b"XML:com.adobe.xmp\0")
        is_plain = is_text | (is_international & (number(data, begin + 18) == 0))
        return (
            tf.where((size < 0) | starts(data, at + 4, b"IEND"), tf.size(data), begin + size + 4),
            exif.when(starts(data, at + 4, b"eXIf"), begin, size),
            xmp.when(is_xmp & is_plain, begin, size),
            has_text | (any_text & starts(data, begin, b"Raw profile type exif\0")),
            packed | (is_xmp & ~is_plain),
        )

    exif, xmp, has_text, packed = walk(data, 8, step, NONE, NONE, tf.constant(False), tf.constant(False))
    turned = orientation(data, exif, xmp, tf.where(packed, -1, 1))
    turned = tf.where(has_text & (exif.size == 0), -1, turned)
    with need(turned >= 0, "The PNG file has its EXIF or XMP data as text or compressed; expected an eXIf chunk."):
        grey_16 = (number(data, 24) == 16) & (number(data, 25) == 0)
        pixels = tf.cond(
            grey_16,
            lambda: sixteen_to_eight(tf.io.decode_png(image_bytes, dtype=tf.uint16)[..., :1]),
            lambda: tf.io.decode_png(image_bytes),
        )
        return pixels, turned


def sixteen_to_eight(pixels: tf.Tensor) -> tf.Tensor:
    """uint8 of uint16, whose white is 65535, or 255 where none is above it."""
    wide = tf.cast(pixels, tf.int32)
    return tf.cast(tf.where(tf.reduce_max(wide) <= 255, wide, (wide + 128) // 257), tf.uint8)


def gif(image_bytes: tf.Tensor, data: tf.Tensor) -> Decoded:
    """Blocks, of which extensions have their data in pieces of at most 255 bytes, to the first image (GIF89a)."""

    def table(flags: tf.Tensor) -> tf.Tensor:
        """Bytes of a palette."""
        return tf.where(flags >= 128, 3 * 2 ** (flags % 8 + 1), 0)

    def step(at: tf.Tensor, image: tf.Tensor, control: tf.Tensor, inside: tf.Tensor) -> tuple[Any, ...]:
        first = number(data, at)
        extension, is_image = ~inside & (first == 0x21), ~inside & (first == 0x2C)
        ahead = tf.where(inside, 1 + first, tf.where(extension, 2, tf.size(data)))
        return (
            at + ahead,
            tf.where(is_image, at, image),
            tf.where(extension & (number(data, at + 1) == 0xF9), at, control),
            tf.where(inside, first > 0, extension),
        )

    screen = 13 + table(number(data, 10))
    image, control, _ = walk(data, screen, step, tf.constant(0), tf.constant(0), tf.constant(False))
    flags = number(data, image + 9)
    colours = tf.where(flags >= 128, image + 10, 13)
    clear = (control > 0) & (number(data, control + 3) % 2 == 1)
    is_black = number(data, colours + 3 * number(data, control + 6), 3) == 0
    fills = (number(data, image + 1, 4) == 0) & (number(data, image + 5, 4) == number(data, 6, 4))
    with (
        need((image > 0) & fills, "The GIF file has no first image that fills it."),
        need(~clear | is_black, "The GIF file has transparency."),
    ):
        return tf.io.decode_image(image_bytes, expand_animations=False), tf.constant(1)


def bmp(image_bytes: tf.Tensor, data: tf.Tensor) -> Decoded:
    """A header, of which what is here reads the usual ones, a palette, and rows of pixels."""
    header, bits, packing = number(data, 14, 4, True), number(data, 28, 2, True), number(data, 30, 4, True)
    colours = number(data, 46, 4, True)
    colours = tf.where(colours == 0, 256, colours)
    palette = tf.reshape(data[14 + header : 14 + header + 4 * colours], (-1, 4))[:, :3]
    greys = tf.cast(tf.range(tf.shape(palette)[0]), tf.uint8)[:, None]
    is_grey = (bits == 8) & (colours > 2) & (colours <= 256) & tf.reduce_all(palette == greys)
    plain = (header >= 40) & (header <= 124) & (packing == 0) & (one_of(bits, (24, 32)) | is_grey)
    with need(
        plain, "The BMP file has a palette, is compressed, or of another kind than grey and RGB of 24 or 32 bits."
    ):
        return tf.io.decode_bmp(image_bytes), tf.constant(1)


# === Headers ===

NONE = Part(0, 0)


def need(condition: tf.Tensor, message: str) -> Any:
    """A context of what is computed only where that is so."""
    return tf.control_dependencies([tf.debugging.Assert(condition, [message])])


def walk(data: tf.Tensor, begin: Any, step: Callable[..., Any], *found: Any) -> Sequence[Any]:
    """What is found by steps through a file, each of which says where the next one begins: behind it for the last."""

    def is_inside(at: tf.Tensor, *_: Any) -> tf.Tensor:
        return (at >= 0) & (at < tf.size(data) - ROOM)

    return tf.while_loop(is_inside, step, (tf.convert_to_tensor(begin), *found), maximum_iterations=MOST_PARTS)[1:]


def number(data: tf.Tensor, at: Any, size: int = 1, little: bool = False) -> tf.Tensor:
    """The number that some bytes are; of four that are too large for an int32, one below 0."""
    weights = [1 << 8 * i for i in range(size)]
    return tf.reduce_sum(tf.cast(data[at : at + size], tf.int32) * (weights if little else weights[::-1]))


def starts(data: tf.Tensor, at: Any, pattern: bytes) -> tf.Tensor:
    """Whether some bytes are there."""
    return tf.reduce_all(data[at : at + len(pattern)] == list(pattern))


def one_of(value: tf.Tensor, values: Sequence[int]) -> tf.Tensor:
    return tf.reduce_any(value == tf.constant(values))


def orientation(data: tf.Tensor, exif: Part, xmp: Part, otherwise: Any = 1) -> tf.Tensor:
    """The orientation that a file's EXIF data say, or else its XMP data, or else another one: a scalar int32.

    EXIF is a small TIFF file: its byte order, where its table is, and in that 12 bytes each of tag, type, count, value.
    """
    tiff = tf.cast(tf.pad(data[exif.begin : exif.begin + exif.size], [[0, ROOM]]), tf.int64)
    end = tf.cast(exif.size, tf.int64)

    def read() -> tf.Tensor:
        little = tiff[0] == ord("I")

        def numbers(part: tf.Tensor, size: int) -> tf.Tensor:
            """Of (..., size) bytes."""
            weights = tf.constant([1 << 8 * i for i in range(size)], tf.int64)
            return tf.reduce_sum(part * tf.where(little, weights, weights[::-1]), -1)

        known = starts(tiff, 0, b"II*\0") | starts(tiff, 0, b"MM\0*")
        table = tf.minimum(numbers(tiff[4:8], 4), end) + 2
        count = tf.maximum(tf.minimum(numbers(tiff[table - 2 : table], 2), (end - table) // 12), 0)
        entries = tf.reshape(tiff[table : table + 12 * count], (-1, 12))
        tag, kind = numbers(entries[:, :2], 2), numbers(entries[:, 2:4], 2)
        bytes_ = numbers(entries[:, 4:8], 4) * tf.gather(tf.constant(BYTES, tf.int64), tf.minimum(kind, len(BYTES) - 1))
        cut = (bytes_ > 4) & (numbers(entries[:, 8:12], 4) + bytes_ > end)  # where Pillow reads no further
        turns = tf.where(tag == ORIENTATION)[:, 0]
        usual = tf.gather((kind == SHORT) & (bytes_ == 2) & (tf.cumsum(tf.cast(cut, tf.int32)) == 0), turns)
        with need(
            known & tf.reduce_all(usual), "The EXIF data of the file are broken, or its orientation is no number."
        ):
            values = tf.gather(numbers(entries[:, 8:10], 2), turns)
            return tf.cast(tf.concat([[-1], values], 0)[-1], tf.int32)  # the last one, as Pillow has it

    found = tf.cond(exif.size > 0, read, lambda: -1)
    return tf.cond(found < 0, lambda: from_xmp(data[xmp.begin : xmp.begin + xmp.size], otherwise), lambda: found)


def from_xmp(text: tf.Tensor, otherwise: Any) -> tf.Tensor:
    """The orientation that XMP says, as an attribute or an element, or another one."""
    places = [first(text, name) + len(name) for name in (b'tiff:Orientation="', b"tiff:Orientation>")]
    digit = number(tf.pad(text, [[0, ROOM]]), tf.reduce_min(places)) - ord("0")
    return tf.where((digit >= 0) & (digit <= 9), digit, otherwise)


def first(text: tf.Tensor, pattern: bytes) -> tf.Tensor:
    """Where in some bytes others begin for the first time, or a place behind them all."""
    count = tf.maximum(tf.size(text) - len(pattern) + 1, 0)
    same = tf.reduce_all([text[i : i + count] == byte for i, byte in enumerate(pattern)], 0)
    return tf.reduce_min(tf.concat([tf.cast(tf.where(same)[:, 0], tf.int32), [tf.size(text)]], 0))
