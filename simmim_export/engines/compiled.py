"""What an engine compiled, kept by the content of the graph. Knows files and digests; must not know any engine.

An engine that keeps its own files reads them back without looking closely, so a flipped byte could change answers: every file
is digested when it is new, and one that does not match any more is removed before the engine sees it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simmim_export.files import digest, replacing
from simmim_export.host import cache_folder

DIGESTS = "digests.json"
# So much of all graphs together is kept, the least recently used going first.
BYTES = 4 << 30


@contextmanager
def kept(name: str, graph: Path) -> Iterator[Path | None]:
    """The folder of engine ``name`` for the file ``graph``, without anything damaged in it; None where nothing is cached."""
    home = cache_folder(name)
    if home is None:
        yield None
        return
    folder = home / digest(graph)[:32]
    with contextlib.suppress(OSError):  # a cache that vanishes meanwhile is no reason to fail
        folder.mkdir(exist_ok=True)
        (folder / DIGESTS).touch()
        known = _read(folder)
        for path in _files(folder):
            if known.get(path.name) != digest(path):
                path.unlink()
    before = {path.name for path in _files(folder)}
    yield folder
    with contextlib.suppress(OSError):
        found = {path.name: digest(path) for path in _files(folder) if path.name not in before}
        if found:
            with replacing(folder / DIGESTS) as target:
                target.write_text(json.dumps(_read(folder) | found), encoding="utf-8")
            _shrink(home, folder)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_file() and path.name != DIGESTS)


def _read(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
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
