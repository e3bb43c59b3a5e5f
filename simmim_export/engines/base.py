"""What an engine owes: two protocols, and the number of threads it may use.

Knows specs and paths. Must not import any engine. An engine compiles what the graph says and never edits it; precision
belongs to the graph.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from simmim_export.errors import EngineUnavailable
from simmim_export.spec import GraphSpec, Precision, TensorSpec


@dataclass(frozen=True)
class PrecisionProof:
    """What a session really computes in: how many nodes (or tensors) of each type, and where that was read."""

    executed: Mapping[str, int]
    source: str


@runtime_checkable
class Session(Protocol):
    """One graph, ready to run. Inputs are checked against ``inputs``; an output is a fresh array owned by the caller."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute every output. Raise :class:`UsageError` naming a tensor that is missing or does not fit."""
        ...

    def close(self) -> None:
        """Give memory and threads back. Calling it twice is fine; running afterwards is a bug."""
        ...

    def precision_proof(self) -> PrecisionProof:
        """What this session really runs at, read from the engine and not from the request."""
        ...


@runtime_checkable
class Engine(Protocol):
    """A way to run graphs. ``install`` is what to type when it is missing; ``reads_checkpoint`` is true only for PyTorch."""

    name: str
    install: str
    reads_checkpoint: bool

    def why_unavailable(self) -> str | None:
        """None when the engine can run here, else the reason in one line."""
        ...

    def variant(self, precision: Precision) -> str:
        """The graph variant wanted for ``precision``; raise :class:`EngineUnavailable` naming the precisions it has."""
        ...

    def open(self, path: Path, spec: GraphSpec, precision: Precision, threads: int | None = None) -> Session:
        """A session for ``spec`` from the file at ``path``. ``threads`` None means :func:`available_threads`."""
        ...


def no_such_precision(engine: str, precision: Precision, has: tuple[Precision, ...]) -> EngineUnavailable:
    """The error for a precision that an engine lacks."""
    names = ", ".join(has)
    return EngineUnavailable(f"engine {engine!r} has no {precision} (it has: {names})", fix=f"use --precision {has[0]}")


def missing_package(package: str) -> str | None:
    """None when ``package`` can be imported, else the reason. Imports nothing."""
    return None if find_spec(package) is not None else f"the package {package} is not installed"


def check_feeds(feeds: Mapping[str, np.ndarray], inputs: tuple[TensorSpec, ...]) -> dict[str, np.ndarray]:
    """Exactly the ``inputs`` out of ``feeds`` (which may hold more), each checked.

    Raise :class:`UsageError` for one that is missing or does not fit, or for a dynamic axis with two sizes.
    """
    from simmim_export.errors import UsageError

    sizes: dict[str, int] = {}
    found = {}
    for spec in inputs:
        if spec.name not in feeds:
            raise UsageError(f"input {spec.name!r} is missing", fix=f"feed {', '.join(s.name for s in inputs)}")
        array = feeds[spec.name]
        spec.check(array)
        for axis, size in zip(spec.shape, array.shape, strict=True):
            if isinstance(axis, str) and sizes.setdefault(axis, size) != size:
                raise UsageError(f"axis {axis!r} is {sizes[axis]} in one input and {size} in {spec.name!r}")
        found[spec.name] = array
    return found


def available_threads() -> int:
    """Threads that this process may really use: its CPU affinity, and the quota of its control group (v2 or v1)."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota(Path("/sys/fs/cgroup"))
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def _cgroup_quota(root: Path) -> float | None:
    """CPUs granted under ``root``, or None where no limit is set."""
    try:
        granted, period = (root / "cpu.max").read_text().split()
        return None if granted == "max" else int(granted) / int(period)
    except (OSError, ValueError):
        pass
    try:
        microseconds = int((root / "cpu/cpu.cfs_quota_us").read_text())
        return None if microseconds <= 0 else microseconds / int((root / "cpu/cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
