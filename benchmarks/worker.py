"""One engine in one process: opens a bundle, times its graphs and pipelines, and compares them with PyTorch.

Served by :class:`~simmim_export.system.workers.Worker`. PyTorch is imported only by the engine that needs it.
"""

from __future__ import annotations

import hashlib
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simmim_export.bundle.golden import Golden
from simmim_export.engines.base import GpuTimed
from simmim_export.proof.examine import Examiner, require_evidence
from simmim_export.proof.parity import compare, invariance
from simmim_export.runtime import Model, load
from simmim_export.system.host import available_threads


@dataclass(frozen=True, kw_only=True)
class Opened:
    """When a worker had imported its code, opened its bundle and computed its first result (``time.monotonic``, which all
    processes share), and how many threads it may use."""

    imported: float
    opened: float
    first: float
    threads: int


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Latencies in seconds of one round: ``host`` from host arrays to host arrays, ``gpu`` by the GPU's own events (empty for a
    session without them). ``inputs`` is the SHA-256 of what was fed."""

    host: tuple[float, ...]
    gpu: tuple[float, ...]
    inputs: str


@dataclass(frozen=True, kw_only=True)
class Proofs:
    """The largest memory of the timed runs in bytes; and by graph its parity with PyTorch, whether it is invariant to batch and
    padding, and how many nodes ran in each type."""

    peak_memory: int
    parity: dict[str, Any]
    invariance: dict[str, Any]
    proof: dict[str, Any]


class EngineWorker:
    """An open runtime, the golden tensors, and the inputs of each target. A target is ``graph:NAME`` or ``pipeline:NAME``."""

    def __init__(self) -> None:
        self.imported = time.monotonic()
        self.model: Model
        self.golden: Golden
        self.batch = 1

    def open(
        self, bundle: Path, *, engine: str, precision: str | None, checkpoint: Path | None, batch: int, first: str
    ) -> Opened:
        """Open the bundle and compute the target ``first`` once. Raises what :func:`simmim_export.load` raises."""
        self.model = load(bundle, engine, precision=precision, checkpoint=checkpoint)
        self.golden = self.model.bundle.golden()
        self.batch = batch
        opened = time.monotonic()
        self._run(first, self._feeds(first))
        return Opened(imported=self.imported, opened=opened, first=time.monotonic(), threads=available_threads())

    def _feeds(self, target: str) -> dict[str, np.ndarray]:
        """The inputs of ``target``, the same for every engine: golden rows, repeated to the batch. A pipeline gets every tensor
        that the host gives to any graph."""
        kind, _, name = target.partition(":")
        manifest, case = self.model.bundle.manifest, self.golden.largest()
        if kind == "graph":
            rows = self.golden.feeds(case, manifest.graph(name))
        else:
            inputs = {tensor.name for graph in manifest.graphs for tensor in graph.inputs}
            rows = {key: array for key, array in self.golden.cases[case].items() if key in inputs}
        return {key: np.take(array, range(self.batch), axis=0, mode="wrap") for key, array in rows.items()}

    def _run(self, target: str, feeds: dict[str, np.ndarray]) -> None:
        kind, _, name = target.partition(":")
        if kind == "graph":
            self.model.session(name).run(feeds)
        else:
            self.model.run(name, feeds)

    def time_round(self, target: str, *, iterations: int, warmup: int) -> Samples:
        """Time ``iterations`` runs of ``target`` after ``warmup`` runs that are not timed.

        A run goes from host arrays to host arrays, so a GPU has finished its work when the clock stops. A single graph whose
        session has a clock on the GPU is run as often again by that clock.
        """
        kind, _, name = target.partition(":")
        feeds = self._feeds(target)
        digest = hashlib.sha256(b"".join(key.encode() + feeds[key].tobytes() for key in sorted(feeds))).hexdigest()
        for _ in range(warmup):
            self._run(target, feeds)
        host, gpu = [], []
        for _ in range(iterations):
            before = time.perf_counter()
            self._run(target, feeds)
            host.append(time.perf_counter() - before)
        if kind == "graph" and isinstance(session := self.model.session(name), GpuTimed):
            gpu = [session.gpu_seconds(feeds) for _ in range(iterations)]
        return Samples(host=tuple(host), gpu=tuple(gpu), inputs=digest)

    def prove(self, graphs: list[str]) -> Proofs:
        """Compare ``graphs`` with PyTorch. Call it after the timed runs: it takes memory."""
        memory = peak_memory()
        parity, invariances, proofs = {}, {}, {}
        for name in graphs:
            session, spec = self.model.session(name), self.model.bundle.manifest.graph(name)
            parity[name] = compare(session, spec, golden=self.golden, precision=self.model.plan.of(name)).summary()
            invariances[name] = invariance(session, spec, golden=self.golden)
            proofs[name] = asdict(session.precision_proof())
        return Proofs(peak_memory=memory, parity=parity, invariance=invariances, proof=proofs)

    def examine(self) -> dict[str, Any]:
        """The figures that the evidence of the bundle gives for this engine; see :meth:`Examiner.figures`."""
        evidence = require_evidence(self.model.bundle)
        examiner = Examiner(self.model.bundle.manifest, evidence, tokens=self.model.tokens)
        return dict(examiner.figures(examiner.outputs(self.model.session)))


def peak_memory() -> int:
    """The largest resident set of this process so far, in bytes."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
    except (OSError, StopIteration):
        import resource

        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
