"""Reads files that may come from anybody: digests, JSON, limits on size, locks."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import isfinite
from pathlib import Path
from typing import Any, NoReturn

from simmim_export.errors import InputError, UsageError


def digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files in order of name, as lower-case hex.

    Files in folders below it do not count: no model family reads them, and downloaders keep notes of their own there.
    """
    if path.is_dir():
        joined = "".join(digest(child) for child in sorted(path.iterdir()) if child.is_file())
        return hashlib.sha256(joined.encode()).hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def size(path: Path) -> int:
    """The bytes of a file, or of all files in a folder and below it. Links are not followed."""
    if path.is_file():
        return path.stat().st_size
    return sum(child.stat().st_size for child in path.rglob("*") if child.is_file() and not child.is_symlink())


def parse_json(text: str, *, finite: bool = False) -> Any:
    """The value of a JSON text. With ``finite`` NaN, infinity and numbers too large for a float are refused.

    Raise ValueError for a text that is not JSON or is nested too deeply, and for an object with a key twice: readers disagree
    about which of the two counts.
    """
    checks: dict[str, Any] = {"parse_float": _finite, "parse_constant": _not_finite} if finite else {}
    try:
        return json.loads(text, object_pairs_hook=_unique, **checks)
    except RecursionError as error:
        raise ValueError(f"nested too deeply: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"an object has the key {twice[:60]!r} twice")
    return content


def _finite(text: str) -> float:
    value = float(text)
    return value if isfinite(value) else _not_finite(text)


def _not_finite(text: str) -> NoReturn:
    raise ValueError(f"{text[:20]} is not a finite number")


def as_path(argument: str, value: object) -> Path:
    """``value`` as a path. Raise :class:`UsageError`, naming the ``argument``, unless it is a str or an os.PathLike."""
    if isinstance(value, str | os.PathLike):
        path = os.fspath(value)
        if isinstance(path, str) and "\0" not in path:
            return Path(path)
    raise UsageError(f"{argument} is {value!r}, which is not a path", fix="give a string or a pathlib.Path")


@contextmanager
def reading(path: Path, error: type[InputError]) -> Iterator[None]:
    """For a block that reads ``path`` or files in it: an error of the system is raised as ``error``, naming the file."""
    try:
        yield
    except OSError as refused:
        what = f"it cannot be read: {refused.strerror or refused}"
        fix = "allow reading it (ls -l shows whose it is), or copy it again"
        raise error(what, where=refused.filename or path, fix=fix) from refused


def read_file(path: Path, *, most: int) -> bytes:
    """The content of a regular file of at most ``most`` bytes.

    Raise ValueError for a larger file and for anything but a regular file (a named pipe or a device might never end), and OSError
    if it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("it is not a regular file")
    with os.fdopen(descriptor, "rb") as stream:
        # One byte more than is allowed shows that the file is too large.
        content = stream.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most / 2**20:.4g} MiB")
    return content


@contextmanager
def locked(path: Path, *, timeout: float = -1) -> Iterator[None]:
    """Hold the lock file ``path`` for the block. Waits ``timeout`` seconds for it, or with -1 as long as it takes.

    Raise TimeoutError if another process still holds it, and OSError if it cannot be a lock: anything but a regular file, and a
    link, which could make us empty a file elsewhere.
    """
    from filelock import FileLock, Timeout

    _require_lock(path)
    lock = FileLock(path, timeout=timeout)
    try:
        lock.acquire()
    except Timeout:
        raise TimeoutError(f"another process holds {path}") from None
    except (RuntimeError, ValueError, NotImplementedError) as error:  # what filelock raises for a file that it refuses
        raise OSError(str(error)) from error
    try:
        yield
    finally:
        lock.release()


def _require_lock(path: Path) -> None:
    """Raise OSError for anything at ``path`` but a regular file with one name. It may also be missing."""
    with suppress(FileNotFoundError):
        there = path.lstat()
        if not stat.S_ISREG(there.st_mode):
            raise OSError(errno.EINVAL, "the lock file is not a regular file: remove it", str(path))
        if there.st_nlink > 1:
            raise OSError(errno.EINVAL, "the lock file is also another file (a hard link): remove it", str(path))
