"""Random changes to training images."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simmim_export.errors import UsageError
from simmim_export.training.data import DataChoice
from simmim_export.training.data.augment import augmented
from simmim_export.training.data.base import CAPTIONS


def pictures(count: int) -> np.ndarray:
    """uint8 [count, 32, 48, 3]: a red left half and a blue right half, with a white border."""
    pixels = np.full((count, 32, 48, 3), 255, np.uint8)
    pixels[:, 8:-8, 8:24], pixels[:, 8:-8, 24:-8] = (200, 0, 0), (0, 0, 200)
    return pixels


def test_the_same_seed_gives_the_same_changes() -> None:
    pixels = pictures(4)
    first = augmented(pixels, seed=(1, 2))
    assert first.dtype == np.uint8 and first.shape == pixels.shape
    assert np.array_equal(first, augmented(pixels, seed=(1, 2)))
    assert not np.array_equal(first, augmented(pixels, seed=(1, 3)))
    assert len({image.tobytes() for image in first}) == 4
    assert np.array_equal(pixels, pictures(4))


def test_images_are_not_mirrored_and_keep_their_middle() -> None:
    changed = augmented(pictures(64), seed=(0,)).astype(int)
    red_minus_blue = changed[..., 0] - changed[..., 2]
    left, right = red_minus_blue[:, 14:18, 18:22].mean(axis=(1, 2)), red_minus_blue[:, 14:18, 26:30].mean(axis=(1, 2))
    assert (left >= right).all() and (left > 30).mean() > 0.8


def test_what_is_missing_at_an_edge_repeats_it() -> None:
    white = np.full((16, 20, 20, 3), 255, np.uint8)
    changed = augmented(white, seed=(0,))
    # Brightness changes a white image as a whole.
    assert all(len(np.unique(image)) == 1 for image in changed) and changed.min() > 150


def test_frames_of_a_clip_change_alike() -> None:
    clip = np.repeat(pictures(2)[:, None], 3, axis=1)
    changed = augmented(clip, seed=(5,))
    assert changed.shape == clip.shape and (changed == changed[:, :1]).all()
    assert np.array_equal(changed[:, 0], augmented(clip[:, 0], seed=(5,)))


@pytest.fixture
def captioned(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as archive:
            for number, pixels in enumerate(pictures(4)):
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "PNG")
                said = json.dumps({"caption": f"number {number}"}).encode()
                for suffix, content in (("png", buffer.getvalue()), ("json", said)):
                    info = tarfile.TarInfo(f"{number}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return tmp_path


def test_only_training_images_are_changed(captioned: Path) -> None:
    plain, changed = (
        DataChoice("webdataset", root=captioned, augment=on).open(0, "train", size=32) for on in (False, True)
    )
    first, second = (changed.batch(index, 4, want=CAPTIONS) for index in (0, 1))
    assert not np.array_equal(first.pixels, plain.batch(0, 4, want=CAPTIONS).pixels)
    assert not np.array_equal(np.sort(first.pixels, axis=0), np.sort(second.pixels, axis=0))
    assert np.array_equal(first.pixels, changed.batch(0, 4, want=CAPTIONS).pixels)
    for stream in ("test", "samples"):
        ours, theirs = changed.on(stream).samples(4)[0], plain.on(stream).samples(4)[0]
        assert np.array_equal(ours, theirs)
    held_out = [data.on("test").batch(0, 4, want=CAPTIONS).pixels for data in (plain, changed)]
    assert np.array_equal(*held_out)
    assert changed.describe()["augment"] is True and plain.describe()["augment"] is False


def test_generated_data_are_not_augmented() -> None:
    with pytest.raises(UsageError) as caught:
        DataChoice("shapes", augment=True).open(0, "train", size=64)
    assert caught.value.exit_code == 2
