"""Writes outputs: each one is complete or not there, and what cannot be written is an error before any work is done."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from simmim_export.errors import UsageError

# What the system reports if a disk is full, the user's share of it is used up, or a file has its largest size.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def require_new(path: Path, overwrite: bool, option: str = "-o") -> None:
    """Raise :class:`UsageError` for an output that already exists, unless it may be replaced. ``option`` is what names it."""
    if path.exists() and not overwrite:
        raise UsageError("the output already exists", where=path, fix=f"add --overwrite, or choose another {option}")


def require_writable(path: Path) -> None:
    """Raise :class:`UsageError` if no file or folder can be created at ``path``.

    That is the case if it is a device, a pipe or a socket (also behind a link), or if the nearest existing path above it is a
    file or may not be written to.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        what = "the output is a device, a pipe or a socket, and would be replaced by a file"
        raise UsageError(what, where=path, fix="give the name of a file")
    above = path.absolute().parents
    nearest = next((folder for folder in above if os.access(folder, os.F_OK)), path.absolute())
    if not nearest.is_dir():
        raise UsageError("the parent of the output path is not a folder", where=nearest, fix="choose another output")
    if not os.access(nearest, os.W_OK | os.X_OK):
        fix = "choose another output, or allow writing there"
        raise UsageError("the folder of the output may not be written to", where=nearest, fix=fix)


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Make the folder of ``path`` for a block that begins to write there. Raise :class:`UsageError` if either fails."""
    require_writable(path)
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        what = f"the output cannot be written: {error.strerror or error}"
        raise UsageError(what, where=path, fix="choose another output") from error


def leftovers(path: Path, suffix: str) -> list[Path]:
    """The files that ended processes left beside ``path``: those named ``.NAME.PID``, perhaps with more, and then ``suffix``.

    A process is identified by its number on this machine. So in a folder that several machines or containers share, two of them
    must not write the same output. Empty if the folder may not be listed.
    """
    start, left = f".{path.name}.", []
    with suppress(PermissionError):
        for each in path.absolute().parent.iterdir():
            if each.name.startswith(start) and each.name.endswith(suffix):
                number = each.name[len(start) : -len(suffix)].partition(".")[0]
                if number.isascii() and number.isdigit() and not _alive(int(number)):
                    left.append(each)
    return sorted(left)


def _alive(pid: int) -> bool:
    """Whether a process with this number runs here. True for an impossible number, because then the file is not one of ours."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def destination(path: Path) -> Path:
    """Where to write an output that the user named ``path``: for a link the file that it points to, so that the link stays."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """For a block that writes ``path``. Raise :class:`UsageError` if the disk, or the user's share of it, is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        what = f"the output cannot be written: {error.strerror}"
        raise UsageError(what, where=path, fix="free some space, or choose another output") from error


@contextmanager
def no_empty_folders(path: Path) -> Iterator[None]:
    """For a block that makes folders above ``path``. Those that are empty when it ends are removed."""
    missing = [folder for folder in path.absolute().parents if not folder.exists()]
    try:
        yield
    finally:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()


def require_replaceable(path: Path) -> None:
    """Raise the :class:`UsageError` that :func:`replacing` would raise."""
    require_writable(path)
    if path.is_dir():
        raise UsageError("the output is a folder", where=path, fix="give the name of a file, or remove the folder")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to. It replaces ``path`` when the block ends, and is removed if the block fails.

    A link at ``path`` is replaced and never followed, because in a bundle from somebody else it could lead anywhere. For an
    output that the user named, give its :func:`destination`. Files that a killed process left for the same ``path`` are removed
    first, but not folders. Raise :class:`UsageError` before the block begins if nothing can be written there, and later if the
    disk is full.
    """
    require_replaceable(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with no_empty_folders(path):
        with room_for(path):
            for left in leftovers(path, ".tmp"):
                if left.is_symlink() or not left.is_dir():
                    left.unlink(missing_ok=True)
            # Always a new file, so that nothing is written through a link that somebody put here.
            temporary.unlink(missing_ok=True)
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            with full_disk(path):
                yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
