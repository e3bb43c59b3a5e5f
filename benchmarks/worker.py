"""One engine in one process, told what to do over a pipe.

Knows how to open a runtime and time it. Must not import PyTorch itself: only the engine that needs it does. Requests and
replies are JSON, one a line, over the process's own stdin and stdout; anything that a library prints goes to stderr. Ctrl-C is
for the process that started this one, which ends it.
"""

from __future__ import annotations

import signal
import time

STARTED = time.monotonic()
if __name__ == "__main__":
    # Before the imports, which take most of a second.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

import hashlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402

from simmim_export import errors  # noqa: E402
from simmim_export.bundle.golden import Golden  # noqa: E402
from simmim_export.engines.base import GpuTimed  # noqa: E402
from simmim_export.errors import SimmimError  # noqa: E402
from simmim_export.proof.examine import Examiner, require_evidence  # noqa: E402
from simmim_export.proof.parity import compare, invariance  # noqa: E402
from simmim_export.runtime import Model, load  # noqa: E402
from simmim_export.system.host import available_threads  # noqa: E402
from simmim_export.system.libraries import guard_imports  # noqa: E402
from simmim_export.system.printing import show_warnings_plainly  # noqa: E402


class Worker:
    """The state of a worker: an open runtime, the golden tensors, and the inputs of each target."""

    def __init__(self) -> None:
        self.imported = time.monotonic()
        self.model: Model
        self.golden: Golden
        self.case = ""
        self.batch = 1

    def open(self, bundle: str, engine: str, precision: str, checkpoint: str | None, batch: int, first: str) -> Any:
        """Open the bundle and give the first result of the target ``first``; reply with the clock at every phase."""
        self.model = load(bundle, engine, precision=precision, checkpoint=checkpoint)
        self.golden = Golden.load(self.model.bundle.file("golden.npz"), graphs=self.model.bundle.manifest.graphs)
        self.case = self.golden.largest()
        self.batch = batch
        opened = time.monotonic()
        self.call(first)
        phases = {"started": STARTED, "imported": self.imported, "opened": opened, "first": time.monotonic()}
        return {"phases": phases, "threads": available_threads()}

    def feeds(self, target: str) -> dict[str, np.ndarray]:
        """The locked inputs of a target: golden rows, repeated to the batch. A pipeline gets every tensor that the host feeds
        to any graph."""
        kind, _, name = target.partition(":")
        manifest, case = self.model.bundle.manifest, self.golden.cases[self.case]
        if kind == "graph":
            rows = self.golden.feeds(self.case, manifest.graph(name))
        else:
            inputs = {tensor.name for graph in manifest.graphs for tensor in graph.inputs}
            rows = {key: array for key, array in case.items() if key in inputs}
        return {key: np.take(array, range(self.batch), axis=0, mode="wrap") for key, array in rows.items()}

    def call(self, target: str, feeds: dict[str, np.ndarray] | None = None) -> None:
        """Run a target once."""
        kind, _, name = target.partition(":")
        feeds = self.feeds(target) if feeds is None else feeds
        if kind == "graph":
            self.model.session(name).run(feeds)
        else:
            self.model.run(name, feeds)

    def round(self, target: str, iterations: int, warmup: int) -> Any:
        """Time ``iterations`` runs after ``warmup`` untimed ones; reply with every latency in seconds.

        From host arrays to host arrays, so that a GPU has done its work by then. ``gpu`` is as many runs by the GPU's own
        events, for a single graph whose session has them, and else empty.
        """
        kind, _, name = target.partition(":")
        session = self.model.session(name) if kind == "graph" else None
        feeds = self.feeds(target)
        digest = hashlib.sha256(b"".join(key.encode() + feeds[key].tobytes() for key in sorted(feeds))).hexdigest()
        for _ in range(warmup):
            self.call(target, feeds)
        samples = []
        for _ in range(iterations):
            before = time.perf_counter()
            self.call(target, feeds)
            samples.append(time.perf_counter() - before)
        gpu: list[float] = []
        if isinstance(session, GpuTimed):
            gpu = [session.gpu_seconds(feeds) for _ in range(iterations)]
        return {"samples": samples, "gpu": gpu, "inputs": digest}

    def finish(self, graphs: list[str]) -> Any:
        """Peak memory of the timed runs, then parity and executed precision of ``graphs``."""
        memory = peak_memory()
        parity, proof, stable = {}, {}, {}
        for name in graphs:
            session, spec = self.model.session(name), self.model.bundle.manifest.graph(name)
            parity[name] = compare(session, spec, golden=self.golden, precision=self.model.plan.of(name)).summary()
            stable[name] = invariance(session, spec, golden=self.golden)
            found = session.precision_proof()
            proof[name] = {"executed": dict(found.executed), "source": found.source}
        return {"peak_memory": memory, "parity": parity, "invariance": stable, "proof": proof}

    def examine(self) -> Any:
        """What the evidence of the bundle says of this engine."""
        evidence = require_evidence(self.model.bundle)
        examiner = Examiner(self.model.bundle.manifest, evidence, tokens=self.model.tokens)
        return examiner.figures(examiner.outputs(self.model.session))


def peak_memory() -> int:
    """The largest resident set of this process so far, in bytes."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
    except (OSError, StopIteration):
        import resource

        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def kind_of(error: SimmimError) -> str:
    """The class of ``errors.py`` that ``error`` is, or is a kind of: the other side knows those."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)


def main() -> None:
    """Serve requests until stdin closes."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    guard_imports()
    show_warnings_plainly()
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = {"ok": getattr(worker, request.pop("do"))(**request)}
        except SimmimError as error:
            reply = {"error": {"kind": kind_of(error), "what": error.what, "where": error.where, "fix": error.fix}}
        try:
            print(json.dumps(reply), file=replies, flush=True)
        except BrokenPipeError:  # whoever asked was ended, and nobody waits for this
            os._exit(0)


if __name__ == "__main__":
    main()
