"""Run, prove and measure vision-language models on edge devices.

The public API is the four names in ``__all__``: :func:`load` opens a bundle and gives a :class:`Model`, :class:`Bundle` reads a
bundle without running it, and ``__version__`` is this version. Everything else in this package is private and may change in any
release. All errors are described in :mod:`simmim_export.errors`.

Importing this package imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from simmim_export.version import __version__

if TYPE_CHECKING:
    from simmim_export.bundle import Bundle as Bundle
    from simmim_export.runtime import Model as Model
    from simmim_export.runtime import load as load

__all__ = ["Bundle", "Model", "__version__", "load"]

_HOMES = {
    "Bundle": "simmim_export.bundle",
    "Model": "simmim_export.runtime",
    "load": "simmim_export.runtime",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562), so that ``import simmim_export`` stays instant."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names. Without this function, completion lists private names and leaves out public ones that were not used
    yet."""
    return sorted(__all__)
