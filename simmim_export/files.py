"""Digests of files, files that are whole or not there, and arrays as bytes. Knows paths and bytes; must not know what they
mean."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

# What reading a damaged .npz raises.
DAMAGED = (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error)


def digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files in order of name, as lower-case hex."""
    if path.is_dir():
        joined = "".join(digest(child) for child in sorted(path.iterdir()) if child.is_file())
        return hashlib.sha256(joined.encode()).hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to, which takes its place when the block ends, and goes when the block fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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
