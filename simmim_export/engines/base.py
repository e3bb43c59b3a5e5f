"""What every engine provides (two protocols), and the checks and errors that all engines share.

An engine compiles what the graph says and never edits it; precision belongs to the graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from simmim_export.errors import EXPORT_AGAIN, BundleError, EngineUnavailable, UnknownHost, UsageError
from simmim_export.spec import Axis, GraphSpec, Precision, TensorSpec
from simmim_export.system.host import available_threads, has_integer_dot
from simmim_export.system.telemetry import SWITCHES, without_telemetry

# What an artifact may need of a host ("needs" of its built_for): products of INT8 that do not saturate.
INTEGER_DOT = "integer_dot"
# What a session is opened for: to answer one call as soon as it can, or many calls at once.
LATENCY, THROUGHPUT = "latency", "throughput"
# The axis whose rows know nothing of each other.
BATCH = "batch"
# What importing a package raises whose libraries are missing, or were built for other versions of what they need.
_BROKEN = (ImportError, OSError, RuntimeError, AttributeError, TypeError, ValueError)


@dataclass(frozen=True)
class PrecisionProof:
    """What a session really computes in: how many nodes (or tensors) of each type, and where that was read."""

    executed: Mapping[str, int]
    source: str


@runtime_checkable
class Session(Protocol):
    """One graph, ready to run; an output is a fresh array owned by the caller.

    Inputs are checked (:func:`check_feeds`), and so are outputs (:func:`check_outputs`). What the engine itself raises becomes an
    error of ours (:class:`~simmim_export.engines.failures.running`).

    Several threads may run one session: calls beyond what it was opened for wait.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute every output. Raise :class:`UsageError` naming a tensor that is missing or does not fit, or once the session
        is closed."""
        ...

    def close(self) -> None:
        """Give memory and threads back, those of a running call when it ends. Calling it twice is fine."""
        ...

    def precision_proof(self) -> PrecisionProof:
        """What this session really runs at, read from the engine and not from the request."""
        ...


@runtime_checkable
class GpuTimed(Protocol):
    """What a session on a GPU may offer beside: its own clock. One that lacks it is timed from outside, copies included."""

    def gpu_seconds(self, feeds: Mapping[str, np.ndarray]) -> float:
        """Run once; the seconds between two events on the GPU around the graph alone, copies left out."""
        ...


@runtime_checkable
class KeepsOnDevice(Protocol):
    """A session whose outputs can stay where they were computed, for the next graph of a pipeline."""

    def run_on_device(self, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        """As :meth:`Session.run`. A tensor has ``shape``, ``dtype`` and ``ndim``, may be fed to any session, and becomes an
        array by ``numpy.asarray``."""
        ...


@runtime_checkable
class Engine(Protocol):
    """A way to run graphs. ``install`` is what to type when it is missing; ``reads_checkpoint`` is true only for PyTorch;
    ``hints`` are what a session can be opened for; ``saturates``: whether its INT8 products of full range saturate on a
    processor without VNNI."""

    name: str
    install: str
    reads_checkpoint: bool
    hints: tuple[str, ...]
    saturates: bool

    def why_unavailable(self) -> str | None:
        """None when the engine can run here, else the reason in one line."""
        ...

    def variant(self, precision: Precision) -> str:
        """The graph variant wanted for ``precision``; raise :class:`EngineUnavailable` naming the precisions it has."""
        ...

    def compiled(self, root: Path, spec: GraphSpec, precision: Precision, sha256: str) -> Path | None:
        """What to open in place of the graph ``spec`` whose file in the bundle at ``root`` has that SHA-256, for an engine that
        compiles ahead of time; None for one that opens graphs themselves. Raise :class:`EngineUnavailable` or
        :class:`BundleError`, with the command that compiles it, where it is not there or is of another graph."""
        ...

    def open(
        self, path: Path, spec: GraphSpec, precision: Precision, threads: int | None = None, hint: str = LATENCY
    ) -> Session:
        """A session for ``spec`` from the file at ``path``, a graph or what :meth:`compiled` gave. ``threads`` None means what
        this process may use (:func:`threads_for`); ``hint`` is one of :attr:`hints`."""
        ...


def cannot_run(engine: str, reason: str, install: str) -> EngineUnavailable:
    """The error for an engine that cannot run here."""
    return EngineUnavailable(f"engine {engine!r} cannot run here: {reason}", fix=install)


def no_such_precision(engine: str, precision: Precision, has: tuple[Precision, ...]) -> EngineUnavailable:
    """The error for a precision that an engine lacks."""
    names = ", ".join(has)
    return EngineUnavailable(f"engine {engine!r} has no {precision} (it has: {names})", fix=f"use --precision {has[0]}")


def require_hint(engine: str, hint: str, has: tuple[str, ...]) -> None:
    """Raise :class:`UsageError` for a hint that does not exist, :class:`EngineUnavailable` for one that an engine lacks."""
    if hint not in (LATENCY, THROUGHPUT):
        raise UsageError(f"unknown hint {hint!r}", fix=f"choose {LATENCY} or {THROUGHPUT}")
    if hint not in has:
        raise EngineUnavailable(
            f"engine {engine!r} has no {hint} hint (it has: {', '.join(has)})", fix="leave the hint out"
        )


def require_host(engine: Engine, built_for: Mapping[str, str], where: object) -> None:
    """Raise :class:`EngineUnavailable` if an artifact (``built_for`` is its own) needs what ``engine`` lacks on this machine;
    warn :class:`UnknownHost` where this machine does not say."""
    needs = built_for.get("needs")
    if needs not in (None, INTEGER_DOT):
        fix = "pip install -U simmim-export"
        raise EngineUnavailable(f"the graph needs {needs!r}, which this version does not know", where=where, fix=fix)
    if needs is None or not engine.saturates or has_integer_dot():
        return
    what = f"INT8 products of full range saturate in engine {engine.name!r} without VNNI, and answers change"
    if has_integer_dot() is None:
        warnings.warn(f"{what}; this system does not say whether it has that: {where}", UnknownHost, stacklevel=2)
        return
    fix = "use --engine ort, whose products are exact here, or export without --full-range"
    raise EngineUnavailable(f"{what}; this processor has none", where=where, fix=fix)


def missing_package(package: str) -> str | None:
    """None when ``package`` is installed, else the reason. Imports nothing."""
    return None if find_spec(package) is not None else f"the package {package} is not installed"


def broken_package(package: str) -> str | None:
    """None when ``package`` is installed and can be imported, which is done; else the reason in one line."""
    if (missing := missing_package(package)) is not None:
        return missing
    try:
        with without_telemetry(*({package} & SWITCHES.keys())):
            import_module(package)
    except _BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"the package {package} is installed and cannot be imported: {reason}"
    return None


def threads_for(threads: int | None) -> int:
    """``threads``, or what this process may use for None; raise :class:`UsageError` for fewer than one, and for what is not a
    whole number."""
    if threads is None:
        return available_threads()
    return require_count("threads", threads, fix="give 1 or more, or None for what this process may use")


def require_count(name: str, value: Any, *, least: int = 1, fix: str | None = None) -> int:
    """``value`` as an int, if it is a whole number (Python's or NumPy's, but not a bool) and ``least`` or more; else raise
    :class:`UsageError` that calls it ``name``."""
    fix = fix or f"give {least} or more"
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise UsageError(f"{name} is {value!r}, which is not a whole number", fix=fix)
    if value < least:
        raise UsageError(f"{name} is {value}", fix=fix)
    return int(value)


def closed(graph: str) -> UsageError:
    """The error for a run of a session that was closed."""
    return UsageError(f"the session of {graph} was closed", fix="open it again")


def check_feeds(
    feeds: Mapping[str, np.ndarray], inputs: tuple[TensorSpec, ...], axes: tuple[Axis, ...] = ()
) -> dict[str, np.ndarray]:
    """Exactly the ``inputs`` out of ``feeds`` (which may hold more), each checked.

    Raise :class:`UsageError` for one that is missing or does not fit, and for a dynamic axis that is empty (a mean over nothing
    is NaN), has two sizes, or is longer than its own of ``axes``: past a table of positions ONNX Runtime fails and OpenVINO
    answers. A batch may be larger than what was proven: its rows know nothing of each other.
    """
    found = {}
    for spec in inputs:
        if spec.name not in feeds:
            raise UsageError(f"input {spec.name!r} is missing", fix=f"feed {', '.join(s.name for s in inputs)}")
        array = feeds[spec.name]
        # An array, or a tensor on a device that has what an array has.
        if not (hasattr(array, "dtype") and hasattr(array, "shape") and hasattr(array, "ndim")):
            raise UsageError(f"input {spec.name!r} is {type(array).__name__}, not an array", fix="feed NumPy arrays")
        spec.check(array)
        found[spec.name] = array
    most = {axis.name: axis.maximum for axis in axes if axis.name != BATCH}
    for name, size in axis_sizes(found, inputs).items():
        if size < 1:
            raise UsageError(f"axis {name!r} is empty", fix="feed one row or more")
        if size > most.get(name, size):
            what = f"axis {name!r} is {size}, and the graph was exported for {most[name]} at most"
            raise UsageError(what, fix=f"feed {most[name]} or fewer")
    return found


def axis_sizes(arrays: Mapping[str, np.ndarray], inputs: tuple[TensorSpec, ...]) -> dict[str, int]:
    """The size of every dynamic axis of ``inputs``; raise :class:`UsageError` for an axis with two sizes."""
    sizes: dict[str, int] = {}
    for spec in inputs:
        for axis, size in zip(spec.shape, arrays[spec.name].shape, strict=True):
            if isinstance(axis, str) and sizes.setdefault(axis, size) != size:
                raise UsageError(f"axis {axis!r} is {sizes[axis]} in one input and {size} in {spec.name!r}")
    return sizes


def check_outputs(engine: str, spec: GraphSpec, feeds: Mapping[str, np.ndarray], outputs: Mapping[str, Any]) -> None:
    """Raise :class:`BundleError` unless ``outputs``, which the graph ``spec`` gave for ``feeds``, are what ``spec`` promises:
    each is there, has its dtype, rank and fixed sizes, and each dynamic axis has the size of the input's axis of that name.

    ``feeds`` were checked before (:func:`check_feeds`). An axis that no input has may have any size, but only one.
    """
    sizes = axis_sizes(feeds, spec.inputs)
    wanted: list[int | str]
    for tensor in spec.outputs:
        array = outputs.get(tensor.name)
        shape = getattr(array, "shape", None)
        if shape is not None and getattr(array, "dtype", None) == tensor.dtype and len(shape) == len(tensor.shape):
            wanted = [
                sizes.setdefault(d, n) if isinstance(d, str) else d for d, n in zip(tensor.shape, shape, strict=True)
            ]
            if wanted == list(shape):
                continue
        else:
            wanted = [sizes[d] if isinstance(d, str) and d in sizes else d for d in tensor.shape]
        got = f"{getattr(array, 'dtype', type(array).__name__)} {'' if shape is None else list(shape)}".strip()
        what = f"engine {engine!r} gave {tensor.name!r} of {spec.name} as {got if array is not None else 'nothing'}"
        raise BundleError(f"{what}, and the manifest says {tensor.dtype} {wanted}", fix=EXPORT_AGAIN)
