"""Embeddings on disk: an .npz file that names the space of its vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from simmim_export.errors import UsageError
from simmim_export.system.outputs import destination, replacing

# NumPy stores every text at the width of the longest, so a single long text among many would take all memory.
MOST_BYTES = 2**30


def require_storable(sources: Sequence[str]) -> None:
    """Raise :class:`UsageError` if ``sources``, as an array of texts of equal width, take more than ``MOST_BYTES``."""
    longest = max(map(len, sources), default=0)
    if 4 * longest * len(sources) > MOST_BYTES:
        what = f"the longest of {len(sources)} sources has {longest:,} characters, too long for an .npz file"
        raise UsageError(what, fix="shorten it (the model reads only its beginning), or use --json")


def save_vectors(
    path: Path, embeddings: np.ndarray, *, sources: Sequence[str], space: str, failed: Sequence[str] = ()
) -> None:
    """Write ``embeddings`` float32 [n, E], ``sources`` (n strings), ``space`` and ``failed`` atomically to ``path``.

    ``space`` is the bundle's embedding digest: vectors of two spaces must not be compared. ``failed`` names the sources that
    have no row. Raise :class:`UsageError` if ``path`` cannot be written.
    """
    names, lost = np.array(sources, dtype=str), np.array(failed, dtype=str)
    with replacing(destination(path)) as temporary, temporary.open("wb") as stream:
        np.savez(stream, embeddings=embeddings, sources=names, space=np.array(space), failed=lost)
