"""The reader of emoji on a small folder in the layout of the npm packages, and on everything that can be wrong with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from simmim_export.errors import DataError, ImageError, SimmimError, UsageError
from simmim_export.training.data import DataChoice
from simmim_export.training.data.base import CAPTIONS
from simmim_export.training.data.readers import read
from simmim_export.training.data.readers.emoji import SPLITS, family, held_out

# Code as OpenMoji writes it, name, tags. The last is only in OpenMoji, and the one before is its own addition.
EMOJI = (
    ("1F600", "grinning face", "cheerful, face, grin, happy, laugh, smile"),
    ("2764", "red heart", "emotion, heart, love, red"),
    ("1F408", "cat", "animal, cat, pet"),
    ("1F436", "dog face", "dog, face, pet, puppy"),
    ("1F44B", "waving hand", "bye, hand, hello, wave"),
    ("1F44B-1F3FD", "waving hand: medium skin tone", ""),
    ("1F3C3", "person running", "fast, marathon, racing"),
    ("1F3C3-200D-2640-FE0F", "woman running", ""),
    ("E000", "gadget", "gadget"),
    ("1FAEA", "distorted face", "face"),
)
MODULES = "node_modules"
OPENMOJI, GOOGLE = f"{MODULES}/openmoji/data/openmoji.json", f"{MODULES}/emoji-datasource-google/emoji.json"


def draw(path: Path, size: int, color: tuple[int, int, int]) -> None:
    """A disk on a transparent ground."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    ImageDraw.Draw(picture).ellipse((8, 8, size - 8, size - 8), fill=(*color, 255))
    picture.save(path)


def packages(root: Path) -> Path:
    """The packages as npm unpacks them, with the fields and the spelling of codes that each has."""
    entries, rows = [], []
    for number, (code, name, tags) in enumerate(EMOJI):
        color, tone = (20 * number, 200, 50), 4 if code.endswith("1F3FD") else ""
        group = "extras-openmoji" if code == "E000" else "smileys-emotion"
        entries.append(
            {"emoji": "x", "hexcode": code, "group": group, "annotation": name, "tags": tags, "skintone": tone}
        )
        draw(root / f"openmoji-png/{code}.png", 72, color)
        if code in ("E000", "1FAEA") or tone:
            continue
        unified = "2764-FE0F" if code == "2764" else code
        file = f"{unified.lower()}.png"
        rows.append({"name": name.upper(), "unified": unified, "image": file, "short_names": [name]})
        rows[-1] |= {"has_img_google": True, "has_img_twitter": True}
        for vendor in ("google", "twitter"):
            draw(root / f"{MODULES}/emoji-datasource-{vendor}/img/{vendor}/64/{file}", 64, color)
    for vendor in ("google", "twitter"):
        (root / f"{MODULES}/emoji-datasource-{vendor}/emoji.json").write_text(json.dumps(rows))
    (root / OPENMOJI).parent.mkdir(parents=True)
    (root / OPENMOJI).write_text(json.dumps(entries))
    return root


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packages(tmp_path_factory.mktemp("emoji"))


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "data"))


def codes(root: Path, split: str) -> set[str]:
    with pytest.warns(UserWarning, match="1 of 8"):
        return {record.key.partition("/")[2] for record in read("emoji", root, split)}


def test_every_style_and_caption_is_read(whole: Path) -> None:
    with pytest.warns(UserWarning, match="1 of 8"):
        records = {record.key: record for record in read("emoji", whole, "train")}
    assert {key.partition("/")[0] for key in records} == {"noto", "twemoji"}
    face = records["noto/1F600"]
    assert face.captions == ("grinning face", "cheerful, grin, laugh", "face, happy, smile")
    assert face.images == (whole / f"{MODULES}/emoji-datasource-google/img/google/64/1f600.png",)
    with pytest.warns(UserWarning, match="1 of 8"):
        heart = next(record for record in read("emoji", whole, "noto") if record.key == "noto/2764")
    assert heart.captions == ("red heart", "emotion, heart, love, red") and heart.images[0].name == "2764-fe0f.png"
    # Neither the variant of a skin tone, nor OpenMoji's own addition, nor what only one style has.
    assert not [key for key in records if any(odd in key for odd in ("1F3FD", "E000", "1FAEA"))]


def test_no_split_shares_pictures_or_held_out_emoji_with_training(whole: Path) -> None:
    parts = {split: codes(whole, split) for split in SPLITS}
    assert parts["train"] == parts["style"] and parts["both"] == parts["noto"] == parts["twemoji"]
    assert parts["train"] and parts["both"] and not parts["train"] & parts["both"]
    assert parts["train"] | parts["both"] == {"1F600", "2764", "1F408", "1F436", "1F44B", "1F3C3", "1F3C3-200D-2640"}
    with pytest.warns(UserWarning):
        pictures = {split: [record.images[0] for record in read("emoji", whole, split)] for split in SPLITS}
    every = [picture for split in pictures.values() for picture in split]
    assert len(every) == len(set(every)) == 3 * 7


@pytest.mark.parametrize(
    "alike",
    [
        ("1F44B", "1F44B-1F3FB", "1F44B-1F3FF"),
        ("1F3C3", "1F3C3-200D-2640-FE0F", "1F3C3-1F3FD-200D-2642", "1F3C3-200D-2640-FE0F-200D-27A1-FE0F"),
        ("1F9D1-200D-1F3A8", "1F468-200D-1F3A8", "1F469-1F3FC-200D-1F3A8"),
        ("1F46D", "1F469-1F3FB-200D-1F91D-200D-1F469-1F3FF", "1F46B-1F3FB"),
        ("1F491", "1F469-200D-2764-FE0F-200D-1F468"),
        ("1F91D", "1FAF1-1F3FB-200D-1FAF2-1F3FF"),
    ],
)
def test_variants_of_one_emoji_are_held_out_together(alike: tuple[str, ...]) -> None:
    assert len({family(code) for code in alike}) == 1 and len({held_out(code) for code in alike}) == 1


def test_different_emoji_are_different_families() -> None:
    assert len({family(code) for code in ("1F600", "1F601", "2640-FE0F", "1F468", "1F466", "1F468-200D-1F3A8")}) == 6


def test_a_tenth_is_held_out() -> None:
    points = [f"{point:X}" for point in range(0x1F600, 0x1FA00)]
    assert 0.08 < np.mean([held_out(point) for point in points]) < 0.12


def test_transparency_is_flattened_over_white(whole: Path) -> None:
    with pytest.warns(UserWarning):
        data = DataChoice("emoji", root=whole).open(0, "test", size=64)
        batch = data.batch(0, 2, want=CAPTIONS)
    assert batch.pixels.shape == (2, 64, 64, 3) and (batch.pixels[:, 0, 0] == 255).all()
    assert (batch.pixels[:, 32, 32, 1] == 200).all()


def test_the_streams_are_the_splits(whole: Path) -> None:
    with pytest.warns(UserWarning):
        choice = DataChoice("emoji", root=whole)
        splits = {
            stream: choice.open(0, stream, size=64).split for stream in ("train", "val", "test", "noto", "samples")
        }
    assert splits == {"train": "train", "val": "style", "test": "both", "noto": "noto", "samples": "train"}


def edit(path: Path, number: int, **changes: object) -> None:
    entries = json.loads(path.read_text())
    entries[number] |= changes
    path.write_text(json.dumps(entries))


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


BAD = {
    "no packages": (lambda root: remove(root / MODULES), ""),
    "no names": (lambda root: remove(root / OPENMOJI), OPENMOJI),
    "no file names": (lambda root: remove(root / GOOGLE), GOOGLE),
    "no PNG of OpenMoji": (lambda root: remove(root / "openmoji-png"), "openmoji-png"),
    "a missing picture": (lambda root: remove(root / "openmoji-png/1F600.png"), "openmoji-png/1F600.png"),
    "not JSON": (lambda root: (root / GOOGLE).write_text("[{"), GOOGLE),
    "not a list": (lambda root: (root / GOOGLE).write_text("{}"), GOOGLE),
    "not an object": (lambda root: (root / GOOGLE).write_text("[3]"), GOOGLE),
    "no emoji": (lambda root: (root / GOOGLE).write_text("[]"), ""),
    "a path in a file name": (lambda root: edit(root / GOOGLE, 1, image="../../../secret.png"), GOOGLE),
    "an absolute path": (lambda root: edit(root / GOOGLE, 1, image="/etc/passwd"), GOOGLE),
    "a path in a code": (lambda root: edit(root / OPENMOJI, 1, hexcode="../1F600"), OPENMOJI),
    "a code twice": (lambda root: edit(root / OPENMOJI, 1, hexcode="1F600"), OPENMOJI),
    "a control character": (lambda root: edit(root / OPENMOJI, 1, annotation="red\x1b[31m heart"), OPENMOJI),
    "a line break in a tag": (lambda root: edit(root / OPENMOJI, 1, tags="love, h\ne"), OPENMOJI),
    "an empty name": (lambda root: edit(root / OPENMOJI, 1, annotation=" "), OPENMOJI),
    "a long name": (lambda root: edit(root / OPENMOJI, 1, annotation="x" * 201), OPENMOJI),
    "a name that is a number": (lambda root: edit(root / OPENMOJI, 1, annotation=7), OPENMOJI),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bad_packages_are_errors_that_name_the_file(copied: Path, what: str) -> None:
    change, place = BAD[what]
    change(copied)
    with pytest.raises(DataError) as caught:
        read("emoji", copied, "style")
    assert caught.value.exit_code == 5 and caught.value.fix
    assert str(caught.value.where).startswith(str(copied / place))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_picture_is_named(copied: Path) -> None:
    path = copied / "openmoji-png/1F600.png"
    path.write_bytes(path.read_bytes()[:100])
    data = DataChoice("emoji", root=copied).open(0, "val", size=64)
    with pytest.raises(ImageError) as caught:
        data.batch(0, data.limit("captions") or 0, want=CAPTIONS)
    assert caught.value.exit_code == 5 and caught.value.where == str(path)


def test_an_unknown_stream_is_a_usage_error(whole: Path) -> None:
    with pytest.raises(UsageError) as caught:
        _ = DataChoice("emoji", root=whole).open(0, "openmoji", size=64).split  # type: ignore[attr-defined]
    assert caught.value.exit_code == 2


def test_npm_is_called_safely_for_a_folder_with_a_space(tmp_path: Path) -> None:
    (tmp_path / "my data").mkdir()
    with pytest.raises(SimmimError) as caught:
        read("emoji", tmp_path / "my data", "train")
    assert f"'{tmp_path}/my data'" in str(caught.value.fix)
