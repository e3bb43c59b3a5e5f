"""The document of a benchmark run: plain JSON values with every raw sample, and how it is written and read."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from simmim_export.benchmarks.driver import FP32, Measured, Plan
from simmim_export.benchmarks.measure import WILD, BenchmarkResult, Ratio, paired_ratio, percentile, spread, too_few
from simmim_export.bundle import Bundle
from simmim_export.engines.doctor import examine
from simmim_export.errors import DataError, UsageError
from simmim_export.system.files import digest, parse_json
from simmim_export.system.outputs import destination, replacing
from simmim_export.system.plain import as_json

SCHEMA = 1
# The most bytes that a document takes: for machine and engines, for each target on an engine, and for each latency.
FIXED_BYTES, ROW_BYTES, SAMPLE_BYTES = 30_000, 1_500, 40
# All engines are compared with the first of these that was measured.
REFERENCES = ("torch", "torch@cuda")


def as_document(plan: Plan, measured: Measured, *, load: float) -> dict[str, Any]:
    """Everything about a run, raw samples included, as JSON values. ``load``: the load average before the run."""
    host = examine()
    document = {
        "schema": SCHEMA,
        "command": ["simmim-bench", *sys.argv[1:]],
        "host": {key: host[key] for key in ("cpu", "gpu", "cpus", "threads_used", "system", "python", "packages")},
        "load_average": load,
        "warnings": disturbances(measured.results, load=load, cores=host["cpus"]),
        "bundle": {
            "manifest_sha256": digest(plan.bundle / "manifest.json"),
            "preset": Bundle.open(plan.bundle).manifest.model["preset"],
        },
        "batch": plan.batch,
        "engines": measured.engines,
        "results": [asdict(result) for result in measured.results],
        "summary": [summary(result, measured.results) for result in measured.results],
    }
    # A graph that returns NaN has an error that JSON cannot hold: it becomes null.
    return as_json(document)


def summary(result: BenchmarkResult, results: Sequence[BenchmarkResult]) -> dict[str, Any]:
    """The figures of one row, in milliseconds. ``no_ratio`` says why the ratios are None if there were too few rounds."""
    ratio = ratio_to(result, results, engine=reference(results))
    own = ratio_to(result, results, engine=result.engine)

    def ms(value: float | None) -> float | None:
        return None if value is None else round(1000 * value, 4)

    return {
        "target": result.target,
        "engine": result.engine,
        "precision": result.precision,
        "median_ms": ms(median(result.samples)),
        "p50_ms": ms(percentile(result.samples, 0.5)),
        "gpu_p50_ms": ms(percentile(result.gpu_samples, 0.5)),
        "p90_ms": ms(percentile(result.samples, 0.9)),
        "p99_ms": ms(percentile(result.samples, 0.99)),
        "times_torch": None if ratio is None else asdict(ratio),
        "times_own_fp32": None if own is None else asdict(own),
        "no_ratio": too_few(len(result.rounds)),
        "parity": dict(result.parity),
    }


def reference(results: Sequence[BenchmarkResult]) -> str:
    """The engine that the others are compared with: PyTorch, on the CPU if it ran there."""
    measured = {result.engine for result in results}
    return next((name for name in REFERENCES if name in measured), REFERENCES[0])


def ratio_to(result: BenchmarkResult, results: Sequence[BenchmarkResult], *, engine: str) -> Ratio | None:
    """How many times faster ``result`` is than ``engine`` at FP32 in the same run.

    None if that was not measured, if it is ``result`` itself, or if there were too few rounds.
    """
    for other in results:
        same = other.engine == engine and other.precision == FP32 and other.target == result.target
        if same and other is not result:
            return paired_ratio(other.rounds, result.rounds)
    return None


def disturbances(results: Sequence[BenchmarkResult], *, load: float, cores: int) -> list[str]:
    """Signs that another program used the machine: a high load average before the run, and rounds that differ wildly."""
    signs = []
    if load > cores:
        signs.append(f"the machine was busy: load average {load:.1f} on {cores} cores; measure again when it is idle")
    elif load > 0.5:
        signs.append("the machine was busy before the benchmark began; trust the ratios more than the milliseconds")
    worst = max(results, key=lambda result: spread(result.rounds))
    if (times := spread(worst.rounds)) > WILD:
        name = f"{worst.target.partition(':')[2]} on {worst.engine} at {worst.precision}"
        signs.append(
            f"the rounds of {name} differ by a factor of {times:.1f}: another program used the machine; measure again when "
            "it is idle"
        )
    return signs


def write(document: Mapping[str, Any], path: Path) -> None:
    """Write a document as JSON, atomically. A number that is not finite becomes null."""
    with replacing(destination(path)) as temporary:
        temporary.write_bytes(_encoded(document))


def _encoded(document: Mapping[str, Any]) -> bytes:
    return json.dumps(as_json(document), indent=1, allow_nan=False).encode()


@contextmanager
def reserved(path: Path | None, *, rows: int, samples: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """For a block that measures ``rows`` targets ``samples`` times each: yields a function that writes the document to ``path``.

    The disk space is reserved first: if the disk is too full, :class:`UsageError` is raised before anything is measured. The
    file appears when the block ends, unless the block fails. Without a ``path`` nothing is written.
    """
    if path is None:
        yield lambda document: None
        return

    def write_over(document: Mapping[str, Any]) -> None:
        with _refused(path):
            content = _encoded(document)
            # Write over the reserved bytes and shorten the file afterwards: another process must not take them in between.
            stream.seek(0)
            stream.write(content)
            stream.truncate()
            stream.flush()
            os.fsync(stream.fileno())

    with replacing(destination(path)) as temporary, temporary.open("r+b") as stream:
        with _refused(path):
            # Random bytes take their full space even on a file system that compresses.
            stream.write(os.urandom(FIXED_BYTES + rows * (ROW_BYTES + SAMPLE_BYTES * samples)))
            stream.flush()
            os.fsync(stream.fileno())
        yield write_over


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Turn an OSError in the block, such as that of a full disk, into a :class:`UsageError`."""
    try:
        yield
    except OSError as error:
        what = f"cannot write the results: {error.strerror or error}"
        raise UsageError(what, where=path, fix="free some space, or choose another --save") from error


class Document(msgspec.Struct, frozen=True):
    """What is read of a document; see :func:`as_document`."""

    host: dict[str, Any]
    bundle: dict[str, Any]
    results: tuple[BenchmarkResult, ...]


def read(path: Path) -> Document:
    """The document in the file ``path``. Raise :class:`DataError`, saying what is wrong with it."""
    fix = "make one: simmim-bench --save FILE"
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError("no such benchmark file", where=path, fix=fix) from error
    except (ValueError, OSError) as error:
        raise DataError(f"cannot read the benchmark file: {error}", where=path, fix=fix) from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise DataError("not a benchmark file of this version", where=path, fix=fix)
    try:
        return msgspec.convert(content, Document)
    except msgspec.ValidationError as error:
        raise DataError(f"the benchmark file is damaged: {error}", where=path, fix=fix) from error
