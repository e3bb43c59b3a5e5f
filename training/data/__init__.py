"""Data sets by name. One file or folder each."""

from __future__ import annotations

from simmim_export.errors import UsageError
from simmim_export.training.data.shapes import Shapes

DATASETS = ("shapes",)


def dataset(name: str, seed: int, stream: str, split: str, size: int) -> Shapes:
    """The data set called ``name``; raise :class:`UsageError` naming the choices."""
    if name not in DATASETS:
        raise UsageError(f"unknown data set {name!r}", fix=f"choose one of {', '.join(DATASETS)}")
    return Shapes(seed, stream, split, size)
