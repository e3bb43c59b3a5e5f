"""Decodes and resizes pictures to uint8 [batch, height, width, 3].

Scaling and normalization are inside the graph. The manifest fixes the resize, so that a device computes on what training saw.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from simmim_export.errors import BundleError, ImageError

ImageSource: TypeAlias = str | os.PathLike | bytes | Image.Image | np.ndarray

# A picture whose header gives more pixels (256 MiB of RGB) is refused before any is decoded. Above this size Pillow warns of a
# decompression bomb. It refuses twice the size itself, which bounds pictures that are larger than their header says.
MAX_PIXELS = 2**28 // 3
# All frames of an animation up to the last one used are decoded, but few are kept: this limits time, not memory.
MAX_ANIMATED = 32 * MAX_PIXELS
# Pillow compares each page of a TIFF with all pages before it, so the time grows with the square of their number.
MAX_PAGES = 10_000
# Twice the size of the largest picture when uncompressed. A limit is needed because a device or pipe may never end.
MAX_BYTES = 2**29
# A JPEG of more pixels is decoded at a fraction of its size. Below this, path, bytes, PIL image and array give the same pixels.
DRAFT_PIXELS = 2_000_000
# Raster formats only: Pillow hands EPS to Ghostscript, which executes PostScript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO", "ICO", "AVIF", "JPEG2000")
# What Pillow raises for damaged bytes; each of its plugins parses headers by hand. It raises OSError, SyntaxError and EOFError
# on purpose. ValueError to struct.error come from tags, sizes and offsets that are used unchecked, zlib.error and RuntimeError
# from codecs, and MemoryError from a length field that asks for too much.
_DAMAGE: tuple[type[Exception], ...] = (OSError, SyntaxError, EOFError, ValueError, TypeError, LookupError)
_DAMAGE += (ArithmeticError, AttributeError, AssertionError, struct.error, zlib.error, RuntimeError, MemoryError)

_ICON, _PNG = b"\0\0\1\0", b"\x89PNG\r\n\x1a\n"
_INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR}


class AnimatedImage(UserWarning):
    """Only one frame of an animated picture is used; the message says which, and of how many."""


@dataclass(frozen=True)
class ImagePreprocessing:
    """The size that the graph takes, in pixels, and how a picture gets there.

    ``squash`` scales both sides independently and cuts nothing off, because a question may be about an edge. ``bilinear`` is
    Pillow's antialiased filter. A picture of exactly this size stays unchanged.
    """

    height: int
    width: int
    _: KW_ONLY
    resize: str = "squash"
    interpolation: str = "bilinear"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ImagePreprocessing:
        """Read what :func:`spec.as_json` wrote to a manifest or checkpoint. Raise :class:`BundleError` for unknown or missing
        keys, and for a resize or interpolation that this version does not have."""
        try:
            preprocessing = cls(**data)
        except TypeError as error:
            raise BundleError(f"malformed image preprocessing: {error}", fix="export the bundle again") from error
        resize, interpolation = preprocessing.resize, preprocessing.interpolation
        if resize != "squash" or interpolation not in tuple(_INTERPOLATIONS):
            what = f"this version does not know resize {resize!r} with interpolation {interpolation!r}"
            raise BundleError(what, fix="pip install -U simmim-export")
        return preprocessing


def load_pixels(sources: Sequence[ImageSource], preprocessing: ImagePreprocessing) -> np.ndarray:
    """Decode and resize ``sources``: uint8 [n, height, width, 3], C-contiguous. Raise :class:`ImageError`, naming it, for one
    that cannot be read."""
    size = (preprocessing.width, preprocessing.height)
    batch = np.empty((len(sources), preprocessing.height, preprocessing.width, 3), np.uint8)
    for row, source in zip(batch, sources, strict=True):
        image = decode(source, size)
        if image.size != size:
            image = image.resize(size, _INTERPOLATIONS[preprocessing.interpolation])
        row[:] = np.asarray(image)
    return batch


def decode(source: ImageSource, target: tuple[int, int] | None = None) -> Image.Image:
    """An RGB picture, upright. Raise :class:`ImageError` for anything that cannot be read as one.

    EXIF orientation is applied and CMYK is converted. Gray values of 16 bits are scaled to 8 bits, with 65535 as white. (12
    bits stored in 16 become dark; scale them first.) Transparency is laid over white. An animation gives its first frame, or
    for a PIL image its current frame, with an :class:`AnimatedImage` warning. A PIL image is not changed.

    With ``target`` (width, height, in pixels), a JPEG of more than ``DRAFT_PIXELS`` that is not decoded yet may be decoded
    straight to 1/2, 1/4 or 1/8 of its size. That scale must leave twice ``target`` in both axes and divide both sides; a
    remainder would be padded, and stretch the picture by up to a pixel. For 12 megapixels to 224 x 224 this takes 15 to 40 ms
    instead of 110 to 140. The pixels differ from a full decode by 0.1 to 0.5 of 255 on average and by at most 5 (measured on
    photographs), so such a path differs from the same picture as an array.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        where, undecoded = "PIL image", _undecoded_jpeg(source) if target else None
        if undecoded is None:
            return _to_rgb(source, where)
        source = undecoded
    elif isinstance(source, bytes):
        where = "bytes"
    elif isinstance(source, str | os.PathLike):
        where = os.fsdecode(source)
        source = _read(Path(where))
    else:
        fix = "give a path, bytes, a PIL image or a uint8 array"
        raise ImageError(f"not an image: {type(source).__name__}", fix=fix)
    with _opened(source, where) as image:
        return _to_rgb(image, where, target=target)


@contextmanager
def opened(path: Path, kept: int = 1) -> Iterator[Image.Image]:
    """The picture at ``path``, not decoded yet. ``kept`` is how many of its frames the caller keeps at once. Whatever Pillow
    raises inside the block becomes an :class:`ImageError`."""
    with _opened(_read(path), path) as image, _decoding(path):
        pixels, frames = image.width * image.height, getattr(image, "n_frames", 1)
        size = f"{image.width} x {image.height} pixels, {frames} frames"
        if pixels * frames > MAX_ANIMATED:
            raise _too_large(size, path, limit=MAX_ANIMATED)
        if pixels * kept > MAX_PIXELS:
            raise _too_large(size if kept == 1 else f"{size}, {kept} of them at once", path)
        yield image


@contextmanager
def _opened(data: bytes, where: object) -> Iterator[Image.Image]:
    if not data:
        raise ImageError("the image is empty", where=where, fix="give a whole image file")
    with _decoding(where):
        if data.startswith(_ICON):
            _check_icon(data, where)
        image = _open(data)
    with image:
        if image.format == "TIFF":
            _check_pages(data, where)
        yield image


@contextmanager
def _decoding(where: object) -> Iterator[None]:
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
        raise _too_large(str(error).split(" exceeds")[0], where) from error
    except _DAMAGE as error:
        raise ImageError(f"the image is damaged: {error}", where=where, fix="give a whole image file") from error


def _undecoded_jpeg(image: Image.Image) -> bytes | None:
    """The bytes of a large JPEG that is open but not decoded; None for any other picture. Decoding ``image`` itself at a smaller
    size would shrink it for its owner."""
    large = image.format in ("JPEG", "MPO") and image.width * image.height > DRAFT_PIXELS
    if not large or not isinstance(image, ImageFile.ImageFile) or image.tell() != 0:
        return None
    if not image.tile or image.fp is None or image.fp.closed:
        return None
    position = image.fp.tell()
    image.fp.seek(0)
    data = image.fp.read()
    image.fp.seek(position)
    return data


def _open(data: bytes) -> Image.Image:
    """Open with the plugins that Pillow always loads, and try its rarer ones only if none of them fits."""
    for load_plugins in (Image.preinit, Image.init):
        load_plugins()
        try:
            return Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
        except UnidentifiedImageError as error:
            unidentified = error
    raise unidentified


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ImageError("no such image", where=path, fix="check the path") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"the image cannot be read: {error}", where=path, fix="give a readable image file") from error
    if len(data) > MAX_BYTES:
        what = f"the file is larger than {MAX_BYTES:,} bytes, or never ends"
        raise ImageError(what, where=path, fix="give a picture, or shrink it first")
    return data


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
            raise _too_large(f"{width} x {abs(height)} pixels in an icon", where)


def _too_large(size: str, where: object, *, limit: int | None = None) -> ImageError:
    what = f"the image is too large to decode safely: {size}; the limit is {limit or MAX_PIXELS:,} pixels"
    return ImageError(what, where=where, fix="shrink it first")


def _to_rgb(image: Image.Image, where: object, *, target: tuple[int, int] | None = None) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(f"{width} x {height} pixels", where)
    if width < 1 or height < 1:
        raise ImageError("the image has no pixels", where=where, fix="give a whole image file")
    with _decoding(where):
        frames = getattr(image, "n_frames", 1)
        if target and image.format in ("JPEG", "MPO") and width * height > DRAFT_PIXELS:
            # A quarter turn comes later and swaps the sides, so both must be large enough for the larger side of the target.
            least = 2 * max(target)
            scales = (s for s in (8, 4, 2) if width % s == height % s == 0 and min(width, height) // s >= least)
            scale = next(scales, 1)
            image.draft("RGB", (width // scale, height // scale))
        upright = ImageOps.exif_transpose(image)
        if upright.width * upright.height > MAX_PIXELS:
            raise _too_large(f"{upright.width} x {upright.height} pixels behind its header", where)
        rgb = _flatten(upright, where)
    # The second picture of an MPO is a thumbnail or the other eye, not a later moment.
    if frames > 1 and image.format != "MPO":
        used = "the first" if image.tell() == 0 else f"frame {image.tell() + 1}"
        # In quotes: whoever counts repeated warnings takes messages that differ only in quotations and numbers as equal.
        warnings.warn(f"only {used} of {frames} frames is used: {str(where)!r}", AnimatedImage, stacklevel=4)
    return rgb


def _flatten(image: Image.Image, where: object) -> Image.Image:
    """8-bit RGB without transparency."""
    if image.mode.startswith("I"):  # convert() would clip 16 bits at 255 instead of scaling them.
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            span = f"{values.min()} to {values.max()}"
            raise ImageError(f"gray values {span} are not 16 bits", where=where, fix="scale them to 0 to 65535")
        # White may be 255 or 65535, and the latter would make it black.
        if image.mode == "I" and 0 < values.max() <= 255:
            what = f"gray values up to {values.max()} in 32 bits have no known white"
            raise ImageError(what, where=where, fix="save it with 8 bits, or scale its values to 0 to 65535")
        # This is exactly rint(values / 257), because 257 is odd. With floats the largest picture would take 2 GB and twice as
        # long.
        gray = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
        if "transparency" in image.info:
            gray[values == image.info["transparency"]] = 255
        image = Image.fromarray(gray)
    if image.mode == "F":  # Any number may be white, and a wrong guess would be black without a word.
        raise ImageError(
            "the image has floating-point pixels, whose range is not known",
            where=where,
            fix="save it with 8 or 16 bits",
        )
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("RGB")
    return image.convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    shape = array.shape
    good = array.ndim == 2 or (array.ndim == 3 and shape[2] in (3, 4))
    if array.dtype != np.uint8 or not good or 0 in shape:
        fix = "give uint8 [height, width, 3], [height, width, 4] or [height, width], values 0 to 255"
        raise ImageError(f"not an image: array {array.dtype} {list(shape)}", where="array", fix=fix)
    if shape[0] * shape[1] > MAX_PIXELS:
        raise _too_large(f"{shape[1]} x {shape[0]} pixels", "array")
    return _flatten(Image.fromarray(np.ascontiguousarray(array)), "array")
