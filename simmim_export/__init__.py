"""Run, prove and measure SimMIM vision-language models on edge devices. Importing this package imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from simmim_export.version import __version__

if TYPE_CHECKING:
    from simmim_export.bundle import Bundle as Bundle
    from simmim_export.runtime import Runtime as Runtime
    from simmim_export.runtime import load as load

__all__ = ["Bundle", "Runtime", "__version__", "load"]

_HOMES = {
    "Bundle": "simmim_export.bundle",
    "Runtime": "simmim_export.runtime",
    "load": "simmim_export.runtime",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562), so that ``import simmim_export`` stays instant."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names. Without this, completion offers the private ones and not those that were never used yet."""
    return sorted(__all__)
