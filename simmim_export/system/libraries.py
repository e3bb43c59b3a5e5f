"""Keeps native libraries in the working directory from being loaded.

One of PyTorch's dependencies, NVIDIA's libcusparseLt (0.8.1), was linked with an empty entry in its search path. The dynamic
loader reads that as the working directory, so importing torch there loads a ``libcuda.so.1`` that a stranger put into a bundle.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from simmim_export.errors import UsageError

# Packages whose libraries search the working directory.
SEARCHING = ("torch",)
_ENDINGS = (".so", ".dylib", ".dll")


def require_no_libraries_here() -> None:
    """Raise :class:`UsageError` if the working directory has a native library in it, which importing torch might load."""
    try:
        with os.scandir() as entries:
            names = (entry.name for entry in entries)
            library = next((name for name in names if name.endswith(_ENDINGS) or ".so." in name), None)
    except OSError:  # the loader cannot use a working directory that was removed or may not be read
        return
    if library is not None:
        what = f"the working directory holds the native library {library}, which PyTorch's libraries might load"
        raise UsageError(what, where=Path.cwd(), fix="run the command from another directory")


class _Guard(MetaPathFinder):
    """Checks the working directory when one of :data:`SEARCHING` is about to be imported, and finds nothing itself."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in SEARCHING:
            require_no_libraries_here()
        return None


def guard_imports() -> None:
    """Make this process refuse to import :data:`SEARCHING` if :func:`require_no_libraries_here` would raise. Only for our own
    processes: an application decides for itself what it imports, and where."""
    if not any(isinstance(finder, _Guard) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Guard())
