"""Small pictures in every format, and mutators for them."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from mutators import damage
from PIL import Image

STILL = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO", "ICO", "AVIF", "JPEG2000", "EPS")
MOVING = ("GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO")


@cache
def pictures() -> list[bytes]:
    """A small picture in every format and mode that Pillow writes here."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 4), np.uint8)
    rgba = Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = []
    for form in STILL:
        modes = (
            ("RGB", "RGBA")
            if form in ("AVIF", "EPS")
            else ("RGB", "RGBA", "L", "P", "1", "CMYK", "I;16", "I", "F", "LA")
        )
        for mode in modes:
            image = (
                rgba.convert("L").convert(mode) if mode.startswith(("I", "F")) else rgba.convert("RGB").convert(mode)
            )
            extra = {"exif": exif} if form in ("JPEG", "PNG", "WEBP", "TIFF") and mode == "RGB" else {}
            files += _written(image, form, **extra)
    files += _written(rgba.convert("RGB"), "JPEG", progressive=True) + _written(
        rgba.convert("RGB"), "TIFF", compression="jpeg"
    )
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "group4", "tiff_adobe_deflate", "webp", "zstd", "lzma"):
        files += _written(rgba.convert("1" if compression == "group4" else "RGB"), "TIFF", compression=compression)
    return files + animations()


def animations() -> list[bytes]:
    """Three small frames in every format that has animations."""
    noise = np.random.default_rng(1).integers(0, 256, (3, 20, 24, 3), np.uint8)
    first, *rest = [Image.fromarray(frame) for frame in noise]
    return [data for form in MOVING for data in _written(first, form, save_all=True, append_images=rest)]


def _written(image: Image.Image, form: str, **options: Any) -> list[bytes]:
    buffer = io.BytesIO()
    try:
        image.save(buffer, form, **options)
    # Not every format takes every mode, and not every build of Pillow has every codec.
    except (OSError, KeyError, ValueError, TypeError, RuntimeError):
        return []
    return [buffer.getvalue()]


def mutate_picture(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """A picture after edits of its bytes or, of a PNG, of its chunks with their checksums put right."""
    if data.startswith(b"\x89PNG") and rng.random() < 0.7:
        return _mutate_png(rng, data)
    return damage(rng, data, others)


def _mutate_png(rng: random.Random, data: bytes) -> bytes:
    chunks, place = [], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    for _ in range(rng.choice((1, 1, 2, 4))):
        index = rng.randrange(len(chunks))
        kind, body = chunks[index]
        action = rng.randrange(5)
        if action < 2:
            chunks[index] = (kind, damage(rng, body))
        elif action == 2 and len(chunks) > 1:
            del chunks[index]
        elif action == 3:
            chunks.insert(rng.randrange(len(chunks) + 1), (kind, body))
        else:
            kinds = (
                b"PLTE",
                b"tRNS",
                b"acTL",
                b"fcTL",
                b"fdAT",
                b"iCCP",
                b"zTXt",
                b"iTXt",
                b"eXIf",
                b"gAMA",
                b"pHYs",
                b"IHDR",
            )
            bomb = b"k\0\0" + zlib.compress(bytes(5_000_000))
            chunks.insert(
                rng.randrange(len(chunks) + 1), (rng.choice(kinds), rng.choice((rng.randbytes(26), b"", bomb, body)))
            )
    made = data[:8]
    for kind, body in chunks:
        made += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return made
