"""What a session is opened with: a hint and a number of threads."""

from __future__ import annotations

from typing import Any

import numpy as np

from simmim_export.errors import EngineUnavailable, UsageError
from simmim_export.system.host import available_threads

# A session answers one call as soon as it can, or many calls at once.
LATENCY, THROUGHPUT = "latency", "throughput"


def require_hint(engine: str, hint: str, *, has: tuple[str, ...]) -> None:
    """Raise :class:`UsageError` for an unknown hint, and :class:`EngineUnavailable` for one that ``engine`` lacks."""
    if hint not in (LATENCY, THROUGHPUT):
        raise UsageError(f"unknown hint {hint!r}", fix=f"choose {LATENCY} or {THROUGHPUT}")
    if hint not in has:
        raise EngineUnavailable(
            f"engine {engine!r} has no {hint} hint (it has: {', '.join(has)})", fix="leave the hint out"
        )


def threads_for(threads: int | None) -> int:
    """``threads``, or what this process may use for None. Raise :class:`UsageError` for fewer than one and for anything but a
    whole number."""
    if threads is None:
        return available_threads()
    return require_count("threads", threads, fix="give 1 or more, or None for what this process may use")


def require_count(name: str, value: Any, *, least: int = 1, fix: str | None = None) -> int:
    """``value`` as an int. Raise :class:`UsageError`, calling it ``name``, unless it is a whole number (Python's or NumPy's, but
    not a bool) of ``least`` or more."""
    fix = fix or f"give {least} or more"
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise UsageError(f"{name} is {value!r}, which is not a whole number", fix=fix)
    if value < least:
        raise UsageError(f"{name} is {value}", fix=fix)
    return int(value)
