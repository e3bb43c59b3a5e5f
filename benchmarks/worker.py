"""One engine in one process: opens a bundle, times its graphs and pipelines, and compares them with PyTorch.

Served by :class:`~simmim_export.system.workers.Worker`. PyTorch is imported only by the engine that needs it.
"""

from __future__ import annotations

import hashlib
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from simmim_export.benchmarks.jobs import Job
from simmim_export.benchmarks.workloads import Workloads
from simmim_export.bundle.golden import Golden
from simmim_export.engines.base import THROUGHPUT, GpuTimed
from simmim_export.errors import UnknownWords
from simmim_export.proof.examine import Examiner, require_evidence
from simmim_export.proof.parity import invariance
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
    """Latencies in seconds of one round: ``host`` with everything from the inputs to arrays on the host, ``gpu`` by the GPU's own
    events (empty for a session without them). ``inputs`` is the SHA-256 of what was fed. ``ended`` is when the round ended
    (``time.monotonic``), and ``resident`` the memory in bytes that the process then had."""

    host: tuple[float, ...]
    gpu: tuple[float, ...]
    inputs: str
    ended: float = 0.0
    resident: int = 0


@dataclass(frozen=True, kw_only=True)
class Proofs:
    """The largest memory of the timed runs in bytes; and by graph its parity with PyTorch, whether it is invariant to batch and
    padding, and how many nodes ran in each type."""

    peak_memory: int
    parity: dict[str, Any]
    invariance: dict[str, Any]
    proof: dict[str, Any]


class EngineWorker:
    """An open runtime, and what it runs for each job."""

    def __init__(self) -> None:
        self.imported = time.monotonic()
        self.model: Model
        self.golden: Golden
        self.workloads: Workloads

    def open(
        self,
        bundle: Path,
        *,
        engine: str,
        precision: str | None,
        checkpoint: Path | None,
        first: Job | None,
        pictures: Path | None = None,
    ) -> Opened:
        """Open the bundle and run the job ``first``, or the first of its parts, once. Raises what :func:`simmim_export.load`
        raises."""
        # The texts that are timed need not be in the vocabulary of the bundle that is measured.
        warnings.simplefilter("ignore", UnknownWords)
        self.model = load(bundle, engine, precision=precision, checkpoint=checkpoint)
        self.golden = self.model.bundle.golden()
        self.workloads = Workloads(
            self.model,
            self.golden,
            pictures=pictures,
            open_throughput=lambda: load(bundle, engine, precision=precision, checkpoint=checkpoint, hint=THROUGHPUT),
        )
        opened = time.monotonic()
        if first is not None:
            self.workloads.of(first.parts[0] if first.parts else first).run()
        return Opened(imported=self.imported, opened=opened, first=time.monotonic(), threads=available_threads())

    def time_round(self, job: Job, *, warmup: int) -> Samples:
        """Time the iterations of ``job`` after ``warmup`` runs that are not timed.

        A run ends with arrays on the host, so a GPU has finished its work when the clock stops. A single graph whose session has
        a clock on the GPU is run as often again by that clock.
        """
        if job.parts:
            return self._soak(job)
        workload = self.workloads.of(job)
        for _ in range(warmup):
            workload.run()
        host, gpu = [], []
        for _ in range(job.iterations):
            before = time.perf_counter()
            workload.run()
            host.append(time.perf_counter() - before)
        if workload.feeds is not None:
            session = self.model.session(job.target.partition(":")[2])
            if isinstance(session, GpuTimed):
                gpu = [session.gpu_seconds(workload.feeds) for _ in range(job.iterations)]
        return _samples(host, gpu, inputs=workload.inputs)

    def _soak(self, job: Job) -> Samples:
        """Run the parts of ``job`` in turn for its seconds, and each of them at least once."""
        workloads = [self.workloads.of(part) for part in job.parts]
        before, runs = time.perf_counter(), 0
        while time.perf_counter() - before < job.seconds or runs < len(workloads):
            workloads[runs % len(workloads)].run()
            runs += 1
        mean = (time.perf_counter() - before) / runs
        inputs = hashlib.sha256("".join(workload.inputs for workload in workloads).encode()).hexdigest()
        return _samples([mean], [], inputs=inputs)

    def prove(self, graphs: list[str]) -> Proofs:
        """Compare ``graphs`` with PyTorch. Call it after the timed runs: it takes memory."""
        memory = peak_memory()
        parity, invariances, proofs = {}, {}, {}
        for name in graphs:
            session, spec = self.model.session(name), self.model.bundle.manifest.graph(name)
            parity[name] = self.model.compare(name, self.golden).summary()
            invariances[name] = invariance(session, spec, golden=self.golden)
            proofs[name] = asdict(session.precision_proof())
        return Proofs(peak_memory=memory, parity=parity, invariance=invariances, proof=proofs)

    def examine(self) -> dict[str, Any]:
        """The figures that the evidence of the bundle gives for this engine; see :meth:`Examiner.figures`."""
        evidence = require_evidence(self.model.bundle)
        examiner = Examiner(self.model.bundle.manifest, evidence, tokens=self.model.tokens)
        return dict(examiner.figures(examiner.outputs(self.model.session)))


def _samples(host: Sequence[float], gpu: Sequence[float], *, inputs: str) -> Samples:
    """The samples of a round that has just ended."""
    ended, resident = time.monotonic(), resident_memory()
    return Samples(host=tuple(host), gpu=tuple(gpu), inputs=inputs, ended=ended, resident=resident)


def peak_memory() -> int:
    """The largest resident set of this process so far, in bytes."""
    try:
        return _status("VmHWM")
    except (OSError, StopIteration):
        import resource

        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def resident_memory() -> int:
    """The resident set of this process in bytes; its largest one so far where the system tells no other."""
    try:
        return _status("VmRSS")
    except (OSError, StopIteration):
        return peak_memory()


def _status(key: str) -> int:
    """A size that Linux reports of this process, in bytes. Raise OSError or StopIteration on a system that does not."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith(key)).split()[1]) * 1024
