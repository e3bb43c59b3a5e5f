"""The floor of each row of a measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from simmim_export.benchmarks.limit.floor import floor_of, golden_sizes
from simmim_export.benchmarks.limit.peaks import Peaks
from simmim_export.benchmarks.results import BenchmarkResult, Floor
from simmim_export.bundle import Bundle
from simmim_export.runtime.loading import plan_of
from simmim_export.spec import Verb


def with_floors(results: Sequence[BenchmarkResult], path: Path, *, peaks: Peaks) -> list[BenchmarkResult]:
    """``results`` on the bundle at ``path``, each with the least time of its graphs for all items of a run.

    What the host does (decoding, tokenizing) has no floor, so a row that starts from a photograph has that of its graphs. These
    rows have none: those that start from texts, whose length only the tokenizer knows, a soak, rows of other files, and rows of
    a precision whose peak was not measured.
    """
    bundle = Bundle.open(path)
    sizes_of = cache(lambda batch: golden_sizes(bundle, batch=batch))
    rows = []
    for row in results:
        target = _target(bundle, row)
        one = None
        if target is not None and not row.recipe:
            sizes = sizes_of(row.batch)
            sizes = sizes | {name: int(row.params[name]) for name in sizes if name in row.params}
            plan = plan_of(bundle, row.engine, precision=row.precision)
            one = floor_of(bundle, target, engine=row.engine, plan=plan, sizes=sizes, peaks=peaks)
        if one is not None:
            runs = row.items / row.batch
            floor = Floor(seconds=one.seconds * runs, flops=one.flops * runs, bytes=one.bytes * runs, bound=one.bound)
            row = replace(row, floor=floor)
        rows.append(row)
    return rows


def _target(bundle: Bundle, row: BenchmarkResult) -> str | None:
    """The graph or pipeline whose floor is that of ``row``; None if its sizes are not known here."""
    if row.target.partition(":")[0] in ("graph", "pipeline"):
        return row.target
    if row.target == f"verb:{Verb.EMBED_IMAGE}":
        pipeline = bundle.manifest.pipeline_for(Verb.EMBED_IMAGE)
        return None if pipeline is None else f"pipeline:{pipeline.name}"
    return None
