"""torchvision's ImageFolder, and clips as folders of frames. Knows folders; must not know pixels."""

from __future__ import annotations

from pathlib import Path

from simmim_export.errors import DataError
from simmim_export.runtime.clips import SUFFIXES, natural
from simmim_export.training.data.readers.files import finished, no_split
from simmim_export.training.data.records import Record


def read(root: Path, split: str) -> list[Record]:
    """{split}/{class}/picture."""
    found = []
    for folder in _classes(root, split):
        for path in _pictures(folder):
            found.append(Record(str(path.relative_to(root)), (path,), label=folder.name))
    return finished(found, root / split)


def read_frames(root: Path, split: str) -> list[Record]:
    """{split}/{class}/{clip}/frame, frames in natural order of their names (frame2 before frame10)."""
    found = []
    for folder in _classes(root, split):
        for clip in sorted(child for child in folder.iterdir() if child.is_dir()):
            frames = _pictures(clip)
            if len(frames) < 2:
                raise DataError(
                    f"a clip of {len(frames)} frames", where=clip, fix="give 2 or more, or remove the folder"
                )
            found.append(Record(str(clip.relative_to(root)), tuple(frames), label=folder.name))
    return finished(found, root / split)


def _classes(root: Path, split: str) -> list[Path]:
    if not (root / split).is_dir():
        there = (child.name for child in root.iterdir() if child.is_dir()) if root.is_dir() else ()
        raise no_split(split, there, root)
    found = sorted(child for child in (root / split).iterdir() if child.is_dir())
    empty = [folder for folder in found if not any(folder.iterdir())]
    if empty:
        raise DataError("the folder of a class is empty", where=empty[0], fix="fill it, or remove it")
    return found


def _pictures(folder: Path) -> list[Path]:
    found = (child for child in folder.iterdir() if child.suffix.lower() in SUFFIXES)
    return sorted(found, key=lambda child: natural(child.name))
