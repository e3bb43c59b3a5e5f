"""Reader of emoji in three open styles, from the npm packages of Noto, Twemoji and OpenMoji."""

from __future__ import annotations

import hashlib
import re
import shlex
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from simmim_export.errors import DataError
from simmim_export.training.data.readers.files import checked, field, finished, load_json
from simmim_export.training.data.records import NoSplit, Record

# Where npm puts the packages below the folder, and where the OpenMoji pictures go once they are PNG.
MODULES, DRAWN = "node_modules", "openmoji-png"
NAMES = f"{MODULES}/openmoji/data/openmoji.json"
# The styles that emoji-datasource packs; the file names of their pictures are in each package's emoji.json.
PACKED = {"noto": "google", "twemoji": "twitter"}
STYLES = (*PACKED, "openmoji")
# Each split: its styles, and whether it has the emoji that are held out.
SPLITS: Mapping[str, tuple[tuple[str, ...], bool]] = {
    "train": (("noto", "twemoji"), False),
    "style": (("openmoji",), False),
    "both": (("openmoji",), True),
    "noto": (("noto",), True),
    "twemoji": (("twemoji",), True),
}
# One family of emoji in so many is held out.
HELD_OUT = 10
# Tags in a caption. An emoji with more has several captions, which are as long as the name of another: a batch is padded to its
# longest text.
TAGS = 5
# Characters of a name or of a tag; the longest name today has 44.
LONGEST = 200

_TONES = tuple(f"{point:X}" for point in range(0x1F3FB, 0x1F400))
_JOINER, _EMOJI_STYLE = "200D", "FE0F"
# Woman and man, and girl and boy, as the person and the child without a gender.
_NEUTRAL = {"1F468": "1F9D1", "1F469": "1F9D1", "1F466": "1F9D2", "1F467": "1F9D2"}
# The female and male sign, and the arrow to the right: after a joiner they turn one emoji into its variant.
_VARIANTS = ("2640", "2642", "27A1")
# Couples of one code point, as the sequences that spell them out.
_HANDS, _HEART = "1F9D1-200D-1F91D-200D-1F9D1", "1F9D1-200D-2764-200D-1F9D1"
_COUPLES = {"1F46B": _HANDS, "1F46C": _HANDS, "1F46D": _HANDS, "1F491": _HEART}
_COUPLES |= {"1F48F": "1F9D1-200D-2764-200D-1F48B-200D-1F9D1", "1FAF1-200D-1FAF2": "1F91D"}
_CODE = re.compile(r"[0-9A-F]{4,5}(-[0-9A-F]{4,5}){0,15}")
# One file in the folder of a package: no separators, no drive, no leading dot.
_PICTURE = re.compile(r"[0-9a-zA-Z][0-9a-zA-Z_-]{0,199}\.png")
PACKAGES = "emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 openmoji@17.0.0"
_COPY = "install the packages again, as docs/training.md says"


def read(root: Path, split: str) -> list[Record]:
    """The split ``train``, ``style``, ``both``, ``noto`` or ``twemoji``; the captions of a picture are the emoji's name
    and lists of up to five of its tags.

    ``train`` has Noto and Twemoji. A tenth of all emoji is held out of it: ``noto`` and ``twemoji`` have them in a style
    that training has seen, ``both`` in OpenMoji. ``style`` has OpenMoji pictures of the emoji in ``train``. Only emoji
    that all three styles have are used, without the variants of skin tones. A warning counts what is left out.
    """
    if split not in SPLITS:
        fix = f"choose one of {', '.join(SPLITS)}"
        raise NoSplit(f"the data set emoji has no split {split!r}", where=root, fix=fix)
    if not (root / MODULES).is_dir():
        fix = f"install them: npm install --ignore-scripts --prefix {shlex.quote(str(root))} {PACKAGES}"
        raise DataError(f"the folder has no {MODULES}, where npm puts packages", where=root, fix=fix)
    named = _names(root / NAMES)
    pictures = {style: _packed(root, style) for style in PACKED}
    pictures["openmoji"] = {code: root / DRAWN / f"{emoji.original}.png" for code, emoji in named.items()}
    common = [code for code in named if all(code in pictures[style] for style in STYLES)]
    if left_out := len(named) - len(common):
        what = f"{root}: {left_out} of {len(named)} emoji are left out, because not every style has them"
        warnings.warn(what, stacklevel=3)
    styles, wanted = SPLITS[split]
    if "openmoji" in styles and not (root / DRAWN).is_dir():
        svg, to = shlex.quote(f"{root / MODULES}/openmoji/color/svg/*.svg"), shlex.quote(str(root / DRAWN))
        fix = f"turn them into PNG: mkdir {to}; npx sharp-cli@6.1.0 -i {svg} -o {to} -f png resize 72 72"
        raise DataError("the pictures of OpenMoji are still SVG", where=root / DRAWN, fix=fix)
    return finished(
        [
            Record(f"{style}/{code}", (pictures[style][code],), captions=named[code].captions)
            for style in styles
            for code in common
            if held_out(code) == wanted
        ],
        root,
    )


def family(code: str) -> str:
    """The emoji ``code`` (code points in hexadecimal, joined by hyphens) without skin tone, gender and direction.

    Emoji of one family look alike, so a split must not separate them.
    """
    points = [point for point in code.split("-") if point != _EMOJI_STYLE and point not in _TONES]
    kept: list[str] = []
    for point in points:
        if point in _VARIANTS and kept and kept[-1] == _JOINER:
            kept.pop()
        else:
            kept.append(_NEUTRAL.get(point, point))
    plain = "-".join(kept)
    return _COUPLES.get(plain, plain)


def held_out(code: str) -> bool:
    """Whether the emoji ``code`` is in the tenth that is held out: by the SHA-256 of its :func:`family`, so that it stays
    there when other emoji are added."""
    return int.from_bytes(hashlib.sha256(family(code).encode()).digest()[:8], "big") % HELD_OUT == 0


class _Emoji(NamedTuple):
    """What OpenMoji says about an emoji. ``original`` is its code as in the names of OpenMoji's files."""

    original: str
    captions: tuple[str, ...]


def _names(path: Path) -> dict[str, _Emoji]:
    """Every emoji without a skin tone, by its code."""
    named: dict[str, _Emoji] = {}
    for number, entry in enumerate(checked(load_json(path), list, path, "the list of emoji")):
        where = f"{path}, [{number}]"
        code = field(entry, "hexcode", str, where)
        # OpenMoji's own additions are not emoji of Unicode, and no other style has them.
        if field(entry, "group", str, where).startswith("extras-") or field(entry, "skintone", object, where):
            continue
        key = _key(code, where)
        if key in named:
            raise DataError(f"the emoji {code!r} occurs twice", where=where, fix=_COPY)
        name = _text(field(entry, "annotation", str, where), where, "the name")
        given = field(entry, "tags", str, where)
        tags = [_text(tag, where, "a tag") for tag in given.split(",")] if given else []
        captions = -(-len(tags) // TAGS)
        lists = [", ".join(tags[first::captions]) for first in range(captions)]
        named[key] = _Emoji(code, tuple(dict.fromkeys((name, *lists))))
    return named


def _packed(root: Path, style: str) -> dict[str, Path]:
    """The picture of each emoji in a package of emoji-datasource."""
    vendor = PACKED[style]
    package = root / MODULES / f"emoji-datasource-{vendor}"
    path = package / "emoji.json"
    pictures: dict[str, Path] = {}
    for number, entry in enumerate(checked(load_json(path), list, path, "the list of emoji")):
        where = f"{path}, [{number}]"
        key, name = _key(field(entry, "unified", str, where), where), field(entry, "image", str, where)
        if _PICTURE.fullmatch(name) is None:
            raise DataError(f"{name!r} is not the name of a PNG file in the package", where=where, fix=_COPY)
        if field(entry, f"has_img_{vendor}", bool, where):
            pictures[key] = package / "img" / vendor / "64" / name
    return pictures


def _key(code: str, where: str) -> str:
    """``code`` without the selector of emoji style, which only some packages write."""
    if _CODE.fullmatch(code) is None:
        what = f"{code!r} is not a sequence of code points in hexadecimal"
        raise DataError(what, where=where, fix=_COPY)
    return "-".join(point for point in code.split("-") if point != _EMOJI_STYLE)


def _text(text: str, where: str, what: str) -> str:
    """``text`` without white space around it. Raise :class:`DataError` if it is empty, too long or not printable."""
    text = text.strip()
    if not text or len(text) > LONGEST:
        problem = f"{what} has {len(text)} characters, more than {LONGEST}" if text else f"{what} is empty"
        raise DataError(problem, where=where, fix=_COPY)
    if not text.isprintable():
        raise DataError(f"{what} has characters that cannot be printed: {text!r}", where=where, fix=_COPY)
    return text
