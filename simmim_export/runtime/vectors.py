"""Embeddings on disk: an .npz that says which space its vectors live in.

Knows arrays and files. Must not know how a vector was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from simmim_export.files import replacing


def save_vectors(path: Path, embeddings: np.ndarray, sources: Sequence[str], space: str) -> None:
    """Write ``embeddings`` float32 [n, E], ``sources`` (n strings) and ``space`` atomically to ``path``.

    ``space`` is the bundle's embedding digest: vectors of two spaces must not be compared.
    """
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, embeddings=embeddings, sources=np.array(sources), space=np.array(space))
