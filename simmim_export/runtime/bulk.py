"""Runs a verb over many images or texts: a bad item is set aside and reported, and the others go on."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from simmim_export.errors import ImageError, InputError, TextError
from simmim_export.runtime.clips import SUFFIXES, natural
from simmim_export.runtime.runtime import Runtime
from simmim_export.system.files import reading

Row = TypeVar("Row")
Watch = Callable[[str, int, int], None]
# What counts as a picture in a folder: the formats that are read, by their usual suffixes.
PICTURES = (*SUFFIXES, ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".mpo", ".ico", ".avif", ".jp2", ".jpe", ".jfif")


class Item(NamedTuple):
    """``value`` is what a verb takes, ``source`` its name in results, ``where`` its place in messages."""

    value: Path | str
    source: str
    where: str


class Failure(NamedTuple):
    """An item that could not be used, and why."""

    source: str
    error: InputError

    def as_json(self) -> dict[str, str | None]:
        """``source``, ``error`` (what is wrong) and ``where`` (its place)."""
        return {"source": self.source, "error": self.error.what, "where": self.error.where}


@dataclass(frozen=True)
class Outcome(Generic[Row]):
    """What became of ``items``: ``rows`` holds the result, and ``failures`` the failure, of each by its index."""

    items: Sequence[Item]
    rows: Mapping[int, Row]
    failures: Mapping[int, Failure]

    @property
    def sources(self) -> list[str]:
        """The names of the items that have a row, in the order of ``rows``."""
        return [self.items[index].source for index in self.rows]

    def as_json(self, row: Callable[[str, Row], Any]) -> list[Any]:
        """For each item in order ``row(source, result)``, or its failure."""
        return [
            row(item.source, self.rows[index]) if index in self.rows else self.failures[index].as_json()
            for index, item in enumerate(self.items)
        ]

    def require_all(self, verb: str) -> None:
        """Raise :class:`InputError`, saying how many, if any item failed. ``verb`` is a participle such as ``embedded``."""
        if self.failures:
            what = f"{len(self.failures)} of {len(self.items)} could not be {verb}"
            raise InputError(what, fix="mend or leave out what was named above; --strict stops at the first")


def pictures(paths: Sequence[Path], recursive: bool = False) -> list[Item]:
    """The files in ``paths``, and in place of each folder its pictures in natural order, with ``recursive`` in folders below it.

    In a folder a picture is what has a suffix of ``PICTURES`` and no leading dot. A link to a file is followed wherever it
    points; a link to a folder below is not, since it could lead in a circle. Raise :class:`ImageError` for a folder without
    pictures and for one that cannot be read. Files are not opened here.
    """
    items = []
    for path in paths:
        files = _in_folder(path, recursive) if path.is_dir() else [path]
        items += [Item(file, str(file), str(file)) for file in files]
    return items


def _in_folder(folder: Path, recursive: bool) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise error

    files: list[Path] = []
    deeper = False
    with reading(folder, ImageError):
        for above, folders, names in os.walk(folder, onerror=refuse):
            # Links to folders are listed among the folders, and not entered. A pipe would never end.
            inside = [Path(above) / name for name in names if Path(name).suffix.lower() in PICTURES and name[0] != "."]
            files += [path for path in inside if path.is_file() or not path.exists()]
            if not recursive:
                deeper = bool(folders)
                break
    if not files:
        more = "add --recursive for the folders in it, or " if deeper else ""
        raise ImageError("no pictures in the folder", where=folder, fix=f"{more}give files in {', '.join(PICTURES)}")
    return sorted(files, key=lambda path: [natural(part) for part in path.relative_to(folder).parts])


def texts(given: Sequence[str], kind: str = "text") -> list[Item]:
    """Texts of a command line; messages count them from 1 by their ``kind``."""
    return [Item(text, text, f"{kind} {number}") for number, text in enumerate(given, start=1)]


def read_texts(path: Path) -> list[Item]:
    """One text per line of a UTF-8 file; an empty line is a text of its own, which will fail by its number.

    Raise :class:`TextError` for a file that cannot be read, and for one without a line.
    """
    with reading(path, TextError):
        if not path.exists():
            raise TextError("no such file of texts", where=path, fix="check the path")
        if path.is_dir():
            what = "this is a folder, and a file of texts is needed"
            raise TextError(what, where=path, fix="give a file with one text per line")
        data = path.read_bytes()
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise TextError("the file of texts is empty", where=path, fix="write one text per line")
    # Bytes that are not UTF-8 become lone surrogates, for which a text is refused by its own line.
    decoded = [line.removesuffix(b"\r").decode("utf-8", errors="surrogateescape") for line in lines]
    return [Item(text, text, f"{path}, line {number}") for number, text in enumerate(decoded, start=1)]


def run_each(
    items: Sequence[Item],
    prepare: Callable[[int, Any], Any],
    compute: Callable[[list[Any]], Iterable[Row]],
    *,
    batch: int,
    strict: bool = False,
    watch: Watch = lambda *_: None,
    failed: Callable[[Failure], None] = lambda failure: None,
) -> Outcome[Row]:
    """Give ``items`` to ``compute`` in batches of at most ``batch``, each first through ``prepare(index, value)``.

    An item that ``prepare`` refuses with an :class:`ImageError` or a :class:`TextError` is left out, and ``failed`` hears of it
    at once; with ``strict`` its error is raised. What ``compute`` raises concerns no single item and is raised. At most one
    batch of prepared items is held. Warnings of one class are given once, with their number, when everything is done.
    """
    rows: dict[int, Row] = {}
    failures: dict[int, Failure] = {}
    with _warnings_once() as counted:
        for start in range(0, len(items), batch):
            watch("items", start, len(items))
            ready: dict[int, Any] = {}
            for index in range(start, min(start + batch, len(items))):
                try:
                    ready[index] = prepare(index, items[index].value)
                except (ImageError, TextError) as error:
                    placed = type(error)(error.what, where=items[index].where, fix=error.fix)
                    if strict:
                        raise placed from error
                    failures[index] = Failure(items[index].source, placed)
                    failed(failures[index])
            if ready:
                with warnings.catch_warnings():
                    # Preparing has said these already; the verb reads the same texts again.
                    for category in counted:
                        warnings.simplefilter("ignore", category)
                    rows.update(zip(ready, compute(list(ready.values())), strict=True))
        watch("items", len(items), len(items))
    return Outcome(items, rows, failures)


@contextmanager
def _warnings_once() -> Iterator[dict[type[Warning], tuple[int, str]]]:
    """For a block of one thread: warnings are held back, and given afterwards once for each class, with the first message and
    how many there were. Yields the classes so far."""
    counted: dict[type[Warning], tuple[int, str]] = {}

    def count(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        number, first = counted.get(category, (0, str(message)))
        counted[category] = (number + 1, first)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = count
            yield counted
    finally:
        for category, (number, first) in counted.items():
            warnings.warn(first if number == 1 else f"{first} (and {number - 1} more like it)", category, stacklevel=3)


def largest_batch(model: Runtime, pipeline: str) -> int:
    """The most rows that every graph of ``pipeline`` takes at once."""
    manifest = model.bundle.manifest
    return min(manifest.graph(name).axis("batch").maximum for name in manifest.pipeline(pipeline).graphs)


def embed(model: Runtime, items: Sequence[Item], **options: Any) -> Outcome[np.ndarray]:
    """A unit-length float32 [E] for each of ``items``, which are all images (paths) or all texts (str).

    ``options`` are those of :func:`run_each`: ``strict``, ``watch``, ``failed``.
    """
    if any(isinstance(item.value, str) for item in items):
        return run_texts(model, items, model.embed_text, "embed_text", **options)

    def decode(_: int, path: Path) -> np.ndarray:
        return model.pixels([path])[0]

    # Pixels of the graph's own size go through the verb unchanged, so that each file is decoded once.
    return run_each(items, decode, model.embed_image, batch=largest_batch(model, "embed_image"), **options)


def stacked(outcome: Outcome[np.ndarray]) -> np.ndarray:
    """The rows of ``outcome``, of which there is at least one, as one array [n, ...]."""
    return np.stack(list(outcome.rows.values()))


def run_texts(
    model: Runtime,
    items: Sequence[Item],
    verb: Callable[[list[str]], Iterable[Row]],
    pipeline: str,
    **options: Any,
) -> Outcome[Row]:
    """``verb`` of a list of texts, such as ``model.embed_text``, over ``items``; ``options`` as for :func:`run_each`."""

    def check(index: int, text: str) -> str:
        model.tokens([text], index)
        return text

    return run_each(items, check, verb, batch=largest_batch(model, pipeline), **options)
