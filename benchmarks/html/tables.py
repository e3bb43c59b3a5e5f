"""The tables of the report: rows of texts, beside the plots for readers who want figures or cannot see plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from simmim_export.benchmarks.code_digest import is_current
from simmim_export.benchmarks.document import Document, ratio_to, reference
from simmim_export.benchmarks.html.series import cosine, is_ours, name, plain, target
from simmim_export.benchmarks.measure import percentile
from simmim_export.benchmarks.results import BenchmarkResult
from simmim_export.system.printing import printable

# Shown in a cell without a figure.
ABSENT = "–"
# What readers call the figures of a row's accuracy.
FIGURES = {
    "cosine_mean": "mean cosine",
    "cosine_p1": "cosine, 1st percentile",
    "cosine_min": "smallest cosine",
    "top1": "same nearest neighbor",
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of texts. ``numbers``: which columns are figures, and so are aligned to the right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[int] = frozenset()


def glance(documents: Sequence[Document]) -> Table:
    """For each pipeline (or graph, without pipelines) of the suite latency: PyTorch and our fastest contestant."""
    rows = []
    for document in documents:
        latency = [row for row in document.results if row.suite == "latency" and row.rounds]
        pipelines = [row for row in latency if row.target.startswith("pipeline:")] or latency
        against = reference(document.results)
        for job in dict.fromkeys(row.job for row in pipelines):
            same = [row for row in pipelines if row.job == job]
            ours = [row for row in same if is_ours(row)]
            exact = next((row for row in same if row.engine == against), None)
            if not ours:
                continue
            best = min(ours, key=lambda row: median(row.samples))
            ratio = ratio_to(best, document.results, engine=against)
            cells = (
                target(best),
                _ms(None if exact is None else median(exact.samples)),
                name(best),
                _ms(median(best.samples)),
            )
            times = (
                (ABSENT, ABSENT) if ratio is None else (f"{ratio.value:.2f}×", f"{ratio.low:.2f} to {ratio.high:.2f}")
            )
            rows.append((*cells, *times, _cosine(best)))
    columns = ("pipeline", "PyTorch, ms", "our fastest", "ms", "times as fast", "95 %", "cosine")
    return Table(columns=columns, rows=tuple(rows), numbers=frozenset({1, 3, 4, 5, 6}))


def every_row(documents: Sequence[Document]) -> Table:
    """Every row of every file, with what failed, how far it is from its floor, and whether its code is that of now."""
    rows: list[tuple[str, ...]] = []
    for document in documents:
        against = reference(document.results)
        for row in document.results:
            ratio = ratio_to(row, document.results, engine=against)
            middle = median(row.samples) if row.samples else None
            floor = None if row.floor is None or middle is None else middle / row.floor.seconds
            params = ", ".join(f"{plain(key)} {_param(value)}" for key, value in row.params.items())
            times = ABSENT if ratio is None else f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
            code = "now" if is_current(row.suite, row.code) else "earlier"
            figures = (
                _ms(middle),
                _ms(percentile(row.samples, 0.9)),
                times,
                ABSENT if floor is None else f"{floor:.1f}×",
            )
            broken = "" if row.failed is None else printable(f"{row.failed.error}: {row.failed.message}")[:200]
            rows.append((row.suite, target(row), params, name(row), *figures, _cosine(row), code, broken))
    columns: tuple[str, ...] = (
        "suite",
        "target",
        "sizes",
        "engine",
        "median, ms",
        "p90, ms",
        "times PyTorch (95 %)",
        "times floor",
        "cosine",
        "code",
        "failed",
    )
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return Table(columns=columns, rows=tuple(rows), numbers=frozenset({4, 5, 6, 7, 8}))


def peers(documents: Sequence[Document]) -> Table:
    """Accuracy beside latency for the rows that have an accuracy. Its columns are the figures that the rows have."""
    chosen = [row for document in documents for row in document.results if row.accuracy]
    keys = list(dict.fromkeys(key for row in chosen for key in row.accuracy or {}))[:8]
    rows = []
    for row in sorted(chosen, key=lambda row: (row.target, median(row.samples) if row.samples else float("inf"))):
        cells = [_figure((row.accuracy or {}).get(key)) for key in keys]
        rows.append((target(row), name(row), _ms(median(row.samples) if row.samples else None), *cells))
    columns = ("target", "engine", "median, ms", *(FIGURES.get(key, plain(key.replace("_", " "))) for key in keys))
    return Table(columns=columns, rows=tuple(rows), numbers=frozenset(range(2, 3 + len(keys))))


def starts(documents: Sequence[Document]) -> Table:
    """Each contestant's cold start, memory and files."""
    rows = []
    for document in documents:
        for contestant, info in document.engines.items():
            sizes = [r.bytes for r in document.results if name(r) == plain(contestant) and r.bytes is not None]
            memory, size = _scaled(info.get("peak_memory"), 1e-6), _scaled(max(sizes, default=None), 1e-6)
            rows.append((plain(contestant), _scaled(info.get("cold_start"), 1, digits=2), memory, size))
    columns = ("engine", "cold start, s", "peak memory, MB", "largest files, MB")
    return Table(columns=columns, rows=tuple(rows), numbers=frozenset({1, 2, 3}))


def hosts(documents: Sequence[Document], names: Sequence[str]) -> Table:
    """Where and how each file was measured, one column per file."""
    kinds: dict[str, list[str]] = {}
    for index, document in enumerate(documents):
        for key, value in _described(document).items():
            kinds.setdefault(key, [ABSENT] * len(documents))[index] = value
    rows = tuple((key, *values) for key, values in kinds.items())
    return Table(columns=("", *(plain(name) for name in names)), rows=rows)


def _flat(key: str, value: object, *, deeper: int = 3) -> Iterator[tuple[str, object]]:
    """``value`` with its name, or if it is a mapping what is in it, each with the names on the way to it."""
    if not isinstance(value, Mapping) or not deeper:
        yield key, value
        return
    for inner_key, inner in value.items():
        yield from _flat(f"{key} {inner_key}", inner, deeper=deeper - 1)


def _described(document: Document) -> dict[str, str]:
    host = document.host
    facts: dict[str, Any] = {key: host.get(key) for key in ("cpu", "gpu", "cpus", "threads_used", "system", "python")}
    packages = host.get("packages")
    if isinstance(packages, Mapping):
        facts["packages"] = ", ".join(f"{key} {value}" for key, value in packages.items() if value)
    facts["load average before"] = f"{document.load_average:.2f}"
    facts["bundle"] = document.bundle.get("preset")
    facts["rounds"] = document.finished_rounds
    facts |= dict(_flat("peak", document.peaks or {}))
    facts["command"] = " ".join(document.command)
    shown = {key.replace("_", " "): value for key, value in facts.items() if value is not None}
    return {
        plain(key): printable(_figure(value) if isinstance(value, float) else str(value))[:400]
        for key, value in shown.items()
    }


def _ms(seconds: float | None) -> str:
    return ABSENT if seconds is None else f"{1000 * seconds:.3g}" if seconds < 1 else f"{1000 * seconds:.0f}"


def _cosine(row: BenchmarkResult) -> str:
    value = cosine(row)
    return ABSENT if value is None else f"{value:.6f}"


def _param(value: object) -> str:
    return plain(value) if isinstance(value, str) else f"{value:g}"


def _number(value: object) -> float | None:
    """``value`` if it is a number of a size that occurs; a file may hold integers of any length."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
    return float(value) if known else None  # type: ignore[arg-type]


def _figure(value: object) -> str:
    number = _number(value)
    return f"{number:.5g}" if number is not None else ABSENT if value is None else plain(str(value))


def _scaled(value: object, factor: float, *, digits: int = 0) -> str:
    number = _number(value)
    return ABSENT if number is None else f"{factor * number:.{digits}f}"
