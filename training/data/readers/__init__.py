"""Readers of data sets on disk, by name: each turns a public layout into records.

A reader is ``read(root, split) -> list[Record]``. It raises :class:`DataError`, naming file and record, for malformed
content, and :class:`UsageError`, naming the splits on disk, for a missing split. It warns about whatever it leaves out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from simmim_export.errors import UsageError
from simmim_export.training.data.readers import (
    clevr,
    coco,
    emoji,
    image_folder,
    karpathy,
    snli_ve,
    table,
    vqav2,
    webdataset,
)
from simmim_export.training.data.records import Record

READERS: Mapping[str, Callable[[Path, str], list[Record]]] = {
    "vqav2": vqav2.read,
    "coco": coco.read,
    "karpathy": karpathy.read,
    "clevr": clevr.read,
    "snli_ve": snli_ve.read,
    "image_folder": image_folder.read,
    "frames": image_folder.read_frames,
    "webdataset": webdataset.read,
    "table": table.read,
    "emoji": emoji.read,
}


def read(name: str, root: Path, split: str) -> list[Record]:
    """The records of a split, read by the reader called ``name``. Raise :class:`UsageError` for an unknown name or a
    bad ``root``."""
    if name not in READERS:
        raise UsageError(f"unknown reader {name!r}", fix=f"choose one of {', '.join(READERS)}")
    if not root.is_dir():
        what = "the data set's folder is a file" if root.exists() else "the data set's folder does not exist"
        raise UsageError(what, where=root, fix="give another --data-root")
    return READERS[name](root, split)
