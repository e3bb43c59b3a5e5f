"""Benchmark results as tables and as JSON files."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table
from rich.text import Text

from simmim_export.benchmarks.driver import FP32, Measured, Plan
from simmim_export.benchmarks.measure import WILD, BenchmarkResult, Ratio, paired_ratio, spread, too_few
from simmim_export.bundle import Bundle
from simmim_export.console import stacked, stdout_console
from simmim_export.engines.doctor import examine
from simmim_export.errors import DataError, GateFailed, UsageError
from simmim_export.spec import as_json
from simmim_export.system.files import digest, parse_json
from simmim_export.system.outputs import destination, replacing

SCHEMA = 1
# What a document takes at most: for host and engines, for each target on an engine, and for each latency.
FIXED_BYTES, ROW_BYTES, SAMPLE_BYTES = 30_000, 1_500, 40
# The first of these that was measured is what the others are compared with.
REFERENCES = ("torch", "torch@cuda")


def as_document(plan: Plan, measured: Measured, load: float) -> dict[str, Any]:
    """Everything about a run, raw samples included, as plain JSON."""
    host = examine()
    return {
        "schema": SCHEMA,
        "command": ["simmim-bench", *sys.argv[1:]],
        "host": {key: host[key] for key in ("cpu", "gpu", "cpus", "threads_used", "system", "python", "packages")},
        "load_average": load,
        "warnings": disturbances(measured.results, load, host["cpus"]),
        "bundle": {
            "manifest_sha256": digest(plan.bundle / "manifest.json"),
            "preset": Bundle.open(plan.bundle).manifest.model["preset"],
        },
        "batch": plan.batch,
        "engines": measured.engines,
        "results": [asdict(result) for result in measured.results],
        "summary": [summary(result, measured.results) for result in measured.results],
    }


def summary(result: BenchmarkResult, results: list[BenchmarkResult]) -> dict[str, Any]:
    """The figures of one row, in milliseconds. ``no_ratio`` is the reason why ratios are None for lack of rounds."""
    ratio, own = ratio_to(result, results, reference(results)), ratio_to(result, results, result.engine)

    def ms(value: float | None) -> float | None:
        return None if value is None else round(1000 * value, 4)

    return {
        "target": result.target,
        "engine": result.engine,
        "precision": result.precision,
        "median_ms": ms(median(result.samples)),
        "p50_ms": ms(result.p50),
        "gpu_p50_ms": ms(result.gpu_p50),
        "p90_ms": ms(result.p90),
        "p99_ms": ms(result.p99),
        "times_torch": None if ratio is None else asdict(ratio),
        "times_own_fp32": None if own is None else asdict(own),
        "no_ratio": too_few(len(result.rounds)),
        "parity": dict(result.parity),
    }


def reference(results: list[BenchmarkResult]) -> str:
    """The engine that the others are compared with: PyTorch, on the CPU if it ran there."""
    measured = {result.engine for result in results}
    return next((name for name in REFERENCES if name in measured), REFERENCES[0])


def ratio_to(result: BenchmarkResult, results: list[BenchmarkResult], engine: str) -> Ratio | None:
    """How many times faster than ``engine`` at FP32 in the same run; None where that was not measured, or is itself, and for
    too few rounds."""
    for other in results:
        same = other.engine == engine and other.precision == FP32 and other.target == result.target
        if same and other is not result:
            return paired_ratio(other.rounds, result.rounds)
    return None


def disturbances(results: list[BenchmarkResult], load: float, cores: int) -> list[str]:
    """What suggests that something else used the machine: the load average at the start, and rounds that differ wildly."""
    said = []
    if load > cores:
        said.append(
            f"the machine was busy: load average {load:.1f} on {cores} cores at the start; measure again when it is idle"
        )
    elif load > 0.5:
        said.append("the machine was busy before the benchmark began; read the ratios, not the milliseconds")
    worst = max(results, key=lambda result: spread(result.rounds))
    if (times := spread(worst.rounds)) > WILD:
        name = f"{worst.target.partition(':')[2]} on {worst.engine} at {worst.precision}"
        said.append(
            f"rounds of {name} differ {times:.1f}-fold: something else used the machine; measure again when it is idle"
        )
    return said


def show(plan: Plan, measured: Measured, load: float) -> None:
    """Print the tables: latency with parity on the same row, then what each engine costs to start and to hold."""
    console = stdout_console()
    manifest = Bundle.open(plan.bundle).manifest
    host = examine()
    n = plan.rounds * plan.iterations
    against = reference(measured.results)
    timed = any(result.gpu_rounds for result in measured.results)
    console.print(f"{host['cpu']}, {host['threads_used']} threads; load average {load:.2f} at the start")
    for disturbance in disturbances(measured.results, load, host["cpus"]):
        console.print(f"warning: {disturbance}")
    no_ratio = too_few(plan.rounds)
    table = Table(
        title=f"{plan.bundle} ({manifest.model['preset']}), batch {plan.batch}: ms, {n} samples in {plan.rounds} rounds"
    )
    columns: list[str | Text] = [
        "target",
        "engine",
        "precision",
        "median",
        "p90",
        "p99",
        *([stacked(["p50 by", "events"])] if timed else []),
        *([] if no_ratio else [f"x {against}", "95 %", "x own fp32"]),
        "error",
        "cosine",
        "parity",
    ]
    for column in columns:
        table.add_column(column, justify="left" if column in ("target", "engine", "precision") else "right")
    for result in sorted(measured.results, key=lambda r: plan.targets.index(r.target)):
        ratio = ratio_to(result, measured.results, against)
        own = ratio_to(result, measured.results, result.engine)
        table.add_row(
            result.target.partition(":")[2],
            result.engine,
            result.precision,
            *(_ms(value) for value in (median(result.samples), result.p90, result.p99)),
            *([_ms(result.gpu_p50)] if timed else []),
            *([] if no_ratio else [_times(ratio), ratio.span if ratio else None, _times(own)]),
            f"{result.parity['scaled_error']:.1e}",
            f"{result.parity['cosine']:.6f}",
            "passed" if result.parity["passed"] else "FAILED",
        )
    console.print(table)
    if no_ratio:
        console.print(no_ratio)
    if timed:
        console.print(
            "p50 by events: by the GPU's own events, without copies; - is an engine without them, timed from outside"
        )
    table = Table(title=f"to the first result of {plan.targets[0].partition(':')[2]}, in a process of its own")
    for column in ("engine", "cold start s", "import", "open", "first result", "peak memory MB", "executed"):
        table.add_column(column, justify="left" if column in ("engine", "executed") else "right")
    for engine, found in measured.engines.items():
        phases = [f"{found['phases'][name]:.2f}" for name in ("import", "open", "first result")]
        kinds: dict[str, int] = {}
        for proof in found["proof"].values():
            for kind, count in proof["executed"].items():
                kinds[kind] = kinds.get(kind, 0) + count
        executed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        table.add_row(engine, f"{found['cold_start']:.2f}", *phases, f"{found['peak_memory'] / 1e6:.0f}", executed)
    console.print(table)


def require(measured: Measured, bundle: Path) -> None:
    """Raise :class:`GateFailed` naming the engines and graphs that do not compute what PyTorch computed, within what their
    precision is allowed."""
    failed = [
        f"{graph} on {engine}"
        for engine, found in measured.engines.items()
        for graph, parity in found["parity"].items()
        if not parity["passed"]
    ]
    if failed:
        what = f"what was measured differs from PyTorch: {', '.join(failed)}"
        fix = f"see how far: simmim-export verify {shlex.quote(str(bundle))} --engine ENGINE --precision PRECISION"
        raise GateFailed(what, where=bundle, fix=fix)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{1000 * value:.3f}"


def _times(ratio: Ratio | None) -> str | None:
    return None if ratio is None else f"{ratio.value:.2f}"


def write(document: Mapping[str, Any], path: Path) -> None:
    """Write a document as JSON, atomically. An error that is not a number, as of a graph that gives NaN, becomes null."""
    with replacing(destination(path)) as temporary:
        temporary.write_bytes(_encoded(document))


def _encoded(document: Mapping[str, Any]) -> bytes:
    return json.dumps(as_json(document), indent=1, allow_nan=False).encode()


@contextmanager
def room(path: Path | None, rows: int, samples: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """For a block that measures ``rows`` targets, each ``samples`` times, and then writes a document to ``path`` by calling what
    this yields.

    The disk space is taken at once: raise :class:`UsageError` before anything is measured if there is too little of it. The
    file appears when the block ends; one that fails leaves nothing. Without a ``path`` nothing is written.
    """
    if path is None:
        yield lambda document: None
        return

    def write_over(document: Mapping[str, Any]) -> None:
        with _refused(path):
            content = _encoded(document)
            # Over the reserved bytes, and only then shortened: they must not be lost to another process in between.
            stream.seek(0)
            stream.write(content)
            stream.truncate()
            stream.flush()
            os.fsync(stream.fileno())

    with replacing(destination(path)) as temporary, temporary.open("r+b") as stream:
        with _refused(path):
            # Random bytes take their space on a file system that compresses, too.
            stream.write(os.urandom(FIXED_BYTES + rows * (ROW_BYTES + SAMPLE_BYTES * samples)))
            stream.flush()
            os.fsync(stream.fileno())
        yield write_over


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """For a block that writes: what the system refuses, such as a full disk, becomes a :class:`UsageError`."""
    try:
        yield
    except OSError as error:
        what = f"the results cannot be written: {error.strerror or error}"
        raise UsageError(what, where=path, fix="free some space, or choose another --json") from error


def read(path: Path) -> dict[str, Any]:
    """``host``, ``bundle`` and ``results`` of a document; raise :class:`DataError` naming what is wrong with it."""
    fix = "make one: simmim-bench --json FILE"
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError("no such benchmark file", where=path, fix=fix) from error
    except (ValueError, OSError) as error:
        raise DataError(f"the benchmark file cannot be read: {error}", where=path, fix=fix) from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise DataError("not a benchmark file of this version", where=path, fix=fix)
    try:
        found = {key: found[key] for key in ("host", "bundle", "results")}
        found["results"] = [_result(row) for row in found["results"]]
    except KeyError as error:
        raise DataError(f"the benchmark file is damaged: it has no {error}", where=path, fix=fix) from error
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"the benchmark file is damaged: {error}", where=path, fix=fix) from error
    return found


def _result(row: Any) -> BenchmarkResult:
    """A result as it was written; raise KeyError, TypeError, ValueError or OverflowError where it is none."""
    made = BenchmarkResult(
        **row | {"rounds": _seconds(row["rounds"]), "gpu_rounds": _seconds(row.get("gpu_rounds", []))}
    )
    if not made.rounds or not all(made.rounds):
        raise ValueError("a result without samples")
    if [type(made.target), type(made.engine), type(made.precision), type(made.batch)] != [str, str, str, int]:
        raise TypeError("a result without a name")
    return made


def _seconds(rounds: Any) -> tuple[tuple[float, ...], ...]:
    found = tuple(tuple(map(float, row)) for row in rounds)
    if not all(0 < sample < inf for row in found for sample in row):
        raise ValueError("a sample that is no time")
    return found


def show_quantization(found: dict[str, Any]) -> None:
    """Print what :func:`simmim_export.benchmarks.quantization.measure` found."""
    title = f"text_encoder against ort fp32: {found['sentences']} sentences, {found['cut']} of them cut; batch 1"
    table = Table(title=title)
    left = ("engine", "precision", "recipe")
    for column in (*left, "mean cosine", "1 %", "least", "same neighbour", "latency / own fp32", "95 %"):
        table.add_column(column, justify="left" if column in left else "right")
    for row in found["rows"]:
        cosines = [f"{row[f'cosine_{kind}']:.5f}" for kind in ("mean", "p1", "min")]
        share = row["share_of_own_fp32"]
        cells = (f"{share['value']:.2f}", Ratio(**share).span) if share else ("", "")
        names = (row["engine"], row["precision"], row["recipe"] or "ours")
        table.add_row(*names, *cosines, f"{row['top1']:.1%}", *cells)
    console = stdout_console()
    console.print(table)
    if no_ratio := too_few(found["rounds"]):
        console.print(no_ratio)
    for row in found["rows"]:
        if row["broken"]:
            console.print(f"{row['engine']} ({row['recipe']}): {row['broken']} embeddings were not finite")
