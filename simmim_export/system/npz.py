"""Arrays to the bytes of a .npz file and back; a file from a stranger costs neither memory nor trust."""

from __future__ import annotations

import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

# What reading a damaged .npz raises.
DAMAGED = (OSError, ValueError, EOFError, KeyError, NotImplementedError, OverflowError, zipfile.BadZipFile, zlib.error)
# The most members of an .npz, characters of a name, and bytes of all arrays together. Arrays that take more than a few megabytes
# must also be at most RATIO times as large as the file: deflate reaches 1000 on zeros; our golden tensors and evidence reach 3.
MAX_MEMBERS, MAX_NAME, MAX_UNPACKED = 10_000, 256, 2 << 30
RATIO, SMALL = 200, 64 << 20
# The end of a zip archive without a comment, and what ZIP64 puts before it.
_END, _END_SIZE, _LOCATOR, _LOCATOR_SIZE = b"PK\x05\x06", 22, b"PK\x06\x07", 20
_MAX_HEADER = 4096


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The content of a compressed .npz. The same arrays in the same order always give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            part = io.BytesIO()
            np.lib.format.write_array(part, np.asarray(array, order="C"), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), part.getvalue(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def unpack(source: Path | bytes, *, most: int = MAX_UNPACKED) -> dict[str, np.ndarray]:
    """The inverse of :func:`pack`: arrays of booleans, integers or real floats. Raise one of :data:`DAMAGED`.

    Nothing is unpickled. Before any array is allocated, its size must fit its member, and all members together must have at most
    ``most`` bytes and be at most RATIO times as large as the file (or SMALL).
    """
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
        size = _check_end(stream)
        with zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
            if len(members) > MAX_MEMBERS:
                raise ValueError(f"it has {len(members):,} members; the limit is {MAX_MEMBERS:,}")
            total = sum(member.file_size for member in members)
            limit = min(most, max(RATIO * size, SMALL))
            if total > limit:
                raise ValueError(f"its arrays have {total:,} bytes; the limit is {limit:,} for a file of {size:,}")
            names = [_name(member) for member in members]
            if len(set(names)) != len(names):
                raise ValueError("it has two arrays of one name")
            return {name: _array(archive, member) for name, member in zip(names, members, strict=True)}


def _check_end(stream: IO[bytes]) -> int:
    """The size of a zip archive in bytes, checked before its directory is read.

    Raise ValueError for more than MAX_MEMBERS members, for a comment, and for a ZIP64 directory, whose sizes would replace the
    ones that are checked here.
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, size - _END_SIZE - _LOCATOR_SIZE))
    tail = stream.read()
    end = tail[-_END_SIZE:]
    if len(end) < _END_SIZE or not end.startswith(_END) or end[-2:] != b"\0\0":
        raise ValueError("it is not a zip archive, is cut off, or has a comment")
    if tail[:-_END_SIZE].startswith(_LOCATOR):
        raise ValueError("it has a ZIP64 directory")
    members, directory = int.from_bytes(end[10:12], "little"), int.from_bytes(end[12:16], "little")
    if members > MAX_MEMBERS or directory > MAX_MEMBERS * (MAX_NAME + 128):
        raise ValueError(f"it has {members:,} members or more; the limit is {MAX_MEMBERS:,}")
    return size


def _name(member: zipfile.ZipInfo) -> str:
    name = member.filename.removesuffix(".npy")
    # ``orig_filename`` differs where a NUL ends the name early.
    if member.filename != member.orig_filename or not member.filename.endswith(".npy") or not name.isprintable():
        raise ValueError(f"{member.orig_filename[:60]!r} is not the name of an array")
    if not 0 < len(name) <= MAX_NAME:
        raise ValueError(f"an array's name has {len(name)} characters; the limit is {MAX_NAME}")
    if member.flag_bits & 1:
        raise ValueError(f"{name!r} is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name!r} is compressed by method {member.compress_type}; only deflate is read")
    return name


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as stream:
        try:
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[np.lib.format.read_magic(stream)]
            shape, _, dtype = read_header(stream, max_header_size=_MAX_HEADER)
        # NumPy evaluates the header as a Python literal, and does not catch what that raises.
        except (KeyError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError) as error:
            raise ValueError(f"{member.filename!r} has a header that cannot be read") from error
        if dtype.kind not in "biuf":
            raise ValueError(f"{member.filename!r} holds {str(dtype)[:60]}, not booleans, integers or real numbers")
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or size != member.file_size - stream.tell():
            what = f"{member.filename!r} is {dtype} {list(shape)[:8]}, {size:,} bytes"
            raise ValueError(f"{what}, and its member has {member.file_size - stream.tell():,}")
    with archive.open(member) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False, max_header_size=_MAX_HEADER)
        # Reading on to the end compares the checksum.
        if stream.read(1):
            raise ValueError(f"{member.filename!r} goes on after its end")
    return np.asarray(array)
