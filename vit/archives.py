"""Parts of files: bytes mapped where they lie, and the members of zip archives, placed by the archive's own headers."""

from __future__ import annotations

import math
import mmap
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import budgets
from .errors import shown
from .weights import Shape

_BLOCK = 2**20


def mapped(path: Path, offset: int, dtype: np.dtype, shape: Shape) -> np.ndarray:
    """The array whose bytes lie together in a file, read-only: the pages are the file's, and leave with the array.

    Raises:
        EOFError: the file ends before it.
        OSError: it cannot be read.
    """
    count = math.prod(shape)
    if not count:
        return np.empty(shape, dtype)
    page = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    length = offset - page + count * dtype.itemsize
    with budgets.open_file(path) as file:
        if os.fstat(file.fileno()).st_size < page + length:
            raise EOFError("the file ends before it")
        pages = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=page)
    return np.frombuffer(pages, dtype, count, offset - page).reshape(shape)


class Member(NamedTuple):
    """A member of a zip archive.

    Args:
        name: in the archive.
        size: bytes, once decompressed.
        crc: their checksum.
        offset: the byte of the file at which they lie; None when they are compressed.
    """

    name: str
    size: int
    crc: int
    offset: int | None


def members(path: Path) -> dict[str, Member]:
    """The members of a zip archive, whose directory and local headers are checked against each other.

    Raises:
        CheckpointError: contents out of proportion to the file.
        ValueError: two members of one name or place, an encrypted one, or headers that disagree.
        zipfile.BadZipFile: no zip archive.
    """
    found: dict[str, Member] = {}
    with budgets.open_file(path) as file, zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        if len(infos) > budgets.TENSORS:
            raise ValueError(f"it has {len(infos):,} members; expected at most {budgets.TENSORS:,}")
        budgets.check_total(path, sum(info.file_size for info in infos), os.fstat(file.fileno()).st_size)
        end = 0
        for info in sorted(infos, key=lambda info: info.header_offset):
            name = shown(info.filename)
            if info.filename in found:
                raise ValueError(f"two members have the name {name}")
            if info.flag_bits & 0x1:
                raise ValueError(f"{name} is encrypted")
            file.seek(info.header_offset)
            local = _local_header(file.read(30), name)
            offset = info.header_offset + 30 + local.name_length + local.extra_length
            if info.header_offset < end or offset + info.compress_size > archive.start_dir:
                raise ValueError(f"{name} lies where something else does")
            if file.read(local.name_length) != _encoded_name(info) or local.method != info.compress_type:
                raise ValueError(f"the directory and the header of {name} disagree")
            # After the data, when they were not known before; in the extra field, when they are large.
            known = not local.flags & 0x8 and 0xFFFFFFFF not in (local.size, local.compressed)
            if known and (local.size, local.compressed, local.crc) != (info.file_size, info.compress_size, info.CRC):
                raise ValueError(f"the directory and the header of {name} disagree")
            stored = info.compress_type == zipfile.ZIP_STORED
            if stored and info.file_size != info.compress_size:
                raise ValueError(f"{name} is not compressed, and has two sizes")
            found[info.filename] = Member(info.filename, info.file_size, info.CRC, offset if stored else None)
            end = offset + info.compress_size
    return found


class _Local(NamedTuple):
    flags: int
    method: int
    crc: int
    compressed: int
    size: int
    name_length: int
    extra_length: int


def _local_header(data: bytes, name: str) -> _Local:
    if len(data) < 30 or data[:4] != b"PK\x03\x04":
        raise ValueError(f"{name} has no header")
    return _Local(*struct.unpack("<6xHH4xIIIHH", data))


def _encoded_name(info: Any) -> bytes:
    return info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")


def read_member(path: Path, name: str) -> bytes:
    """The bytes of a member, decompressed and compared with their checksum by the zipfile library."""
    with budgets.open_file(path) as file, zipfile.ZipFile(file) as archive:
        return archive.read(name)


def check_crc(path: Path, member: Member) -> None:
    """Compare a member that is not compressed with its checksum.

    Raises:
        EOFError: they differ.
    """
    crc, left = 0, member.size
    with budgets.open_file(path) as file:
        file.seek(member.offset or 0)
        while left and (block := file.read(min(_BLOCK, left))):
            crc, left = zlib.crc32(block, crc), left - len(block)
    if left or crc != member.crc:
        raise EOFError("its checksum is another: the file is damaged")
