"""Measures the peers: makes their files, lets them take turns, and compares what they embed with PyTorch.

A peer that cannot be made, opened or run has a row with the reason, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from simmim_export.benchmarks.code_digest import code_digest
from simmim_export.benchmarks.document import Host, read
from simmim_export.benchmarks.limit.floor import cost_of, floor
from simmim_export.benchmarks.limit.peaks import Peaks
from simmim_export.benchmarks.peers.contestants import REFERENCE, Peer
from simmim_export.benchmarks.peers.inputs import Task
from simmim_export.benchmarks.peers.recipes import Maker
from simmim_export.benchmarks.peers.worker import PeerWorker
from simmim_export.benchmarks.results import BenchmarkResult, Failed, Floor
from simmim_export.benchmarks.run import require_unfinished
from simmim_export.benchmarks.worker import Samples
from simmim_export.bundle import Bundle
from simmim_export.engines import get_engine
from simmim_export.errors import EngineUnavailable, GateFailed, SimmimError
from simmim_export.proof.figures import agreement
from simmim_export.spec import Precision, Variant
from simmim_export.system.watch import Watch, unwatched
from simmim_export.system.workers import Worker

# With fewer judges, a percentile and the nearest neighbors say nothing.
ENOUGH = 100


@dataclass(frozen=True, kw_only=True)
class PeersPlan:
    """What to measure: ``peers`` on the encoders of ``tasks``, ``iterations`` timed runs of each input in each of ``rounds``."""

    bundle: Path
    checkpoint: Path
    peers: Sequence[Peer]
    tasks: Sequence[Task]
    rounds: int
    iterations: int
    warmup: int

    @property
    def method(self) -> dict[str, Any]:
        """How it measures. Figures of another method must not be mixed with these."""
        return {"rounds": self.rounds, "warmup": self.warmup, "iterations": {"peers": self.iterations}}

    def finished(self, rows: Sequence[BenchmarkResult]) -> int:
        """How many rounds of the whole measurement ``rows`` have, which may lack encoders."""
        return min(self.finished_of(task, rows) for task in self.tasks)

    def finished_of(self, task: Task, rows: Sequence[BenchmarkResult]) -> int:
        """How many rounds of ``task`` ``rows`` have. A peer that failed does not count."""
        return min((len(row.rounds) for row in rows if task.is_of(row) and row.failed is None), default=0)


@dataclass
class _Entry:
    """A peer in a measurement: what it runs, its process while it has one, and what is known of it so far."""

    peer: Peer
    source: Path | None = None
    worker: Worker | None = None
    failed: Failed | None = None
    bytes: int | None = None
    memory: int | None = None
    embedded: Path | None = None
    rounds: dict[int, list[Samples]] = field(default_factory=dict)

    @contextmanager
    def failing(self) -> Iterator[None]:
        """For a block that asks the peer for something: if it cannot, its row says so, and its process is ended.

        A RuntimeError is what :meth:`Worker.ask` raises for anything that a tool raised; its last line says what that was.
        """
        try:
            yield
        except (SimmimError, RuntimeError) as error:
            what = error.what if isinstance(error, SimmimError) else str(error).strip().splitlines()[-1]
            kind = type(error).__name__
            if not isinstance(error, SimmimError) and ": " in what:
                kind, _, what = what.partition(": ")
            self.failed = Failed(error=kind.rpartition(".")[2], message=what)
            if self.worker is not None:
                self.worker.close(kill=True)
                self.worker = None


def measure(
    plan: PeersPlan,
    *,
    peaks: Peaks | None,
    folder: Path,
    earlier: Sequence[BenchmarkResult] = (),
    finished_round: Callable[[list[BenchmarkResult]], None] = lambda rows: None,
    watch: Watch = unwatched,
) -> list[BenchmarkResult]:
    """A row for each peer and timed input. Files of peers are made in ``folder``.

    ``finished_round`` gets all rows after each round, still without accuracy. ``earlier`` has the rows of a measurement that was
    interrupted: their rounds are kept, and a peer that failed then is not tried again.

    Raise :class:`EngineUnavailable` if PyTorch, which all are compared with, cannot run, and :class:`GateFailed` if two peers did
    not get the same inputs.
    """
    results: list[BenchmarkResult] = []
    steps = len(plan.tasks) * (2 * len(plan.peers) + plan.rounds + 1)
    done = 0

    def step(what: str) -> None:
        nonlocal done
        watch(what, min(done, steps), steps)
        done += 1

    for task in plan.tasks:
        own = folder / f"{task.graph}.files"
        own.mkdir()
        rows = [row for row in earlier if task.is_of(row)]
        finished = plan.finished_of(task, rows)
        entries = [_continued(peer, task, rows, finished=finished) for peer in plan.peers]
        _make(plan, task, entries, folder=own, step=step)
        with ExitStack() as stack:
            for entry in entries:
                step(f"{task.graph}: open {entry.peer.name}")
                if entry.failed is None:
                    entry.worker = stack.enter_context(Worker(PeerWorker, name=f"peer '{entry.peer.name}'"))
                    with entry.failing():
                        _open(entry, plan, task)
            for number in range(finished, plan.rounds):
                step(f"{task.graph}: round {number + 1} of {plan.rounds}")
                _round(plan, task, entries, number=number)
                finished_round([*results, *_rows(plan, task, entries, peaks=peaks)])
            step(f"{task.graph}: embed {task.judges} inputs")
            _embed(task, entries, folder=own)
        results += _rows(plan, task, entries, peaks=peaks, exact=_exact(entries))
    return results


def _continued(peer: Peer, task: Task, rows: Sequence[BenchmarkResult], *, finished: int) -> _Entry:
    """An entry of ``peer`` that has the first ``finished`` rounds of its ``rows``, and their failure."""
    entry = _Entry(peer)
    for index, sizes in enumerate(task.timed):
        for row in rows:
            if (row.engine, row.precision, row.recipe) == peer.key and row.params == sizes:
                entry.failed = row.failed
                entry.rounds[index] = [Samples(host=host, gpu=(), inputs=row.inputs) for host in row.rounds[:finished]]
    return entry


def resumed(plan: PeersPlan, path: Path, *, host: Host) -> tuple[BenchmarkResult, ...]:
    """The finished rounds in the file ``path``, to continue with ``plan`` on ``host``.

    Raise :class:`DataError` if the file is not of an interrupted run of this very plan on such a machine, naming what differs.
    """
    document = read(path)
    wanted = {(task.target, *peer.key) for task in plan.tasks for peer in plan.peers}
    strange = {(row.target, row.engine, row.precision, row.recipe) for row in document.results} - wanted
    same = {
        "peers": (list(document.engines), [peer.name for peer in plan.peers]),
        "inputs": (strange, set()),
        "method": (document.method, plan.method),
    }
    require_unfinished(document, path, bundle=plan.bundle, host=host, same=same)
    return document.results


def _make(plan: PeersPlan, task: Task, entries: Sequence[_Entry], *, folder: Path, step: Any) -> None:
    """Give every entry the file that it runs, or the reason why there is none."""
    bundle = Bundle.open(plan.bundle)
    with ExitStack() as stack:
        maker: Worker | None = None
        for entry in entries:
            peer = entry.peer
            step(f"{task.graph}: make {peer.name}")
            if entry.failed is not None:
                continue
            if reason := peer.lacking():
                entry.failed = Failed(error=EngineUnavailable.__name__, message=reason)
            elif peer.is_ours:
                entry.source = plan.bundle
                with entry.failing():
                    variants = get_engine(peer.engine).variants(Precision(peer.precision))
                    entry.bytes = bundle.artifact(task.graph, *variants).bytes
            elif not peer.recipe:
                entry.source, entry.bytes = plan.checkpoint, plan.checkpoint.stat().st_size
            else:
                with entry.failing():
                    if maker is None:
                        maker = stack.enter_context(Worker(Maker, name="the peers' exports"))
                        maker.ask(Maker.open, plan.checkpoint, task.graph, inputs=task.inputs, folder=folder)
                    entry.source = maker.ask(Maker.make, peer.recipe, peer.engine)
                    entry.bytes = sum(file.stat().st_size for file in folder.glob(f"{entry.source.stem}.*"))
                if entry.failed is not None and maker is not None:
                    # It may be gone, or in a state that the tool left it in.
                    maker.close(kill=True)
                    maker = None


def _open(entry: _Entry, plan: PeersPlan, task: Task) -> None:
    assert entry.worker is not None and entry.source is not None
    peer = entry.peer
    entry.worker.ask(
        PeerWorker.open,
        entry.source,
        plan.bundle,
        graph=task.graph,
        engine=peer.engine,
        precision=peer.precision,
        is_ours=peer.is_ours,
        inputs=task.inputs,
    )


def _round(plan: PeersPlan, task: Task, entries: Sequence[_Entry], *, number: int) -> None:
    """Every peer runs every timed input once, one peer at a time. The order turns by one place each round."""
    turn = number % len(entries)
    for index in range(len(task.timed)):
        for entry in (*entries[turn:], *entries[:turn]):
            if entry.worker is not None:
                with entry.failing():
                    timed = entry.worker.ask(
                        PeerWorker.time_round, index, iterations=plan.iterations, warmup=plan.warmup
                    )
                    entry.rounds.setdefault(index, []).append(timed)


def _embed(task: Task, entries: Sequence[_Entry], *, folder: Path) -> None:
    """Let every peer embed the judges."""
    for number, entry in enumerate(entries):
        if entry.worker is not None:
            with entry.failing():
                target = folder / f"embedded-{number}.npy"
                entry.memory = entry.worker.ask(PeerWorker.embed, task.embedding, target)
                entry.embedded = target


def _exact(entries: Sequence[_Entry]) -> np.ndarray:
    """What PyTorch embeds, float32 [n, E]."""
    reference = next((entry for entry in entries if entry.peer == REFERENCE), None)
    if reference is None or reference.embedded is None:
        why = reference.failed.message if reference is not None and reference.failed else "it was not measured"
        raise EngineUnavailable(
            f"PyTorch, which all are compared with, failed: {why}", fix="pip install 'simmim-export[peers]'"
        )
    embedded: np.ndarray = np.load(reference.embedded)
    return embedded


def _rows(
    plan: PeersPlan,
    task: Task,
    entries: Sequence[_Entry],
    *,
    peaks: Peaks | None,
    exact: np.ndarray | None = None,
) -> list[BenchmarkResult]:
    """The rows of ``task`` with the rounds so far, and with their accuracy if ``exact`` is given and they embedded the judges."""
    bundle, rows = Bundle.open(plan.bundle), []
    accuracies = [
        None if exact is None or entry.embedded is None else _accuracy(exact, np.load(entry.embedded))
        for entry in entries
    ]
    for index, sizes in enumerate(task.timed):
        digests = {timed.inputs for entry in entries for timed in entry.rounds.get(index, ())}
        if len(digests) != 1:
            raise GateFailed(f"the peers did not get the same inputs of {task.graph}", fix="report this")
        for entry, accuracy in zip(entries, accuracies, strict=True):
            rows.append(
                BenchmarkResult(
                    suite="peers",
                    target=task.target,
                    engine=entry.peer.engine,
                    precision=entry.peer.precision,
                    recipe=entry.peer.recipe,
                    batch=1,
                    params=dict(sizes),
                    inputs=min(digests),
                    rounds=tuple(timed.host for timed in entry.rounds.get(index, ())),
                    accuracy=accuracy,
                    floor=_floor(bundle, task, entry.peer, sizes=sizes, peaks=peaks),
                    failed=entry.failed,
                    bytes=entry.bytes,
                    code=code_digest("peers"),
                )
            )
    return rows


def _accuracy(exact: np.ndarray, outputs: np.ndarray) -> dict[str, Any]:
    """How the embeddings agree with PyTorch's; without a percentile and neighbors if there are too few."""
    figures = agreement(exact, outputs)
    if len(exact) < ENOUGH:
        figures |= {"cosine_p1": None, "top1": None}
    return figures


def _floor(bundle: Bundle, task: Task, peer: Peer, *, sizes: dict[str, Any], peaks: Peaks | None) -> Floor | None:
    """The floor of our own graph in the peer's precision: they do the same work. None without peaks, or without such a graph."""
    if peaks is None:
        return None
    precision = Precision(peer.precision)
    variants = get_engine("ort").variants(precision) if precision is Precision.INT8 else (Variant.FP32,)
    if not any(each.graph == task.graph and each.variant in variants for each in bundle.manifest.artifacts):
        return None
    variant = bundle.artifact(task.graph, *variants).variant
    return floor(cost_of(bundle, task.graph, variant=variant, sizes=sizes), precision, peaks=peaks)
