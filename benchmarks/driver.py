"""Measures several engines, each in a worker of its own, one at a time and in alternated rounds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from simmim_export.benchmarks.measure import BenchmarkResult
from simmim_export.benchmarks.worker import EngineWorker, Opened, Samples
from simmim_export.bundle import Bundle, Manifest
from simmim_export.engines import get_engine, on_device, require_engine
from simmim_export.errors import GateFailed
from simmim_export.proof.certificate import PLANNED
from simmim_export.spec import Precision, PrecisionPlan
from simmim_export.system.watch import Watch, unwatched
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

    def worker(self) -> Worker:
        """A process for it, just started."""
        return Worker(EngineWorker, name=f"engine '{self}'")

    def __str__(self) -> str:
        name = self.engine if self.precision == FP32 else f"{self.engine}:{self.precision}"
        return f"{name} ({self.recipe})" if self.recipe else name


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure: a bundle on several engines, ``iterations`` timed runs of each target in each of ``rounds``. A target is
    ``graph:NAME`` or ``pipeline:NAME``. With ``evidence`` each engine also answers everything that travels with the bundle."""

    bundle: Path
    checkpoint: Path | None
    engines: Sequence[Contestant]
    targets: Sequence[str]
    graphs: Sequence[str]
    batch: int
    rounds: int
    iterations: int
    warmup: int
    evidence: bool = False


@dataclass(frozen=True)
class Measured:
    """The results, and by contestant's name its cold start (seconds), memory (bytes), parity and proof."""

    results: list[BenchmarkResult]
    engines: dict[str, dict[str, Any]]


def open_bundle(worker: Worker, contestant: Contestant, *, plan: Plan) -> Opened:
    """Let ``worker`` open the contestant's bundle and compute the first target of ``plan`` once."""
    return worker.ask(
        EngineWorker.open,
        contestant.bundle or plan.bundle,
        engine=contestant.engine,
        precision=contestant.precision,
        checkpoint=plan.checkpoint if contestant.reads_checkpoint else None,
        batch=plan.batch,
        first=plan.targets[0],
    )


def measure(plan: Plan, watch: Watch = unwatched) -> Measured:
    """Open one worker for each engine; then in each round let each engine run each target once, while the others are idle.

    The order of engines turns by one place each round, so that none always follows the same other. Raise :class:`GateFailed` if
    two engines did not get the same inputs.
    """
    workers: dict[Contestant, Worker] = {}
    info: dict[Contestant, dict[str, Any]] = {}
    samples: dict[tuple[str, Contestant], list[Samples]] = {}
    with ExitStack() as stack:
        for engine in plan.engines:
            watch(f"open {engine}", 0, plan.rounds)
            worker = workers[engine] = stack.enter_context(engine.worker())
            opened = open_bundle(worker, engine, plan=plan)
            info[engine] = {
                "cold_start": opened.first - worker.started,
                "phases": {
                    "import": opened.imported - worker.started,
                    "open": opened.opened - opened.imported,
                    "first result": opened.first - opened.opened,
                },
                "first_target": plan.targets[0],
                "threads": opened.threads,
            }
        for number in range(plan.rounds):
            turn = number % len(plan.engines)
            order = [*plan.engines[turn:], *plan.engines[:turn]]
            for target in plan.targets:
                for engine in order:
                    watch(f"round {number + 1}, {target.partition(':')[2]}, {engine}", number, plan.rounds)
                    timed = workers[engine].ask(
                        EngineWorker.time_round, target, iterations=plan.iterations, warmup=plan.warmup
                    )
                    samples.setdefault((target, engine), []).append(timed)
        for engine, worker in workers.items():
            watch(f"parity of {engine}", plan.rounds, plan.rounds)
            info[engine] |= asdict(worker.ask(EngineWorker.prove, list(plan.graphs)))
            if plan.evidence:
                watch(f"{engine} on the evidence", plan.rounds, plan.rounds)
                info[engine]["figures"] = worker.ask(EngineWorker.examine)
    return Measured(_results(plan, samples, info), {str(engine): figures for engine, figures in info.items()})


def examine(contestant: Contestant, *, plan: Plan) -> dict[str, Any]:
    """The figures that the evidence gives for ``contestant`` on the bundle of ``plan``, without any timing."""
    with contestant.worker() as worker:
        open_bundle(worker, contestant, plan=plan)
        return worker.ask(EngineWorker.examine)


def _results(
    plan: Plan, samples: dict[tuple[str, Contestant], list[Samples]], info: dict[Contestant, dict[str, Any]]
) -> list[BenchmarkResult]:
    """A result for each target and engine; raise :class:`GateFailed` for a target whose engines got different inputs."""
    inputs: dict[str, set[str]] = {}
    for (target, _), rounds in samples.items():
        inputs.setdefault(target, set()).update(one.inputs for one in rounds)
    if mixed := [target for target, digests in inputs.items() if len(digests) != 1]:
        raise GateFailed(f"the engines did not get the same inputs: {mixed}", fix="report this")
    manifest = Bundle.open(plan.bundle).manifest
    return [
        BenchmarkResult(
            target=target,
            engine=engine.engine,
            precision=engine.precision,
            batch=plan.batch,
            inputs=rounds[0].inputs,
            rounds=tuple(one.host for one in rounds),
            parity=_worst(info[engine]["parity"], target, manifest=manifest),
            gpu_rounds=tuple(one.gpu for one in rounds if one.gpu),
        )
        for (target, engine), rounds in samples.items()
    ]


def _worst(parity: dict[str, Any], target: str, *, manifest: Manifest) -> dict[str, Any]:
    """The parity of a graph, or for a pipeline the worst of its graphs."""
    kind, _, name = target.partition(":")
    names = [name] if kind == "graph" else list(manifest.pipeline(name).graphs)
    rows = [parity[graph] for graph in names]
    return {
        "passed": all(row["passed"] for row in rows),
        "scaled_error": max(row["scaled_error"] for row in rows),
        "cosine": min(row["cosine"] for row in rows),
    }
