"""Evidence from a folder of the user's: pictures, with ``texts.txt``, ``captions.jsonl`` or both.

It is for models that bring no labeled examples. ``texts.txt`` has one text per line: the labels among which each picture chooses.
Each line of ``captions.jsonl`` has the name of a picture and the texts that describe it:
``{"image": "cat.jpg", "texts": ["a cat", "a cat on a sofa"]}``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from simmim_export.bundle import Manifest
from simmim_export.errors import DataError, FewSamples, UsageError
from simmim_export.export.origin import AnyModel
from simmim_export.precision.calibration import distinct_rows
from simmim_export.proof.asked import IMAGES, TEXTS, asked, pipeline_of
from simmim_export.proof.evidence import (
    FOLDER,
    MOST_EACH,
    MOST_IMAGES,
    MOST_TEXTS,
    MOST_WORDS,
    RETRIEVAL,
    Evidence,
    Task,
    matching,
)
from simmim_export.runtime.clips import SUFFIXES, natural
from simmim_export.runtime.images import ImagePreprocessing, load_pixels
from simmim_export.runtime.text import check_text
from simmim_export.spec import Verb
from simmim_export.system.files import read_file, reading
from simmim_export.system.npz import MAX_UNPACKED

TEXTS_FILE, CAPTIONS_FILE = "texts.txt", "captions.jsonl"
# The names of the sets: pictures that captions.jsonl names, and all others.
CAPTIONED, OTHERS = "captioned", "others"
# The most bytes of all pixels. The references and texts lie in the same file.
MOST_BYTES = MAX_UNPACKED // 4 * 3
_FIX = f"give a folder of pictures ({', '.join(SUFFIXES)}) with {TEXTS_FILE}, one text per line, or {CAPTIONS_FILE}"
_LINE = 'write one line per picture: {"image": "cat.jpg", "texts": ["a cat", "a cat on a sofa"]}'


class _Captioned(msgspec.Struct, forbid_unknown_fields=True):
    """A line of captions.jsonl."""

    image: Annotated[str, Meta(min_length=1, max_length=255)]
    texts: Annotated[list[str], Meta(min_length=1, max_length=MOST_EACH)]


def require_evidence(folder: Path, calibration: Path | None = None) -> None:
    """Raise :class:`DataError` unless ``folder`` is a directory, and :class:`UsageError` if it is also the folder of
    ``calibration``: a loss on the samples that the ranges were measured on would be too small."""
    if not folder.is_dir():
        raise DataError("no such folder of evidence", where=folder, fix=_FIX)
    if calibration is not None and calibration.is_dir() and folder.samefile(calibration):
        what = "--evidence and --calibration name the same folder, so INT8 would be judged by what it was fitted to"
        raise UsageError(what, where=folder, fix="give two folders with different pictures")


def with_evidence(model: AnyModel, folder: Path, manifest: Manifest) -> AnyModel:
    """``model`` with the evidence in ``folder``, for the model that ``manifest`` describes.

    Captions rank the pictures if the model embeds images and texts, and are matched with them if it has a head for that. Every
    picture ranks as many captions as the one with the fewest has: its first ones. The texts that each picture chooses among are
    those of texts.txt or, without it, all captions. Copies of a picture count once, with a :class:`FewSamples` warning, because
    only different pictures say more about a loss.

    Raise :class:`UsageError` if the model brings evidence of its own or has no use for the folder, and as :func:`read_folder`.
    """
    if model.evidence:
        what = "the checkpoint carries labeled examples of its own"
        raise UsageError(what, where=folder, fix="leave out --evidence: they are the evidence")
    images, captions, texts = read_folder(folder, model.preprocessing["image"])
    tasks = _tasks(captions, manifest) if captions else {}
    if captions and not tasks:
        what = f"{CAPTIONS_FILE} is for models that embed images and texts, or match them"
        raise UsageError(what, where=folder / CAPTIONS_FILE, fix=f"remove it, and write {TEXTS_FILE}")
    told = (text for row in captions for text in row)
    source = {"name": FOLDER, "folder": folder.name, **{f"{name} images": len(rows) for name, rows in images.items()}}
    plain = tuple(dict.fromkeys(texts or told))
    evidence = Evidence(images=images, tasks=tasks, source=source, plain=plain)
    if not asked(evidence, manifest):
        what = f"the model {model.config['preset']!r} gives no embeddings, and has no use for --evidence"
        raise UsageError(what, where=folder, fix="leave out --evidence")
    try:
        evidence.check()
    except ValueError as error:
        raise DataError(f"it cannot be evidence: {error}", where=folder, fix="use fewer or shorter texts") from error
    return replace(model, evidence=evidence.save())


def _tasks(captions: Sequence[Sequence[str]], manifest: Manifest) -> dict[str, Task]:
    tasks: dict[str, Task] = {}
    each = min(map(len, captions))
    if None not in (pipeline_of(manifest, IMAGES), pipeline_of(manifest, TEXTS)):
        rows = tuple(tuple(row[:each]) for row in captions)
        tasks[RETRIEVAL] = Task(images=CAPTIONED, texts=rows, labels=np.zeros((len(rows), each), np.int64))
    match, pairs = manifest.pipeline_for(Verb.MATCH), matching(captions, CAPTIONED)
    if match is not None and pairs is not None:
        tasks[match.labels] = pairs
    return tasks


def read_folder(
    folder: Path, preprocessing: Mapping[str, object]
) -> tuple[dict[str, np.ndarray], list[list[str]], list[str]]:
    """The pictures in ``folder`` by set, uint8 [n, H, W, 3]; the captions of each picture in the set :data:`CAPTIONED`; and the
    lines of texts.txt. ``preprocessing`` is the manifest's for images.

    Raise :class:`DataError` for a folder without pictures, or without texts and captions, for more than evidence may hold, for a
    picture that is a link to a file elsewhere, and for a line of captions.jsonl that is damaged or names no picture, or one a
    second time; :class:`ImageError` for a damaged picture; and :class:`TextError` for a text that is empty or not UTF-8.
    """
    require_evidence(folder)
    with reading(folder, DataError):
        names = {path.name: path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES}
        strays = [path for path in names.values() if not path.resolve().is_relative_to(folder.resolve())]
    if not names:
        raise DataError("no pictures to judge by", where=folder, fix=_FIX)
    if strays:
        raise DataError("this picture is a link to a file outside of its folder", where=strays[0], fix="copy the file")
    captions, texts = _captions(folder / CAPTIONS_FILE, names), _texts(folder / TEXTS_FILE)
    if not captions and not texts:
        raise DataError("pictures, and no texts to judge by", where=folder, fix=_FIX)
    size = ImagePreprocessing.from_json(preprocessing)
    most = min(MOST_IMAGES, MOST_BYTES // (3 * size.height * size.width))
    if len(names) > most:
        what = f"{len(names):,} pictures; evidence of this size holds {most:,}"
        raise DataError(what, where=folder, fix=f"remove {len(names) - most:,} of them")
    told = [*captions, *sorted(names.keys() - captions.keys(), key=natural)]
    pixels = load_pixels([names[name] for name in told], size)
    kept = distinct_rows(pixels)
    copies = [told[row] for row in sorted(set(range(len(told))) - set(kept))]
    if copies:
        what = f"{folder} has pictures that are copies of others, and count once: {', '.join(copies[:3])}"
        warnings.warn(f"{what}{', ...' if len(copies) > 3 else ''} ({len(copies)} in all)", FewSamples, stacklevel=3)
    sets = {CAPTIONED: [r for r in kept if r < len(captions)], OTHERS: [r for r in kept if r >= len(captions)]}
    images = {name: pixels[rows] for name, rows in sets.items() if rows}
    return images, [captions[told[row]] for row in sets[CAPTIONED]], texts


def _captions(path: Path, names: Mapping[str, Path]) -> dict[str, list[str]]:
    """The texts of each picture in captions.jsonl, which are names in ``names``; nothing if there is no such file."""
    captions: dict[str, list[str]] = {}
    for where, line in _lines(path):
        try:
            row = msgspec.json.decode(line, type=_Captioned)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(f"not a picture with its texts: {error}", where=where, fix=_LINE) from error
        if row.image not in names:
            what = f"{row.image!r} is not the name of a picture in this folder"
            raise DataError(what, where=where, fix=f"put the picture beside {CAPTIONS_FILE}, or remove the line")
        if row.image in captions:
            what = f"{row.image!r} has a line before this one"
            raise DataError(what, where=where, fix="write all texts of a picture in one line")
        captions[row.image] = list(dict.fromkeys(check_text(text, where) for text in row.texts))
    return captions


def _texts(path: Path) -> list[str]:
    """The lines of texts.txt that are not blank, each once; nothing if there is no such file."""
    return list(dict.fromkeys(check_text(line, where) for where, line in _lines(path)))


def _lines(path: Path) -> list[tuple[str, bytes]]:
    """Each line of ``path`` that is not blank, with its place for messages."""
    if not path.exists() and not path.is_symlink():
        return []
    try:
        with reading(path, DataError):
            content = read_file(path, most=MOST_WORDS)
    except ValueError as error:
        raise DataError(
            f"it cannot be read: {error}", where=path, fix=f"make it smaller, or remove {path.name}"
        ) from error
    lines = [(f"{path}, line {number}", line) for number, line in enumerate(content.splitlines(), 1) if line.strip()]
    if not lines or len(lines) > MOST_TEXTS:
        what = f"it has {len(lines):,} lines; 1 to {MOST_TEXTS:,} are read"
        raise DataError(what, where=path, fix=f"write other lines, or remove {path.name}")
    return lines
