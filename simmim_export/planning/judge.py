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
from simmim_export.engines import require_engine
from simmim_export.engines.base import Session
from simmim_export.errors import SimmimError
from simmim_export.proof.evidence import Evidence
from simmim_export.proof.examine import Examiner
from simmim_export.proof.fitting import require_fit
from simmim_export.proof.parity import Golden
from simmim_export.runtime.text import Tokenizer
from simmim_export.spec import Precision
from simmim_export.system.children import spawn_worker
from simmim_export.system.files import digest
from simmim_export.system.libraries import guard_imports
from simmim_export.system.printing import show_warnings_plainly

# Each candidate runs for so many seconds in each of so many rounds.
ROUNDS, SECONDS = 5, 0.12


@dataclass(frozen=True)
class Candidate:
    """One file for one graph, and the precision to open it with."""

    graph: str
    path: Path
    precision: Precision


class _Bench:
    """What the process holds: the engine, the evidence and the golden tensors."""

    def __init__(self, engine: str, manifest: Manifest, tokenizer: str, evidence: Path, golden: Path) -> None:
        self.engine, self.manifest = require_engine(engine), manifest
        texts = Tokenizer(tokenizer, manifest.preprocessing["text"]["max_length"])
        held_out = require_fit(Evidence.load(evidence), manifest, evidence)
        self.examiner = Examiner(manifest, held_out, texts.feeds)
        self.golden = Golden.load(golden, graphs=manifest.graphs)

    def open(self, candidate: Candidate) -> Session:
        return self.engine.open(candidate.path, self.manifest.graph(candidate.graph), candidate.precision)

    def examine(self, candidates: Sequence[Candidate]) -> Mapping[str, Any]:
        by_graph = {candidate.graph: candidate for candidate in candidates}
        names = {graph: f"{digest(c.path)} {c.precision}" for graph, c in by_graph.items()}
        sessions: dict[str, Session] = {}

        def session(graph: str) -> Session:
            if graph not in sessions:
                sessions[graph] = self.open(by_graph[graph])
            return sessions[graph]

        try:
            return self.examiner.figures(self.examiner.outputs(session, names.__getitem__))
        finally:
            for opened in sessions.values():
                opened.close()

    def clock(self, candidates: Sequence[Candidate]) -> list[float]:
        case = self.golden.largest()
        samples: list[list[float]] = [[] for _ in candidates]
        for _ in range(ROUNDS):
            for place, candidate in enumerate(candidates):
                # One session at a time: two would compete for the same threads.
                session = self.open(candidate)
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


_bench: _Bench | SimmimError


def _start(*arguments: Any) -> None:
    # What is raised here would be a broken pool to whoever asks; kept, it is raised to them as it is.
    global _bench
    guard_imports()
    show_warnings_plainly()
    try:
        _bench = _Bench(*arguments)
    except SimmimError as error:
        _bench = error


def _held() -> _Bench:
    if isinstance(_bench, SimmimError):
        raise _bench
    return _bench


def _examine(candidates: Sequence[Candidate]) -> Mapping[str, Any]:
    return _held().examine(candidates)


def _clock(candidates: Sequence[Candidate]) -> list[float]:
    return _held().clock(candidates)


class Judge:
    """A process with one ``engine``, for use in a ``with`` block. Errors of the engine are raised here with their own type."""

    def __init__(self, engine: str, manifest: Manifest, tokenizer: str, evidence: Path, golden: Path) -> None:
        self.engine = engine
        self._pool = spawn_worker(_start, engine, manifest, tokenizer, evidence, golden)

    def examine(self, candidates: Sequence[Candidate]) -> Mapping[str, Any]:
        """The figures of one candidate for every graph on the evidence: :meth:`Examiner.figures`."""
        return self._pool.submit(_examine, list(candidates)).result()

    def clock(self, candidates: Sequence[Candidate]) -> list[float]:
        """The seconds that each takes at batch 1 with the longest probed text: the median of 5 alternated rounds."""
        return self._pool.submit(_clock, list(candidates)).result()

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
