"""Mutators for NumPy arrays, .npz files and zip archives."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from collections.abc import Mapping
from functools import cache

import numpy as np
from mutators import Files, damage

_DTYPES = (
    "<f4",
    "<f8",
    "<f2",
    ">f4",
    "<c8",
    "<i8",
    "<i4",
    "|u1",
    "|b1",
    "<U4",
    "|S3",
    "|V4",
    "<M8[ns]",
    "<m8[D]",
    ">i8",
)
_DTYPES += ("<u8", "<g", "<U0", "|V0", "<U1000")
_DESCRIPTIONS = (
    "'|O'",
    "'|V0'",
    "[('a', '<f4'), ('b', '|O')]",
    "('<f4', (2, 2))",
    "'<f16'",
    "'<i3'",
    "''",
    "None",
    "'f4' * 9",
)
_DESCRIPTIONS += (
    "[]",
    "'<U536870912'",
    "'|S2147483647'",
    "[('', '<f4')]",
    "'<M8[999999999Y]'",
    "[('a', '<f4')] * 2",
    "{}",
)
_SHAPES = (
    "()",
    "(0,)",
    "(-1,)",
    "(2**40,)",
    "(1099511627776,)",
    "(4611686018427387904, 4)",
    "(1, ) * 33",
    "(1.0,)",
    "None",
)
_SHAPES += (
    "('a',)",
    "(True,)",
    "(0, 9223372036854775807)",
    "(99999999999999999999,)",
    "(1" + ", 1" * 64 + ")",
    "((1,),)",
    "3",
)


def npy(array: np.ndarray) -> bytes:
    """The bytes of a .npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array) if array.ndim else array, allow_pickle=False)
    return buffer.getvalue()


def read_npy(data: bytes) -> np.ndarray:
    """The array of a .npy file."""
    return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)


def mutate_array(rng: random.Random, array: np.ndarray) -> np.ndarray:
    """An array that differs in dtype, shape or values."""
    kind = rng.randrange(9)
    if kind == 0:
        with np.errstate(all="ignore"):
            try:
                return array.astype(rng.choice(_DTYPES))
            except (TypeError, ValueError):
                return np.zeros(array.shape, rng.choice(_DTYPES))
    if kind == 1:
        return np.zeros(array.shape, rng.choice(_DTYPES))
    if kind == 2:
        return rng.choice(
            (array[:0], array[None], array[..., None], array.reshape(-1), array[:1], np.zeros((), array.dtype))
        )
    if kind == 3:
        return np.concatenate([array, array]) if array.ndim else array[None]
    if kind == 4 and array.dtype.kind in "fc" and array.size:
        changed = array.copy()
        changed.reshape(-1)[rng.randrange(changed.size)] = rng.choice((np.nan, np.inf, -np.inf, 3e38, 0))
        return changed
    if kind == 5 and array.dtype.kind in "iu" and array.size:
        limits, changed = np.iinfo(array.dtype), array.copy()
        place = rng.randrange(changed.size) if rng.random() < 0.7 else slice(None)
        changed.reshape(-1)[place] = rng.choice((limits.min, limits.max, 0, 1, min(127, limits.max)))
        return changed
    if kind == 6:
        values = (np.nan, 0, 1, -1) if array.dtype.kind in "fc" else (0, 1)
        return np.full(array.shape, rng.choice(values), array.dtype)
    if kind == 7 and array.ndim:
        return np.moveaxis(array, 0, -1)
    return np.zeros(tuple(rng.choice((0, 1, 2, 3, 16)) for _ in range(rng.randrange(6))), array.dtype)


def _lying(rng: random.Random, data: bytes) -> bytes:
    """A .npy whose header does not tell the truth."""
    header = f"{{'descr': {rng.choice(_DESCRIPTIONS)}, 'fortran_order': False, 'shape': (4,), }}"
    if rng.random() < 0.6:
        fortran = rng.choice(("True", "False", "2", "None"))
        header = f"{{'descr': '<f4', 'fortran_order': {fortran}, 'shape': {rng.choice(_SHAPES)}, }}"
    if rng.random() < 0.1:
        header = rng.choice(
            ("", "{}", "[]", "1", "{'descr': '<f4'}", "(" * 300, "(" * 9000, "x" * 60_000, "__import__('os')")
        )
    text = header.encode() + b"\n"
    version = rng.choice(((1, 0), (2, 0), (3, 0), (9, 9)))
    size = len(text) + rng.choice((0, 0, 0, 1, 1000))
    length = struct.pack("<H", size % 65536) if version == (1, 0) else struct.pack("<I", size)
    return b"\x93NUMPY" + bytes(version) + length + text + data[-rng.choice((16, 1024)) :]


@cache
def _bomb() -> bytes:
    """A .npy of 600 MB of zeros, which deflates to 600 KB."""
    shape = (150_000_000,)
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return head.getvalue() + bytes(4 * shape[0])


@cache
def _bomb_archive(name: str) -> bytes:
    return zipped({name: _bomb()}, zipfile.ZIP_DEFLATED)


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive of ``members``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method, compresslevel=1) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def unzipped(data: bytes) -> Files:
    """The members of a zip archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def patch_zip(rng: random.Random, data: bytes) -> bytes:
    """An archive in which a field of one local or central header is another: method, flags, sizes, name length, offset."""
    made = bytearray(data)
    starts = [place for mark in (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06") for place in _all(data, mark)]
    if not starts:
        return damage(rng, data)
    for _ in range(rng.choice((1, 1, 2))):
        place = rng.choice(starts)
        offset, size = rng.choice(
            ((6, 2), (8, 2), (10, 2), (14, 4), (16, 4), (18, 4), (20, 4), (22, 4), (24, 4), (26, 2))
        )
        if rng.random() < 0.3:
            offset, size = rng.choice(((28, 2), (30, 2), (32, 2), (42, 4), (8, 2), (10, 2)))
        number = rng.choice((0, 1, 8, 12, 14, 99, 2**16 - 1, 2**31 - 1, 2**32 - 1, rng.getrandbits(16)))
        made[place + offset : place + offset + size] = (number % 256**size).to_bytes(size, "little")
    return bytes(made)


def _all(data: bytes, mark: bytes) -> list[int]:
    places, place = [], data.find(mark)
    while place >= 0 and len(places) < 200:
        places.append(place)
        place = data.find(mark, place + 1)
    return places


def mutate_npz(rng: random.Random, data: bytes) -> bytes:
    """An .npz with other arrays, headers that lie, other members, or tricks of the archive."""
    kind = rng.random()
    if kind < 0.08:
        return damage(rng, data)
    if kind < 0.2:
        return patch_zip(rng, data)
    members = unzipped(data)
    if kind < 0.203:
        return _bomb_archive(rng.choice(list(members)))
    for _ in range(rng.choice((1, 1, 2, 3))):
        name = rng.choice(list(members))
        kind = rng.randrange(10)
        if kind < 5:
            try:
                members[name] = npy(mutate_array(rng, read_npy(members[name])))
            except Exception:  # noqa: BLE001 - whatever NumPy raises for what was damaged before
                members[name] = _lying(rng, members[name])
        elif kind == 5:
            members[name] = _lying(rng, members[name])
        elif kind == 6:
            members[name] = damage(rng, members[name])
        elif kind == 7 and len(members) > 1:
            del members[name]
        elif kind == 8:
            odd = (
                "extra.npy",
                name + "x",
                name[:-4],
                "../" + name,
                "/" + name,
                "a/b/c.npy",
                "",
                "é.npy",
                ".npy",
                name.upper(),
            )
            members[rng.choice(odd)] = members[name]
        else:
            other = rng.choice(list(members))
            members[name], members[other] = members[other], members[name]
    made = zipped(members, rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2)))
    return patch_zip(rng, made) if rng.random() < 0.05 else made
