"""One thing to measure: a target of a suite, with the sizes of its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simmim_export.benchmarks.results import Param, Suite
from simmim_export.engines.base import LATENCY


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every engine runs once in each round.

    ``target`` is ``graph:NAME``, ``pipeline:NAME`` or ``verb:NAME`` (a method of :class:`~simmim_export.runtime.Model`), and
    ``params`` say how large its inputs are, and which part of the work is timed (see ``workloads.py``). ``graphs`` are those
    that it runs. One run covers ``items`` images, texts or questions, and a round has ``iterations`` timed runs. Only engines
    that can be opened for ``hint`` run the job.

    A job of ``parts`` runs them in turn for ``seconds`` in each round, and has one sample: the mean time of a run.
    """

    suite: Suite
    target: str
    graphs: tuple[str, ...]
    params: Mapping[str, Param] = field(default_factory=dict)
    items: int = 1
    iterations: int = 20
    hint: str = LATENCY
    parts: tuple[Job, ...] = ()
    seconds: float = 0.0

    @property
    def key(self) -> tuple[Any, ...]:
        """What identifies its rows in a file; see :attr:`BenchmarkResult.job`."""
        return (self.suite, self.target, tuple(sorted(self.params.items())))

    @property
    def batch(self) -> int:
        """The batch size; 1 for a job that does not set it."""
        return int(self.params.get("batch", 1))

    @property
    def title(self) -> str:
        """The job in words: ``embed_image, batch 8``."""
        return title(self.target, self.params)


def title(target: str, params: Mapping[str, Param]) -> str:
    """A target and the sizes of its inputs in words."""
    sizes = (f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in params.items())
    return ", ".join([target.partition(":")[2], *sizes])
