"""Pictures to ``pixels: uint8 [batch, height, width, 3]``.

Knows files and Pillow. Must not know graphs or engines: scaling and normalisation are inside the graph. The resize is
pinned by the manifest, so that a device computes what training saw.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from simmim_export.errors import BundleError, ImageError

ImageSource: TypeAlias = str | os.PathLike | bytes | Image.Image | np.ndarray

# Larger pictures are refused from their header, before a pixel is decoded: 100 megapixels are 300 MB of RGB.
MAX_PIXELS = 100_000_000
# Above this a JPEG is decoded at a fraction of its size; below, path, bytes, PIL and array give the same pixels.
DRAFT_PIXELS = 2_000_000
# Raster formats only: Pillow hands EPS to Ghostscript, which executes PostScript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO", "ICO", "AVIF", "JPEG2000")
# What Pillow's decoders raise on damaged bytes besides OSError: they parse headers with struct, slices and zlib.
_DAMAGE = (OSError, SyntaxError, ValueError, LookupError, TypeError, EOFError, OverflowError, ArithmeticError)
_DAMAGE += (struct.error, zlib.error, MemoryError, RuntimeError, AttributeError, AssertionError)

_INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR}


class AnimatedImage(UserWarning):
    """An animated picture of which only the first frame is used."""


@dataclass(frozen=True)
class ImagePreprocessing:
    """The size that the graph takes, in pixels, and how a picture gets there.

    ``squash`` scales both sides independently: nothing is cut off, since a question may be about an edge. ``bilinear`` is
    Pillow's antialiased filter. A picture of exactly this size is passed through unchanged.
    """

    height: int
    width: int
    resize: str = "squash"
    interpolation: str = "bilinear"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ImagePreprocessing:
        """From the manifest; raise :class:`BundleError` for a resize or interpolation this version does not have."""
        found = cls(**data)
        if found.resize != "squash" or found.interpolation not in _INTERPOLATIONS:
            raise BundleError(
                f"the bundle wants resize {found.resize!r} with {found.interpolation!r}, unknown to this version",
                fix="pip install -U simmim-export",
            )
        return found


def load_pixels(sources: Sequence[ImageSource], preprocessing: ImagePreprocessing) -> np.ndarray:
    """Decode and resize; uint8 [n, height, width, 3], contiguous. Raise :class:`ImageError` naming the bad one."""
    size = (preprocessing.width, preprocessing.height)
    batch = np.empty((len(sources), preprocessing.height, preprocessing.width, 3), np.uint8)
    for row, source in zip(batch, sources, strict=True):
        image = decode(source, size)
        if image.size != size:
            image = image.resize(size, _INTERPOLATIONS[preprocessing.interpolation])
        row[:] = np.asarray(image)
    return batch


def decode(source: ImageSource, target: tuple[int, int] | None = None) -> Image.Image:
    """An RGB picture, upright.

    EXIF orientation is applied; CMYK is converted; 16-bit grey is scaled to 8 bits; transparency is laid over white; of an
    animation the first frame is taken, with an :class:`AnimatedImage` warning. A JPEG of more than ``DRAFT_PIXELS`` is
    decoded straight to the smallest size of at least twice ``target`` (width, height), which is several times faster than
    decoding and shrinking it; pixels then differ a little from a full decode.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _to_rgb(source, "a PIL image", target)
    if not isinstance(source, str | bytes | os.PathLike):
        raise ImageError(
            f"not an image: {type(source).__name__}", fix="give a path, bytes, a PIL image or a uint8 array"
        )
    where = "bytes" if isinstance(source, bytes) else os.fspath(source)
    data = source if isinstance(source, bytes) else _read(Path(source))
    if not data:
        raise ImageError("the image is empty", where=where, fix="give a whole image file")
    try:
        with warnings.catch_warnings():
            # Our own limit below answers for the size; Pillow's warning would only repeat it.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = _open(data)
    except UnidentifiedImageError as error:
        fix = f"give one of {', '.join(FORMATS)}"
        raise ImageError("not an image, or not of a format that is read", where=where, fix=fix) from error
    except Image.DecompressionBombError as error:
        raise _too_large(str(error), where) from error
    except _DAMAGE as error:
        raise ImageError(f"the image is damaged: {error}", where=where, fix="give a whole image file") from error
    with image:
        return _to_rgb(image, where, target)


def _open(data: bytes) -> Image.Image:
    """Open with the plugins that Pillow loads at once, and with the rarer ones only if none of those fits."""
    Image.preinit()
    try:
        return Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError:
        Image.init()
        return Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ImageError("no such image", where=path, fix="check the path") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"the image cannot be read: {error}", where=path, fix="give a readable image file") from error


def _too_large(size: str, where: object) -> ImageError:
    return ImageError(
        f"the image is too large to decode safely ({size}; the limit is {MAX_PIXELS:,} pixels)",
        where=where,
        fix="shrink it first",
    )


def _to_rgb(image: Image.Image, where: object, target: tuple[int, int] | None) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(f"{width} x {height}", where)
    if width < 1 or height < 1:
        raise ImageError("the image has no pixels", where=where, fix="give a whole image file")
    try:
        frames = getattr(image, "n_frames", 1)
        if target and image.format in ("JPEG", "MPO") and width * height > DRAFT_PIXELS:
            # A quarter turn comes later and swaps the sides: ask for the larger of both.
            side = 2 * max(target)
            image.draft("RGB", (side, side))
        upright = ImageOps.exif_transpose(image)
        found = _flatten(upright)
    except Image.DecompressionBombError as error:
        raise _too_large(str(error), where) from error
    except _DAMAGE as error:
        raise ImageError(f"the image is damaged: {error}", where=where, fix="give a whole image file") from error
    if frames > 1 and image.format != "MPO":
        warnings.warn(f"{where}: only the first of {frames} frames is used", AnimatedImage, stacklevel=4)
    return found


def _flatten(image: Image.Image) -> Image.Image:
    """8-bit RGB without transparency."""
    if image.mode.startswith("I") or image.mode == "F":
        # convert() would clip 16 bits at 255 instead of scaling them.
        values = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.clip(np.rint(values / 257.0), 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("RGB")
    return image.convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    shape = array.shape
    good = array.ndim == 2 or (array.ndim == 3 and shape[2] in (3, 4))
    if array.dtype != np.uint8 or not good or 0 in shape:
        raise ImageError(
            f"not an image: array {array.dtype} {list(shape)}",
            where="array",
            fix="give uint8 [height, width, 3], [height, width, 4] or [height, width], values 0 to 255",
        )
    if shape[0] * shape[1] > MAX_PIXELS:
        raise _too_large(f"{shape[1]} x {shape[0]}", "array")
    return _flatten(Image.fromarray(np.ascontiguousarray(array)))
