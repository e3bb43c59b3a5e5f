"""Measures two versions side by side: another environment, another bundle, or the same twice to see how noisy a machine is.

In every round each version gets a new process, and the two take turns at each job within milliseconds. So whatever changes on the
machine, between minutes or between processes, changes both, and their ratio in a round is a fair sample.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from simmim_export.benchmarks.code_digest import code_digest
from simmim_export.benchmarks.contestants import Contestant, Plan
from simmim_export.benchmarks.document import Document, Host, as_document, method
from simmim_export.benchmarks.driver import Measured, open_bundle, worst
from simmim_export.benchmarks.results import BenchmarkResult
from simmim_export.benchmarks.worker import EngineWorker, Samples
from simmim_export.errors import EngineUnavailable, UsageError
from simmim_export.system.children import python_code, run
from simmim_export.system.watch import Watch, unwatched
from simmim_export.system.workers import Worker

# What another environment says about itself, within so many seconds. Only its own code knows its digest.
ANSWERS_WITHIN = 120.0
_DESCRIBE = """
import json, sys
from simmim_export.benchmarks.code_digest import code_digest
from simmim_export.benchmarks.document import Host
described = Host.now().described
print(json.dumps({"code": {suite: code_digest(suite) for suite in sys.argv[1:]}, "host": described}))
"""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One version: a ``bundle``, run by this environment or by the one whose interpreter is ``python``."""

    bundle: Path
    python: Path | None = None

    def described(self, suites: list[str], host: Host) -> tuple[Mapping[str, str], Host]:
        """The digest of its code for each of ``suites``, and the machine with the packages that it has.

        Raise :class:`UsageError` for a ``python`` that cannot be run, and :class:`EngineUnavailable` if it lacks this package, or
        has a version without this measurement.
        """
        if self.python is None:
            return {suite: code_digest(suite) for suite in suites}, host
        if not self.python.is_file():
            raise UsageError(
                "no such interpreter", where=self.python, fix="give the bin/python of a virtual environment"
            )
        done = run(python_code(_DESCRIBE, *suites, python=self.python), seconds=ANSWERS_WITHIN)
        if done.code:
            what = f"that environment cannot measure: {done.failure}"
            raise EngineUnavailable(what, fix="install a simmim-export that has simmim-bench pair there")
        try:
            said = json.loads(done.stdout)
            return said["code"], replace(host, described=said["host"])
        except (ValueError, KeyError, TypeError) as error:
            what = f"this program ran, and did not answer as Python does: {done.stdout[:60]!r}"
            fix = "give the bin/python of a virtual environment"
            raise UsageError(what, where=self.python, fix=fix) from error


def measure(plan: Plan, sides: tuple[Side, Side], *, watch: Watch = unwatched) -> tuple[Measured, Measured]:
    """The rounds of ``plan`` on both sides. Raise what an engine of either side raises."""
    samples: dict[tuple[int, Contestant, int], list[Samples]] = {}
    parities: dict[tuple[Contestant, int], dict[str, Any]] = {}
    started: dict[tuple[Contestant, int], dict[str, Any]] = {}
    for number in range(plan.rounds):
        for engine in plan.engines:
            watch(f"round {number + 1} of {plan.rounds}: {engine}", number, plan.rounds)
            with ExitStack() as stack:
                workers = []
                for which, side in enumerate(sides):
                    name = f"engine '{engine}' of the {('first', 'second')[which]} version"
                    worker = stack.enter_context(Worker(EngineWorker, name=name, python=side.python))
                    opened = open_bundle(worker, replace(engine, bundle=side.bundle), plan=plan)
                    started.setdefault((engine, which), {"cold_start": opened.first - worker.started})
                    workers.append(worker)
                for index, job in enumerate(plan.jobs):
                    # Each version goes first in every other job, and in every other round.
                    for which in (0, 1) if (number + index) % 2 else (1, 0):
                        timed = workers[which].ask(EngineWorker.time_round, job, warmup=plan.warmup)
                        samples.setdefault((index, engine, which), []).append(timed)
                if number == plan.rounds - 1:
                    for which, worker in enumerate(workers):
                        proofs = asdict(worker.ask(EngineWorker.prove, list(plan.graphs)))
                        started[engine, which] |= proofs
                        parities[engine, which] = proofs["parity"]
    made = []
    for which, side in enumerate(sides):
        results = [
            BenchmarkResult(
                target=plan.jobs[index].target,
                engine=engine.engine,
                precision=engine.precision,
                batch=plan.jobs[index].batch,
                inputs=rounds[0].inputs,
                rounds=tuple(one.host for one in rounds),
                suite=plan.jobs[index].suite,
                params=dict(plan.jobs[index].params),
                items=plan.jobs[index].items,
                parity=worst([parities[engine, which][graph] for graph in plan.jobs[index].graphs]),
                bytes=replace(engine, bundle=side.bundle).file_bytes(plan, plan.jobs[index].graphs),
            )
            for (index, engine, place), rounds in samples.items()
            if place == which
        ]
        engines = {str(engine): info for (engine, place), info in started.items() if place == which}
        made.append(Measured(results, engines, plan.rounds))
    return made[0], made[1]


def documents(
    plan: Plan, sides: tuple[Side, Side], *, host: Host, watch: Watch = unwatched
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure both sides, and return the document of each. Both carry the same token, which says that they are a pair."""
    suites = list(dict.fromkeys(str(job.suite) for job in plan.jobs))
    described = [side.described(suites, host) for side in sides]
    token = uuid.uuid4().hex
    made = []
    for side, measured, (code, machine) in zip(sides, measure(plan, sides, watch=watch), described, strict=True):
        results = [replace(row, code=code[row.suite]) for row in measured.results]
        document = as_document(
            replace(measured, results=results), bundle=side.bundle, method=method(plan), host=machine
        )
        document["method"]["pair"] = token
        made.append(document)
    return made[0], made[1]


def parsed(document: Mapping[str, Any]) -> Document:
    """A document that was just made, as if it had been read from a file."""
    return msgspec.convert(document, Document)
