"""Every kind of picture becomes the right pixels or an ImageError."""

from __future__ import annotations

import gc
import io
import os
import struct
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from example_pictures import RNG, SMALL, animation, encoded, photographs, refused, smooth, tiff_of_pages
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from simmim_export.errors import BundleError, ImageError
from simmim_export.runtime.clips import read_clip
from simmim_export.runtime.images import (
    DRAFT_PIXELS,
    AnimatedImage,
    ImagePreprocessing,
    decode,
    draft_scale,
    load_pixels,
)
from simmim_export.runtime.picture_files import MAX_PIXELS
from simmim_export.system.plain import as_json


@pytest.mark.parametrize("path", photographs(), ids=lambda p: p.stem)
def test_path_bytes_pil_and_array_give_the_same_pixels(path: Path) -> None:
    with Image.open(path) as opened:
        loaded = opened.copy()
    sources = [path, str(path), path.read_bytes(), Image.open(path), loaded, np.asarray(loaded)]
    pixels = load_pixels(sources, ImagePreprocessing(64, 64))
    assert pixels.dtype == np.uint8 and pixels.shape == (6, 64, 64, 3) and pixels.flags.c_contiguous
    for other in pixels[1:]:
        np.testing.assert_array_equal(other, pixels[0])


def test_a_picture_of_the_right_size_is_untouched() -> None:
    array = RNG.integers(0, 256, (32, 48, 3), dtype=np.uint8)
    np.testing.assert_array_equal(load_pixels([encoded(Image.fromarray(array), "PNG")], SMALL)[0], array)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    """The stored picture is turned so that the tag turns it back."""
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> the Transpose that undoes it
    upright = Image.fromarray(smooth())
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(np.asarray(decode(encoded(stored, "PNG", exif=exif))), smooth())


def test_cmyk_is_converted() -> None:
    data = encoded(Image.fromarray(smooth()).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(np.asarray(decode(data)).astype(int) - smooth()).mean() < 4


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    values = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)
    for form in ("PNG", "TIFF"):
        gray = np.asarray(decode(encoded(Image.fromarray(values), form)))
        np.testing.assert_array_equal(gray[..., 0], np.rint(values / 257).astype(np.uint8))


def test_a_transparent_sixteen_bit_gray_is_white() -> None:
    rows = b"".join(b"\0" + struct.pack(">HH", 1000, 20000) for _ in range(2))
    data = png(2, 2, 16, 0, rows, ("tRNS", struct.pack(">H", 1000)))
    assert np.asarray(decode(data))[0, :, 0].tolist() == [255, round(20000 / 257)]


def test_gray_of_unknown_range_is_an_error_and_not_a_guess() -> None:
    refused(encoded(Image.fromarray(np.full((2, 2), 70000, np.int32)), "TIFF"), names="70000")
    refused(Image.fromarray(np.full((2, 2), -1, np.int32)), "PIL image", names="-1")
    refused(encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"))
    for image in (Image.fromarray(np.array([[0, 255]], np.int32)), Image.fromarray(np.array([[0, 1]], np.int32))):
        refused(encoded(image, "TIFF"), names="32 bits")
    assert np.asarray(decode(Image.fromarray(np.array([[0, 65535]], np.int32))))[0, :, 0].tolist() == [0, 255]
    assert not np.asarray(decode(Image.fromarray(np.zeros((2, 2), np.int32)))).any()


def test_transparency_lies_over_white() -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2] = (255, 0, 0, 255)
    palette = Image.fromarray(rgba).quantize(4)
    for image in (Image.fromarray(rgba), palette):
        rgb = np.asarray(decode(encoded(image, "PNG")))
        assert rgb[0, 0].tolist() == [255, 0, 0] and rgb[3, 3].tolist() == [255, 255, 255]
    named = Image.new("P", (2, 2))
    named.putpalette([0, 0, 0, 0, 255, 0])
    assert np.asarray(decode(encoded(named, "PNG", transparency=0)))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame_with_a_warning(form: str) -> None:
    with pytest.warns(AnimatedImage, match=r" 3 .*bytes"):
        first = np.asarray(decode(animation(form)))
    assert np.abs(first[0, 0].astype(int) - [255, 0, 0]).max() <= 2


def test_an_open_animation_gives_the_frame_that_it_stands_at() -> None:
    image = Image.open(io.BytesIO(animation("GIF")))
    image.seek(1)
    with pytest.warns(AnimatedImage, match="frame 2 of 3"):
        second = np.asarray(decode(image))
    assert second[0, 0].tolist() == [0, 0, 255] and image.tell() == 1


def test_one_pixel_and_every_mode_become_rgb() -> None:
    assert load_pixels([encoded(Image.new("RGB", (1, 1), "blue"), "PNG")], SMALL)[0, 5, 5].tolist() == [0, 0, 255]
    for mode in ("L", "1", "LA", "HSV", "YCbCr"):
        form = "PNG" if mode in ("L", "1", "LA") else "JPEG" if mode == "YCbCr" else "TIFF"
        if mode == "HSV":
            assert decode(Image.new(mode, (2, 2))).mode == "RGB"
        else:
            assert decode(encoded(Image.new(mode, (2, 2)), form)).mode == "RGB"


def png(width: int, height: int, bits: int, color: int, rows: bytes, *extra: tuple[str, bytes]) -> bytes:
    """A PNG written by hand; its header may lie."""

    def chunk(kind: str, data: bytes) -> bytes:
        named = kind.encode() + data
        return struct.pack(">I", len(data)) + named + struct.pack(">I", zlib.crc32(named))

    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    chunks = [("IHDR", header), *extra, ("IDAT", zlib.compress(rows)), ("IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


@pytest.mark.parametrize("size", [(MAX_PIXELS, 1), (MAX_PIXELS // 1000 + 1, 1001), (18000, 10001), (60000, 60000)])
def test_a_decompression_bomb_is_refused_by_its_header(size: tuple[int, int]) -> None:
    """Just under the limit, over it, over the double at which Pillow refuses, and far over."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        too_large = size[0] * size[1] > MAX_PIXELS
        refused(png(*size, 8, 2, b"\0" * 100), names=f"{MAX_PIXELS:,}" if too_large else "")


def test_an_open_decompression_bomb_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(png(MAX_PIXELS // 1000 + 1, 1001, 8, 2, b"")))
    refused(image, "PIL image", names=f"{MAX_PIXELS:,}")


def test_a_decompression_bomb_in_an_icon_is_refused() -> None:
    """The icon's own header says 32 x 32; the PNG in it claims more than the limit."""
    hidden = png(12000, 12000, 8, 2, b"")
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 32, 32, 0, 0, 1, 32, len(hidden), 22) + hidden
    refused(icon, names="12000 x 12000")


@pytest.mark.parametrize("length", [12, 40])
def test_a_large_bitmap_in_an_icon_is_refused(length: int) -> None:
    bitmap = struct.pack("<IHHHH" if length == 12 else "<IiiHH", length, 12000, 24000, 1, 24) + bytes(40)
    refused(struct.pack("<HHHBBBBHHII", 0, 1, 1, 32, 32, 0, 0, 1, 24, len(bitmap), 22) + bitmap, names="12000")
    refused(struct.pack("<HHH", 0, 1, 9))


def test_an_icon_is_decoded() -> None:
    assert decode(encoded(Image.fromarray(smooth(32, 32)), "ICO", sizes=[(32, 32)])).size == (32, 32)


def test_threads_leave_the_warning_filters_as_they_were() -> None:
    """Filters belong to the process: one thread would save and restore what another had set for a while."""
    data, before = encoded(Image.fromarray(smooth()), "PNG"), list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: decode(data), range(400)))
    assert list(warnings.filters) == before


def test_an_array_over_the_limit_is_refused() -> None:
    refused(np.broadcast_to(np.uint8(0), (MAX_PIXELS // 1000 + 1, 1001)), "array", names=f"{MAX_PIXELS:,}")


def test_a_source_that_is_not_a_picture_is_an_error(tmp_path: Path) -> None:
    refused(str(tmp_path / "none.png"), tmp_path / "none.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    for path in (tmp_path / "none.png", tmp_path / "empty.png", tmp_path / "text.png", tmp_path):
        refused(path, path)
    refused(b"")
    refused("a\0b", None)
    refused(3, None, names="int")


def test_a_path_may_be_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(smooth()), "PNG"))
    with os.scandir(os.fsencode(tmp_path)) as entries:
        assert decode(next(entries)).size == (60, 40)


def test_no_file_is_left_open(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(Image.fromarray(smooth()), "JPEG"))
    (tmp_path / "cut.jpg").write_bytes(path.read_bytes()[:300])
    (tmp_path / "text.jpg").write_text("hello")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_pixels([path], SMALL)
        refused(tmp_path / "cut.jpg", tmp_path / "cut.jpg")
        refused(tmp_path / "text.jpg", tmp_path / "text.jpg")
        gc.collect()
    assert not caught


def test_no_images_give_an_empty_batch() -> None:
    assert load_pixels([], SMALL).shape == (0, 32, 48, 3)


def test_a_tiff_of_many_pages_is_refused_quickly(tmp_path: Path) -> None:
    path = tmp_path / "pages.tif"
    path.write_bytes(tiff_of_pages(60_000))
    started = time.process_time()
    refused(path, path)
    with pytest.raises(ImageError):
        read_clip(path)
    assert time.process_time() - started < 8, "counting all of them takes half a minute"


def test_a_tiff_of_a_few_pages_gives_its_first() -> None:
    with pytest.warns(AnimatedImage, match=" 3 "):
        assert decode(tiff_of_pages(3)).size == (1, 1)


def test_every_value_of_sixteen_bits_is_rounded_to_the_nearest_of_eight() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    gray = np.asarray(decode(Image.fromarray(values)))[..., 0]
    assert (gray == np.rint(values / 257.0)).all()


def test_postscript_is_never_handed_to_an_interpreter() -> None:
    refused(encoded(Image.new("RGB", (4, 4)), "EPS"))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_truncated_file_is_an_error(form: str, tmp_path: Path) -> None:
    data = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), form)
    path = tmp_path / "cut"
    path.write_bytes(data[: len(data) // 2])
    refused(path, path)


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8), np.zeros((0, 4, 3), np.uint8)],
)
def test_an_array_of_another_type_or_shape_is_an_error(array: np.ndarray) -> None:
    refused(array, "array", names="uint8")


def test_gray_and_rgba_arrays_become_rgb() -> None:
    assert np.asarray(decode(np.full((3, 3), 7, np.uint8)))[0, 0].tolist() == [7, 7, 7]
    assert np.asarray(decode(np.zeros((3, 3, 4), np.uint8)))[0, 0].tolist() == [255, 255, 255]


@pytest.fixture(scope="module")
def twelve_megapixels() -> bytes:
    """A JPEG of 3840 x 2976 pixels with detail at every one of them: a real photograph laid out 6 by 7 times."""
    with Image.open(photographs()[0]) as opened:
        tiled = np.tile(np.asarray(opened), (7, 6, 1))[:2976]
    return encoded(Image.fromarray(tiled), "JPEG", quality=92)


def test_a_large_jpeg_is_drafted_and_stays_close(twelve_megapixels: bytes) -> None:
    """The bounds are what was measured with libjpeg-turbo 3.2: 0.358 of 255 in the mean, and 4."""
    opened = Image.open(io.BytesIO(twelve_megapixels))
    full = np.asarray(Image.open(io.BytesIO(twelve_megapixels)))
    sources = [twelve_megapixels, opened, full]
    drafted, from_pil, expected = load_pixels(sources, ImagePreprocessing(224, 224)).astype(int)
    assert draft_scale(opened.size, (224, 224)) == 4
    assert 0 < np.abs(drafted - expected).mean() < 0.36 and np.abs(drafted - expected).max() <= 4
    np.testing.assert_array_equal(from_pil, drafted)
    closed = Image.open(io.BytesIO(twelve_megapixels))
    closed.close()
    refused(closed, "PIL image")
    # The owner's picture keeps its size, and a picture that is decoded already is not drafted.
    assert opened.size == (3840, 2976)
    np.testing.assert_array_equal(np.asarray(opened), full)
    np.testing.assert_array_equal(load_pixels([opened], ImagePreprocessing(224, 224))[0], expected)


@pytest.mark.parametrize(
    ("size", "target", "expected"),
    [
        ((2400, 1600), (64, 64), 8),
        ((2400, 1600), (64, 120), 4),  # 1/8 is 200 high, under twice the larger side of the target
        ((2400, 1600), (801, 64), 1),  # half is under twice the width
        ((1633, 1225), (224, 224), 2),  # the scale need not divide the sides
        ((1000, 1000), (64, 64), 1),  # DRAFT_PIXELS
        ((1001, 1000), (64, 64), 4),
    ],
)
def test_a_draft_has_the_smallest_scale_that_fits(
    size: tuple[int, int], target: tuple[int, int], expected: int
) -> None:
    assert draft_scale(size, target) == expected
    assert expected == 1 or size[0] * size[1] > DRAFT_PIXELS
    # A draft is not exactly what a full decode gives, so the pixels show whether there was one.
    image = Image.fromarray(np.asarray(Image.open(photographs()[0]).resize(size)))
    data = encoded(image, "JPEG", quality=92)
    sources = [data, np.asarray(Image.open(io.BytesIO(data)))]
    drafted, full = load_pixels(sources, ImagePreprocessing(target[1], target[0])).astype(int)
    assert (drafted != full).any() == (expected > 1)
    assert np.abs(drafted - full).mean() < 0.5


@pytest.mark.parametrize("size", [(1999, 1499), (1997, 1493), (1601, 1203)])
def test_a_draft_of_sides_that_the_scale_does_not_divide_is_not_stretched(size: tuple[int, int]) -> None:
    """If the padded column and row counted as part of the picture, the mean error would be 1.2 of 255."""
    image = Image.open(photographs()[0]).resize(size)
    data = encoded(image, "JPEG", quality=92)
    full = np.asarray(Image.open(io.BytesIO(data)))
    for orientation in (1, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned = data if orientation == 1 else encoded(Image.fromarray(full), "JPEG", quality=92, exif=exif)
        upright = np.asarray(decode(turned))
        drafted, expected = load_pixels([turned, upright], ImagePreprocessing(224, 224)).astype(int)
        error = np.abs(drafted - expected)
        assert 0 < error.mean() < 0.4 and max(error[-1].mean(), error[0].mean(), error[:, -1].mean()) < 1.2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_upright_whether_the_picture_is_turned_before_or_after_the_resize(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(photographs()[0]) as opened:
        data = encoded(opened, "PNG", exif=exif)
    turned_first = np.asarray(decode(data))
    turned_last, expected = load_pixels([data, turned_first], SMALL).astype(int)
    assert np.abs(turned_last - expected).max() <= (orientation >= 5)


@pytest.mark.parametrize(
    "change", [{"resize": "letterbox"}, {"interpolation": "nearest"}, {"interpolation": []}, {"mean": 0.5}]
)
def test_unknown_preprocessing_is_a_bundle_error(change: dict) -> None:
    data = as_json(SMALL)
    assert ImagePreprocessing.from_json(data) == SMALL
    with pytest.raises(BundleError) as caught:
        ImagePreprocessing.from_json(data | change)
    assert caught.value.exit_code == 5 and caught.value.fix


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=200))
def test_random_bytes_are_an_error(data: bytes) -> None:
    with pytest.raises(ImageError):
        load_pixels([data], SMALL)


@settings(max_examples=300, deadline=None)
@given(
    form=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4),
    keep=st.floats(0.2, 1),
)
def test_a_damaged_file_is_decoded_or_an_error(form: str, flips: list[tuple[float, int]], keep: float) -> None:
    data = bytearray(encoded(Image.fromarray(smooth(16, 16)), form))
    for position, value in flips:
        data[int(position * len(data))] ^= value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert load_pixels([bytes(data[: int(keep * len(data))])], SMALL).shape == (1, 32, 48, 3)
        except ImageError as error:
            assert error.fix


def test_a_path_that_never_ends_is_an_error() -> None:
    refused(Path("/dev/zero"), "/dev/zero")
