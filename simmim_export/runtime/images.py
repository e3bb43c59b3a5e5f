"""Decodes and resizes pictures to uint8 [batch, height, width, 3].

Scaling and normalization are inside the graph. The manifest fixes the resize, so that a device sees the same pixels as training;
a large JPEG may differ slightly (see :data:`DRAFT_PIXELS`).
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from PIL import ExifTags, Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from simmim_export.errors import BundleError, ImageError
from simmim_export.runtime.picture_files import MAX_PIXELS, PIXELS_ROOM, decoding, file_bytes, opened_bytes, too_large

ImageSource: TypeAlias = str | os.PathLike | bytes | Image.Image | np.ndarray

# A JPEG of more pixels may be decoded at a fraction of its size. Up to this, path, bytes, PIL image and array of an upright
# picture give the same pixels.
DRAFT_PIXELS = 1_000_000

# The longest side of a scaled picture before it is cut. One of 1 x 10,000 pixels would be scaled to 224 x 2,240,000.
_LONGEST_SCALED = 65_535
# The sources that are decoded in other threads.
_FILES = (str, os.PathLike, bytes)
_INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_RESIZES = ("squash", "crop")
_FLIPS = Image.Transpose
# How the values of EXIF's orientation are undone; 1 is upright.
_TURNS = {
    2: _FLIPS.FLIP_LEFT_RIGHT,
    3: _FLIPS.ROTATE_180,
    4: _FLIPS.FLIP_TOP_BOTTOM,
    5: _FLIPS.TRANSPOSE,
    6: _FLIPS.ROTATE_270,
    7: _FLIPS.TRANSVERSE,
    8: _FLIPS.ROTATE_90,
}
# Those that swap width and height.
_QUARTER_TURNS = (_FLIPS.TRANSPOSE, _FLIPS.ROTATE_270, _FLIPS.TRANSVERSE, _FLIPS.ROTATE_90)


class AnimatedImage(UserWarning):
    """Only one frame of an animated picture is used; the message says which, and of how many."""


@dataclass(frozen=True)
class ImagePreprocessing:
    """The size that the graph takes, in pixels, and how a picture gets there.

    ``squash`` scales both sides independently and cuts nothing off, because a question may be about an edge. ``crop`` scales
    the shorter side to ``shortest`` pixels, keeps the aspect ratio, and cuts out the center. ``bilinear`` and ``bicubic`` are
    Pillow's antialiased filters. An array of exactly this size stays unchanged.
    """

    height: int
    width: int
    _: KW_ONLY
    resize: str = "squash"
    interpolation: str = "bilinear"
    shortest: int = 0

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ImagePreprocessing:
        """Read what :func:`spec.as_json` wrote to a manifest or checkpoint. Raise :class:`BundleError` for unknown or missing
        keys, for a resize or interpolation that this version does not have, and for a crop larger than the scaled picture."""
        try:
            preprocessing = cls(**data)
        except TypeError as error:
            raise BundleError(f"malformed image preprocessing: {error}", fix="export the bundle again") from error
        resize, interpolation = preprocessing.resize, preprocessing.interpolation
        if resize not in _RESIZES or interpolation not in tuple(_INTERPOLATIONS):
            what = f"this version does not know resize {resize!r} with interpolation {interpolation!r}"
            raise BundleError(what, fix="pip install -U simmim-export")
        if resize == "crop" and preprocessing.shortest < max(preprocessing.height, preprocessing.width):
            what = f"the shortest side of a crop is {preprocessing.shortest}, less than the sides of the graph"
            raise BundleError(what, fix="export the bundle again")
        return preprocessing

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """The width and height, in pixels, to which a picture of ``width`` x ``height`` is scaled, before a crop cuts it.

        For a crop the longer side is rounded down, as torchvision and transformers do.
        """
        if self.resize == "squash":
            return self.width, self.height
        longer = int(self.shortest * max(width, height) / min(width, height))
        return (self.shortest, longer) if width <= height else (longer, self.shortest)

    def cut(self, width: int, height: int) -> tuple[int, int, int, int]:
        """The part of a scaled picture of ``width`` x ``height`` that is used: left, upper, right, lower, in pixels."""
        left, upper = (width - self.width) // 2, (height - self.height) // 2
        return left, upper, left + self.width, upper + self.height


class _Picture(NamedTuple):
    """A decoded picture as RGB.

    ``box`` is the part of ``image`` that it fills: left, upper, right, lower, in pixels. ``turn`` makes it upright. ``notice`` is
    a warning that the caller should give.
    """

    image: Image.Image
    box: tuple[float, float, float, float]
    turn: Image.Transpose | None
    notice: str | None


class _Loaded(NamedTuple):
    """uint8 [height, width, 3], and a warning that the caller should give."""

    pixels: np.ndarray
    notice: str | None


def load_pixels(sources: Sequence[ImageSource], preprocessing: ImagePreprocessing, *, threads: int = 1) -> np.ndarray:
    """Decode and resize ``sources``: uint8 [n, height, width, 3], C-contiguous; see :func:`decoded`.

    Raise :class:`ImageError`, naming it, for the first one that cannot be read.
    """
    with decoded(sources, preprocessing, threads=threads, ahead=len(sources)) as attempts:
        return stacked(attempts, preprocessing, count=len(sources))


def stacked(
    attempts: Iterator[Callable[[], np.ndarray]], preprocessing: ImagePreprocessing, *, count: int
) -> np.ndarray:
    """What the next ``count`` of ``attempts`` give, as one batch: uint8 [count, height, width, 3]."""
    batch = np.empty((count, preprocessing.height, preprocessing.width, 3), np.uint8)
    for row, attempt in zip(batch, attempts, strict=False):
        row[:] = attempt()
    return batch


@contextmanager
def decoded(
    sources: Sequence[ImageSource], preprocessing: ImagePreprocessing, *, threads: int, ahead: int
) -> Iterator[Iterator[Callable[[], np.ndarray]]]:
    """For each of ``sources``, in order, a function that gives its pixels, uint8 [height, width, 3], or raises
    :class:`ImageError`. Warnings are given when it is called.

    Up to ``threads`` threads decode paths and bytes, at most ``ahead`` of them before they are asked for. PIL images and arrays
    are decoded when they are asked for: two threads must not decode one PIL image. A single path is decoded by the caller's
    thread, too. At the end of the block, no thread is left.
    """
    files = sum(isinstance(source, _FILES) for source in sources)
    workers = min(threads, files, ahead + 1)
    jobs = (partial(_load, source, preprocessing) for source in sources)
    if workers < 2:
        yield (partial(_taken, job) for job in jobs)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        started = (
            pool.submit(job).result if isinstance(source, _FILES) else job
            for source, job in zip(sources, jobs, strict=True)
        )
        yield (partial(_taken, job) for job in _early(started, ahead))
    finally:
        pool.shutdown(cancel_futures=True)


def _early(jobs: Iterator[Callable[[], _Loaded]], ahead: int) -> Iterator[Callable[[], _Loaded]]:
    """Yield ``jobs`` in order, and start each one up to ``ahead`` jobs before it is asked for. Taking a job starts it."""
    waiting: deque[Callable[[], _Loaded]] = deque()
    for job in jobs:
        waiting.append(job)
        if len(waiting) > ahead:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def _taken(job: Callable[[], _Loaded]) -> np.ndarray:
    """The pixels that ``job`` gives. Warns here, so that warnings come in order and in the caller's thread."""
    pixels, notice = job()
    if notice is not None:
        warnings.warn(notice, AnimatedImage, stacklevel=4)
    return pixels


def _load(source: ImageSource, preprocessing: ImagePreprocessing) -> _Loaded:
    """Decode and resize one picture. Pixels of the right size are returned as they are."""
    size = (preprocessing.width, preprocessing.height)
    if isinstance(source, np.ndarray) and source.dtype == np.uint8 and source.shape == (*size[::-1], 3):
        return _Loaded(source, None)
    with _picture(source, size) as (image, box, turn, notice):
        # A picture is turned after it became small. The pixels of a quarter turn differ by at most 1 from those of turning first.
        quarter = turn in _QUARTER_TURNS
        width, height = round(box[2] - box[0]), round(box[3] - box[1])
        scaled = preprocessing.scaled(*((height, width) if quarter else (width, height)))
        if max(scaled) > _LONGEST_SCALED:
            raise ImageError(
                f"the picture is {width} x {height} pixels, too narrow to be cut to a square", fix="crop it"
            )
        image = image.resize(scaled[::-1] if quarter else scaled, _INTERPOLATIONS[preprocessing.interpolation], box)
        upright = image if turn is None else image.transpose(turn)
        return _Loaded(np.asarray(upright if scaled == size else upright.crop(preprocessing.cut(*scaled))), notice)


def decode(source: ImageSource) -> Image.Image:
    """An RGB picture in its full size, upright. Raise :class:`ImageError` for anything that cannot be read as one.

    EXIF orientation is applied and CMYK is converted. Gray values of 16 bits are scaled to 8 bits, with 65535 as white. (12
    bits stored in 16 become dark; scale them first.) Transparency is laid over white. An animation gives its first frame, or
    for a PIL image its current frame, with an :class:`AnimatedImage` warning. A PIL image is not changed.
    """
    with _picture(source) as (image, _, turn, notice):
        upright = image.copy() if turn is None else image.transpose(turn)
    if notice is not None:
        warnings.warn(notice, AnimatedImage, stacklevel=2)
    return upright


@contextmanager
def _picture(source: ImageSource, target: tuple[int, int] | None = None) -> Iterator[_Picture]:
    """``source``, decoded as :func:`decode` says, and for a large JPEG with a ``target`` at a fraction of its size; see
    :func:`draft_scale`."""
    if isinstance(source, np.ndarray):
        image = _from_array(source)
        yield _Picture(image, (0, 0, *image.size), None, None)
        return
    with ExitStack() as stack:
        where = "bytes"
        if isinstance(source, Image.Image):
            where, undecoded = "PIL image", _undecoded_jpeg(source) if target else None
            if undecoded is None:
                target = None
            else:
                source = undecoded
        elif isinstance(source, str | os.PathLike):
            where = os.fsdecode(source)
            source = stack.enter_context(file_bytes(Path(where)))
        elif not isinstance(source, bytes):
            fix = "give a path, bytes, a PIL image or a uint8 array"
            raise ImageError(f"not an image: {type(source).__name__}", fix=fix)
        if isinstance(source, bytes):
            source = stack.enter_context(opened_bytes(source, where))
        width, height = source.size
        if width * height > MAX_PIXELS:
            raise too_large(f"{width} x {height} pixels", where)
        if width < 1 or height < 1:
            raise ImageError("the image has no pixels", where=where, fix="give a whole image file")
        stack.enter_context(PIXELS_ROOM.holding(width * height))
        stack.enter_context(decoding(where))
        yield _to_rgb(source, where, target=target)


def draft_scale(size: tuple[int, int], target: tuple[int, int]) -> int:
    """The divisor, 8, 4, 2 or 1, by which a JPEG of ``size`` (width, height, in pixels) is reduced while it is decoded for
    ``target``.

    It is 1 up to ``DRAFT_PIXELS``. Both sides stay at least twice as long as the larger side of ``target``, because a quarter
    turn swaps them later.
    """
    if size[0] * size[1] <= DRAFT_PIXELS:
        return 1
    return next((scale for scale in (8, 4, 2) if min(size) // scale >= 2 * max(target)), 1)


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


def _to_rgb(image: Image.Image, where: object, *, target: tuple[int, int] | None) -> _Picture:
    """Decode ``image``. Without a ``target``, in its full size."""
    frames, drafted = getattr(image, "n_frames", 1), None
    if target and isinstance(image, JpegImageFile) and (scale := draft_scale(image.size, target)) > 1:
        drafted = image.draft("RGB", (image.width // scale, image.height // scale))
    image.load()
    if image.width * image.height > MAX_PIXELS:
        raise too_large(f"{image.width} x {image.height} pixels behind its header", where)
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    notice = None
    # The second picture of an MPO is a thumbnail or the other eye, not a later moment.
    if frames > 1 and image.format != "MPO":
        used = "the first" if image.tell() == 0 else f"frame {image.tell() + 1}"
        # In quotes: whoever counts repeated warnings takes messages that differ only in quotations and numbers as equal.
        notice = f"only {used} of {frames} frames is used: {str(where)!r}"
    # A side that the scale does not divide is rounded up, and the last column or row is padded. The box ends where the picture
    # does, so that it is not stretched.
    box = (0, 0, *image.size) if drafted is None else drafted[1]
    return _Picture(_flatten(image, where), box, turn, notice)


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
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    shape = array.shape
    good = array.ndim == 2 or (array.ndim == 3 and shape[2] in (3, 4))
    if array.dtype != np.uint8 or not good or 0 in shape:
        fix = "give uint8 [height, width, 3], [height, width, 4] or [height, width], values 0 to 255"
        raise ImageError(f"not an image: array {array.dtype} {list(shape)}", where="array", fix=fix)
    if shape[0] * shape[1] > MAX_PIXELS:
        raise too_large(f"{shape[1]} x {shape[0]} pixels", "array")
    return _flatten(Image.fromarray(np.ascontiguousarray(array)), "array")
