"""Workers of engines that fail while they are measured: real processes that die, raise or lose memory."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import ClassVar

from simmim_export.benchmarks.contestants import Contestant
from simmim_export.benchmarks.jobs import Job
from simmim_export.benchmarks.worker import EngineWorker, Samples
from simmim_export.errors import EngineUnavailable
from simmim_export.system.workers import Worker


class Counting(EngineWorker):
    """Counts its rounds of each job."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds: dict[str, int] = {}

    def time_round(self, job: Job, *, warmup: int) -> Samples:
        self.rounds[job.target] = self.rounds.get(job.target, 0) + 1
        self.fail(job)
        return super().time_round(job, warmup=warmup)

    def fail(self, job: Job) -> None:
        """What goes wrong, if anything."""


class Dying(Counting):
    """Is killed in the second round, as the system does when memory is short."""

    def fail(self, job: Job) -> None:
        if self.rounds[job.target] == 2:
            os.kill(os.getpid(), signal.SIGKILL)


class Refusing(Counting):
    """Cannot run one graph from the second round on."""

    def fail(self, job: Job) -> None:
        if job.target == "graph:text_encoder" and self.rounds[job.target] == 2:
            raise EngineUnavailable("out of memory", fix="use a smaller batch")


class Leaking(Counting):
    """Loses 3 MB in each round."""

    lost: ClassVar[list[bytes]] = []

    def fail(self, job: Job) -> None:
        self.lost.append(os.urandom(3_000_000))


@dataclass(frozen=True)
class Failing(Contestant):
    """ONNX Runtime in one of the workers above, which ``recipe`` names."""

    def worker(self) -> Worker:
        return Worker({"dying": Dying, "refusing": Refusing, "leaking": Leaking}[self.recipe], name=f"engine '{self}'")
