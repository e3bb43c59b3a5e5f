"""The tables of a measurement, and the gates on parity, memory and failed engines."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from simmim_export.benchmarks.contestants import Plan, contestant_of
from simmim_export.benchmarks.document import ratio_to, reference
from simmim_export.benchmarks.driver import Measured
from simmim_export.benchmarks.jobs import title
from simmim_export.benchmarks.measure import Ratio, paired_ratio, percentile, too_few
from simmim_export.benchmarks.memory import growth
from simmim_export.benchmarks.results import BenchmarkResult
from simmim_export.console import Row, print_table, stdout_console
from simmim_export.errors import GateFailed

# Shown in a cell without a figure.
ABSENT = "-"
# The suites that show the time of one item, and how many items there are in a second.
_BY_ITEM = ("throughput", "reuse")
_TITLES = {
    "latency": "latency",
    "ladder": "the ladder: each stage contains the one before it",
    "throughput": "throughput",
    "reuse": "several questions about one image",
    "photos": "photograph to embedding; PyTorch decodes with plain Pillow",
    "growth": "growth",
    "soak": "soak: mixed work, mean of a run in each slice",
}


def show(plan: Plan, measured: Measured, *, document: Mapping[str, Any]) -> None:
    """Print a table for each suite, with parity on the same row, then each engine's time to start and its memory.

    ``document``: what :func:`~simmim_export.benchmarks.document.as_document` made of the run.
    """
    console = stdout_console()
    host = document["host"]
    console.print(
        f"{host['cpu']}, {host['threads_used']} threads; load average {document['load_average']:.2f} at the start"
    )
    for warning in document["warnings"]:
        console.print(f"warning: {warning}")
    for suite in document["suites"]:
        console.print("")
        rows = [row for row in measured.results if row.suite == suite]
        samples = max(len(row.samples) for row in rows)
        where = f"{plan.bundle} ({document['bundle']['preset']})"
        _print_results(rows, heading=f"{_TITLES[suite]}, {where}: ms, {samples} samples in {plan.rounds} rounds")
    if no_ratio := too_few(plan.rounds):
        console.print(no_ratio)
    if any(result.gpu_rounds for result in measured.results):
        console.print("by events: the GPU's own clock, without copies; engines without it have -")
    console.print("")
    first = next((info["first_target"] for info in measured.engines.values() if info.get("first_target")), None)
    if first is not None:
        _print_starts(measured, heading=f"first result of {first.partition(':')[2]}, each engine in a new process")
    for result in measured.results:
        if result.memory:
            console.print(f"{contestant_of(result)}: {_memory_in_words(result)}")
    for (engine, failed), count in _failures(measured.results).items():
        console.print(f"{engine} failed in {count} of its rows: {failed}")


def _print_results(results: Sequence[BenchmarkResult], *, heading: str) -> None:
    """Print a section for each job with a row for each engine. Columns that would be empty are left out."""
    against = reference(results)
    ratios = [ratio_to(row, results, engine=against) for row in results]
    alone = [against_alone(row, results) for row in results]
    # The cells of each column by the position of their result.
    columns: dict[str, list[str]] = {
        ">median": [_ms(median(r.samples)) if r.rounds else ABSENT for r in results],
        ">p90": [_ms(percentile(r.samples, 0.9)) for r in results],
        ">p99": [_ms(percentile(r.samples, 0.99)) for r in results],
        ">median on|GPU clock": [_ms(percentile(r.gpu_samples, 0.5)) for r in results],
        ">ms each": [_ms(median(r.samples) / r.items) if r.rounds and r.suite in _BY_ITEM else ABSENT for r in results],
        ">a second": [
            f"{r.items / median(r.samples):.1f}" if r.rounds and r.suite in _BY_ITEM else ABSENT for r in results
        ],
        f">x {against}": [_times(ratio) for ratio in ratios],
        ">95 %": [_span(ratio) for ratio in ratios],
        ">x own|fp32": [_times(ratio_to(r, results, engine=r.engine)) for r in results],
        ">x asked|alone": [_times(ratio) for ratio in alone],
        ">95 % of|x alone": [_span(ratio) for ratio in alone],
        ">x floor": [f"{median(r.samples) / r.floor.seconds:.1f}" if r.floor and r.rounds else ABSENT for r in results],
        ">error": [f"{r.parity['scaled_error']:.1e}" if r.parity else ABSENT for r in results],
        ">cosine": [f"{r.parity['cosine']:.6f}" if r.parity else ABSENT for r in results],
        "parity": [_verdict(r) for r in results],
    }
    columns = {name: cells for name, cells in columns.items() if set(cells) != {ABSENT}}
    rows: list[Row] = []
    for job in dict.fromkeys(result.job for result in results):
        mine = [(index, result) for index, result in enumerate(results) if result.job == job]
        first = mine[0][1]
        # In the suite latency all rows have the same batch.
        shown = {} if first.suite == "latency" and first.batch == 1 else first.params
        rows.append((title(first.target, shown),))
        rows += [
            (f"  {contestant_of(result)}", *(cells[index] for cells in columns.values())) for index, result in mine
        ]
    print_table(heading, ("", *columns), rows)


def against_alone(result: BenchmarkResult, results: Sequence[BenchmarkResult]) -> Ratio | None:
    """How many times less time a question takes in ``result`` than when each is asked alone, on the same engine in the same run.

    None for another suite, for the row of the questions alone, if one of them failed, or if there were too few rounds.
    """
    if result.suite != "reuse" or result.params.get("stage") == "alone" or result.failed:
        return None
    for other in results:
        same = (other.engine, other.precision, other.target) == (result.engine, result.precision, result.target)
        if same and other.suite == "reuse" and other.params.get("stage") == "alone" and not other.failed:
            return paired_ratio(*([[s / r.items for s in one] for one in r.rounds] for r in (other, result)))
    return None


def _print_starts(measured: Measured, *, heading: str) -> None:
    """Print the seconds to a first result, the peak memory, and the number formats that the nodes ran in."""
    rows = []
    for engine, info in measured.engines.items():
        phases = info.get("phases", {})
        starts = [f"{phases[name]:.2f}" if phases else ABSENT for name in ("import", "open", "first result")]
        cold = f"{info['cold_start']:.2f}" if phases else ABSENT
        nodes: Counter[str] = Counter()
        for proof in info.get("proof", {}).values():
            nodes.update(proof["executed"])
        peak = f"{info['peak_memory'] / 1e6:.0f}" if "peak_memory" in info else ABSENT
        rows.append((engine, cold, *starts, peak, ", ".join(f"{count} {kind}" for kind, count in nodes.items())))
    columns = (">cold|start s", ">import", ">open", ">first|result", ">peak|MB", "nodes executed")
    print_table(heading, ("engine", *columns), rows)


def require(plan: Plan, measured: Measured) -> None:
    """Raise the error of the first engine that failed. Otherwise raise :class:`GateFailed` naming each graph that an engine does
    not compute within the tolerance of its precision, or each engine whose memory grew more than allowed."""
    measured.require_whole()
    failed = [
        f"{graph} on {engine}"
        for engine, info in measured.engines.items()
        for graph, parity in info["parity"].items()
        if not parity["passed"]
    ]
    if failed:
        what = f"the results differ from PyTorch: {', '.join(failed)}"
        fix = f"see how far: simmim-export verify {shlex.quote(str(plan.bundle))} --engine ENGINE --precision PRECISION"
        raise GateFailed(what, where=plan.bundle, fix=fix)
    grown = [f"{contestant_of(row)}: {_memory_in_words(row)}" for row in measured.results if not _is_flat(row)]
    if grown:
        what = f"the memory grew: {'; '.join(grown)}"
        raise GateFailed(
            what, where=plan.bundle, fix="soak longer to see whether it goes on: --suite soak --minutes 10"
        )


def _is_flat(result: BenchmarkResult) -> bool:
    grew = growth(result.memory)
    return grew is None or grew.flat


def _memory_in_words(result: BenchmarkResult) -> str:
    grew = growth(result.memory)
    last = result.memory[-1][1] / 1e6
    if grew is None:
        return f"{last:.0f} MB, too few slices to say whether it grows"
    return (
        f"{last:.0f} MB, {grew.bytes_per_minute / 1e6:+.2f} MB a minute: {grew.grown / 1e6:+.1f} MB, "
        f"of which {grew.allowed / 1e6:.1f} are allowed"
    )


def _failures(results: Sequence[BenchmarkResult]) -> Counter[tuple[str, str]]:
    """How many rows of which engine failed with which message."""
    return Counter((contestant_of(row), row.failed.message) for row in results if row.failed is not None)


def _verdict(result: BenchmarkResult) -> str:
    if result.failed is not None:
        return f"FAILED: {result.failed.error}"
    if not result.parity:
        return ABSENT
    return "passed" if result.parity["passed"] else "FAILED"


def _ms(value: float | None) -> str:
    return ABSENT if value is None else f"{1000 * value:.3f}"


def _times(ratio: Ratio | None) -> str:
    return ABSENT if ratio is None else f"{ratio.value:.2f}"


def _span(ratio: Ratio | None) -> str:
    return ABSENT if ratio is None else f"{ratio.low:.2f}-{ratio.high:.2f}"
