"""Readers of torchvision's ImageFolder layout, and of clips as folders of frames."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

from simmim_export.errors import DataError
from simmim_export.runtime.clips import SUFFIXES, natural
from simmim_export.training.data.readers.files import finished, no_split
from simmim_export.training.data.records import Record


def read(root: Path, split: str) -> list[Record]:
    """{split}/{class}/picture, or pictures in subfolders of the class, as in torchvision.

    Files that are not pictures are left out; a warning counts them. Raise :class:`DataError` for a class without a
    picture.
    """
    records, others = [], 0
    for folder in _classes(root, split):
        files = [child for child in folder.rglob("*") if not child.is_dir()]
        pictures = _pictures(files)
        _filled(folder, pictures)
        others += len(files) - len(pictures)
        records += [Record(str(path.relative_to(root)), (path,), label=folder.name) for path in pictures]
    _warn(root / split, others)
    return finished(records, root / split)


def read_frames(root: Path, split: str) -> list[Record]:
    """{split}/{class}/{clip}/frame, with frames in the natural order of their names (frame2 before frame10).

    Whatever is not a clip or a frame is left out; a warning counts it. Raise :class:`DataError` for a class without a
    clip and for a clip of fewer than 2 frames.
    """
    records, others = [], 0
    for folder in _classes(root, split):
        inside = sorted(folder.iterdir())
        clips = [child for child in inside if child.is_dir()]
        _filled(folder, clips)
        others += len(inside) - len(clips)
        for clip in clips:
            files = list(clip.iterdir())
            frames = _pictures(files)
            if len(frames) < 2:
                what = f"a clip of {len(frames)} frames"
                raise DataError(what, where=clip, fix="give 2 or more, or remove the folder")
            others += len(files) - len(frames)
            records.append(Record(str(clip.relative_to(root)), tuple(frames), label=folder.name))
    _warn(root / split, others)
    return finished(records, root / split)


def _classes(root: Path, split: str) -> list[Path]:
    if not (root / split).is_dir():
        there = (child.name for child in root.iterdir() if child.is_dir()) if root.is_dir() else ()
        raise no_split(split, there, root=root, looked_for=[f"{split}/"])
    return sorted(child for child in (root / split).iterdir() if child.is_dir())


def _filled(folder: Path, content: list[Path]) -> None:
    if not content:
        raise DataError("the folder of a class is empty", where=folder, fix="fill it, or remove it")


def _pictures(files: Iterable[Path]) -> list[Path]:
    pictures = (child for child in files if child.suffix.lower() in SUFFIXES)
    return sorted(pictures, key=lambda child: (child.parent, natural(child.name), child.name))


def _warn(folder: Path, others: int) -> None:
    if others:
        warnings.warn(f"{folder}: {others} files that are not part of the data set are left out", stacklevel=3)
