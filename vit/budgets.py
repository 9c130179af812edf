"""What reading may cost: the limits of every reader in one place, and the checks made before anything is allocated.

A file of a few bytes can announce arrays of terabytes. Every reader therefore adds up what it was told before it
believes it: memory and time are proportional to the bytes on disk, or end at a limit that stands here.
"""

from __future__ import annotations

import math
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from .errors import CheckpointError, shown

if TYPE_CHECKING:
    from pathlib import Path  # whose import a configuration would pay

MB = 2**20
EXPANSION = 16
"""Bytes that a byte on disk may become: compressed weights become 1.1, and repeated ones more."""
SLACK = 256 * MB
"""Bytes that any file may become, however small it is."""
JSON = 32 * MB
"""Bytes of a JSON file: a configuration of 20,000 labels has 2 MB."""
PICKLE = MB
"""Bytes that the pickled part of a PyTorch file may have beyond its share of the file."""
NAME = 1024
"""Characters of a tensor's name."""
TENSORS = 20_000
"""Tensors and other values of a file; the training state of a ViT-G has 4,000."""
DEPTH = 64
"""How deep a file's dicts, lists and groups may lie in each other."""
AXES = 32
"""Axes of a tensor."""
CHUNKS = 100_000
"""Pieces in which a file's tensors lie."""
LABELS = 400_000
"""Labels that get names like "LABEL_0" without being named; ImageNet-21k has 21,843."""
LAYERS = 2_000
"""Layers of an encoder; a ViT-22B has 48."""

URL_BYTES = 64 * MB
"""Bytes of an image from the network, or of a stream."""
URL_SECONDS = 30.0
"""How long an image from the network may take, its redirects included."""
URL_SILENCE = 10.0
"""Seconds without a byte after which a server is given up."""
HUB_SECONDS = 30.0
"""How long the hub may take to say what a model consists of."""
HUB_ANSWERS = 40
"""Answers to one question, redirects and retries."""
HUB_FAILURES = 3
"""Of these, answers that its server is in trouble."""
IMAGE_EXPANSION = 100
"""Bytes in memory that a byte of an image file may become beyond `image_bytes`; a photograph's become 10 to 60."""
IMAGE_SCANS = 4
"""Bytes that the scans of a progressive JPEG may have together, a byte for each pixel of a scan, in `image_bytes`."""


def image_bytes() -> float:
    """Bytes that an image may take at each step on its way into a batch, 716 million.

    It hangs on Pillow's limit, so that who trusts larger images raises one number, PIL.Image.MAX_IMAGE_PIXELS: eight
    bytes for each of its pixels, as Pillow opens files of twice as many pixels, which have four bytes each.
    """
    from PIL import Image

    return math.inf if Image.MAX_IMAGE_PIXELS is None else 8 * Image.MAX_IMAGE_PIXELS


_room = threading.Condition()
_taken: dict[int, float] = {}  # thread -> what its image takes of the room that all share


@contextmanager
def one_image() -> Iterator[None]:
    """While a thread reads an image and makes it small: `take_room` counts until then."""
    me = threading.get_ident()
    with _room:
        _taken[me] = 0
    try:
        yield
    finally:
        with _room:
            del _taken[me]
            _room.notify_all()


def take_room(needed: float, size: int) -> None:
    """Wait until the images of all threads together take no more than one may, `image_bytes`.

    A photograph does not wait: what its file's own bytes account for, `IMAGE_EXPANSION` of them, is not counted.

    Args:
        needed: bytes that an image takes.
        size: of its file.
    """
    me, more = threading.get_ident(), needed - IMAGE_EXPANSION * size
    if me not in _taken or more <= _taken[me]:  # read by one who shares with nobody; or counted already
        return
    with _room:
        if not _taken[me]:  # who has room already waits for no more, as others may wait for that
            _room.wait_for(lambda: not any(_taken.values()) or sum(_taken.values()) + more <= image_bytes())
        _taken[me] = more


def output_pixels(channels: int = 3) -> float:
    """Pixels that an image may be resized, cropped or padded to: they take five bytes a channel in `image_bytes`."""
    return image_bytes() // (5 * max(channels, 3) + 1)


def allowance(size: int) -> int:
    """Bytes that the contents of `size` bytes on disk may become."""
    return SLACK + EXPANSION * size


def most_labels(size: int) -> int:
    """Labels that weights of `size` bytes may have without naming them: each is a row of at least 16 numbers."""
    return max(30_000, size // 64)  # a model without a head may have been trained with so many


def most_layers(size: int) -> int:
    """Layers that weights of `size` bytes may have: the names of the tensors of one alone take so much."""
    return max(100, size // 500)


def check_total(path: Path, total: int, size: int) -> None:
    """Refuse contents that are out of all proportion to their file.

    Args:
        path: of the file or folder.
        total: bytes that its contents would become.
        size: bytes on disk.

    Raises:
        CheckpointError: more than `allowance`.
    """
    if total > allowance(size):
        raise CheckpointError(
            f"{shown(path)} has {size:,} bytes and would become {shown(total, 30)}; expected at most "
            f"{allowance(size):,}. Such a file is damaged, or made to fill the memory."
        )


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file to read, which must be one: a pipe would wait for ever, and a device has no end.

    Raises:
        CheckpointError: a folder, pipe, socket or device.
        OSError: it is not there, or may not be read.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kinds = {stat.S_ISDIR: "folder", stat.S_ISFIFO: "pipe", stat.S_ISSOCK: "socket"}
        kind = next((name for is_kind, name in kinds.items() if is_kind(mode)), "device")
        raise CheckpointError(f"{shown(path)} is a {kind}; expected a file.")
    return os.fdopen(descriptor, "rb")


def read_whole(path: str | os.PathLike[str], most: int = JSON) -> bytes:
    """The bytes of a small file, such as a JSON one.

    Raises:
        CheckpointError: no file (see `open_file`), or one of more than `most` bytes.
        OSError: it is not there, or may not be read.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = b"" if size > most else file.read(most + 1)
    if max(size, len(data)) > most:
        raise CheckpointError(f"{shown(path)} has {max(size, len(data)):,} bytes; expected at most {most:,}.")
    return data


T = TypeVar("T")
_waits: set[threading.Event] = set()


def within(seconds: float, compute: Callable[[], T]) -> T:
    """What `compute` returns: a server that sends a byte now and then never times out by itself. Ctrl-C ends the wait.

    Raises:
        TimeoutError: it took longer; it goes on by itself, in a thread that keeps nobody from leaving.
    """
    done: list[T] = []
    failed: list[BaseException] = []
    over = threading.Event()

    def run() -> None:
        try:
            done.append(compute())
        except BaseException as error:
            failed.append(error)
        over.set()

    _waits.add(over)
    try:
        threading.Thread(target=run, daemon=True).start()
        over.wait(seconds)
    finally:
        _waits.discard(over)
    if failed:
        raise failed.pop()
    if not done:
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    return done[0]


def give_up() -> None:
    """End every `within` of every thread at once, as after Ctrl-C: the process is not kept by threads that wait."""
    for over in tuple(_waits):
        over.set()
