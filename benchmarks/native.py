"""How long native ONNX Runtime takes for each graph, to show beside the times of another machine or a browser."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median
from typing import Any

from simmim_export.bundle import Bundle
from simmim_export.bundle.manifest import Artifact
from simmim_export.engines import require_engine
from simmim_export.engines.ort import OrtEngine
from simmim_export.system.host import cpu_model
from simmim_export.system.watch import Watch

WARMUP, RUNS = 3, 10


def native_times(bundle: Bundle, artifacts: Mapping[str, Artifact], *, threads: int, watch: Watch) -> dict[str, Any]:
    """The processor (``cpu``), the ``threads``, and the median ``milliseconds`` of each graph for one sample: the first of the
    largest golden case.

    ``artifacts`` are the files to run, by graph. Raise :class:`EngineUnavailable` without ONNX Runtime.
    """
    require_engine("ort")
    golden, milliseconds = bundle.golden(), {}
    for index, (graph, artifact) in enumerate(artifacts.items()):
        watch(f"timing {graph}", index, len(artifacts))
        spec = bundle.manifest.graph(graph)
        feeds = {name: array[:1] for name, array in golden.feeds(golden.largest(), spec).items()}
        # Not OrtEngine.open: it takes FP32 and INT8 alone, and the browser's ONNX Runtime also runs FP16 files.
        session = OrtEngine().start(bundle.file(artifact.path), spec, threads=threads)
        samples = []
        for _ in range(WARMUP + RUNS):
            before = time.perf_counter()
            session.run(feeds)
            samples.append(1000 * (time.perf_counter() - before))
        session.close()
        milliseconds[graph] = median(samples[WARMUP:])
    return {"cpu": cpu_model(), "threads": threads, "milliseconds": milliseconds}
