"""Reader of plain tables: a CSV or JSON lines file for each split, one row for each thing said about an image."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from simmim_export.errors import DataError
from simmim_export.training.data.readers.files import checked, finished, is_there, load_lines, no_split, read_text
from simmim_export.training.data.records import Question, Record

SUFFIXES = (".csv", ".jsonl")
# The columns that a row may fill; each group is filled whole or left empty.
GROUPS = (("question", "answer"), ("caption",), ("label",))
COLUMNS = ("image", "question", "answer", "caption", "label")
# The most characters of a cell. A longer one is probably the rest of the file after a missing quote.
LONGEST = 100_000
_FIX = "correct the line"


def read(root: Path, split: str) -> list[Record]:
    """{split}.csv or {split}.jsonl, with ``image`` (a path below ``root``) and any of ``question`` with ``answer``,
    ``caption``, ``label``.

    Rows about the same image become one record. If a question has several answers, each is right. Repeated rows and
    unknown columns are left out, with a warning. Everything else that is wrong raises :class:`DataError` with file and
    line.
    """
    present = [path for path in (root / f"{split}{suffix}" for suffix in SUFFIXES) if is_there(path)]
    if not present:
        there = [path.stem for suffix in SUFFIXES for path in root.glob(f"*{suffix}")]
        raise no_split(split, there, root=root, looked_for=[f"{split}{suffix}" for suffix in SUFFIXES])
    if len(present) > 1:
        what = f"the folder has both {' and '.join(path.name for path in present)}"
        raise DataError(what, where=root, fix="keep one of them")
    path, images = present[0], _Images(root)
    repeated, strange = 0, dict[str, None]()
    for where, row in (_csv_rows if path.suffix == ".csv" else _json_rows)(path):
        strange |= dict.fromkeys(name for name in row if name not in COLUMNS)
        repeated += not images.add({name: row.get(name, "") for name in COLUMNS}, where)
    if repeated:
        warnings.warn(f"{path}: {repeated} repeated rows are left out", stacklevel=2)
    if strange:
        warnings.warn(f"{path}: unknown columns are ignored: {', '.join(map(repr, strange))}", stacklevel=2)
    return finished(images.records(), path)


class _Images:
    """What the rows read so far say, by image."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._captions: dict[str, dict[str, None]] = {}
        self._answers: dict[str, dict[str, dict[str, float]]] = {}
        self._labels: dict[str, str] = {}

    def add(self, row: Mapping[str, str], where: str) -> bool:
        """Add a row; return whether it says anything new. Raise :class:`DataError` for a row that makes no sense."""
        key = _key(row["image"], where)
        if key not in self._captions and not is_there(self._root / key):
            fix = "correct the path, which is relative to the folder of the table, or leave the row out"
            raise DataError(f"the picture {key!r} is missing", where=where, fix=fix)
        captions, answers = self._captions.setdefault(key, {}), self._answers.setdefault(key, {})
        new = any_given = False
        for group in GROUPS:
            given = [name for name in group if row[name]]
            if given and given != list(group):
                empty = next(name for name in group if not row[name])
                raise DataError(f"the row has {given[0]!r} but not {empty!r}", where=where, fix=_FIX)
            any_given = any_given or bool(given)
        if not any_given:
            fix = "give a question and its answer, a caption or a label"
            raise DataError("the row says nothing about its image", where=where, fix=fix)
        if row["question"]:
            own = answers.setdefault(row["question"], {})
            new |= row["answer"] not in own
            own[row["answer"]] = 1.0
        if row["caption"]:
            new |= row["caption"] not in captions
            captions[row["caption"]] = None
        if row["label"]:
            new |= key not in self._labels
            known = self._labels.setdefault(key, row["label"])
            if known != row["label"]:
                what = f"the image has the label {row['label']!r} here, {known!r} before"
                raise DataError(what, where=where, fix=_FIX)
        return new

    def records(self) -> list[Record]:
        """One record for each image, in the order of the file."""
        return [
            Record(
                key,
                (self._root / key,),
                captions=tuple(captions),
                questions=tuple(Question(text, answers) for text, answers in self._answers[key].items()),
                label=self._labels.get(key),
            )
            for key, captions in self._captions.items()
        ]


def _key(name: str, where: str) -> str:
    """The path of an image below the root, with / as separator. Raise :class:`DataError` if it leaves the root."""
    if not name:
        raise DataError("the image is empty", where=where, fix=_FIX)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or Path(name).is_absolute():
        fix = "give the image's path below --data-root"
        raise DataError(f"the image {name!r} is outside the data set's folder", where=where, fix=fix)
    return str(path)


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(where, row) for each line of a CSV file that is not blank; a row maps column names to stripped cells."""
    text = read_text(path)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    names: list[str] = []
    before = csv.field_size_limit(LONGEST)
    try:
        while True:
            where = f"{path}, line {reader.line_num + 1}"
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise DataError(
                    f"malformed CSV: {error}", where=where, fix="check the quotes from this line on"
                ) from error
            if cells is None:
                break
            if not any(cell.strip() for cell in cells):
                continue
            if not names:
                names = _header([cell.strip().lower() for cell in cells], where)
                continue
            if len(cells) != len(names):
                what = f"the line has {len(cells)} cells, the header {len(names)}"
                more = "put a cell with a comma in double quotes"
                fewer = "add the missing cells, empty ones too"
                raise DataError(what, where=where, fix=more if len(cells) > len(names) else fewer)
            yield where, {name: cell.strip() for name, cell in zip(names, cells, strict=True)}
    finally:
        csv.field_size_limit(before)


def _header(names: list[str], where: str) -> list[str]:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"two columns are called {twice!r}", where=where, fix="rename one of them")
    if "image" not in names or not any(set(group) <= set(names) for group in GROUPS):
        what = f"the first line names the columns {', '.join(map(repr, names))}"
        fix = "begin the file with image,question,answer or image,caption or image,label, separated by commas"
        raise DataError(what, where=where, fix=fix)
    return names


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(where, row) for each line of a JSON lines file that is not blank; null becomes an empty cell, an integer its
    digits."""
    for where, row in load_lines(path):
        cells = dict.fromkeys(row, "")
        for name in COLUMNS:
            value = row.get(name)
            if value is not None:
                text = checked(str(value) if type(value) is int else value, str, where, f"{name!r}")
                if len(text) > LONGEST:
                    raise DataError(f"{name!r} has {len(text)} characters, more than {LONGEST}", where=where, fix=_FIX)
                cells[name] = text.strip()
        yield where, cells
