"""What took long to make and can be made again: compiled models, quantised graphs. Knows files and digests; must not know what
is in them.

What made a file reads it back without looking closely, so a flipped byte could change answers: every file is digested when it
is new, and one that does not match any more is removed before it is seen.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simmim_export.errors import NoCache, UsageError
from simmim_export.system.files import digest, locked, parse_json, read_file, replacing
from simmim_export.system.host import cache_folder

DIGESTS, LOCK = "digests.json", "lock"
# A line of digests.json takes some 120 bytes, and a cache holds a few files.
MOST_BYTES = 1 << 20
# So much under one name is kept, the least recently used going first.
BYTES = 4 << 30
# Seconds that a process waits for another, which may be compiling: longer than that takes but for the largest graphs.
WAIT = 120.0


@contextmanager
def kept(name: str, key: str) -> Iterator[Path | None]:
    """The folder under ``name`` for ``key`` (hexadecimal), without anything damaged in it; None where nothing is cached.

    Of several processes one at a time has it, so that none reads what another has half written. None as well, with a
    :class:`NoCache` warning, where another has it for longer than :data:`WAIT`.
    """
    home = cache_folder(name)
    if home is None:
        yield None
        return
    folder = home / key[:32]
    with contextlib.suppress(OSError):  # a cache that vanishes meanwhile is no reason to fail
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
            found = {path.name: digest(path) for path in _files(folder) if path.name not in before}
            if found:
                with replacing(folder / DIGESTS) as target:
                    target.write_text(json.dumps(_read(folder) | found), encoding="utf-8")
                _shrink(home, folder)


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Hold the lock of ``folder``, or be False where another has it too long; without a lock where a folder that has vanished, or
    its file system, gives none."""
    with contextlib.ExitStack() as stack:
        mine = True
        try:
            stack.enter_context(locked(folder / LOCK, timeout=WAIT))
        except TimeoutError:  # an OSError too
            mine = False
        except (OSError, NotImplementedError):
            pass
        yield mine


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_file() and path.name not in (DIGESTS, LOCK))


def _read(folder: Path) -> dict[str, str]:
    try:
        found = parse_json(read_file(folder / DIGESTS, most=MOST_BYTES).decode("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _shrink(home: Path, current: Path) -> None:
    def used(folder: Path) -> float:
        path = folder / DIGESTS
        return path.stat().st_mtime if path.exists() else 0.0

    total = 0
    for folder in sorted(home.iterdir(), key=used, reverse=True):
        total += sum(path.stat().st_size for path in _files(folder))
        if total > BYTES and folder != current:
            shutil.rmtree(folder, ignore_errors=True)
