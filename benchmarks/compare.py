"""Two runs side by side. Knows benchmark files; must not measure anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simmim_export.benchmarks.measure import unpaired_ratio
from simmim_export.benchmarks.report import read
from simmim_export.errors import DataError


def compare(first: Path, second: Path) -> dict[str, Any]:
    """How many times faster the second run is, row by row, with 95 % intervals and what differs around them.

    Raises :class:`DataError` when the files share no row, or rows of one name had different inputs.
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
                "times_faster": ratio.value,
                "low": ratio.low,
                "high": ratio.high,
                "difference_shown": ratio.shown,
            }
        )
    if not rows:
        raise DataError(
            "the two files share no row", where=f"{first}, {second}", fix="compare runs of the same targets"
        )
    differs = [key for key in ("host", "bundle") if a[key] != b[key]]
    return {"first": str(first), "second": str(second), "differs": differs, "rows": rows}
