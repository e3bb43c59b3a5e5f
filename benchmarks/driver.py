"""Several workers, one at a time. Knows processes and the order of rounds; must not know what a worker runs."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simmim_export import errors
from simmim_export.benchmarks.measure import BenchmarkResult
from simmim_export.bundle import Bundle, Manifest
from simmim_export.engines import get_engine, on_device, require_engine
from simmim_export.errors import EngineUnavailable, GateFailed
from simmim_export.runtime.loading import PLANNED
from simmim_export.spec import Precision, PrecisionPlan
from simmim_export.system.children import child_environment, python_command

Watch = Callable[[str, int, int], None]
FP32 = str(Precision.FP32)


@dataclass(frozen=True)
class Contestant:
    """An engine (with its device, as in ``ort@cuda``) at a precision, or at one for each graph, written as for
    :func:`simmim_export.load`. ``recipe`` names another ``bundle`` than the plan's, of which it runs the graphs."""

    engine: str
    precision: str = FP32
    recipe: str = ""
    bundle: Path | None = None

    @classmethod
    def parse(cls, text: str, default: str = FP32, device: str | None = None) -> Contestant:
        """``openvino:bf16``, or ``openvino`` at the ``default``; PyTorch alone is the reference and stays at FP32. One that
        names no device runs on ``device``."""
        engine, colon, precision = text.partition(":")
        if "@" not in engine:
            engine = on_device(engine, device)
        if not colon:
            precision = FP32 if engine.startswith("torch") else default
        return cls(engine, precision if precision == PLANNED else str(PrecisionPlan.parse(precision)))

    @property
    def reads_checkpoint(self) -> bool:
        """Whether it runs from the checkpoint; :class:`UsageError` for an unknown engine."""
        return get_engine(self.engine).reads_checkpoint

    def require(self) -> None:
        """Raise :class:`EngineUnavailable` if the engine, or one of its precisions, is not to be had here."""
        engine = require_engine(self.engine)
        if self.precision != PLANNED:
            plan = PrecisionPlan.parse(self.precision)
            for precision in dict.fromkeys((plan.default, *(own for _, own in plan.graphs))):
                engine.variant(precision)

    def __str__(self) -> str:
        name = self.engine if self.precision == FP32 else f"{self.engine}:{self.precision}"
        return f"{name} ({self.recipe})" if self.recipe else name


class WorkerDied(EngineUnavailable):
    """A signal ended a worker in the middle of a measurement: there was too little memory, or the engine crashed."""


class Process:
    """A worker process: :meth:`ask` sends a request and waits for its reply. A block that fails kills it, whatever it does."""

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        self.spawned = time.monotonic()
        self._process = subprocess.Popen(
            python_command("simmim_export.benchmarks.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=child_environment(),
            text=True,
        )

    def ask(self, do: str, **arguments: Any) -> Any:
        """The worker's reply. Raises the worker's own error, :class:`WorkerDied` if it was killed, or RuntimeError if it ended by
        a bug, whose traceback was shown as it came."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            what = f"the worker of engine '{self.contestant}' ended with code {code} while asked to {do}"
            if code >= 0:
                raise RuntimeError(f"{what}: its own traceback is above")
            raise WorkerDied(
                what, fix="give it more memory if the code is -9, a smaller --batch, or choose another --engine"
            )
        reply = json.loads(line)
        if "error" in reply:
            found = reply["error"]
            raise getattr(errors, found["kind"])(found["what"], where=found["where"], fix=found["fix"])
        return reply["ok"]

    def __enter__(self) -> Process:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._process.kill()
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@dataclass(frozen=True)
class Plan:
    """What to measure: a bundle on several engines; targets are ``graph:NAME`` or ``pipeline:NAME``. With ``evidence`` each
    engine is also asked everything that travels with the bundle."""

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
    """Everything a run gave: results, and by contestant's name cold start (seconds), memory (bytes), parity and proof."""

    results: list[BenchmarkResult]
    engines: dict[str, dict[str, Any]]


def measure(plan: Plan, watch: Watch = lambda *_: None) -> Measured:
    """Open one worker an engine, then for each round and target let each engine run once, the others idle.

    The order of engines is turned by one place each round, so that none always follows the same other. Raises
    :class:`GateFailed` if two engines did not get the same inputs.
    """
    workers: dict[Contestant, Process] = {}
    info: dict[Contestant, dict[str, Any]] = {}
    samples: dict[tuple[str, Contestant], list[tuple[float, ...]]] = {}
    on_the_gpu: dict[tuple[str, Contestant], list[tuple[float, ...]]] = {}
    inputs: dict[str, set[str]] = {}
    with ExitStack() as stack:
        for engine in plan.engines:
            watch(f"open {engine}", 0, plan.rounds)
            process = workers[engine] = stack.enter_context(Process(engine))
            checkpoint = str(plan.checkpoint) if engine.reads_checkpoint else None
            opened = process.ask(
                "open",
                bundle=str(engine.bundle or plan.bundle),
                engine=engine.engine,
                precision=engine.precision,
                checkpoint=checkpoint,
                batch=plan.batch,
                first=plan.targets[0],
            )
            clock = opened["phases"]
            info[engine] = {
                "cold_start": clock["first"] - process.spawned,
                "phases": {
                    "import": clock["imported"] - process.spawned,
                    "open": clock["opened"] - clock["imported"],
                    "first result": clock["first"] - clock["opened"],
                },
                "first_target": plan.targets[0],
                "threads": opened["threads"],
            }
        for number in range(plan.rounds):
            turn = number % len(plan.engines)
            order = [*plan.engines[turn:], *plan.engines[:turn]]
            for target in plan.targets:
                for engine in order:
                    watch(f"round {number + 1}, {target.partition(':')[2]}, {engine}", number, plan.rounds)
                    found = workers[engine].ask("round", target=target, iterations=plan.iterations, warmup=plan.warmup)
                    samples.setdefault((target, engine), []).append(tuple(found["samples"]))
                    if found["gpu"]:
                        on_the_gpu.setdefault((target, engine), []).append(tuple(found["gpu"]))
                    inputs.setdefault(target, set()).add(found["inputs"])
        for engine, process in workers.items():
            watch(f"parity of {engine}", plan.rounds, plan.rounds)
            info[engine] |= process.ask("finish", graphs=list(plan.graphs))
            if plan.evidence:
                watch(f"what {engine} still knows", plan.rounds, plan.rounds)
                info[engine]["figures"] = process.ask("examine")
    mixed = [target for target, digests in inputs.items() if len(digests) != 1]
    if mixed:
        raise GateFailed(f"the engines did not get the same inputs: {mixed}", fix="report this")
    manifest = Bundle.open(plan.bundle).manifest
    results = [
        BenchmarkResult(
            target,
            engine.engine,
            engine.precision,
            plan.batch,
            next(iter(inputs[target])),
            tuple(rounds),
            _worst(info[engine]["parity"], target, manifest),
            tuple(on_the_gpu.get((target, engine), ())),
        )
        for (target, engine), rounds in samples.items()
    ]
    return Measured(results, {str(engine): found for engine, found in info.items()})


def _worst(parity: dict[str, Any], target: str, manifest: Manifest) -> dict[str, Any]:
    """The parity of a graph, or for a pipeline the worst of its graphs."""
    kind, _, name = target.partition(":")
    names = [name] if kind == "graph" else list(manifest.pipeline(name).graphs)
    rows = [parity[graph] for graph in names]
    return {
        "passed": all(row["passed"] for row in rows),
        "scaled_error": max(row["scaled_error"] for row in rows),
        "cosine": min(row["cosine"] for row in rows),
    }
