"""Who takes part in a measurement, and what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simmim_export.benchmarks.jobs import Job
from simmim_export.benchmarks.results import BenchmarkResult
from simmim_export.benchmarks.worker import EngineWorker
from simmim_export.bundle import Bundle
from simmim_export.engines import get_engine, on_device, require_engine
from simmim_export.proof.certificate import PLANNED
from simmim_export.runtime.loading import compiled, plan_of
from simmim_export.spec import Precision, PrecisionPlan
from simmim_export.system.files import size
from simmim_export.system.workers import Worker

FP32 = str(Precision.FP32)


@dataclass(frozen=True)
class Contestant:
    """An engine (with its device, as in ``ort@cuda``) at a precision, or at one for each graph, written as for
    :func:`simmim_export.load`. With a ``recipe``, it runs the ``bundle`` that this recipe made instead of the measurement's."""

    engine: str
    precision: str = FP32
    recipe: str = ""
    bundle: Path | None = None

    @classmethod
    def parse(cls, text: str, default: str = FP32, *, device: str | None = None) -> Contestant:
        """Read ``openvino:bf16``, or ``openvino``, which runs at the ``default`` precision (PyTorch, the reference, at FP32). An
        engine that names no device runs on ``device``."""
        engine, colon, precision = text.partition(":")
        if "@" not in engine:
            engine = on_device(engine, device)
        if not colon:
            precision = FP32 if engine.startswith("torch") else default
        return cls(engine, precision if precision == PLANNED else str(PrecisionPlan.parse(precision)))

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies its rows in a file, together with :attr:`Job.key`."""
        return (self.engine, self.precision, self.recipe)

    @property
    def reads_checkpoint(self) -> bool:
        """Whether it runs from the checkpoint; raise :class:`UsageError` for an unknown engine."""
        return get_engine(self.engine).reads_checkpoint

    def require(self) -> None:
        """Raise :class:`EngineUnavailable` if the engine cannot run here or lacks one of the precisions."""
        engine = require_engine(self.engine)
        if self.precision != PLANNED:
            plan = PrecisionPlan.parse(self.precision)
            for precision in dict.fromkeys((plan.default, *(own for _, own in plan.graphs))):
                engine.variants(precision)

    def runs(self, job: Job) -> bool:
        """Whether its engine can be opened for what ``job`` needs."""
        return job.hint in get_engine(self.engine).hints

    def file_bytes(self, plan: Plan, graphs: Sequence[str]) -> int:
        """The size in bytes of the files that it opens for ``graphs``; for PyTorch that of the checkpoint."""
        if self.reads_checkpoint:
            return 0 if plan.checkpoint is None else size(plan.checkpoint)
        bundle, engine = Bundle.open(self.bundle or plan.bundle), get_engine(self.engine)
        precisions = plan_of(bundle, self.engine, precision=self.precision)
        total = 0
        for graph in graphs:
            own = compiled(bundle, engine, graph=graph, plan=precisions)
            total += bundle.artifact(graph, *engine.variants(precisions.of(graph))).bytes if own is None else size(own)
        return total

    def worker(self) -> Worker:
        """A process for it, just started."""
        return Worker(EngineWorker, name=f"engine '{self}'")

    def __str__(self) -> str:
        name = self.engine if self.precision == FP32 else f"{self.engine}:{self.precision}"
        return f"{name} ({self.recipe})" if self.recipe else name


def contestant_of(row: BenchmarkResult) -> str:
    """The name of the contestant that measured ``row``."""
    return str(Contestant(row.engine, row.precision, row.recipe))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure: a bundle on several engines, each of ``jobs`` once in each of ``rounds``, after ``warmup`` untimed runs.

    ``graphs`` are compared with PyTorch after the rounds. ``pictures`` is the folder of the photographs that jobs need. With
    ``evidence`` each engine also answers everything that travels with the bundle.
    """

    bundle: Path
    checkpoint: Path | None
    engines: Sequence[Contestant]
    jobs: Sequence[Job]
    graphs: Sequence[str]
    rounds: int
    warmup: int
    pictures: Path | None = None
    evidence: bool = False

    def jobs_of(self, contestant: Contestant) -> list[Job]:
        """The jobs that ``contestant`` runs."""
        return [job for job in self.jobs if contestant.runs(job)]
