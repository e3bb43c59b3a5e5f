"""Measures several engines, each in a worker of its own, one at a time and in alternated rounds.

An engine that fails does not end the measurement: its rows say why, and the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

from simmim_export.benchmarks.code_digest import code_digest
from simmim_export.benchmarks.contestants import FP32, Contestant, Plan
from simmim_export.benchmarks.results import BenchmarkResult, Failed
from simmim_export.benchmarks.worker import EngineWorker, Opened, Samples
from simmim_export.errors import EngineUnavailable, GateFailed, SimmimError
from simmim_export.system.watch import Watch, unwatched
from simmim_export.system.workers import Worker, WorkerDied

__all__ = ["FP32", "Contestant", "Measured", "Measurement", "Plan", "examine", "measure", "open_bundle"]


@dataclass(frozen=True)
class Measured:
    """The results, and by contestant's name its cold start (seconds), memory (bytes), parity and proof.

    ``finished`` rounds are in the results. ``failures`` has the error of each engine that failed.
    """

    results: list[BenchmarkResult]
    engines: dict[str, dict[str, Any]]
    finished: int
    failures: dict[Contestant, Exception] = field(default_factory=dict)

    def require_whole(self) -> None:
        """Raise the error of the first engine that failed."""
        for error in self.failures.values():
            raise error


def open_bundle(worker: Worker, contestant: Contestant, *, plan: Plan) -> Opened:
    """Let ``worker`` open the contestant's bundle and run its first job of ``plan`` once."""
    return worker.ask(
        EngineWorker.open,
        contestant.bundle or plan.bundle,
        engine=contestant.engine,
        precision=contestant.precision,
        checkpoint=plan.checkpoint if contestant.reads_checkpoint else None,
        first=next(iter(plan.jobs_of(contestant)), None),
        pictures=plan.pictures,
    )


class Measurement:
    """The rounds of ``plan`` as they are measured. ``earlier`` has its first rounds, from a run that was interrupted."""

    def __init__(self, plan: Plan, *, earlier: Measured | None = None) -> None:
        self._plan = plan
        self._watch: Watch = unwatched
        self._workers: dict[Contestant, Worker] = {}
        self._info: dict[Contestant, dict[str, Any]] = {engine: {} for engine in plan.engines}
        # The rows, by the position of their job and by engine.
        self._samples: dict[tuple[int, Contestant], list[Samples]] = {
            (index, engine): [] for index, job in enumerate(plan.jobs) for engine in plan.engines if engine.runs(job)
        }
        self._bytes = {(i, engine): engine.file_bytes(plan, plan.jobs[i].graphs) for i, engine in self._samples}
        self._failed: dict[tuple[int, Contestant], Failed] = {}
        # The first error of each engine, and the engines whose process cannot go on.
        self._failures: dict[Contestant, Exception] = {}
        self._out: set[Contestant] = set()
        self._finished = 0
        if earlier is not None:
            self._continue(earlier)

    def _continue(self, earlier: Measured) -> None:
        """Take over the rounds of ``earlier``. What failed then is not tried again."""
        self._finished = earlier.finished
        rows = {row.key: row for row in earlier.results}
        for index, engine in self._samples:
            row = rows[(*self._plan.jobs[index].key, *engine.key)]
            gpu = row.gpu_rounds or ((),) * len(row.rounds)
            taken = [
                Samples(host=host, gpu=events, inputs=row.inputs) for host, events in zip(row.rounds, gpu, strict=True)
            ]
            self._samples[index, engine] = taken
            if row.failed is not None:
                self._failed[index, engine] = row.failed
                self._failures.setdefault(engine, EngineUnavailable(row.failed.message, fix="measure it again"))
        self._out = {e for e in self._plan.engines if all(key in self._failed for key in self._samples if key[1] == e)}

    def run(
        self, finished_round: Callable[[Measured], None] = lambda measured: None, *, watch: Watch = unwatched
    ) -> Measured:
        """Open one worker for each engine; then in each round let each engine run each job once, while the others are idle.

        The order of engines turns by one place each round, so that none always follows the same other. ``finished_round`` gets
        what was measured after each round. Raise the error of the first engine if no engine measured anything, and
        :class:`GateFailed` if two engines did not get the same inputs.
        """
        plan = self._plan
        self._watch = watch
        with ExitStack() as stack:
            for engine in plan.engines:
                if engine not in self._out:
                    self._watch(f"open {engine}", self._finished, plan.rounds)
                    self._workers[engine] = stack.enter_context(engine.worker())
                    self._guarded(engine, None, step=self._open)
            clock = _Clock(steps=len(self._samples), rounds=plan.rounds - self._finished)
            for number in range(self._finished, plan.rounds):
                turn = number % len(plan.engines)
                order = [*plan.engines[turn:], *plan.engines[:turn]]
                for index, job in enumerate(plan.jobs):
                    for engine in order:
                        if (index, engine) not in self._samples:
                            continue
                        if (index, engine) not in self._failed:
                            where = f"round {number + 1} of {plan.rounds}{clock.left}"
                            self._watch(f"{where}: {job.title}, {engine}", number, plan.rounds)
                            self._guarded(engine, index, step=self._time)
                        clock.step()
                self._finished = number + 1
                finished_round(self.measured())
            for engine in plan.engines:
                self._guarded(engine, None, step=self._prove)
        measured = self.measured()
        if not any(row.rounds for row in measured.results):
            measured.require_whole()
        return measured

    def _guarded(
        self, engine: Contestant, index: int | None, *, step: Callable[[Contestant, int | None], None]
    ) -> None:
        """Run ``step`` of ``engine``. If it fails, the row of its job ``index`` failed; without a job, or if the process died,
        every row of the engine."""
        if engine in self._out:
            return
        try:
            step(engine, index)
        except (SimmimError, RuntimeError) as error:
            self._failures.setdefault(engine, error)
            failed = Failed(error=type(error).__name__, message=str(error).partition("\n")[0])
            if index is None or isinstance(error, WorkerDied):
                self._out.add(engine)
            rows = [key for key in self._samples if key[1] == engine] if engine in self._out else [(index or 0, engine)]
            for key in rows:
                self._failed.setdefault(key, failed)

    def _open(self, engine: Contestant, _: int | None) -> None:
        worker = self._workers[engine]
        opened = open_bundle(worker, engine, plan=self._plan)
        first = next(iter(self._plan.jobs_of(engine)), None)
        self._info[engine] = {
            "cold_start": opened.first - worker.started,
            "phases": {
                "import": opened.imported - worker.started,
                "open": opened.opened - opened.imported,
                "first result": opened.first - opened.opened,
            },
            "first_target": None if first is None else first.target,
            "threads": opened.threads,
        }

    def _time(self, engine: Contestant, index: int | None) -> None:
        assert index is not None
        job = self._plan.jobs[index]
        self._samples[index, engine].append(
            self._workers[engine].ask(EngineWorker.time_round, job, warmup=self._plan.warmup)
        )

    def _prove(self, engine: Contestant, _: int | None) -> None:
        self._watch(f"parity of {engine}", self._plan.rounds, self._plan.rounds)
        worker = self._workers[engine]
        self._info[engine] |= asdict(worker.ask(EngineWorker.prove, list(self._plan.graphs)))
        if self._plan.evidence:
            self._watch(f"{engine} on the evidence", self._plan.rounds, self._plan.rounds)
            self._info[engine]["figures"] = worker.ask(EngineWorker.examine)

    def measured(self) -> Measured:
        """What was measured in all finished rounds. Raise :class:`GateFailed` for a job whose engines got different inputs."""
        inputs: dict[int, set[str]] = {}
        for (index, _), rounds in self._samples.items():
            inputs.setdefault(index, set()).update(one.inputs for one in rounds)
        if mixed := [self._plan.jobs[index].title for index, digests in inputs.items() if len(digests) > 1]:
            raise GateFailed(f"the engines did not get the same inputs: {mixed}", fix="report this")
        results = [self._row(index, engine) for index, engine in self._samples]
        engines = {str(engine): info for engine, info in self._info.items()}
        return Measured(results, engines, self._finished, dict(self._failures))

    def _row(self, index: int, engine: Contestant) -> BenchmarkResult:
        job, rounds = self._plan.jobs[index], self._samples[index, engine][: self._finished]
        parity, soaked = self._info[engine].get("parity", {}), rounds if job.parts else []
        return BenchmarkResult(
            target=job.target,
            engine=engine.engine,
            precision=engine.precision,
            recipe=engine.recipe,
            batch=job.batch,
            inputs=rounds[0].inputs if rounds else "",
            rounds=tuple(one.host for one in rounds),
            suite=job.suite,
            params=dict(job.params),
            items=job.items,
            parity=worst([parity[graph] for graph in job.graphs]) if parity else {},
            gpu_rounds=tuple(one.gpu for one in rounds if one.gpu),
            failed=self._failed.get((index, engine)),
            bytes=self._bytes[index, engine],
            memory=tuple((one.ended - soaked[0].ended, one.resident) for one in soaked),
            code=code_digest(job.suite),
        )


class _Clock:
    """How long a measurement of ``rounds`` with so many ``steps`` each will still take, from the steps that were done."""

    def __init__(self, *, steps: int, rounds: int) -> None:
        self._total, self._done, self._started = steps * rounds, 0, time.monotonic()

    def step(self) -> None:
        """One more step is done."""
        self._done += 1

    @property
    def left(self) -> str:
        """In words, to follow other words; empty before the first step is done."""
        if not self._done:
            return ""
        seconds = (time.monotonic() - self._started) * (self._total - self._done) / self._done
        return f", about {seconds / 60:.0f} min left" if seconds > 90 else f", about {seconds:.0f} s left"


def measure(plan: Plan, watch: Watch = unwatched) -> Measured:
    """Measure ``plan`` as :meth:`Measurement.run` does, and raise the error of the first engine that fails."""
    measured = Measurement(plan).run(watch=watch)
    measured.require_whole()
    return measured


def examine(contestant: Contestant, *, plan: Plan) -> dict[str, Any]:
    """The figures that the evidence gives for ``contestant`` on the bundle of ``plan``, without any timing."""
    with contestant.worker() as worker:
        open_bundle(worker, contestant, plan=plan)
        return worker.ask(EngineWorker.examine)


def worst(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The worst parity of several graphs."""
    return {
        "passed": all(row["passed"] for row in rows),
        "scaled_error": max(row["scaled_error"] for row in rows),
        "cosine": min(row["cosine"] for row in rows),
    }
