"""Whether an engine's package is installed, and whether it can be imported."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from simmim_export.system.telemetry import SWITCHES, without_telemetry

# What importing a package raises if its libraries are missing, or were built for other versions of what they need.
_BROKEN = (ImportError, OSError, RuntimeError, AttributeError, TypeError, ValueError)


def missing_package(package: str) -> str | None:
    """None if ``package`` is installed, else the reason in one line. Imports nothing."""
    return None if find_spec(package) is not None else f"the package {package} is not installed"


def broken_package(package: str) -> str | None:
    """None if ``package`` is installed and can be imported, else the reason in one line. Imports it."""
    if (missing := missing_package(package)) is not None:
        return missing
    try:
        with without_telemetry(*({package} & SWITCHES.keys())):
            import_module(package)
    except _BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"the package {package} is installed but cannot be imported: {reason}"
    return None
