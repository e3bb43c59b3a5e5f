"""simmim-bench pair with a slowdown planted in its second version: ``slowed_pair.py ENGINE SHARE [options of pair]``.

Every run of ENGINE, such as ort, takes SHARE longer there, such as 0.1 for 10 %. It shows that the comparison finds a real
slowdown; the product has no such switch.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from simmim_export.benchmarks import pair
from simmim_export.benchmarks.cli import main
from simmim_export.benchmarks.jobs import Job
from simmim_export.benchmarks.worker import EngineWorker, Samples
from simmim_export.system.workers import Worker

ENGINE, SHARE = "SLOWED_ENGINE", "SLOWED_SHARE"


class SlowedWorker(EngineWorker):
    """A worker that keeps the processor busy after each run of the slowed engine for a share of the time that the run took."""

    def time_round(self, job: Job, *, warmup: int) -> Samples:
        workload = self.workloads.of(job)

        def slowed() -> None:
            before = time.perf_counter()
            workload.run()
            now = time.perf_counter()
            until = now + float(os.environ[SHARE]) * (now - before)
            while time.perf_counter() < until:
                pass

        if self.model.engine.name == os.environ[ENGINE]:
            slow = replace(workload, run=slowed)
            self.workloads.of = lambda _: slow  # type: ignore[method-assign]
        try:
            return super().time_round(job, warmup=warmup)
        finally:
            vars(self.workloads).pop("of", None)


def _worker(served: type, *, name: str, python: Path | None) -> Worker:
    from slowed_pair import SlowedWorker as Imported  # as a module of its own name, which the worker imports too

    return Worker(Imported if "second" in name else served, name=name, python=python)


if __name__ == "__main__":
    os.environ[ENGINE], os.environ[SHARE] = sys.argv[1:3]
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    sys.path.insert(0, here)
    pair.Worker = _worker  # type: ignore[misc,assignment]
    sys.argv[1:] = ["pair", *sys.argv[3:]]
    main()
