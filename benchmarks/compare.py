"""Compares two files that ``simmim-bench --save`` wrote."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from simmim_export.benchmarks.document import read
from simmim_export.benchmarks.measure import ROUNDS_APART, too_few, unpaired_ratio
from simmim_export.errors import DataError


def compare(first: Path, second: Path) -> dict[str, Any]:
    """How many times faster the second run is, row by row, with 95 % intervals.

    ``differs`` names what else differs between the runs: host, bundle. A row with too few rounds has the medians of both runs
    (in milliseconds), None as its ratio, and a ``reason``. Raise :class:`DataError` if the files have no row in common, or if a
    row had different inputs.
    """
    a, b = read(first), read(second)
    rows_b = {(r.target, r.engine, r.precision, r.batch): r for r in b.results}
    rows = []
    for row in a.results:
        other = rows_b.get((row.target, row.engine, row.precision, row.batch))
        if other is None:
            continue
        if other.inputs != row.inputs:
            raise DataError(
                f"{row.target} on {row.engine} had different inputs in the second run",
                where=second,
                fix="compare runs of the same bundle",
            )
        ratio = unpaired_ratio(row.rounds, other.rounds)
        rows.append(
            {
                "target": row.target,
                "engine": row.engine,
                "precision": row.precision,
                "batch": row.batch,
                "medians_ms": [round(1000 * median(each.samples), 4) for each in (row, other)],
                "times_faster": None if ratio is None else ratio.value,
                "low": None if ratio is None else ratio.low,
                "high": None if ratio is None else ratio.high,
                "difference_shown": ratio is not None and ratio.shown,
                "reason": too_few(min(len(row.rounds), len(other.rounds)), ROUNDS_APART) if ratio is None else None,
            }
        )
    if not rows:
        raise DataError(
            "the two files have no row in common",
            where=f"{first}, {second}",
            fix="measure the same engines and pipelines in both runs",
        )
    differs = [key for key in ("host", "bundle") if getattr(a, key) != getattr(b, key)]
    return {"first": str(first), "second": str(second), "differs": differs, "rows": rows}
