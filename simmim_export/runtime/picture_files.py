"""Opens pictures that come from strangers: limits their size, and turns whatever Pillow raises into an :class:`ImageError`."""

from __future__ import annotations

import io
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Condition

from PIL import Image, UnidentifiedImageError

from simmim_export.errors import ImageError

# A picture whose header gives more pixels (256 MiB of RGB) is refused before any is decoded. Above this size Pillow warns of a
# decompression bomb. It refuses twice the size itself, which bounds pictures that are larger than their header says.
MAX_PIXELS = 2**28 // 3
# All frames of an animation up to the last one used are decoded, but few are kept: this limits time, not memory.
MAX_ANIMATED = 32 * MAX_PIXELS
# Pillow compares each page of a TIFF with all pages before it, so the time grows with the square of their number.
MAX_PAGES = 10_000
# Twice the size of the largest picture when uncompressed. A limit is needed because a device or pipe may never end.
MAX_BYTES = 2**29
# Raster formats only: Pillow hands EPS to Ghostscript, which executes PostScript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO", "ICO", "AVIF", "JPEG2000")
# What Pillow raises for damaged bytes; each of its plugins parses headers by hand. It raises OSError, SyntaxError and EOFError
# on purpose. ValueError to struct.error come from tags, sizes and offsets that are used unchecked, zlib.error and RuntimeError
# from codecs, and MemoryError from a length field that asks for too much.
_DAMAGE: tuple[type[Exception], ...] = (OSError, SyntaxError, EOFError, ValueError, TypeError, LookupError)
_DAMAGE += (ArithmeticError, AttributeError, AssertionError, struct.error, zlib.error, RuntimeError, MemoryError)

_ICON, _PNG = b"\0\0\1\0", b"\x89PNG\r\n\x1a\n"


class Room:
    """Memory that threads share: together they hold at most ``size`` units. A thread that needs more than ``size`` waits until no
    other holds any."""

    def __init__(self, size: int) -> None:
        self._size, self._held, self._changed = size, 0, Condition()

    @contextmanager
    def holding(self, amount: int) -> Iterator[None]:
        """Wait until there is room for ``amount`` more, and hold it in the block. A thread holds one part of a room at a time."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + amount <= self._size)
            self._held += amount
        try:
            yield
        finally:
            with self._changed:
                self._held -= amount
                self._changed.notify_all()


# However many threads decode, together they hold no more bytes than one file may have, and no more pixels than one picture may
# have. (Icons are an exception: Pillow decodes them as soon as it opens them.) They are always taken in this order, so that two
# threads never wait for each other.
BYTES_ROOM, PIXELS_ROOM = Room(MAX_BYTES), Room(MAX_PIXELS)


@contextmanager
def opened(path: Path, kept: int = 1) -> Iterator[Image.Image]:
    """The picture at ``path``, not decoded yet. ``kept`` is how many of its frames the caller keeps at once. Whatever Pillow
    raises inside the block becomes an :class:`ImageError`."""
    with file_bytes(path) as data, opened_bytes(data, path) as image, decoding(path):
        pixels, frames = image.width * image.height, getattr(image, "n_frames", 1)
        size = f"{image.width} x {image.height} pixels, {frames} frames"
        if pixels * frames > MAX_ANIMATED:
            raise too_large(size, path, limit=MAX_ANIMATED)
        if pixels * kept > MAX_PIXELS:
            raise too_large(size if kept == 1 else f"{size}, {kept} of them at once", path)
        yield image


@contextmanager
def opened_bytes(data: bytes, where: object) -> Iterator[Image.Image]:
    """The picture in ``data``, not decoded yet. Errors name ``where`` it comes from."""
    if not data:
        raise ImageError("the image is empty", where=where, fix="give a whole image file")
    with decoding(where):
        if data.startswith(_ICON):
            _check_icon(data, where)
        image = _open(data)
    with image:
        if image.format == "TIFF":
            _check_pages(data, where)
        yield image


@contextmanager
def decoding(where: object) -> Iterator[None]:
    """Turn whatever Pillow raises in the block into an :class:`ImageError`.

    Pillow's warning about decompression bombs is not turned into an error here: that takes a warning filter, which belongs to
    the whole process, and several threads decode at once. Sizes are checked separately.
    """
    try:
        yield
    except UnidentifiedImageError as error:
        fix = f"give one of {', '.join(FORMATS)}"
        raise ImageError("not an image, or not in a format that can be read", where=where, fix=fix) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_large(str(error).split(" exceeds")[0], where) from error
    except _DAMAGE as error:
        raise ImageError(f"the image is damaged: {error}", where=where, fix="give a whole image file") from error


def _open(data: bytes) -> Image.Image:
    """Open with the plugins that Pillow always loads, and try its rarer ones only if none of them fits."""
    for load_plugins in (Image.preinit, Image.init):
        load_plugins()
        try:
            return Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
        except UnidentifiedImageError as error:
            unidentified = error
    raise unidentified


@contextmanager
def file_bytes(path: Path) -> Iterator[bytes]:
    """The bytes of the file at ``path``, which count against :data:`BYTES_ROOM` in the block."""
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(path.open("rb"))
            status = os.fstat(stream.fileno())
            # Nobody knows how much a pipe or a device will give.
            most = min(status.st_size, MAX_BYTES) if stat.S_ISREG(status.st_mode) else MAX_BYTES
            stack.enter_context(BYTES_ROOM.holding(most))
            data = stream.read(MAX_BYTES + 1)
        except FileNotFoundError as error:
            raise ImageError("no such image", where=path, fix="check the path") from error
        except (OSError, ValueError) as error:
            fix = "give a readable image file"
            raise ImageError(f"the image cannot be read: {error}", where=path, fix=fix) from error
        if len(data) > MAX_BYTES:
            what = f"the file is larger than {MAX_BYTES:,} bytes, or never ends"
            raise ImageError(what, where=path, fix="give a picture, or shrink it first")
        yield data


def _check_pages(data: bytes, where: object) -> None:
    """Raise :class:`ImageError` for a TIFF of more than ``MAX_PAGES`` pages. Counts them by following the chain of
    directories."""
    order, big = "<" if data.startswith(b"II") else ">", data[2] == 43  # This is how Pillow reads the header.
    count, entry, offset = (f"{order}Q", 20, f"{order}Q") if big else (f"{order}H", 12, f"{order}I")
    seen: set[int] = set()
    try:
        (place,) = struct.unpack_from(offset, data, 8 if big else 4)
        while place and place not in seen and len(seen) <= MAX_PAGES:
            seen.add(place)
            (entries,) = struct.unpack_from(count, data, place)
            (place,) = struct.unpack_from(offset, data, place + struct.calcsize(count) + entry * entries)
    except (struct.error, OverflowError):  # The chain ends outside the file; the pages before that count.
        pass
    if len(seen) > MAX_PAGES:
        raise ImageError(f"the image has more than {MAX_PAGES:,} pages", where=where, fix="split it first")


def _check_icon(data: bytes, where: object) -> None:
    """Raise :class:`ImageError` for an icon that contains a picture which is too large.

    The header of the icon itself allows only 256 pixels. Pillow goes by the headers of the pictures inside (a PNG, or a bitmap
    without a file header) and decodes them as soon as it opens the icon.
    """
    (count,) = struct.unpack_from("<H", data, 4)
    for entry in range(count):
        (offset,) = struct.unpack_from("<I", data, 6 + 16 * entry + 12)
        if data.startswith(_PNG, offset):
            width, height = struct.unpack_from(">II", data, offset + 16)
        else:
            (length,) = struct.unpack_from("<I", data, offset)
            width, height = struct.unpack_from("<HH" if length == 12 else "<ii", data, offset + 4)
        if abs(width * height) > MAX_PIXELS:
            raise too_large(f"{width} x {abs(height)} pixels in an icon", where)


def too_large(size: str, where: object, *, limit: int | None = None) -> ImageError:
    """The error for a picture of ``size``, a text that says how large it is. ``limit`` is in pixels; default: ``MAX_PIXELS``."""
    what = f"the image is too large to decode safely: {size}; the limit is {limit or MAX_PIXELS:,} pixels"
    return ImageError(what, where=where, fix="shrink it first")
