"""What every engine provides, as protocols.

An engine compiles what a graph says and never edits it: precision belongs to the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from simmim_export.spec import GraphSpec, Precision, TensorSpec, Variant

# What a session is opened for: to answer one call as soon as it can, or many calls at once.
LATENCY, THROUGHPUT = "latency", "throughput"


@dataclass(frozen=True)
class PrecisionProof:
    """What a session really computes in: how many nodes (or tensors) of each type, and where that was read."""

    executed: Mapping[str, int]
    source: str


@runtime_checkable
class Session(Protocol):
    """One graph, ready to run.

    A session checks its inputs (:func:`~simmim_export.engines.checks.check_feeds`) and its outputs
    (:func:`~simmim_export.engines.checks.check_outputs`), and turns what the engine raises into one of our errors
    (:class:`~simmim_export.engines.failures.running`). Several threads may run one session: calls beyond what it was opened for
    wait.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute every output, each a fresh array that the caller owns. ``feeds`` may hold more tensors than the graph takes.

        Raise :class:`UsageError` for a tensor that is missing or does not fit, and for a session that was closed.
        """
        ...

    def close(self) -> None:
        """Give memory and threads back; those of a running call when it ends. Calling it twice is fine."""
        ...

    def precision_proof(self) -> PrecisionProof:
        """What this session really runs at, read from the engine and not from the request."""
        ...


@runtime_checkable
class GpuTimed(Protocol):
    """A session on a GPU that has a clock there. A session without one is timed from outside, copies included."""

    def gpu_seconds(self, feeds: Mapping[str, np.ndarray]) -> float:
        """Run once; the seconds between two events on the GPU around the graph alone, without copies."""
        ...


@runtime_checkable
class KeepsOnDevice(Protocol):
    """A session whose outputs can stay where they were computed, for the next graph of a pipeline."""

    def run_on_device(self, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        """As :meth:`Session.run`, with tensors that may stay on the device. A tensor has ``shape``, ``dtype`` and ``ndim``, may
        be fed to any session, and becomes an array by ``numpy.asarray``."""
        ...


@runtime_checkable
class Engine(Protocol):
    """A way to run graphs.

    ``install`` is what to type if it is missing. ``reads_checkpoint`` is true for PyTorch alone, which runs from the checkpoint
    and not from a graph. ``hints`` are what a session can be opened for.
    """

    name: str
    install: str
    reads_checkpoint: bool
    hints: tuple[str, ...]

    def why_unavailable(self) -> str | None:
        """None if the engine can run here, else the reason in one line."""
        ...

    def variants(self, precision: Precision) -> tuple[Variant, ...]:
        """The variants of a graph that this engine runs at ``precision`` on this processor, the best first: it takes the first
        one that a bundle has of the graph.

        Raise :class:`EngineUnavailable` for a precision that it lacks here, naming those that it has. An engine that runs from
        the checkpoint names the variant of the same precision.
        """
        ...

    def open(
        self, path: Path, spec: GraphSpec, *, precision: Precision, threads: int | None = None, hint: str = LATENCY
    ) -> Session:
        """A session for ``spec`` from the file at ``path``: a graph, a plan file or a checkpoint.

        ``threads`` None means what this process may use (:func:`~simmim_export.engines.checks.threads_for`); ``hint`` is one of
        :attr:`hints`.
        """
        ...


@runtime_checkable
class CompilingEngine(Engine, Protocol):
    """An engine that compiles graphs ahead of time, and opens only what it compiled."""

    def compiled(self, root: Path, spec: GraphSpec, *, precision: Precision, sha256: str) -> Path:
        """The file that was compiled from the graph ``spec`` of the bundle at ``root``, whose own file has the digest ``sha256``.

        Raise :class:`EngineUnavailable` if it was not compiled yet, and :class:`BundleError` if the compiled file is damaged or
        belongs to another graph; both name the command that compiles it.
        """
        ...
