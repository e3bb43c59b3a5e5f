"""Digests of files, files that are whole or not there, JSON to values, and arrays to bytes. Knows paths and bytes; must not know
what they mean."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import stat
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from simmim_export.errors import InputError, UsageError

# What reading a damaged .npz raises.
DAMAGED = (OSError, ValueError, EOFError, KeyError, NotImplementedError, OverflowError, zipfile.BadZipFile, zlib.error)
# The most members of an .npz, characters of a name, and bytes of all arrays together. Arrays that take more than a few megabytes
# must also be at most RATIO times as large as the file: deflate reaches 1000 on zeros; our golden tensors and evidence reach 3.
MAX_MEMBERS, MAX_NAME, MAX_UNPACKED = 10_000, 256, 2 << 30
RATIO, SMALL = 200, 64 << 20
# The end of a zip archive without a comment, and what ZIP64 puts before it.
_END, _END_SIZE, _LOCATOR, _LOCATOR_SIZE = b"PK\x05\x06", 22, b"PK\x06\x07", 20
_MAX_HEADER = 4096
# What the system says where a disk is full, the user's share of it, or a file has its largest size.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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


def as_path(argument: str, value: object) -> Path:
    """``value`` as a path; raise :class:`UsageError` that names the ``argument`` if it is neither a str nor an os.PathLike."""
    if isinstance(value, str | os.PathLike):
        path = os.fspath(value)
        if isinstance(path, str):
            return Path(path)
    raise UsageError(f"{argument} is {value!r}, which is not a path", fix="give a string or a pathlib.Path")


@contextmanager
def reading(path: Path, error: type[InputError]) -> Iterator[None]:
    """For a block that reads ``path`` or what is under it: what the system refuses is raised as ``error``, naming the file."""
    try:
        yield
    except OSError as refused:
        what = f"it cannot be read: {refused.strerror or refused}"
        fix = "allow reading it (ls -l shows whose it is), or copy it again"
        raise error(what, where=refused.filename or path, fix=fix) from refused


def read_file(path: Path, *, most: int) -> bytes:
    """The content of a regular file of at most ``most`` bytes.

    Raise ValueError for a larger one and for what is not a regular file (a named pipe would never end, nor would a device), and
    OSError where it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("it is not a regular file")
    with os.fdopen(descriptor, "rb") as stream:
        # One byte more than is allowed shows that there are more.
        content = stream.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most / 2**20:.4g} MiB")
    return content


@contextmanager
def locked(path: Path, *, timeout: float = -1) -> Iterator[None]:
    """Hold the lock file ``path`` for the block, after waiting ``timeout`` seconds for it, or as long as it takes for -1.

    Raise TimeoutError where another process still holds it, and OSError where there cannot be a lock: what is there is not a
    regular file, or a link, which could make us empty a file elsewhere.
    """
    from filelock import FileLock, Timeout

    _require_lock(path)
    lock = FileLock(path, timeout=timeout)
    try:
        lock.acquire()
    except Timeout:
        raise TimeoutError(f"another process holds {path}") from None
    except (RuntimeError, ValueError, NotImplementedError) as error:  # filelock's own words for a file that it refuses
        raise OSError(str(error)) from error
    try:
        yield
    finally:
        lock.release()


def _require_lock(path: Path) -> None:
    """Raise OSError for anything at ``path`` but a regular file of one name; nothing there is fine."""
    with suppress(FileNotFoundError):
        there = path.lstat()
        if not stat.S_ISREG(there.st_mode):
            raise OSError(errno.EINVAL, "the lock file is not a regular file: remove it", str(path))
        if there.st_nlink > 1:
            raise OSError(errno.EINVAL, "the lock file is also another file (a hard link): remove it", str(path))


def require_new(path: Path, overwrite: bool, option: str = "-o") -> None:
    """Raise :class:`UsageError` for an output that is there already and is not to be replaced."""
    if path.exists() and not overwrite:
        raise UsageError("the output already exists", where=path, fix=f"add --overwrite, or choose another {option}")


def require_writable(path: Path) -> None:
    """Raise :class:`UsageError` where nothing can be put at ``path``.

    That is so if a device, a pipe or a socket is there, also behind a link, and if its folder, or the nearest one above it that
    exists, is a file or may not be written to.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        what = "the output is a device, a pipe or a socket, and would be replaced by a file"
        raise UsageError(what, where=path, fix="give the name of a file")
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


def leftovers(path: Path, suffix: str) -> list[Path]:
    """What processes that have ended left beside ``path``: all that is named ``.NAME.PID``, perhaps more, and ``suffix``.

    A process is known by its number on this machine: in a folder that several machines or containers share, one must not write
    what another is writing. In a folder that may not be listed nothing is seen.
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
    """Whether a process of this number runs here; for a number that none can have, True: the name is not one of ours."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def destination(path: Path) -> Path:
    """Where an output goes that a user called ``path``: a link stays, and what it points to is written."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """For a block that writes ``path``. Raise :class:`UsageError` where the disk, or the user's share of it, is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        what = f"the output cannot be written: {error.strerror}"
        raise UsageError(what, where=path, fix="free some space, or choose another output") from error


@contextmanager
def no_empty_folders(path: Path) -> Iterator[None]:
    """For a block that makes folders above ``path``: those that it leaves empty are removed when it ends."""
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
    """A temporary path beside ``path`` to write to: it replaces ``path`` when the block ends, and goes when the block fails.

    A link at ``path`` is replaced and never followed: in a bundle from somebody else it could lead anywhere. For an output that
    the user named give its :func:`destination`. What a killed process was writing for the same ``path`` is removed first, but no
    folder. Raise :class:`UsageError` where nothing can be written there (before the block begins) and where the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with no_empty_folders(path):
        with room_for(path):
            if path.is_dir():
                raise UsageError("the output is a folder", where=path, fix="give the name of a file")
            for left in leftovers(path, ".tmp"):
                if left.is_symlink() or not left.is_dir():
                    left.unlink(missing_ok=True)
            # A new file: what is written must not go through a link that somebody laid here.
            temporary.unlink(missing_ok=True)
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            with full_disk(path):
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
            np.lib.format.write_array(part, np.asarray(array, order="C"), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), part.getvalue(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def unpack(source: Path | bytes, *, most: int = MAX_UNPACKED) -> dict[str, np.ndarray]:
    """The inverse of :func:`pack`: arrays of booleans, integers or real floats. Raise one of :data:`DAMAGED`.

    Nothing is unpickled. No array is allocated before its size is known to fit its member, and all members together are known
    to have at most ``most`` bytes and to be at most RATIO times as large as the file (or SMALL).
    """
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
        size = _check_end(stream)
        with zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
            if len(members) > MAX_MEMBERS:
                raise ValueError(f"it has {len(members):,} members; the limit is {MAX_MEMBERS:,}")
            total = sum(member.file_size for member in members)
            limit = min(most, max(RATIO * size, SMALL))
            if total > limit:
                raise ValueError(f"its arrays have {total:,} bytes; the limit is {limit:,} for a file of {size:,}")
            names = [_name(member) for member in members]
            if len(set(names)) != len(names):
                raise ValueError("it has two arrays of one name")
            return {name: _array(archive, member) for name, member in zip(names, members, strict=True)}


def _check_end(stream: IO[bytes]) -> int:
    """The size of a zip archive in bytes, checked before its directory is read.

    Raise ValueError for more than MAX_MEMBERS members, for a comment, and for a ZIP64 directory, whose sizes would replace
    those that are checked here.
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, size - _END_SIZE - _LOCATOR_SIZE))
    tail = stream.read()
    end = tail[-_END_SIZE:]
    if len(end) < _END_SIZE or not end.startswith(_END) or end[-2:] != b"\0\0":
        raise ValueError("it is not a zip archive, is cut off, or has a comment")
    if tail[:-_END_SIZE].startswith(_LOCATOR):
        raise ValueError("it has a ZIP64 directory")
    members, directory = int.from_bytes(end[10:12], "little"), int.from_bytes(end[12:16], "little")
    if members > MAX_MEMBERS or directory > MAX_MEMBERS * (MAX_NAME + 128):
        raise ValueError(f"it has {members:,} members or more; the limit is {MAX_MEMBERS:,}")
    return size


def _name(member: zipfile.ZipInfo) -> str:
    name = member.filename.removesuffix(".npy")
    # ``orig_filename`` differs where a NUL ends the name early.
    if member.filename != member.orig_filename or not member.filename.endswith(".npy") or not name.isprintable():
        raise ValueError(f"{member.orig_filename[:60]!r} is not the name of an array")
    if not 0 < len(name) <= MAX_NAME:
        raise ValueError(f"an array's name has {len(name)} characters; the limit is {MAX_NAME}")
    if member.flag_bits & 1:
        raise ValueError(f"{name!r} is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name!r} is compressed by method {member.compress_type}; only deflate is read")
    return name


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as stream:
        try:
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[np.lib.format.read_magic(stream)]
            shape, _, dtype = read_header(stream, max_header_size=_MAX_HEADER)
        # NumPy evaluates the header as a Python literal, and lets through what that raises.
        except (KeyError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError) as error:
            raise ValueError(f"{member.filename!r} has a header that cannot be read") from error
        if dtype.kind not in "biuf":
            raise ValueError(f"{member.filename!r} holds {str(dtype)[:60]}, not booleans, integers or real numbers")
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or size != member.file_size - stream.tell():
            what = f"{member.filename!r} is {dtype} {list(shape)[:8]}, {size:,} bytes"
            raise ValueError(f"{what}, and its member has {member.file_size - stream.tell():,}")
    with archive.open(member) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False, max_header_size=_MAX_HEADER)
        # Reading on to the end compares the checksum.
        if stream.read(1):
            raise ValueError(f"{member.filename!r} goes on after its end")
    return np.asarray(array)
