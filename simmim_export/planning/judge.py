"""Candidates for a deployment, judged in a process of their own: what they still answer, and how long they take.

The process is separate because PyTorch's threads would distort every latency, by up to a factor of two (measured).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simmim_export.bundle import Manifest
from simmim_export.bundle.golden import Golden
from simmim_export.engines import require_engine
from simmim_export.engines.base import Session
from simmim_export.proof.evidence import Evidence
from simmim_export.proof.examine import Examiner
from simmim_export.proof.fitting import require_fit
from simmim_export.runtime.text import Tokenizer
from simmim_export.spec import Precision
from simmim_export.system.files import digest
from simmim_export.system.workers import Worker

# Each candidate runs for so many seconds in each of so many rounds.
ROUNDS, SECONDS = 5, 0.12


@dataclass(frozen=True)
class Candidate:
    """One file for one graph, and the precision to open it with."""

    graph: str
    path: Path
    precision: Precision


class Bench:
    """The object that the process serves: the engine, the evidence and the golden tensors."""

    def open(self, engine: str, manifest: Manifest, *, tokenizer: str, evidence: Path, golden: Path) -> None:
        """Read all of it. Raise :class:`EngineUnavailable` or :class:`BundleError` for what cannot be used."""
        self.engine, self.manifest = require_engine(engine), manifest
        read = Tokenizer(tokenizer, manifest.preprocessing["text"]["max_length"], graphs=manifest.graphs)
        held_out = require_fit(Evidence.load(evidence), manifest, where=evidence)
        self.examiner = Examiner(manifest, held_out, tokens=read.feeds)
        self.golden = Golden.load(golden, graphs=manifest.graphs)

    def _session(self, candidate: Candidate) -> Session:
        return self.engine.open(candidate.path, self.manifest.graph(candidate.graph), precision=candidate.precision)

    def examine(self, candidates: list[Candidate]) -> dict[str, Any]:
        """See :meth:`Judge.examine`."""
        mine = {candidate.graph: candidate for candidate in candidates}
        names = {graph: f"{digest(c.path)} {c.precision}" for graph, c in mine.items()}
        opened: dict[str, Session] = {}

        def session(graph: str) -> Session:
            if graph not in opened:
                opened[graph] = self._session(mine[graph])
            return opened[graph]

        try:
            return self.examiner.figures(self.examiner.outputs(session, names.__getitem__))
        finally:
            for one in opened.values():
                one.close()

    def clock(self, candidates: list[Candidate]) -> list[float]:
        """See :meth:`Judge.clock`."""
        case = self.golden.largest()
        samples: list[list[float]] = [[] for _ in candidates]
        for _ in range(ROUNDS):
            for place, candidate in enumerate(candidates):
                # One session at a time: two would compete for the same threads.
                session = self._session(candidate)
                feeds = self.golden.feeds(case, self.manifest.graph(candidate.graph))
                feeds = {name: array[:1] for name, array in feeds.items()}
                for _ in range(3):
                    session.run(feeds)
                until, seconds = time.perf_counter() + SECONDS, list[float]()
                while time.perf_counter() < until or len(seconds) < 5:
                    before = time.perf_counter()
                    session.run(feeds)
                    seconds.append(time.perf_counter() - before)
                samples[place].append(statistics.median(seconds))
                session.close()
        return [statistics.median(rounds) for rounds in samples]


class Judge:
    """A process with one ``engine``. Use it in a ``with`` block; errors of the engine are raised here with their own type."""

    def __init__(self, engine: str, manifest: Manifest, tokenizer: str, evidence: Path, golden: Path) -> None:
        self.engine = engine
        self._worker = Worker(Bench, name=f"engine '{engine}'")
        try:
            self._worker.ask(Bench.open, engine, manifest, tokenizer=tokenizer, evidence=evidence, golden=golden)
        except BaseException:
            self._worker.close(kill=True)
            raise

    def examine(self, candidates: Sequence[Candidate]) -> Mapping[str, Any]:
        """The figures of one candidate for every graph on the evidence: :meth:`Examiner.figures`."""
        return self._worker.ask(Bench.examine, list(candidates))

    def clock(self, candidates: Sequence[Candidate]) -> list[float]:
        """The seconds that each takes at batch 1 with the longest probed text: the median of 5 alternated rounds."""
        return self._worker.ask(Bench.clock, list(candidates))

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._worker.close(kill=kind is not None)
