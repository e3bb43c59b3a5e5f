"""Digests of files, files that are whole or not there, JSON to values, and arrays to bytes. Knows paths and bytes; must not know
what they mean."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from simmim_export.errors import InputError, UsageError

# What reading a damaged .npz raises. NumPy reads an old form of header by Python's tokenizer; zipfile raises RuntimeError for a
# member that is marked as encrypted.
DAMAGED = (
    *(OSError, ValueError, EOFError, KeyError, RuntimeError, SyntaxError, MemoryError, OverflowError),
    *(tokenize.TokenError, struct.error, zipfile.BadZipFile, zlib.error),
)


def digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files in order of name, as lower-case hex."""
    if path.is_dir():
        joined = "".join(digest(child) for child in sorted(path.iterdir()) if child.is_file())
        return hashlib.sha256(joined.encode()).hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raise ValueError for what is none, and for one that is nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"nested too deeply: {error}") from error


@contextmanager
def reading(path: Path, error: type[InputError]) -> Iterator[None]:
    """For a block that reads ``path`` or what is under it: what the system refuses is raised as ``error``, naming the file."""
    try:
        yield
    except OSError as refused:
        what = f"it cannot be read: {refused.strerror or refused}"
        fix = "allow reading it (ls -l shows whose it is), or copy it again"
        raise error(what, where=refused.filename or path, fix=fix) from refused


def require_new(path: Path, overwrite: bool, option: str = "-o") -> None:
    """Raise :class:`UsageError` for an output that is there already and is not to be replaced."""
    if path.exists() and not overwrite:
        raise UsageError("the output already exists", where=path, fix=f"add --overwrite, or choose another {option}")


def require_writable(path: Path) -> None:
    """Raise :class:`UsageError` where nothing can be put at ``path``: where its folder, or the nearest one above it that is
    there, is a file or may not be written to."""
    above = path.absolute().parents
    nearest = next((folder for folder in above if os.access(folder, os.F_OK)), path.absolute())
    if not nearest.is_dir():
        raise UsageError("the output would lie in what is no folder", where=nearest, fix="choose another output")
    if not os.access(nearest, os.W_OK | os.X_OK):
        fix = "choose another output, or allow writing there"
        raise UsageError("the folder of the output may not be written to", where=nearest, fix=fix)


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """For a block that begins to write beside ``path``, whose folder is made. Raise :class:`UsageError` where that fails."""
    require_writable(path)
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        what = f"the output cannot be written: {error.strerror or error}"
        raise UsageError(what, where=path, fix="choose another output") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to, which takes its place when the block ends, and goes when the block fails.

    Raise :class:`UsageError`, before the block begins, where nothing can be written there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with room_for(path):
        if path.is_dir():
            raise UsageError("the output is a folder", where=path, fix="give the name of a file")
        temporary.touch()
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The content of a compressed .npz; the same arrays in the same order always give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            part = io.BytesIO()
            np.lib.format.write_array(part, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), part.getvalue(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def unpack(source: Path | bytes) -> dict[str, np.ndarray]:
    """The inverse of :func:`pack`. Raise one of :data:`DAMAGED`; nothing is unpickled."""
    with np.load(io.BytesIO(source) if isinstance(source, bytes) else source, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
