"""Data sets on disk by name: each reader turns a public layout into records. Must not know pixels or tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from simmim_export.training.data.records import Record

READERS: Mapping[str, Callable[[Path, str], list[Record]]] = {}


def read(name: str, root: Path, split: str) -> list[Record]:
    """The records of a split. Raise :class:`DataError` for what is malformed."""
    return READERS[name](root, split)
