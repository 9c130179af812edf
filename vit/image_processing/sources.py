"""Where an image comes from: a path, bytes, a file object, a URL, a data URI, base64; and what opening it may cost."""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO, TextIOBase
from typing import IO, Any
from urllib.parse import unquote_to_bytes

from PIL import Image, ImageOps, UnidentifiedImageError

from ..budgets import IMAGE_EXPANSION, IMAGE_SCANS, URL_BYTES, URL_SECONDS, URL_SILENCE, image_bytes, take_room, within
from ..errors import InputError, shown

FORMATS = [
    "JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "PPM", "WEBP", "TIFF", "AVIF", "JPEG2000", "ICO", "ICNS", "PCX", "QOI",
    "SGI", "TGA",
]  # fmt: skip
"""Pillow's names of the formats that an image may have, in the order they are tried; append to it to allow another.

Pillow knows more. For PostScript it runs Ghostscript, and of most of the others no photograph was ever made.
"""

_DECODING = {"WEBP": 16, "JPEG2000": 20, "AVIF": 12, "QOI": 8, "SGI": 6, "ICNS": 20}
"""Bytes that a decoder takes for a pixel, where they are more than the 4 that the image has: measured."""
_CONVERTING = {"RGB": 0, "L": 0, "F": 32, "I": 9}
"""Bytes that 8-bit RGB of a pixel takes beside it, by mode; 4 from the other modes."""
_ORIENTATION = 0x0112  # of EXIF


def label_of(image: Any) -> str | None:
    """What errors call an image that is to be opened, "" where it has no name; None if there is nothing to open."""
    if isinstance(image, os.PathLike):
        return shown(os.fsdecode(image))
    if isinstance(image, str):
        return shown(image, 40 if image[:5].lower() == "data:" else 200)
    is_bytes = isinstance(image, bytes | bytearray | memoryview)
    return "" if is_bytes or callable(getattr(image, "read", None)) else None


def open_image(image: Any, name: str = "The image") -> Image.Image:
    """Open and decode an image, and turn it as its EXIF orientation says.

    Args:
        image: a path, the bytes of a file, a binary file object, an http(s) URL, a data URI or base64.
        name: what errors call it.

    Raises:
        InputError: it is not there, no image of an allowed format, broken, or too large.
    """
    with naming(name):
        if isinstance(image, bytes | bytearray | memoryview):
            return _decode(BytesIO(image), name)
        if not isinstance(image, str | os.PathLike):
            return _decode(_seekable(image, name), name)
        text = os.fsdecode(image)
        if text[:5].lower() == "data:":
            return _decode(BytesIO(_from_data_uri(text, name)), name)
        if re.match("https?://", text, re.IGNORECASE):
            return _decode(BytesIO(fetch(text, name)), name)
        try:
            # Not by name: a pipe would wait for ever to be opened, and Pillow would map pixels that die with the file.
            descriptor = os.open(text, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        except (OSError, ValueError) as error:
            if (data := _from_base64(text)) is not None:
                with suppress(UnidentifiedImageError):
                    return _decode(BytesIO(data), name)
            if isinstance(error, FileNotFoundError | NotADirectoryError):
                raise InputError(f"{name} does not exist; expected the path of an image file.") from None
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise InputError(f"{name} cannot be read: it is a folder, pipe or device; expected an image file.")
        with os.fdopen(descriptor, "rb") as file:
            return _decode(file, name)


def load(image: Image.Image, name: str) -> None:
    """Decode a Pillow image that somebody opened, of which the header alone has been read, if that is so.

    Raises:
        InputError: its format is not allowed, it is broken, or too large.
    """
    if not hasattr(image, "tile"):  # made in memory
        return
    with naming(name):
        if image.tile:
            if image.format is not None and image.format.upper() not in _formats():
                raise UnidentifiedImageError
            _check_memory(name, image)
        image.load()


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Whatever Pillow and its decoders raise, as an error that names the image."""
    try:
        yield
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large: {error} Raise PIL.Image.MAX_IMAGE_PIXELS if you trust it.") from None
    except UnidentifiedImageError:
        raise InputError(f"{name} is not an image file that Pillow can read.") from None  # or none of FORMATS
    except MemoryError:
        raise InputError(f"{name} cannot be read: there is not enough memory for it.") from None
    except Exception as error:  # struct.error, zlib.error, SyntaxError, ...: each plugin of Pillow has its own
        raise InputError(f"{name} cannot be read: {reason_of(error)}.") from None


def reason_of(error: BaseException) -> str:
    """What an error says, in a line, or its name where it says nothing."""
    said = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return shown(said).rstrip(".")


def _formats() -> list[str]:
    return [name.upper() for name in FORMATS]


def open_header(file: IO[bytes]) -> Image.Image:
    """An image of an allowed format whose header alone has been read; raises whatever Pillow does."""
    formats = _formats()
    try:
        return Image.open(file, formats=formats)
    except KeyError:  # a format that this Pillow was built without
        return Image.open(file, formats=[name for name in formats if name in Image.OPEN])


def _decode(file: IO[bytes], name: str) -> Image.Image:
    with open_header(file) as image:
        size = _check_memory(name, image)
        image.load()
        if image.getexif().get(_ORIENTATION, 1) in range(2, 9):
            _check(name, image, 8, size)
            ImageOps.exif_transpose(image, in_place=True)  # elsewise it is a copy, turned or not
        return image


def _check_memory(name: str, image: Image.Image) -> int:
    """Refuse an opened image whose pixels would take more memory than is allowed; gives the size of its file."""
    size, scans = 0, 1
    if (file := getattr(image, "fp", None)) is not None:
        position = file.tell()
        size = file.seek(0, os.SEEK_END)
        if "progressive" in image.info:  # each scan is a pass over all pixels, and may have 12 bytes
            file.seek(0)
            scans = file.read().count(b"\xff\xda")
        file.seek(position)
    decoding = 10 if "progressive" in image.info else _DECODING.get(image.format or "", 4)
    _check(name, image, max(decoding, 4 + _CONVERTING.get(image.mode, 4)), size)
    if image.width * image.height * scans > IMAGE_SCANS * image_bytes():
        raise InputError(f"{name} has {scans} scans of {image.height} x {image.width}; expected a photograph of few.")
    return size


def _check(name: str, image: Image.Image, bytes_per_pixel: int, size: int) -> None:
    allowed = max(image_bytes(), IMAGE_EXPANSION * size)
    if (needed := image.width * image.height * bytes_per_pixel) > allowed:
        raise InputError(
            f"{name} is too large: to read {image.height} x {image.width} pixels of a {image.format} file takes "
            f"{needed:,} bytes; expected at most {allowed:,.0f}. Raise PIL.Image.MAX_IMAGE_PIXELS if you trust it."
        )
    take_room(needed, size)


# === Other places than files ===


def _seekable(file: Any, name: str) -> IO[bytes]:
    if isinstance(file, TextIOBase):
        raise InputError(f"{name} is a file opened as text; open it with mode 'rb'.")
    seekable = getattr(file, "seekable", None)
    if seekable is not None and seekable():
        return file
    data = file.read(URL_BYTES + 1)
    if not isinstance(data, bytes):
        raise InputError(f"{name} is a file object that reads {type(data).__name__}; expected bytes.")
    if len(data) > URL_BYTES:
        raise InputError(f"{name} is a stream of more than {URL_BYTES:,} bytes; write it to a file and pass its path.")
    return BytesIO(data)


def _from_data_uri(uri: str, name: str) -> bytes:
    head, comma, data = uri[5:].partition(",")
    try:
        if not comma:
            raise ValueError
        return base64.b64decode(data, validate=True) if head.lower().endswith(";base64") else unquote_to_bytes(data)
    except ValueError:
        raise InputError(f"{name} is no data URI of an image; expected data:image/...;base64, and base64.") from None


def _from_base64(text: str) -> bytes | None:
    if len(text) < 32:  # no image is as small
        return None
    with suppress(binascii.Error, ValueError):
        return base64.b64decode("".join(text.split()), validate=True)
    return None


def is_offline() -> bool:
    """Whether the environment forbids to fetch images: VIT_OFFLINE=1, or the hub's HF_HUB_OFFLINE=1."""
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in ("VIT_OFFLINE",
               "HF_HUB_OFFLINE"))  # fmt: skip


def fetch(url: str, name: str) -> bytes:
    """What an http or https URL holds.

    Redirects are followed to http and https alone. At most `URL_BYTES` in `URL_SECONDS`.

    Raises:
        InputError: it cannot be had, or is too much.
    """
    if is_offline():
        raise InputError(f"{name} is not fetched, as VIT_OFFLINE or HF_HUB_OFFLINE is set; pass the path of a file.")
    # The default opener would also open files and FTP.
    handlers = (urllib.request.ProxyHandler, urllib.request.UnknownHandler, urllib.request.HTTPHandler,
                urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPRedirectHandler,
                urllib.request.HTTPErrorProcessor, urllib.request.HTTPSHandler)  # fmt: skip
    opener = urllib.request.OpenerDirector()
    for handler in handlers:
        opener.add_handler(handler())
    end = time.monotonic() + URL_SECONDS

    def download() -> bytes:
        request = urllib.request.Request(url, headers={"User-Agent": "trivit"})
        with opener.open(request, timeout=URL_SILENCE) as response:
            data = bytearray()
            while time.monotonic() < end and (part := response.read1(2**16)):
                data += part
                if len(data) > URL_BYTES:
                    raise InputError(f"{name} has more than {URL_BYTES:,} bytes; download it and pass its path.")
            missing = int(response.headers.get("Content-Length") or len(data)) - len(data)
            if missing > 0:
                raise InputError(f"{name} was not received whole: {missing:,} bytes are missing. Try again.")
            return bytes(data)

    try:
        return within(URL_SECONDS, download)
    except TimeoutError:
        raise InputError(f"{name} was not received within {URL_SECONDS:g} seconds.") from None
    except urllib.error.HTTPError as error:
        raise InputError(f"{name} cannot be fetched: the server answers {error.code} {shown(error.reason)}.") from None
    except urllib.error.URLError as error:
        cause = error.reason if isinstance(error.reason, BaseException) else Exception(error.reason)
        raise InputError(f"{name} cannot be fetched: {reason_of(cause)}.") from None
