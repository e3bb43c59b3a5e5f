"""Why an engine cannot run here, and what goes wrong while it runs: whatever it raises becomes one of our errors, which names the
engine and the graph."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

from simmim_export.errors import EXPORT_AGAIN, BundleError, EngineUnavailable, InputError, SimmimError, UsageError
from simmim_export.spec import GraphSpec
from simmim_export.system.telemetry import SWITCHES, without_telemetry

# What importing a package raises if its libraries are missing, or were built for other versions of what they need.
_BROKEN = (ImportError, OSError, RuntimeError, AttributeError, TypeError, ValueError)
# What the engines say, in lower case, if this machine has too little memory or may start no more threads. None of them has an
# exception type for that.
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


def cannot_run(engine: str, reason: str, *, install: str) -> EngineUnavailable:
    """The error for an engine that cannot run here."""
    return EngineUnavailable(f"engine {engine!r} cannot run here: {reason}", fix=install)


def closed(graph: str) -> UsageError:
    """The error for running a session that was closed."""
    return UsageError(f"the session of {graph} was closed", fix="open it again")


def exhausted(raised: Exception) -> bool:
    """Whether ``raised`` says that this machine, or its GPU, lacks memory or threads."""
    return isinstance(raised, MemoryError) or any(words in str(raised).lower() for words in _EXHAUSTED)


class running:
    """For a block in which the engine called ``engine`` opens or runs the graph ``spec``: whatever it raises becomes one of our
    errors that names both. Our own errors, warnings and KeyboardInterrupt pass through.

    Raise :class:`EngineUnavailable` if the machine lacks memory or threads, else ``error``: :class:`BundleError`, or what an
    engine that does not read bundles raises for a bad file. ``where`` is the file that was opened. This is a class and not a
    generator because it is entered at every run.
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
        # A warning is only raised if the caller turned warnings into errors.
        if isinstance(raised, Exception) and not isinstance(raised, SimmimError | Warning):
            raise self._ours(raised) from raised

    def _ours(self, raised: Exception) -> SimmimError:
        reason = last_line(raised)
        failed = f"engine {self._engine!r} cannot {'open' if self._opens else 'run'} {self._spec.name}"
        if exhausted(raised):
            fix = "use a smaller batch, another --precision or a machine with more memory"
            return EngineUnavailable(f"{failed}: out of memory or threads: {reason}", where=self._where, fix=fix)
        fix = f"simmim-export verify BUNDLE --engine {self._engine}, which checks the files and runs every graph"
        if self._opens:
            fix = EXPORT_AGAIN
        return self._error(f"{failed}: {reason}", where=self._where, fix=fix)


def last_line(raised: Exception, limit: int = 300) -> str:
    """The type of ``raised`` and the last line of its message, because engines put places in their own sources first."""
    lines = [line.strip() for line in str(raised).splitlines() if line.strip()]
    text = lines[-1] if lines else ""
    text = text if len(text) <= limit else text[:limit] + "..."
    return f"{type(raised).__name__}: {text}" if text else type(raised).__name__
