"""What the plots show, as plain numbers and names: taken from the rows of benchmark files, without drawing anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log10
from statistics import median

from simmim_export.benchmarks.memory import growth
from simmim_export.benchmarks.results import BenchmarkResult
from simmim_export.engines import ENGINES
from simmim_export.system.printing import printable

# A name that is longer loses its middle: names come from files of strangers.
LONGEST = 48
# A cosine of 1 - 1e-7 and more is the same at single precision.
MOST_NINES = 7.0
# The largest size, and the most seconds of a soak, that are drawn: a file may hold any number.
MOST = 1e12
# What each rung of the ladder adds to the one before, by its stage.
RUNGS = {"graphs": "graphs", "pipeline": "pipeline", "prepared": "decode, tokenize", "api": "public API"}
# The suites that are curves: what grows along x (the first parameter that varies), the title of y, and whether y is a rate.
CURVES = {
    "growth": ("ms per call", False),
    "throughput": ("images or texts per second", True),
    "reuse": ("ms per question", False),
    "photos": ("ms per photograph", False),
}
AXES = {
    "batch": "batch",
    "sequence": "tokens in a text",
    "frames": "frames in a clip",
    "image_size": "pixels of a side",
    "questions": "questions about one image",
    "megapixels": "megapixels",
    "streams": "streams",
}


def plain(text: str) -> str:
    """``text`` without control characters, and at most :data:`LONGEST` characters long."""
    text = printable(text)
    half = LONGEST // 2 - 1
    return text if len(text) <= LONGEST else f"{text[:half]}…{text[-half:]}"


def name(row: BenchmarkResult) -> str:
    """The contestant of ``row`` in short: ``ort:int8``, with its recipe in parentheses."""
    engine = row.engine if row.precision == "fp32" else f"{row.engine}:{row.precision}"
    return plain(f"{engine} ({row.recipe})" if row.recipe else engine)


def is_ours(row: BenchmarkResult) -> bool:
    """Whether ``row`` is this project's way to run the model, and not a peer's: one of its engines without another recipe."""
    return not row.recipe and row.engine in ENGINES and not row.engine.startswith("torch")


def cosine(row: BenchmarkResult) -> float | None:
    """The mean cosine of a row to FP32, or of golden tensors to PyTorch; None if it was not measured."""
    value = (row.accuracy or {}).get("cosine_mean", row.parity.get("cosine"))
    return float(value) if isinstance(value, int | float) and -1 <= value <= 1 + 1e-6 else None


@dataclass(frozen=True, kw_only=True)
class Point:
    """One contestant: its median latency in seconds with the fastest and slowest round, and its mean cosine."""

    name: str
    engine: str
    ours: bool
    seconds: float
    low: float
    high: float
    cosine: float

    @property
    def nines(self) -> float:
        """How many nines the cosine has: 3 for 0.999; from 0 to :data:`MOST_NINES`."""
        return min(MOST_NINES, max(0.0, -log10(max(1 - self.cosine, 1e-9))))


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """Accuracy against latency of one target. ``floor``: the least time in seconds that this host needs for it, or None."""

    target: str
    points: tuple[Point, ...]
    floor: float | None

    def frontier(self) -> list[Point]:
        """The points that no other point beats in both, from the fastest to the most accurate."""
        best: list[Point] = []
        for point in sorted(self.points, key=lambda p: (p.seconds, -p.nines)):
            if not best or point.nines > best[-1].nines:
                best.append(point)
        return best


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """One verb: for each engine the seconds that each stage adds, in the order of the stages."""

    target: str
    stages: tuple[str, ...]
    bars: tuple[tuple[str, tuple[float, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One contestant's figures along an axis. ``note`` is added to its label."""

    name: str
    engine: str
    precision: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Curves of several contestants along one axis. ``logarithmic``: whether both axes are."""

    title: str
    across: str
    up: str
    curves: tuple[Curve, ...]
    logarithmic: bool = True


def measured(rows: Iterable[BenchmarkResult], *suites: str) -> list[BenchmarkResult]:
    """The rows of ``suites`` that have figures."""
    return [row for row in rows if row.suite in suites and row.rounds]


def target(row: BenchmarkResult) -> str:
    """The target of ``row`` without its kind."""
    return plain(row.target.partition(":")[2] or row.target)


def scatters(rows: Sequence[BenchmarkResult]) -> list[Scatter]:
    """A plot for each target of the suite peers; without peers, for each graph and pipeline of the suite latency."""
    chosen = measured(rows, "peers") or measured(rows, "latency")
    found = []
    for job in dict.fromkeys(row.job for row in chosen):
        same = [(row, value) for row in chosen if row.job == job and (value := cosine(row)) is not None]
        points = []
        for row, value in same:
            medians = [median(each) for each in row.rounds]
            figures = {"seconds": median(row.samples), "low": min(medians), "high": max(medians), "cosine": value}
            points.append(Point(name=name(row), engine=row.engine, ours=is_ours(row), **figures))
        floors = [row.floor.seconds for row, _ in same if row.floor is not None]
        if len(points) > 1:
            floor = min(floors, default=None)
            found.append(Scatter(target=_with_batch(same[0][0]), points=tuple(points), floor=floor))
    return found


def ladders(rows: Sequence[BenchmarkResult]) -> list[Ladder]:
    """A plot for each verb of the suite ladder. A stage that was no slower than the one before adds nothing."""
    chosen = [row for row in measured(rows, "ladder") if row.params.get("stage") in RUNGS]
    found = []
    for verb in dict.fromkeys(row.target for row in chosen):
        stages = tuple(stage for stage in RUNGS if any(r.params["stage"] == stage for r in chosen if r.target == verb))
        bars = []
        for contestant in dict.fromkeys(name(row) for row in chosen if row.target == verb):
            same = {r.params["stage"]: median(r.samples) for r in chosen if (r.target, name(r)) == (verb, contestant)}
            if set(same) == set(stages):
                reached, added = 0.0, []
                for stage in stages:
                    added.append(max(0.0, same[stage] - reached))
                    reached = max(reached, same[stage])
                bars.append((contestant, tuple(added)))
        if bars:
            kind = next(target(row) for row in chosen if row.target == verb)
            found.append(Ladder(target=kind, stages=tuple(RUNGS[s] for s in stages), bars=tuple(bars)))
    return found


def panels(rows: Sequence[BenchmarkResult], suite: str) -> list[Panel]:
    """The plots of a suite of :data:`CURVES`: one for each target and each parameter of which it has several values."""
    up, rate = CURVES[suite]
    chosen = measured(rows, suite)
    found = []
    for kind in dict.fromkeys(row.target for row in chosen):
        same = [row for row in chosen if row.target == kind]
        for axis in AXES:
            lines: dict[str, dict[float, float]] = {}
            owners: dict[str, BenchmarkResult] = {}
            for row in same:
                if (x := row.params.get(axis)) is None or isinstance(x, str) or not 1e-9 <= x <= MOST:
                    continue
                if not _lowest(row, same, axis):
                    continue
                each = median(row.samples) / (row.items if suite in ("reuse", "throughput") else 1)
                label = name(row) + (", streams" if "streams" in row.params else "") + _stage(row)
                lines.setdefault(label, {})[float(x)] = 1 / each if rate else 1000 * each
                owners[label] = row
            if any(len(line) > 1 for line in lines.values()):
                curves = tuple(
                    Curve(
                        name=label,
                        engine=owners[label].engine,
                        precision=owners[label].precision,
                        x=tuple(sorted(line)),
                        y=tuple(line[x] for x in sorted(line)),
                    )
                    for label, line in lines.items()
                )
                found.append(Panel(title=target(same[0]), across=AXES[axis], up=up, curves=curves))
    return found


def soaks(rows: Sequence[BenchmarkResult]) -> list[Panel]:
    """Resident memory over time, with its growth, for the rows of the suite soak."""
    curves = []
    for row in measured(rows, "soak"):
        if row.memory and row.memory[-1][0] <= MOST:
            slope = growth(row.memory)
            note = "" if slope is None else f"{slope.bytes_per_minute / 1e6:+.1f} MB/min"
            minutes, megabytes = zip(*((at / 60, each / 1e6) for at, each in row.memory), strict=True)
            own = {"name": name(row), "engine": row.engine, "precision": row.precision}
            curves.append(Curve(x=minutes, y=megabytes, note=note, **own))
    title = "resident memory"
    return [Panel(title=title, across="minutes", up="MB", curves=tuple(curves), logarithmic=False)] if curves else []


def _lowest(row: BenchmarkResult, rows: Sequence[BenchmarkResult], axis: str) -> bool:
    """Whether the other sizes of ``row`` are the ones at which ``axis`` grows: its contestant has rows with another ``axis``."""
    others = {key: value for key, value in row.params.items() if key != axis}
    same = [r for r in rows if name(r) == name(row) and {k: v for k, v in r.params.items() if k != axis} == others]
    return len(same) > 1 or "streams" in row.params


def _stage(row: BenchmarkResult) -> str:
    """What sets apart the rows of one contestant: questions asked alone, photographs decoded by Pillow."""
    stage = row.params.get("stage")
    return "" if stage in (None, "api") else f", {plain(str(stage))}"


def _with_batch(row: BenchmarkResult) -> str:
    batch = row.params.get("batch", row.batch)
    return target(row) if batch == 1 else f"{target(row)}, batch {batch}"
