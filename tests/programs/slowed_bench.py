"""simmim-bench with a slowdown planted in one engine: ``slowed_bench.py ENGINE SHARE [options of simmim-bench]``.

Every timed run of ENGINE (as in ``ort:int8``) takes SHARE longer, such as 0.1 for 10 %. It shows that ``simmim-bench compare``
finds a real slowdown; the product has no such switch.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from simmim_export.benchmarks import driver
from simmim_export.benchmarks.cli import main
from simmim_export.benchmarks.worker import EngineWorker

ENGINE, SHARE = "SLOWED_ENGINE", "SLOWED_SHARE"


class SlowedWorker(EngineWorker):
    """A worker that keeps the processor busy after each run of the slowed engine for a share of the time that the run took."""

    def _run(self, target: str, feeds: dict[str, Any]) -> None:
        before = time.perf_counter()
        super()._run(target, feeds)
        now = time.perf_counter()
        until = now + float(os.environ[SHARE]) * (now - before)
        while self.model.engine.name == os.environ[ENGINE] and time.perf_counter() < until:
            pass


if __name__ == "__main__":
    os.environ[ENGINE], os.environ[SHARE] = sys.argv[1:3]
    # The workers import this module by its name.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
    sys.path.insert(0, str(Path(__file__).parent))
    from slowed_bench import SlowedWorker as Imported

    driver.EngineWorker = Imported  # type: ignore[misc]
    sys.argv[1:] = sys.argv[3:]
    main()
