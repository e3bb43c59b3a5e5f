"""Compares two files that simmim-bench wrote."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from simmim_export.benchmarks.measure import ROUNDS_APART, too_few, unpaired_ratio
from simmim_export.benchmarks.report import read
from simmim_export.errors import DataError


def compare(first: Path, second: Path) -> dict[str, Any]:
    """How many times faster the second run is, row by row, with 95 % intervals and what differs around them.

    A row with too few rounds has the medians of both (in milliseconds), None as its ratio, and ``reason``. Raise
    :class:`DataError` when the files share no row, or rows of one name had different inputs.
    """
    a, b = read(first), read(second)
    rows_b = {(r.target, r.engine, r.precision, r.batch): r for r in b["results"]}
    rows = []
    for row in a["results"]:
        other = rows_b.get((row.target, row.engine, row.precision, row.batch))
        if other is None:
            continue
        if other.inputs != row.inputs:
            raise DataError(
                f"{row.target} on {row.engine} had other inputs in the second run",
                where=second,
                fix="use the same bundle",
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
            "the two files share no row", where=f"{first}, {second}", fix="compare runs of the same targets"
        )
    differs = [key for key in ("host", "bundle") if a[key] != b[key]]
    return {"first": str(first), "second": str(second), "differs": differs, "rows": rows}
