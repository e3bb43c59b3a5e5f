"""Keeps files that took long to make and can be made again: compiled models, quantized graphs.

An engine reads its own file back without checking it, so a flipped byte could change answers. Therefore the digest of every new
file is kept, and a file that no longer matches its digest is removed before anybody reads it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from simmim_export.errors import NoCache, UsageError
from simmim_export.system.files import digest, locked, parse_json, read_file
from simmim_export.system.outputs import replacing

# The environment variable that names another cache folder, or is "off".
CACHE = "SIMMIM_EXPORT_CACHE"
DIGESTS, LOCK = "digests.json", "lock"
# A line of digests.json takes some 120 bytes, and a cache holds a few files.
MOST_BYTES = 1 << 20
# A cache folder keeps at most this many bytes; the least recently used files go first.
BYTES = 4 << 30
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
# Seconds that a process waits for another one, which may be compiling. Only the largest graphs take longer.
WAIT = 120.0


def cache_folder(name: str, environment: Mapping[str, str] = os.environ) -> Path | None:
    """The cache folder ``name``: under $SIMMIM_EXPORT_CACHE, or else in the user's cache by the XDG convention.

    None if that variable is ``off``. Also None, with a :class:`NoCache` warning, if the folder cannot be written or other users
    may write to it: whoever can replace a compiled model decides what it answers.
    """
    wanted = environment.get(CACHE, "")
    if wanted == "off":
        return None
    try:
        if wanted:
            folder = Path(wanted) / name
        else:
            folder = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "simmim-export" / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        there = folder.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home
        reason = f"{error}; set {CACHE} to a folder, or to off"
    else:
        if not os.access(folder, os.W_OK):
            reason = f"{folder} cannot be written; set {CACHE} to a folder, or to off"
        elif hasattr(os, "geteuid") and (there.st_uid != os.geteuid() or there.st_mode & _OTHERS_WRITE):
            reason = f"other users may write to {folder}; set {CACHE} to a folder of your own (chmod go-w), or to off"
        else:
            return folder
    warnings.warn(f"no cache: {reason}", NoCache, stacklevel=2)
    return None


@contextmanager
def kept(name: str, key: str) -> Iterator[Path | None]:
    """The folder for ``key`` (hexadecimal) in the cache folder ``name``, with only undamaged files in it. None without a cache.

    One process at a time may use it, so that none reads a file that another has half written. Also None, with a :class:`NoCache`
    warning, if another process holds it for longer than :data:`WAIT`.
    """
    home = cache_folder(name)
    if home is None:
        yield None
        return
    folder = home / key[:32]
    with contextlib.suppress(OSError):  # it may vanish meanwhile, which is not a reason to fail
        folder.mkdir(exist_ok=True)
    with _alone(folder) as mine:
        if not mine:
            what = f"no cache: another process has held {folder} for {WAIT:g} s"
            warnings.warn(f"{what}; the work is done again. End that process if it hangs", NoCache, stacklevel=3)
            yield None
            return
        with contextlib.suppress(OSError):
            (folder / DIGESTS).touch()
            known = _read(folder)
            for path in _files(folder):
                if known.get(path.name) != digest(path):
                    path.unlink()
        before = {path.name for path in _files(folder)}
        yield folder
        with contextlib.suppress(OSError, UsageError):
            new = {path.name: digest(path) for path in _files(folder) if path.name not in before}
            if new:
                with replacing(folder / DIGESTS) as target:
                    target.write_text(json.dumps(_read(folder) | new), encoding="utf-8")
                _shrink(home, folder)


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Hold the lock of ``folder``. Yields False if another process holds it too long. Goes on without a lock if the folder has
    vanished or its file system has no locks."""
    with contextlib.ExitStack() as stack:
        mine = True
        try:
            stack.enter_context(locked(folder / LOCK, timeout=WAIT))
        except TimeoutError:  # an OSError too
            mine = False
        except OSError:
            pass
        yield mine


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_file() and path.name not in (DIGESTS, LOCK))


def _read(folder: Path) -> dict[str, str]:
    try:
        digests = parse_json(read_file(folder / DIGESTS, most=MOST_BYTES).decode("utf-8"))
    except (OSError, ValueError):
        return {}
    return digests if isinstance(digests, dict) else {}


def _shrink(home: Path, current: Path) -> None:
    def used(folder: Path) -> float:
        path = folder / DIGESTS
        return path.stat().st_mtime if path.exists() else 0.0

    total = 0
    for folder in sorted(home.iterdir(), key=used, reverse=True):
        total += sum(path.stat().st_size for path in _files(folder))
        if total > BYTES and folder != current:
            shutil.rmtree(folder, ignore_errors=True)
