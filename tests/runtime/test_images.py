"""Every kind of picture becomes the right pixels or one clear ImageError."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from simmim_export.errors import BundleError, ImageError
from simmim_export.runtime.images import (
    DRAFT_PIXELS,
    MAX_PIXELS,
    AnimatedImage,
    ImagePreprocessing,
    decode,
    load_pixels,
)

SMALL = ImagePreprocessing(32, 48)
RNG = np.random.default_rng(0)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def smooth(height: int = 40, width: int = 60) -> np.ndarray:
    """A picture in which every corner differs: uint8 [height, width, 3]."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * y / height, 255 * x / width, 128 + 0 * x], axis=2).astype(np.uint8)


def photographs() -> list[Path]:
    import sklearn.datasets

    folder = Path(sklearn.datasets.__file__).parent / "images"
    return [folder / "china.jpg", folder / "flower.jpg"]


def refused(source, *expected: str) -> None:
    with pytest.raises(ImageError) as caught:
        load_pixels([source], SMALL)
    assert caught.value.exit_code == 5 and caught.value.fix
    for text in expected:
        assert text in str(caught.value)


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
def test_exif_orientation(orientation: int) -> None:
    """The stored picture is turned so that the tag turns it back."""
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> the Transpose that undoes it
    upright = Image.fromarray(smooth())
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(encoded(stored, "PNG", exif=exif))
    np.testing.assert_array_equal(np.asarray(found), smooth())


def test_cmyk() -> None:
    data = encoded(Image.fromarray(smooth()).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(np.asarray(decode(data)).astype(int) - smooth()).mean() < 4


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    values = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)
    for form in ("PNG", "TIFF"):
        found = np.asarray(decode(encoded(Image.fromarray(values), form)))
        np.testing.assert_array_equal(found[..., 0], np.rint(values / 257).astype(np.uint8))


def test_transparency_lies_over_white() -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2] = (255, 0, 0, 255)
    palette = Image.fromarray(rgba).quantize(4)
    for image in (Image.fromarray(rgba), palette):
        found = np.asarray(decode(encoded(image, "PNG")))
        assert found[0, 0].tolist() == [255, 0, 0] and found[3, 3].tolist() == [255, 255, 255]
    named = Image.new("P", (2, 2))
    named.putpalette([0, 0, 0, 0, 255, 0])
    assert np.asarray(decode(encoded(named, "PNG", transparency=0)))[0, 0].tolist() == [255, 255, 255]


def test_an_animation_gives_its_first_frame_and_says_so() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with pytest.warns(AnimatedImage, match="first of 3 frames"):
        found = decode(data)
    assert np.asarray(found)[0, 0].tolist() == [255, 0, 0]


def test_one_pixel_grey_and_bilevel() -> None:
    assert load_pixels([encoded(Image.new("RGB", (1, 1), "blue"), "PNG")], SMALL)[0, 5, 5].tolist() == [0, 0, 255]
    for mode in ("L", "1", "LA", "HSV", "YCbCr"):
        form = "PNG" if mode in ("L", "1", "LA") else "JPEG" if mode == "YCbCr" else "TIFF"
        if mode == "HSV":
            assert decode(Image.new(mode, (2, 2))).mode == "RGB"
        else:
            assert decode(encoded(Image.new(mode, (2, 2)), form)).mode == "RGB"


def png_claiming(width: int, height: int) -> bytes:
    """A PNG header that claims a size, and almost no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(MAX_PIXELS, 1), (MAX_PIXELS // 1000 + 1, 1001), (60000, 60000)])
def test_a_decompression_bomb_is_refused_from_its_header(size: tuple[int, int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused(png_claiming(*size), "too large" if size[0] * size[1] > MAX_PIXELS else "damaged")


def test_missing_empty_folder_and_nonsense(tmp_path: Path) -> None:
    refused(tmp_path / "none.png", "no such image", "none.png")
    refused(str(tmp_path / "none.png"), "no such image")
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "empty")
    refused(b"", "empty")
    refused(tmp_path, "cannot be read")
    (tmp_path / "text.png").write_text("hello")
    refused(tmp_path / "text.png", "not an image")
    refused("a\0b", "cannot be read")
    refused(3, "not an image: int")


def test_postscript_is_never_handed_to_an_interpreter() -> None:
    refused(encoded(Image.new("RGB", (4, 4)), "EPS"), "not an image")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_truncated(form: str, tmp_path: Path) -> None:
    data = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), form)
    path = tmp_path / "cut"
    path.write_bytes(data[: len(data) // 2])
    refused(path, str(path))


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8), np.zeros((0, 4, 3), np.uint8)],
)
def test_arrays_that_are_no_image(array: np.ndarray) -> None:
    refused(array, "not an image: array", "uint8")


def test_grey_and_rgba_arrays() -> None:
    assert np.asarray(decode(np.full((3, 3), 7, np.uint8)))[0, 0].tolist() == [7, 7, 7]
    assert np.asarray(decode(np.zeros((3, 3, 4), np.uint8)))[0, 0].tolist() == [255, 255, 255]


def test_a_large_jpeg_is_drafted_and_stays_close() -> None:
    """Measured here: a mean difference of 0.25 of 255 for a real photograph at 12 megapixels."""
    with Image.open(photographs()[0]) as opened:
        large = opened.resize((4000, 3000), Image.Resampling.BICUBIC)
    assert large.width * large.height > DRAFT_PIXELS
    data = encoded(large, "JPEG", quality=92)
    size = ImagePreprocessing(224, 224)
    drafted, full = load_pixels([data, np.asarray(Image.open(io.BytesIO(data)))], size).astype(int)
    assert decode(data, (224, 224)).size == (1000, 750)
    assert 0 < np.abs(drafted - full).mean() < 1.0


def test_a_drafted_jpeg_keeps_its_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(smooth(1500, 2400)), "JPEG", quality=95, exif=exif)
    found = decode(data, (64, 64))
    assert found.height > found.width
    expected = np.rot90(smooth(1500, 2400), -1)
    corner = np.asarray(found)[2, -3].astype(int)
    assert np.abs(corner - expected[8, -8].astype(int)).max() < 12


def test_unknown_preprocessing_is_a_bundle_error() -> None:
    data = {"height": 4, "width": 4, "resize": "crop", "interpolation": "bilinear"}
    with pytest.raises(BundleError, match="unknown to this version"):
        ImagePreprocessing.from_json(data)


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    with pytest.raises(ImageError):
        load_pixels([data], SMALL)


@settings(max_examples=300, deadline=None)
@given(
    form=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4),
    keep=st.floats(0.2, 1),
)
def test_damaged_files_decode_or_are_refused(form: str, flips: list[tuple[float, int]], keep: float) -> None:
    data = bytearray(encoded(Image.fromarray(smooth(16, 16)), form))
    for position, value in flips:
        data[int(position * len(data))] ^= value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert load_pixels([bytes(data[: int(keep * len(data))])], SMALL).shape == (1, 32, 48, 3)
        except ImageError as error:
            assert error.fix
