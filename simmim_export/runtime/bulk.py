"""Runs a verb over many images or texts, and saves vectors. An item that cannot be used is reported, and the others go on."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from simmim_export.errors import ImageError, InputError, TextError, TruncatedText, UnknownWords, UsageError
from simmim_export.runtime.clips import SUFFIXES, natural
from simmim_export.runtime.model import Model
from simmim_export.spec import Verb
from simmim_export.system.files import reading
from simmim_export.system.outputs import destination, replacing
from simmim_export.system.watch import Watch, unwatched

Row = TypeVar("Row")
# Files with these suffixes are the pictures of a folder: the usual suffixes of all formats that we read.
PICTURES = (*SUFFIXES, ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".mpo", ".ico", ".avif", ".jp2", ".jpe", ".jfif")
# NumPy stores every text at the width of the longest, so a single long text among many would take all memory.
MOST_BYTES = 2**30


class Item(NamedTuple):
    """An image or text that a verb takes. Results name it by its ``source``, and messages by ``where`` it comes from."""

    value: Path | str
    source: str
    where: str


class Failure(NamedTuple):
    """The ``source`` of an item that could not be used, and why."""

    source: str
    error: InputError

    def as_json(self) -> dict[str, str | None]:
        """``source``, ``error`` (what is wrong) and ``where`` (its place)."""
        return {"source": self.source, "error": self.error.what, "where": self.error.where}


@dataclass(frozen=True, kw_only=True)
class Outcome(Generic[Row]):
    """The result of each of ``items``. By the item's index, ``rows`` has its result or ``failures`` why it has none."""

    items: Sequence[Item]
    rows: Mapping[int, Row]
    failures: Mapping[int, Failure]

    @property
    def sources(self) -> list[str]:
        """The sources of the items that have a row, in the order of ``rows``."""
        return [self.items[index].source for index in self.rows]

    def as_json(self, row: Callable[[str, Row], Any]) -> list[Any]:
        """For each item, in order, ``row(source, result)`` or its failure."""
        return [
            row(item.source, self.rows[index]) if index in self.rows else self.failures[index].as_json()
            for index, item in enumerate(self.items)
        ]

    def require_all(self, verb: str) -> None:
        """Raise :class:`InputError`, saying how many, if items failed. ``verb`` is a participle such as ``embedded``."""
        if self.failures:
            what = f"{len(self.failures)} of {len(self.items)} could not be {verb}"
            raise InputError(what, fix="repair or leave out what was named above; --strict stops at the first")


def pictures(paths: Sequence[Path], recursive: bool = False) -> list[Item]:
    """The files in ``paths``, with each folder replaced by its pictures in natural order; with ``recursive`` also those in
    folders below it.

    A picture of a folder has one of the suffixes ``PICTURES`` and no leading dot. Links to files are followed; links to folders
    are not, because they could lead in a circle. Files are not opened here. Raise :class:`ImageError` for a folder without
    pictures and for one that cannot be read.
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
            # os.walk lists links to folders among the folders and does not enter them. A pipe would never end.
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
    """The texts of a command line; messages count them from 1, as ``kind`` 1."""
    return [Item(text, text, f"{kind} {number}") for number, text in enumerate(given, start=1)]


def read_texts(path: Path) -> list[Item]:
    """The texts of a UTF-8 file, one per line. An empty line is a text too, so that its failure names the line.

    Raise :class:`TextError` for a file that cannot be read and for an empty one.
    """
    with reading(path, TextError):
        if not path.exists():
            raise TextError("no such file of texts", where=path, fix="check the path")
        if path.is_dir():
            raise TextError(
                "this is a folder, not a file of texts", where=path, fix="give a file with one text per line"
            )
        data = path.read_bytes()
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise TextError("the file of texts is empty", where=path, fix="write one text per line")
    # Bytes that are not UTF-8 become lone surrogates, and the text of that line alone is refused for them.
    decoded = [line.removesuffix(b"\r").decode("utf-8", errors="surrogateescape") for line in lines]
    return [Item(text, text, f"{path}, line {number}") for number, text in enumerate(decoded, start=1)]


def run_each(
    items: Sequence[Item],
    attempts: Iterable[Callable[[], Any]],
    *,
    compute: Callable[[list[Any]], Iterable[Row]],
    batch: int,
    strict: bool = False,
    watch: Watch = unwatched,
    failed: Callable[[Failure], None] = lambda failure: None,
) -> Outcome[Row]:
    """Call the ``attempts``, one for each item, and ``compute`` with lists of at most ``batch`` of the results.

    If an attempt raises an :class:`ImageError` or :class:`TextError`, the item is left out and ``failed`` is called at once;
    with ``strict`` the error is raised. An error of ``compute`` is always raised, because it concerns more than one item. The
    attempts are called one batch at a time.
    """
    following = iter(attempts)
    rows: dict[int, Row] = {}
    failures: dict[int, Failure] = {}
    for start in range(0, len(items), batch):
        watch("items", start, len(items))
        ready: dict[int, Any] = {}
        for index, attempt in zip(range(start, min(start + batch, len(items))), following, strict=False):
            try:
                ready[index] = attempt()
            except (ImageError, TextError) as error:
                placed = type(error)(error.what, where=items[index].where, fix=error.fix)
                if strict:
                    raise placed from error
                failures[index] = Failure(items[index].source, placed)
                failed(failures[index])
        if ready:
            rows.update(zip(ready, compute(list(ready.values())), strict=True))
    watch("items", len(items), len(items))
    return Outcome(items=items, rows=rows, failures=failures)


def embed(model: Model, items: Sequence[Item], **options: Any) -> Outcome[np.ndarray]:
    """A unit-length float32 [channels] for each of ``items``, which are all images (paths) or all texts (str).

    While the engine computes one batch of images, the next is decoded. ``options`` are those of :func:`run_each`: ``strict``,
    ``watch``, ``failed``.
    """
    if any(isinstance(item.value, str) for item in items):
        return run_texts(model, items, compute=model.embed_text, verb=Verb.EMBED_TEXT, **options)

    batch = model.largest_batch(model.pipeline(Verb.EMBED_IMAGE))
    with model.decoded([item.value for item in items], ahead=batch) as attempts:
        # The verb leaves pixels of the right size unchanged.
        return run_each(items, attempts, compute=model.embed_image, batch=batch, **options)


def run_texts(
    model: Model,
    items: Sequence[Item],
    *,
    compute: Callable[[list[str]], Iterable[Row]],
    verb: Verb,
    clip: bool = False,
    **options: Any,
) -> Outcome[Row]:
    """Call ``compute``, which calls ``verb``, with lists of the texts ``items``. With ``clip`` they are about a clip.

    ``options`` are those of :func:`run_each`.
    """

    def check(index: int, text: str) -> str:
        model.tokens([text], first=index, warn=True)
        return text

    def compute_quietly(texts: list[str]) -> list[Row]:
        # `compute` reads the texts again, and `check` has already warned about them.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncatedText)
            warnings.simplefilter("ignore", UnknownWords)
            return list(compute(texts))

    batch = model.largest_batch(model.pipeline(verb, clip=clip))
    checks = (partial(check, index, str(item.value)) for index, item in enumerate(items))
    return run_each(items, checks, compute=compute_quietly, batch=batch, **options)


def require_storable(sources: Sequence[str]) -> None:
    """Raise :class:`UsageError` if ``sources``, as an array of texts of equal width, take more than ``MOST_BYTES``."""
    longest = max(map(len, sources), default=0)
    if 4 * longest * len(sources) > MOST_BYTES:
        what = f"the longest of {len(sources)} sources has {longest:,} characters, too long for an .npz file"
        raise UsageError(what, fix="shorten it (the model reads only its beginning), or use --json")


def save_vectors(
    path: Path, embeddings: np.ndarray, *, sources: Sequence[str], space: str, failed: Sequence[str] = ()
) -> None:
    """Write ``embeddings`` float32 [n, E], ``sources`` (n strings), ``space`` and ``failed`` atomically to ``path``.

    ``space`` is the bundle's embedding digest: vectors of two spaces must not be compared. ``failed`` names the sources that
    have no row. Raise :class:`UsageError` if ``path`` cannot be written.
    """
    names, lost = np.array(sources, dtype=str), np.array(failed, dtype=str)
    with replacing(destination(path)) as temporary, temporary.open("wb") as stream:
        np.savez(stream, embeddings=embeddings, sources=names, space=np.array(space), failed=lost)
