"""torchvision's ImageFolder, and clips as folders of frames. Knows folders; must not know pixels."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

from simmim_export.errors import DataError
from simmim_export.runtime.clips import SUFFIXES, natural
from simmim_export.training.data.readers.files import finished, no_split
from simmim_export.training.data.records import Record


def read(root: Path, split: str) -> list[Record]:
    """{split}/{class}/picture; as torchvision does, also pictures in folders of the class.

    Files that are no pictures are left out; one warning says how many. Raise :class:`DataError` for a class without any.
    """
    found, strangers = [], 0
    for folder in _classes(root, split):
        files = [child for child in folder.rglob("*") if not child.is_dir()]
        pictures = _pictures(files)
        _filled(folder, pictures)
        strangers += len(files) - len(pictures)
        found += [Record(str(path.relative_to(root)), (path,), label=folder.name) for path in pictures]
    _warn(root / split, strangers)
    return finished(found, root / split)


def read_frames(root: Path, split: str) -> list[Record]:
    """{split}/{class}/{clip}/frame, frames in natural order of their names (frame2 before frame10).

    What is no clip or no frame is left out; one warning says how many. Raise :class:`DataError` for a class without a clip
    and for a clip of fewer than 2 frames.
    """
    found, strangers = [], 0
    for folder in _classes(root, split):
        inside = sorted(folder.iterdir())
        clips = [child for child in inside if child.is_dir()]
        _filled(folder, clips)
        strangers += len(inside) - len(clips)
        for clip in clips:
            files = list(clip.iterdir())
            frames = _pictures(files)
            if len(frames) < 2:
                what = f"a clip of {len(frames)} frames"
                raise DataError(what, where=clip, fix="give 2 or more, or remove the folder")
            strangers += len(files) - len(frames)
            found.append(Record(str(clip.relative_to(root)), tuple(frames), label=folder.name))
    _warn(root / split, strangers)
    return finished(found, root / split)


def _classes(root: Path, split: str) -> list[Path]:
    if not (root / split).is_dir():
        there = (child.name for child in root.iterdir() if child.is_dir()) if root.is_dir() else ()
        raise no_split(split, there, root, [f"{split}/"])
    return sorted(child for child in (root / split).iterdir() if child.is_dir())


def _filled(folder: Path, content: list[Path]) -> None:
    if not content:
        raise DataError("the folder of a class is empty", where=folder, fix="fill it, or remove it")


def _pictures(files: Iterable[Path]) -> list[Path]:
    found = (child for child in files if child.suffix.lower() in SUFFIXES)
    return sorted(found, key=lambda child: (child.parent, natural(child.name), child.name))


def _warn(folder: Path, strangers: int) -> None:
    if strangers:
        warnings.warn(f"{folder}: {strangers} files that do not belong there are left out", stacklevel=3)
