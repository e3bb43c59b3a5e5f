"""JSON, JSON lines and pictures on disk; errors name the file and the record."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from simmim_export.errors import DataError
from simmim_export.training.data.records import NoSplit, Record

# The byte order marks of UTF-16.
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def load_json(path: Path) -> Any:
    """The content of a JSON file. Raise :class:`DataError`, with line and column, if it is missing or malformed."""
    return parsed(read_text(path), path)


def parsed(text: str, where: object, line: int = 1) -> Any:
    """The value of a JSON text that begins on line ``line`` of ``where``. Raise :class:`DataError` with line and
    column."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        what, where = f"malformed JSON: {error.msg}", f"{where}, line {line + error.lineno - 1}, column {error.colno}"
        raise DataError(what, where=where, fix="copy the file again, whole") from error
    except (ValueError, RecursionError) as error:  # a number of more than 4,300 digits, lists in lists in lists
        raise DataError(f"malformed JSON: {error}", where=where, fix="copy the file again, whole") from error


def load_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) for each line of a JSON lines file."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, checked(parsed(line, path, number), dict, where, "a record")


def read_text(path: Path) -> str:
    """The text of a UTF-8 file without its byte order mark. Raise :class:`DataError` if it is missing, unreadable or,
    with the line, not UTF-8."""
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(
            "the file is missing", where=path, fix="give the data set's folder in its public layout"
        ) from error
    except OSError as error:
        raise DataError(f"the file cannot be read: {error}", where=path, fix="copy it again, whole") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        where = path if content[:2] in _UTF_16 else f"{path}, line {line}"
        what = (
            "the file is in UTF-16, not in UTF-8"
            if content[:2] in _UTF_16
            else f"the file is not in UTF-8: {error.reason}"
        )
        raise DataError(what, where=where, fix="save it as UTF-8, or copy it again, whole") from error


def is_there(path: Path) -> bool:
    """Whether ``path`` is a file; false for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def split_file(root: Path, pattern: str, split: str) -> Path:
    """The file ``pattern`` below ``root``, with ``split`` in place of its star. Raise :class:`NoSplit` if it is missing."""
    path = root / pattern.replace("*", split)
    if not is_there(path):
        before, after = pattern.split("*")
        there = (p.relative_to(root).as_posix().removeprefix(before).removesuffix(after) for p in root.glob(pattern))
        raise no_split(split, there, root=root, looked_for=[pattern.replace("*", split)])
    return path


def checked(value: Any, kind: type, where: object, what: str) -> Any:
    """``value`` if it is a ``kind``, else :class:`DataError`. A bool does not count as an int."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise DataError(f"{what} is {type(value).__name__}, not {kind.__name__}", where=where, fix="correct the record")
    return value


def field(record: Any, name: str, kind: type, where: object) -> Any:
    """``record[name]`` if it is a ``kind``, else :class:`DataError` naming record and field."""
    if name not in checked(record, dict, where, "a record"):
        raise DataError(f"the record has no {name!r}", where=where, fix="correct the record")
    return checked(record[name], kind, where, f"{name!r}")


def rows(content: Any, name: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, record) for each member of the list ``content[name]``."""
    for number, record in enumerate(field(content, name, list, path)):
        where = f"{path}, {name}[{number}]"
        yield where, checked(record, dict, where, "a record")


def unique(known: Mapping[Any, object], key: Any, where: object, what: str) -> None:
    """Raise :class:`DataError` if ``key`` is already in ``known``."""
    if key in known:
        raise DataError(f"{what} {key!r} occurs twice", where=where, fix="leave one of them out")


def finished(records: Sequence[Record], where: object) -> list[Record]:
    """``records``. Raise :class:`DataError` if there are none, or if a picture is missing on disk (naming the first)."""
    if not records:
        raise DataError("the split is empty", where=where, fix="check the folder and the split")
    missing = [image for r in records for image in r.images if isinstance(image, Path) and not is_there(image)]
    if missing:
        what = f"{len(missing)} of {sum(len(r.images) for r in records)} pictures are missing"
        raise DataError(what, where=missing[0], fix="unpack the images in the public layout")
    return list(records)


def no_split(split: str, there: Iterable[str], *, root: Path, looked_for: Sequence[str]) -> NoSplit:
    """The error for a missing split: which files (or folders, ending in /) below ``root`` were looked for, and which
    splits exist."""
    names = ", ".join(sorted(set(there))) or "none"
    what = f"split {split!r} is missing: looked for {' or '.join(looked_for)}"
    return NoSplit(what, where=root, fix=f"give the folder of the data set with --data-root; splits found: {names}")
