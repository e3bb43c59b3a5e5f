"""Turns whatever an engine raises into one of our errors, which names the engine and the graph."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from simmim_export.errors import EXPORT_AGAIN, BundleError, EngineUnavailable, InputError, SimmimError
from simmim_export.spec import GraphSpec

# What the engines say, in lower case, when this machine has too little memory or may start no more threads. None of them has
# a type of its own for that.
_EXHAUSTED = (
    "bad_alloc",
    "bad allocation",
    "failed to allocate",
    "cannot allocate",
    "can't allocate",
    "alloc_failed",
    "out of memory",
    "resource temporarily unavailable",
)


class running:
    """For a block in which the engine called ``engine`` opens or runs the graph ``spec``: whatever it raises becomes one of our
    errors that names both. Our errors, warnings and KeyboardInterrupt pass through.

    Raise :class:`EngineUnavailable` where the machine lacks memory or threads, else ``error`` (:class:`BundleError`, or what an
    engine that reads no bundle calls a bad file). ``where`` is the file that was opened. A class and not a generator, because
    it is entered on each run.
    """

    def __init__(
        self,
        engine: str,
        spec: GraphSpec,
        *,
        where: Path | None = None,
        opens: bool = False,
        error: type[InputError] = BundleError,
    ) -> None:
        self._engine, self._spec, self._where, self._opens, self._error = engine, spec, where, opens, error

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A warning is raised where the caller asked for that.
        if isinstance(raised, Exception) and not isinstance(raised, SimmimError | Warning):
            raise self._ours(raised) from raised

    def _ours(self, raised: Exception) -> SimmimError:
        said = _said(raised)
        failed = f"engine {self._engine!r} cannot {'open' if self._opens else 'run'} {self._spec.name}"
        if isinstance(raised, MemoryError) or any(words in str(raised).lower() for words in _EXHAUSTED):
            fix = "use a smaller batch, another --precision or a machine with more memory"
            return EngineUnavailable(f"{failed}: out of memory or threads: {said}", where=self._where, fix=fix)
        fix = f"simmim-export verify BUNDLE --engine {self._engine}, which checks the files and runs every graph"
        if self._opens:
            fix = EXPORT_AGAIN
        return self._error(f"{failed}: {said}", where=self._where, fix=fix)


def _said(raised: Exception, limit: int = 300) -> str:
    """What ``raised`` says, in one line: the last that is not empty, because engines put places in their sources first."""
    lines = [line.strip() for line in str(raised).splitlines() if line.strip()]
    text = lines[-1] if lines else ""
    text = text if len(text) <= limit else text[:limit] + "..."
    return f"{type(raised).__name__}: {text}" if text else type(raised).__name__
