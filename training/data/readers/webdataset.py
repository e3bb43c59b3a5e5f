"""Tar shards in webdataset's layout. Knows tar; must not know pixels. Nothing is unpacked to disk; pictures stay in
memory as they are encoded."""

from __future__ import annotations

import json
import tarfile
import zlib
from pathlib import Path
from typing import Any

from simmim_export.errors import DataError
from simmim_export.training.data.readers.files import checked, field, finished, no_split, unique
from simmim_export.training.data.records import Question, Record

_PICTURES = ("jpg", "jpeg", "png", "webp")
_KNOWN = (*_PICTURES, "txt", "cls", "json")


def read(root: Path, split: str) -> list[Record]:
    """{split}.tar, {split}-*.tar or {split}/*.tar. Members that share a name up to its first dot are one sample:

    a picture (.jpg, .jpeg, .png, .webp), .txt with a caption a line, .cls with a class, .json with any of ``captions``,
    ``caption``, ``label`` and ``questions`` (a list of objects with ``question`` and ``answer`` or ``answers``).
    """
    shards = sorted({*root.glob(f"{split}.tar"), *root.glob(f"{split}-*.tar"), *(root / split).glob("*.tar")})
    if not shards:
        there = [p.stem.rsplit("-", 1)[0] for p in root.glob("*.tar")] + [p.parent.name for p in root.glob("*/*.tar")]
        raise no_split(split, there, root)
    samples: dict[str, dict[str, bytes]] = {}
    places: dict[str, str] = {}
    for shard in shards:
        for name, content in _members(shard):
            folder, _, base = name.rpartition("/")
            key, _, suffix = base.partition(".")
            key = f"{folder}/{key}" if folder else key
            if suffix.lower() not in _KNOWN:
                what = f"a member of unknown kind: .{suffix}"
                raise DataError(what, where=f"{shard}, {name}", fix=f"known are {', '.join(_KNOWN)}")
            if places.setdefault(key, str(shard)) != str(shard):
                raise DataError(f"the sample {key!r} occurs in two shards", where=shard, fix="leave one of them out")
            sample = samples.setdefault(key, {})
            unique(sample, suffix.lower(), f"{shard}, {name}", "in one sample, the suffix")
            sample[suffix.lower()] = content
    return finished([_record(key, sample, f"{places[key]}, {key}") for key, sample in samples.items()], root)


def _members(shard: Path) -> list[tuple[str, bytes]]:
    found = []
    name, end = "its start", 0
    try:
        with tarfile.open(shard, "r|*") as archive:
            for member in archive:
                name, end = member.name, member.offset_data + -(-member.size // 512) * 512
                stream = archive.extractfile(member) if member.isfile() else None
                if stream is not None:
                    content = stream.read()
                    if len(content) != member.size:
                        raise EOFError(f"{len(content)} of {member.size} bytes")
                    found.append((name.removeprefix("./"), content))
    # tarfile parses headers by hand: damaged numbers surface as any of these.
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, zlib.error, LookupError) as error:
        where = f"{shard}, after {name}"
        raise DataError(f"malformed tar: {error}", where=where, fix="copy the shard again, whole") from error
    # A shard that was cut between two members reads as a shorter one; only the two empty blocks at its end say that it
    # is whole. (A compressed one says so by itself.)
    with shard.open("rb") as stream:
        plain = stream.read(2) not in (b"\x1f\x8b", b"BZ", b"\xfd7")
    if plain and shard.stat().st_size < end + 1024:
        where = f"{shard}, after {name}"
        raise DataError("malformed tar: it has no end", where=where, fix="copy the shard again, whole")
    return found


def _record(key: str, sample: dict[str, bytes], where: str) -> Record:
    pictures = [sample[kind] for kind in _PICTURES if kind in sample]
    if len(pictures) != 1:
        raise DataError(f"the sample has {len(pictures)} pictures, not one", where=where, fix="correct the shard")
    extra: Any = {}
    if "json" in sample:
        try:
            extra = checked(json.loads(_text(sample["json"], where)), dict, where, "the .json")
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"malformed JSON: {error}", where=f"{where}.json", fix="correct the shard") from error
    captions = [line.strip() for line in _text(sample.get("txt", b""), where).splitlines() if line.strip()]
    captions += [
        checked(c, str, where, "a caption") for c in checked(extra.get("captions", []), list, where, "'captions'")
    ]
    captions += [field(extra, "caption", str, where)] if "caption" in extra else []
    questions = [_question(row, where) for row in checked(extra.get("questions", []), list, where, "'questions'")]
    label = _text(sample["cls"], where).strip() if "cls" in sample else extra.get("label")
    return Record(
        key,
        tuple(pictures),
        captions=tuple(captions),
        questions=tuple(questions),
        label=None if label is None else str(label),
    )


def _question(row: Any, where: str) -> Question:
    text = field(row, "question", str, where)
    if "answer" in row:
        return Question(text, {field(row, "answer", str, where): 1.0})
    given = field(row, "answers", list, where)
    return Question(text, {checked(answer, str, where, "an answer"): 1.0 for answer in given})


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"a text is not UTF-8: {error}", where=where, fix="correct the shard") from error
