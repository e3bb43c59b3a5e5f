"""Reader of tar shards in webdataset's layout. Nothing is unpacked to disk; encoded pictures stay in memory."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

from simmim_export.errors import DataError
from simmim_export.training.data.readers.files import checked, field, finished, no_split, parsed, unique
from simmim_export.training.data.records import Question, Record

_PICTURES = ("jpg", "jpeg", "png", "webp")
_KNOWN = (*_PICTURES, "txt", "cls", "json")
_OPENERS: Mapping[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}


def read(root: Path, split: str) -> list[Record]:
    """{split}.tar, {split}-*.tar or {split}/*.tar. Members with the same name up to the first dot are one sample.

    A sample has a picture (.jpg, .jpeg, .png, .webp), and may have .txt with one caption per line, .cls with a class,
    and .json with any of ``captions``, ``caption``, ``label`` and ``questions`` (a list of objects with ``question``
    and ``answer`` or ``answers``).
    """
    flat = [path for path in root.glob("*.tar") if path.stem == split or path.stem.startswith(f"{split}-")]
    shards = sorted([*flat, *(path for path in root.glob("*/*.tar") if path.parent.name == split)])
    if not shards:
        there = [p.stem.rsplit("-", 1)[0] for p in root.glob("*.tar")] + [p.parent.name for p in root.glob("*/*.tar")]
        raise no_split(split, there, root=root, looked_for=[f"{split}.tar", f"{split}-*.tar", f"{split}/*.tar"])
    samples: dict[str, dict[str, bytes]] = {}
    places: dict[str, str] = {}
    for shard in shards:
        for name, content in _members(shard):
            folder, _, base = name.rpartition("/")
            key, _, suffix = base.partition(".")
            key = f"{folder}/{key}" if folder else key
            if suffix.lower() not in _KNOWN:
                what = f"a member of unknown kind: .{suffix}"
                raise DataError(what, where=f"{shard}, {name}", fix=f"use only {', '.join(_KNOWN)}")
            if places.setdefault(key, str(shard)) != str(shard):
                raise DataError(
                    f"the sample {key!r} occurs in two shards",
                    where=shard,
                    fix="give each a name of its own, or leave one out",
                )
            sample = samples.setdefault(key, {})
            unique(sample, suffix.lower(), f"{shard}, {name}", "in one sample, the suffix")
            sample[suffix.lower()] = content
    return finished([_record(key, sample, f"{places[key]}, {key}") for key, sample in samples.items()], root)


def _members(shard: Path) -> list[tuple[str, bytes]]:
    members = []
    name, end = "its start", 0
    try:
        with _unpacked(shard) as source, tarfile.open(fileobj=source, mode="r|") as archive:
            for member in archive:
                name = member.name
                if member.isdir():
                    end = member.offset_data
                    continue
                stream = archive.extractfile(member) if member.isfile() else None
                if stream is None:
                    raise DataError("a member is not a file", where=f"{shard}, {name}", fix="store files, not links")
                content = stream.read()
                if len(content) != member.size:
                    raise EOFError(f"{len(content)} of {member.size} bytes")
                end = member.offset_data + -(-member.size // 512) * 512
                members.append((name.removeprefix("./"), content))
        # tarfile mistakes a damaged header, or the end of a cut file, for the end of the archive. Only two empty blocks
        # with nothing behind them prove that no member was lost.
        with _unpacked(shard) as source:
            source.seek(end)
            rest = source.read()
        if len(rest) < 1024 or rest.strip(b"\0"):
            raise EOFError(
                "the file is cut off" if len(rest) < 1024 else "the next member, or the data after the end, is damaged"
            )
    # tarfile parses headers by hand, so damaged numbers can raise any of these.
    except (
        tarfile.TarError,
        EOFError,
        OSError,
        ValueError,
        OverflowError,
        LookupError,
        RecursionError,
        zlib.error,
        lzma.LZMAError,
    ) as error:
        where = f"{shard}, after {name}"
        raise DataError(f"malformed tar: {error}", where=where, fix="copy the shard again, whole") from error
    return members


def _unpacked(shard: Path) -> IO[bytes]:
    with shard.open("rb") as stream:
        magic = stream.read(2)
    return cast(IO[bytes], _OPENERS.get(magic, open)(shard, "rb"))


def _record(key: str, sample: dict[str, bytes], where: str) -> Record:
    pictures = [sample[kind] for kind in _PICTURES if kind in sample]
    if len(pictures) != 1:
        raise DataError(f"the sample has {len(pictures)} pictures, not one", where=where, fix="correct the shard")
    extra: Any = {}
    if "json" in sample:
        extra = checked(parsed(_text(sample["json"], where), f"{where}.json"), dict, where, "the .json")
    captions = [line for line in _text(sample.get("txt", b""), where).split("\n") if line.strip()]
    captions += [
        checked(c, str, where, "a caption") for c in checked(extra.get("captions", []), list, where, "'captions'")
    ]
    captions += [field(extra, "caption", str, where)] if "caption" in extra else []
    captions = [caption.strip() for caption in captions]
    if not all(captions) or ("txt" in sample and not captions):
        raise DataError("a caption is empty", where=where, fix="correct the shard")
    questions = [_question(row, where) for row in checked(extra.get("questions", []), list, where, "'questions'")]
    label = _text(sample["cls"], where) if "cls" in sample else extra.get("label")
    if label is not None:
        label = str(label if type(label) is int else checked(label, str, where, "the label")).strip()
        if not label:
            raise DataError("the label is empty", where=where, fix="correct the shard")
    return Record(key, tuple(pictures), captions=tuple(captions), questions=tuple(questions), label=label)


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
