"""Compares two files of results: for each row an interval, and a verdict that holds for all rows together.

Files of ``simmim-bench pair`` were measured side by side, and their rounds are compared in pairs. Files of separate runs are not
comparable on a machine that others use too: its speed changes from minute to minute by more than what a comparison looks for, and
no statistic of one run can know that. They are refused unless the user accepts it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from simmim_export.benchmarks.document import Document, read
from simmim_export.benchmarks.measure import Ratio, ratio_of_pairs, ratio_of_runs
from simmim_export.benchmarks.results import BenchmarkResult
from simmim_export.errors import DataError, GateFailed

# What may differ between two files if the user accepts it.
ACCEPTED = ("runs", "inputs", "method", "host")
# The chance that the intervals of all rows hold the truth.
CONFIDENCE = 0.95
# A difference of less than this share is not looked for.
THRESHOLD = 0.02
# A round counts with this quantile of its latencies: other programs only ever add time.
QUIET = 0.1
FASTER, SLOWER, NONE_SEEN, BROKEN = "faster", "slower", "no difference seen", "failed"
_HOST = ("cpu", "gpu", "cpus", "system")


def compare(first: Path, second: Path, *, threshold: float = THRESHOLD, accept: Collection[str] = ()) -> dict[str, Any]:
    """The comparison of the files ``first`` and ``second``; see :func:`verdicts`.

    Raise :class:`DataError` for a file that cannot be used, for files without a common row, and for files that differ in one of
    :data:`ACCEPTED` which is not in ``accept``.
    """
    a, b = read(first), read(second)
    _require_comparable(a, b, where=second, accept=accept)
    made = verdicts(a, b, threshold=threshold)
    if not made["rows"]:
        fix = "measure the same engines and pipelines in both runs"
        raise DataError("the two files have no row in common", where=f"{first}, {second}", fix=fix)
    return {"first": str(first), "second": str(second), **made}


def verdicts(first: Document, second: Document, *, threshold: float = THRESHOLD) -> dict[str, Any]:
    """How many times faster the rows of ``second`` are than those of ``first``, and whether that is a difference.

    Each row has both medians in milliseconds, ``times_faster`` with ``low`` and ``high``, and a ``verdict``. The intervals of all
    rows together hold the truth with 95 % confidence (each has a confidence of ``1 - 5 % / rows``, after Bonferroni), so a
    comparison of many rows raises no more false alarms than one of a single row. The verdict is ``faster`` or ``slower`` if the
    whole interval lies beyond ``threshold``. A row with too few rounds has no interval and no verdict, and a ``reason``. One that
    failed in ``second`` alone is ``failed``. ``only_first`` and ``only_second`` are rows of one file; ``differs`` names what else
    differs.
    """
    rows_a, rows_b = ({row.key: row for row in document.results} for document in (first, second))
    common = [key for key in rows_a if key in rows_b and (rows_a[key].rounds or rows_b[key].rounds)]
    paired = _paired(first, second)
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(common))
    rows = [_row(rows_a[key], rows_b[key], paired=paired, confidence=confidence, threshold=threshold) for key in common]
    differs = [key for key in ("host", "bundle") if getattr(first, key) != getattr(second, key)]
    differs += ["code"] if any(rows_a[key].code != rows_b[key].code for key in common) else []
    return {
        "paired": paired,
        "confidence": CONFIDENCE,
        "threshold": threshold,
        "differs": differs,
        "only_first": [_title(row) for key, row in rows_a.items() if key not in rows_b],
        "only_second": [_title(row) for key, row in rows_b.items() if key not in rows_a],
        "rows": rows,
    }


def require_none_slower(comparison: Mapping[str, Any]) -> None:
    """Raise :class:`GateFailed` naming the rows of a comparison that are slower, or that failed in the second run alone."""
    worse = [row for row in comparison["rows"] if row["verdict"] in (SLOWER, BROKEN)]
    if worse:
        named = ", ".join(f"{row['title']} ({row['verdict']})" for row in worse[:8]) + (
            ", ..." if len(worse) > 8 else ""
        )
        what = f"{len(worse)} of {len(comparison['rows'])} rows got worse: {named}"
        raise GateFailed(what, where=comparison["second"], fix="measure them again, or accept it: --fail-on nothing")


def quiet(samples: Sequence[float]) -> float:
    """The figure of a round in a comparison, in seconds: the :data:`QUIET` quantile of its latencies."""
    return float(np.quantile(samples, QUIET))


def _row(
    first: BenchmarkResult, second: BenchmarkResult, *, paired: bool, confidence: float, threshold: float
) -> dict[str, Any]:
    figures = [[quiet(each) for each in row.rounds] for row in (first, second)]
    ratio: Ratio | None = None
    if paired and len(figures[0]) == len(figures[1]):
        ratio = ratio_of_pairs(list(zip(*figures, strict=True)), confidence=confidence)
    elif all(figures):
        ratio = ratio_of_runs(*figures, confidence=confidence)
    medians = [round(1000 * median(row.samples), 4) if row.samples else None for row in (first, second)]
    made: dict[str, Any] = {
        "title": _title(second),
        "suite": second.suite,
        "target": second.target,
        "params": dict(second.params),
    }
    made |= {"engine": second.engine, "precision": second.precision, "recipe": second.recipe, "medians_ms": medians}
    made |= {"times_faster": None, "low": None, "high": None, "verdict": None, "reason": None}
    if second.failed is not None or first.failed is not None:
        if first.failed is None:
            made["verdict"] = BROKEN
        failed = second.failed or first.failed
        return made | {"reason": f"{failed.error}: {failed.message}" if failed else None}
    if ratio is None:
        least = rounds_needed(confidence, paired=paired)
        return made | {"reason": f"too few rounds for an interval: measure with --rounds {least} or more"}
    made |= {"times_faster": ratio.value, "low": ratio.low, "high": ratio.high}
    return made | {"verdict": verdict(ratio, threshold=threshold)}


def verdict(ratio: Ratio, *, threshold: float) -> str:
    """What ``ratio``, of the first time to the second, shows: a difference only if its whole interval is beyond ``threshold``."""
    if ratio.low > 1 + threshold:
        return FASTER
    return SLOWER if ratio.high < 1 / (1 + threshold) else NONE_SEEN


def rounds_needed(confidence: float, *, paired: bool) -> int:
    """The fewest rounds from which there is an interval of this ``confidence``."""
    chance: Callable[[int], int] = (lambda n: 2**n) if paired else (lambda n: math.comb(2 * n, n))
    return next(n for n in count(1) if (1 - confidence + 1e-12) * chance(n) >= 2)


def _paired(first: Document, second: Document) -> bool:
    """Whether ``simmim-bench pair`` measured both side by side."""
    token = first.method.get("pair")
    return token is not None and token == second.method.get("pair")


def _require_comparable(first: Document, second: Document, *, where: Path, accept: Collection[str]) -> None:
    """Raise :class:`DataError` for the first of :data:`ACCEPTED` that differs and is not in ``accept``."""
    rows = {row.key: row for row in first.results}
    common = [(rows[row.key], row) for row in second.results if row.key in rows]
    methods = [{key: value for key, value in document.method.items() if key != "pair"} for document in (first, second)]
    threads = [document.host.get("threads_used") for document in (first, second)]
    hosts = [[document.host.get(key) for key in _HOST] for document in (first, second)]
    inputs = next((b for a, b in common if a.inputs and b.inputs and a.inputs != b.inputs), None)
    found = {
        "host": None if hosts[0] == hosts[1] else f"the files are of two machines: {hosts[0][0]} and {hosts[1][0]}",
        "inputs": None if inputs is None else f"{_title(inputs)} had other inputs in the second file",
        "method": None
        if (methods[0], threads[0], first.finished_rounds) == (methods[1], threads[1], second.finished_rounds)
        else f"the files were measured in two ways: {_method(first)} and {_method(second)}",
        "runs": None
        if _paired(first, second)
        else "the files are of separate runs, between which the machine can change",
    }
    fixes = {
        "runs": "measure side by side: simmim-bench pair --bundle BUNDLE --against-python OLD/bin/python, or accept it"
    }
    for kind, what in found.items():
        if what is not None and kind not in accept:
            fix = fixes.get(kind, "compare like with like, or accept it")
            raise DataError(what, where=where, fix=f"{fix}: --accept {kind}")


def _method(document: Document) -> str:
    words = [f"{key} {value}" for key, value in document.method.items() if key != "pair"]
    return f"{', '.join(words)}, {document.finished_rounds} finished, {document.host.get('threads_used')} threads"


def _title(row: BenchmarkResult) -> str:
    sizes = [f"{key} {value}" for key, value in row.params.items()]
    engine = f"{row.engine}:{row.precision}" + (f" ({row.recipe})" if row.recipe else "")
    return f"{', '.join([row.target.partition(':')[2] or row.target, *sizes])} on {engine}"
