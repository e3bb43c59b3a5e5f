"""Digests of files, and files that are whole or not there. Knows paths and bytes; must not know what is in them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
