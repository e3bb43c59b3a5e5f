"""One peer in one process: opens its file, times it, and embeds what judges it."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import numpy as np

from simmim_export.benchmarks.peers.inputs import JUDGES, TIMED, read_feeds
from simmim_export.benchmarks.peers.runners import Runner, open_runner
from simmim_export.benchmarks.worker import Samples, peak_memory


class PeerWorker:
    """An open runner and the inputs that are timed."""

    def __init__(self) -> None:
        self._runner: Runner
        self._inputs: Path
        self._timed: list[dict[str, np.ndarray]] = []

    def open(
        self, source: Path, bundle: Path, *, graph: str, engine: str, precision: str, is_ours: bool, inputs: Path
    ) -> None:
        """Open ``source`` and run every timed input once. Whatever the tool raises passes through."""
        self._inputs, self._timed = inputs, read_feeds(inputs, TIMED)
        self._runner = open_runner(source, bundle, graph=graph, engine=engine, precision=precision, is_ours=is_ours)
        for feeds in self._timed:
            self._runner.run(feeds)

    def time_round(self, number: int, *, iterations: int, warmup: int) -> Samples:
        """Time ``iterations`` runs of the timed input ``number`` after ``warmup`` runs that are not timed."""
        feeds, run = self._timed[number], self._runner.run
        for _ in range(warmup):
            run(feeds)
        host = []
        for _ in range(iterations):
            before = time.perf_counter()
            run(feeds)
            host.append(time.perf_counter() - before)
        digest = hashlib.sha256(b"".join(name.encode() + feeds[name].tobytes() for name in sorted(feeds))).hexdigest()
        return Samples(host=tuple(host), gpu=(), inputs=digest)

    def embed(self, embedding: str, target: Path) -> int:
        """Write the ``embedding`` of every judge to ``target``, float32 [n, E].

        Returns the largest memory of the process before that, in bytes.
        """
        memory = peak_memory()
        outputs = [self._runner.run_any(feeds)[embedding] for feeds in read_feeds(self._inputs, JUDGES)]
        np.save(target, np.concatenate(outputs).astype(np.float32))
        return memory
