"""The typed records of certificate.json. A parsed record has every field, and its numbers are in range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, isfinite, log
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from simmim_export.spec import Precision, Variant
from simmim_export.system.plain import as_json

Finite = Annotated[float, Meta(ge=-1e12, le=1e12)]
Share = Annotated[float, Meta(ge=0, le=1)]
Cosine = Annotated[float, Meta(ge=-1.001, le=1.001)]
Count = Annotated[int, Meta(ge=0, le=1 << 40)]
Some = Annotated[int, Meta(ge=1, le=1 << 40)]
# No pipeline runs in less than a microsecond.
Seconds = Annotated[float, Meta(ge=1e-6, le=1e6)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class _Typed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A record of certificate.json. It takes only keyword arguments, and has only the fields that it names."""


def shown(value: float) -> str:
    """``value`` as text with 4 digits, or 6 if it is just below 1, as a cosine is: its distance from 1 is what matters."""
    return f"{value:.6g}" if 0.9 < value < 1 else f"{value:.4g}"


class Line(_Typed, frozen=True):
    """One limit and what was measured. ``name`` is the key of a budget and what it bounds, for example ``answers vqa``.

    ``allowed`` is the limit in words. ``measured`` is None if it could not be computed. ``reason`` says why the line is not kept,
    if that is not because of the limit.
    """

    name: str
    measured: Finite | None
    allowed: str
    kept: bool
    reason: str = ""

    def figure(self) -> str:
        """``measured`` as text."""
        return "not computed" if self.measured is None or not isfinite(self.measured) else shown(self.measured)

    def __str__(self) -> str:
        return f"{self.name} {self.figure()}, {self.allowed}" + (f" ({self.reason})" if self.reason else "")


class Unjudged(_Typed, frozen=True):
    """A limit that was asked for and could not be judged, and why."""

    name: str
    limit: str
    why: str


class Parity(_Typed, frozen=True):
    """:meth:`simmim_export.proof.parity.ParityReport.summary`; None stands for what could not be measured."""

    passed: bool
    checks: Count
    scaled_error: Finite | None
    cosine: Cosine | None


class Executed(_Typed, frozen=True):
    """How many nodes ran in each type, and where that was read."""

    executed: dict[str, Count]
    source: str


class CertifiedGraph(_Typed, frozen=True):
    """One graph at the ``precision`` that was asked for.

    ``artifact`` is the digest of its file, ``variant`` the form of the graph that this file holds, and ``compiled`` the digest of
    what an engine compiled it to ahead of time, or None. ``parity`` says how close it is to PyTorch; ``invariance`` how far a
    sample alone (``batch``) or without padding (``padding``) is from the same sample among others; ``executed`` which types its
    nodes ran in.
    """

    artifact: Sha256
    variant: Variant
    precision: Precision
    parity: Parity
    invariance: dict[str, Finite | None]
    executed: Executed
    compiled: Sha256 | None


class Embedding(_Typed, frozen=True):
    """:func:`simmim_export.proof.figures.agreement`."""

    cosine_mean: Cosine
    cosine_p1: Cosine
    cosine_min: Cosine
    top1: Share
    n: Some
    not_finite: Count


class Answered(_Typed, frozen=True):
    """:func:`simmim_export.proof.figures.paired_loss` of a task; ``top1`` is the share of answers that equal the reference's."""

    value: Share
    reference: Share
    loss: Finite
    interval: tuple[Finite, Finite]
    n: Some
    images: Some
    gained: Count
    lost: Count
    suspicious: bool
    metric: str
    top1: Share
    not_finite: Count


class Reproduced(_Typed, frozen=True):
    """How far an output is from its reference; None if it is not finite."""

    scaled_error: Finite | None
    cosine: Cosine


class Figures(_Typed, frozen=True):
    """:meth:`simmim_export.proof.examine.Examiner.figures`."""

    embeddings: dict[str, Embedding]
    tasks: dict[str, Answered]
    references: dict[str, Reproduced]
    source: dict[str, Any]


class Certificate(_Typed, frozen=True):
    """One engine at one precision plan on one host. ``precision`` is what was asked for, ``plan`` is the plan that it means.

    ``graphs`` has every graph of the bundle, ``figures`` what the evidence says. ``latency`` is the median seconds at batch 1 of
    each pipeline, measured in turns with the other certificates of the same ``run``, which is the time it began. ``lines`` has
    what was measured for each limit of ``budget``; ``not_judged`` lists the limits that could not be judged. ``suspicious`` has
    remarks on tasks that went better than they should. ``passed`` is the :func:`verdict`.
    """

    engine: str
    precision: str
    plan: str
    host: dict[str, str | int | list[str]]
    versions: dict[str, str]
    graphs: dict[str, CertifiedGraph]
    figures: Figures
    latency: dict[str, Seconds]
    budget: str
    lines: tuple[Line, ...]
    not_judged: tuple[Unjudged, ...]
    suspicious: tuple[str, ...]
    passed: bool
    command: str
    run: str

    @property
    def name(self) -> str:
        """As on the command line: ``ort:int8``."""
        return f"{self.engine}:{self.precision}"

    def host_name(self) -> str:
        """The processor and the number of threads, for people."""
        return f"{self.host.get('cpu')}, {self.host.get('threads')} threads"

    def failures(self) -> list[str]:
        """Why it did not pass: the lines that are not kept, and the graphs that differ from PyTorch."""
        lines = [str(line) for line in self.lines if not line.kept]
        return [*lines, *(f"parity of {name}" for name, graph in self.graphs.items() if not _proven(graph.parity))]

    def as_json(self) -> Any:
        """As plain JSON values; NaN and infinity are null."""
        return as_json(msgspec.to_builtins(self))

    def speed(self) -> float:
        """The geometric mean of the latencies in seconds, to order certificates by: no pipeline dominates it."""
        return exp(sum(log(value) for value in self.latency.values()) / len(self.latency))


def verdict(lines: Sequence[Line], graphs: Mapping[str, CertifiedGraph]) -> bool:
    """Whether there are lines, every line is kept and has a number, and every graph passed one or more checks of parity."""
    kept = all(line.kept and line.measured is not None and isfinite(line.measured) for line in lines)
    return bool(lines and graphs) and kept and all(_proven(graph.parity) for graph in graphs.values())


def _proven(parity: Parity) -> bool:
    return parity.passed and parity.checks > 0
