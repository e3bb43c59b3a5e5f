"""The tables that simmim-bench prints, and the gate on parity."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from simmim_export.benchmarks.document import ratio_to, reference
from simmim_export.benchmarks.driver import Contestant, Measured, Plan
from simmim_export.benchmarks.measure import Ratio, percentile, too_few
from simmim_export.console import Row, print_table, stdout_console
from simmim_export.errors import GateFailed

# Shown in a cell without a figure.
ABSENT = "-"


def show(plan: Plan, measured: Measured, *, document: Mapping[str, Any]) -> None:
    """Print latency with parity on the same row, then each engine's time to start and its memory.

    ``document``: what :func:`~simmim_export.benchmarks.document.as_document` made of the run.
    """
    console = stdout_console()
    host = document["host"]
    console.print(
        f"{host['cpu']}, {host['threads_used']} threads; load average {document['load_average']:.2f} at the start"
    )
    for warning in document["warnings"]:
        console.print(f"warning: {warning}")
    console.print("")
    samples = plan.rounds * plan.iterations
    preset = document["bundle"]["preset"]
    title = f"{plan.bundle} ({preset}), batch {plan.batch}: ms, {samples} samples in {plan.rounds} rounds"
    _print_latencies(plan, measured, title=title)
    if no_ratio := too_few(plan.rounds):
        console.print(no_ratio)
    if any(result.gpu_rounds for result in measured.results):
        console.print("by events: the GPU's own clock, without copies; engines without it have -")
    console.print("")
    _print_starts(measured, title=f"first result of {_name(plan.targets[0])}, each engine in a new process")


def _print_latencies(plan: Plan, measured: Measured, *, title: str) -> None:
    """Print a section for each target with a row for each engine. Columns that would be empty are left out."""
    results = measured.results
    against = reference(results)
    # The cells of each column by the position of their result.
    columns: dict[str, list[str]] = {
        ">median": [_ms(median(r.samples)) for r in results],
        ">p90": [_ms(percentile(r.samples, 0.9)) for r in results],
        ">p99": [_ms(percentile(r.samples, 0.99)) for r in results],
        ">p50 by|events": [_ms(percentile(r.gpu_samples, 0.5)) for r in results],
    }
    if too_few(plan.rounds) is None:
        ratios = [ratio_to(r, results, engine=against) for r in results]
        own = [ratio_to(r, results, engine=r.engine) for r in results]
        columns[f">x {against}"] = [_times(ratio) for ratio in ratios]
        columns[">95 %"] = [ABSENT if ratio is None else f"{ratio.low:.2f}-{ratio.high:.2f}" for ratio in ratios]
        columns[">x own|fp32"] = [_times(ratio) for ratio in own]
    columns |= {
        ">error": [f"{r.parity['scaled_error']:.1e}" for r in results],
        ">cosine": [f"{r.parity['cosine']:.6f}" for r in results],
        "parity": ["passed" if r.parity["passed"] else "FAILED" for r in results],
    }
    columns = {name: cells for name, cells in columns.items() if set(cells) != {ABSENT}}
    rows: list[Row] = []
    for target in plan.targets:
        rows.append((_name(target),))
        for index, result in enumerate(results):
            if result.target == target:
                rows.append(
                    (f"  {Contestant(result.engine, result.precision)}", *(cells[index] for cells in columns.values()))
                )
    print_table(title, ("", *columns), rows)


def _print_starts(measured: Measured, *, title: str) -> None:
    """Print the seconds to a first result, the peak memory, and the number formats that the nodes ran in."""
    rows = []
    for engine, info in measured.engines.items():
        phases = [f"{info['phases'][name]:.2f}" for name in ("import", "open", "first result")]
        nodes: Counter[str] = Counter()
        for proof in info["proof"].values():
            nodes.update(proof["executed"])
        executed = ", ".join(f"{count} {kind}" for kind, count in nodes.items())
        rows.append((engine, f"{info['cold_start']:.2f}", *phases, f"{info['peak_memory'] / 1e6:.0f}", executed))
    columns = (">cold|start s", ">import", ">open", ">first|result", ">peak|MB", "nodes executed")
    print_table(title, ("engine", *columns), rows)


def require(measured: Measured, bundle: Path) -> None:
    """Raise :class:`GateFailed` naming each graph that an engine does not compute within the tolerance of its precision."""
    failed = [
        f"{graph} on {engine}"
        for engine, info in measured.engines.items()
        for graph, parity in info["parity"].items()
        if not parity["passed"]
    ]
    if failed:
        what = f"the results differ from PyTorch: {', '.join(failed)}"
        fix = f"see how far: simmim-export verify {shlex.quote(str(bundle))} --engine ENGINE --precision PRECISION"
        raise GateFailed(what, where=bundle, fix=fix)


def show_comparison(comparison: Mapping[str, Any]) -> None:
    """Print what :func:`~simmim_export.benchmarks.compare.compare` returned."""
    console = stdout_console()
    if comparison["differs"]:
        console.print(
            f"warning: the runs differ in {' and '.join(comparison['differs'])}, so the ratios do not measure the engines alone"
        )
    rows: list[Row] = []
    reasons: dict[str, None] = {}
    for row in comparison["rows"]:
        engine = str(Contestant(row["engine"], row["precision"]))
        cells = (row["target"], engine, str(row["batch"]), *(f"{value:.3f}" for value in row["medians_ms"]))
        if row["times_faster"] is None:
            reasons[row["reason"]] = None
            rows.append((*cells, ABSENT, ABSENT, ""))
        else:
            ratio = Ratio(value=row["times_faster"], low=row["low"], high=row["high"])
            rows.append((*cells, f"{ratio.value:.2f}", ratio.span, "" if ratio.shown else "no difference shown"))
    columns = ("target", "engine", ">batch", ">first|ms", ">second|ms", ">times|faster", ">95 %", "")
    print_table(f"{comparison['second']} compared with {comparison['first']}", columns, rows)
    for reason in reasons:
        console.print(reason)


def show_footprint(footprint: Mapping[str, Any]) -> None:
    """Print what :func:`~simmim_export.benchmarks.footprint.footprint` returned."""
    console = stdout_console()
    megabytes = {key: footprint[key] / 1e6 for key in ("environment_bytes", "pip_bytes")}
    console.print(f"packages: {', '.join(footprint['packages'])}")
    console.print(f"environment: {megabytes['environment_bytes']:.0f} MB, of which pip {megabytes['pip_bytes']:.0f} MB")
    for kind, row in footprint["cold_start"].items():
        console.print(
            f"process to first {kind} embedding: {row['total']:.2f} s (interpreter {row['interpreter']:.2f}, import and "
            f"open {row['import_and_open']:.2f}, first result {row['first_result']:.2f}), "
            f"peak {row['peak_memory'] / 1e6:.0f} MB"
        )
    console.print("commands: " + ", ".join(f"{name} {taken:.2f} s" for name, taken in footprint["commands"].items()))


def show_throughput(throughput: Mapping[str, Any]) -> None:
    """Print what :func:`~simmim_export.benchmarks.throughput.throughput` returned."""
    rows = []
    for row in throughput["rows"]:
        questions = str(row["questions"]) if row["stage"] == "finetune" else ""
        figures = (f"{row['samples_per_second']:.1f}", f"{row['seconds_per_step']:.3f}")
        rows.append((row["preset"], row["stage"], str(row["images"]), questions, *figures))
    title = f"training on {throughput['threads']} threads; a sample is an image, or in finetune a question"
    print_table(title, ("preset", "stage", ">images", ">questions|each", ">samples/s", ">s per|step"), rows)


def show_quantization(comparison: Mapping[str, Any], *, not_measured: Mapping[str, str]) -> None:
    """Print what :func:`~simmim_export.benchmarks.quantization.measure` returned, and why recipes were not measured."""
    rows = []
    for row in comparison["rows"]:
        cosines = [f"{row[f'cosine_{kind}']:.5f}" for kind in ("mean", "p1", "min")]
        share = row["share_of_own_fp32"]
        cells = (f"{share['value']:.2f}", Ratio(**share).span) if share else ("", "")
        engine = str(Contestant(row["engine"], row["precision"]))
        rows.append((engine, row["recipe"] or "ours", *cosines, f"{row['top1']:.1%}", *cells))
    columns = (">mean|cosine", ">1st per-|centile", ">least", ">same|neighbor", ">latency /|own fp32", ">95 %")
    cut = f"{comparison['sentences']} sentences, {comparison['cut']} of them cut"
    print_table(f"text_encoder compared with ort fp32: {cut}; batch 1", ("engine", "recipe", *columns), rows)
    console = stdout_console()
    if no_ratio := too_few(comparison["rounds"]):
        console.print(no_ratio)
    for row in comparison["rows"]:
        if row["broken"]:
            console.print(f"{row['engine']} ({row['recipe']}): {row['broken']} embeddings were not finite")
    for name, reason in not_measured.items():
        console.print(f"not measured: {name}: {reason}")


def _name(target: str) -> str:
    return target.partition(":")[2]


def _ms(value: float | None) -> str:
    return ABSENT if value is None else f"{1000 * value:.3f}"


def _times(ratio: Ratio | None) -> str:
    return ABSENT if ratio is None else f"{ratio.value:.2f}"
