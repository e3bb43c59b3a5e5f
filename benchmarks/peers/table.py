"""The table that ``simmim-bench peers`` prints: accuracy beside latency, and how far each row is from its floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from simmim_export.benchmarks.document import ratio_to
from simmim_export.benchmarks.jobs import title
from simmim_export.benchmarks.measure import too_few
from simmim_export.benchmarks.peers.contestants import REFERENCE
from simmim_export.benchmarks.peers.measure import PeersPlan
from simmim_export.benchmarks.results import BenchmarkResult
from simmim_export.console import Row, print_table, stdout_console
from simmim_export.errors import EngineUnavailable

ABSENT = "-"


def show(plan: PeersPlan, results: Sequence[BenchmarkResult], *, document: Mapping[str, Any]) -> None:
    """Print a section for each timed input, with the fastest row first, and the reason for each row without figures."""
    console, host = stdout_console(), document["host"]
    console.print(
        f"{host['cpu']}, {host['threads_used']} threads; load average {document['load_average']:.2f} at the start"
    )
    for warning in document["warnings"]:
        console.print(f"warning: {warning}")
    rows: list[Row] = []
    reasons: dict[str, str] = {}
    for job in dict.fromkeys(result.job for result in results):
        mine = [result for result in results if result.job == job]
        rows.append((title(mine[0].target, mine[0].params),))
        for result in sorted(mine, key=lambda row: median(row.samples) if row.rounds else float("inf")):
            rows.append(_row(result, results))
            if result.failed is not None:
                reasons[f"{mine[0].target.partition(':')[2]}, {_name(result)}"] = result.failed.message
    columns = (
        ">median|ms",
        f">x {REFERENCE.engine}",
        ">95 %",
        ">mean|cosine",
        ">1st per-|centile",
        ">same|neighbor",
        ">MB",
        ">x floor",
    )
    judges = ", ".join(f"{task.judges} inputs of {task.graph}" for task in plan.tasks)
    samples = plan.rounds * plan.iterations
    print_table(f"batch 1, {samples} samples in {plan.rounds} rounds; {judges} judge", ("", *columns), rows)
    if no_ratio := too_few(plan.rounds):
        console.print(no_ratio)
    for name, reason in reasons.items():
        console.print(f"failed: {name}: {reason}")


def require(plan: PeersPlan, results: Sequence[BenchmarkResult]) -> None:
    """Raise :class:`EngineUnavailable` if one of ours failed although its engine is here. A peer that fails only has a row."""
    ours = {(peer.engine, peer.precision) for peer in plan.peers if peer.is_ours and peer.lacking() is None}
    for row in results:
        if row.failed is not None and not row.recipe and (row.engine, row.precision) in ours:
            what = f"{_name(row)} failed on {row.target.partition(':')[2]}: {row.failed.message}"
            fix = "if the bundle lacks a variant, export it again with --precision int8; else simmim-export doctor"
            raise EngineUnavailable(what, where=plan.bundle, fix=fix)


def _row(result: BenchmarkResult, results: Sequence[BenchmarkResult]) -> Row:
    ratio = ratio_to(result, results, engine=REFERENCE.engine)
    middle = median(result.samples) if result.rounds else None
    accuracy = result.accuracy or {}
    figures = {name: accuracy.get(name) for name in ("cosine_mean", "cosine_p1", "top1")}
    return (
        f"  {_name(result)}",
        ABSENT if middle is None else f"{1000 * middle:.3f}",
        ABSENT if ratio is None else f"{ratio.value:.2f}",
        ABSENT if ratio is None else ratio.span,
        *(ABSENT if figures[name] is None else f"{figures[name]:.5f}" for name in ("cosine_mean", "cosine_p1")),
        ABSENT if figures["top1"] is None else f"{figures['top1']:.1%}",
        ABSENT if result.bytes is None else f"{result.bytes / 1e6:.1f}",
        ABSENT if middle is None or result.floor is None else f"{middle / result.floor.seconds:.1f}",
    )


def _name(result: BenchmarkResult) -> str:
    """Engine and precision, and who made the file; ours are marked."""
    name = result.engine if result.precision == "fp32" else f"{result.engine}:{result.precision}"
    if result.recipe:
        return f"{name} ({result.recipe})"
    return name if name.startswith("torch") else f"{name} (ours)"
