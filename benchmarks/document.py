"""The document of a benchmark run: plain JSON values with every raw sample, and how it is written and read.

Schema 2::

    schema            2
    command           the words that were typed
    suites            what was measured
    host              cpu, gpu, cpus, threads_used, system, python, packages
    load_average      before the run
    warnings          signs that another program used the machine
    bundle            manifest_sha256, preset
    method            rounds, warmup, and iterations of each suite in one round
    finished_rounds   fewer than rounds if the run was interrupted; then the engines lack their parity
    peaks             what the processor and its memory can do at most; null if it was not measured
    engines           by name: cold start, memory, parity, nodes executed
    results           a row for each job and engine, see results.py
    summary           the figures of each row
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import IO, Any

import msgspec

from simmim_export.benchmarks.driver import FP32, Measured, Plan
from simmim_export.benchmarks.measure import WILD, Ratio, no_percentile, paired_ratio, percentile, spread, too_few
from simmim_export.benchmarks.results import BenchmarkResult, Count, Suite
from simmim_export.bundle import Bundle
from simmim_export.engines.doctor import examine
from simmim_export.errors import DataError, UsageError
from simmim_export.system.files import digest, parse_json, read_file
from simmim_export.system.outputs import destination, replacing
from simmim_export.system.plain import as_json

SCHEMA = 2
# The largest file that is read: ten times what every suite on every engine writes.
MOST_BYTES = 2**28
# The most bytes that a document takes: for machine and engines, for each target on an engine, and for each latency.
FIXED_BYTES, ROW_BYTES, SAMPLE_BYTES = 30_000, 2_500, 40
# Bytes that are written at once.
PART = 1 << 20
# All engines are compared with the first of these that was measured.
REFERENCES = ("torch", "torch@cuda")


@dataclass(frozen=True)
class Host:
    """The machine as :func:`~simmim_export.engines.doctor.examine` describes it, and its load average at that time."""

    described: dict[str, Any]
    load: float

    @classmethod
    def now(cls) -> Host:
        """This machine. The engines are imported to learn whether they work, so call it before anything is timed."""
        load, machine = os.getloadavg()[0], dict(examine())
        keys = ("cpu", "gpu", "cpus", "threads_used", "system", "python", "packages")
        return cls({key: machine[key] for key in keys}, load)


def as_document(
    measured: Measured,
    *,
    bundle: Path,
    method: Mapping[str, Any],
    host: Host,
    peaks: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything about a run on ``bundle``, raw samples included, as JSON values. ``host``: the machine before the run."""
    document = {
        "schema": SCHEMA,
        "command": ["simmim-bench", *sys.argv[1:]],
        "suites": list(dict.fromkeys(result.suite for result in measured.results)),
        "host": host.described,
        "load_average": host.load,
        "warnings": disturbances(measured.results, load=host.load, cores=host.described["cpus"]),
        "bundle": described(bundle),
        "method": method,
        "finished_rounds": measured.finished,
        "peaks": peaks,
        "engines": measured.engines,
        "results": [asdict(result) for result in measured.results],
        "summary": [summary(result, measured.results) for result in measured.results],
    }
    # A graph that returns NaN has an error that JSON cannot hold: it becomes null.
    return as_json(document)


def described(bundle: Path) -> dict[str, Any]:
    """What a document says of the bundle that was measured."""
    return {
        "manifest_sha256": digest(bundle / "manifest.json"),
        "preset": Bundle.open(bundle).manifest.model["preset"],
    }


def method(plan: Plan) -> dict[str, Any]:
    """How ``plan`` measures. Figures of another method must not be mixed with these."""
    iterations = {job.suite: job.iterations for job in plan.jobs}
    return {"rounds": plan.rounds, "warmup": plan.warmup, "iterations": iterations}


def summary(result: BenchmarkResult, results: Sequence[BenchmarkResult]) -> dict[str, Any]:
    """The figures of one row, in milliseconds for one run. ``no_ratio`` says why the ratios are None if there were too few
    rounds, and ``no_percentile`` which percentiles are None for want of samples."""
    ratio = ratio_to(result, results, engine=reference(results))
    own = ratio_to(result, results, engine=result.engine)
    figures = {share: percentile(result.samples, share / 100) for share in (50, 90, 99)}
    middle = median(result.samples) if result.samples else None

    def ms(value: float | None) -> float | None:
        return None if value is None else round(1000 * value, 4)

    return {
        "suite": result.suite,
        "target": result.target,
        "params": dict(result.params),
        "engine": result.engine,
        "precision": result.precision,
        "median_ms": ms(middle),
        "items_per_second": None if middle is None else round(result.items / middle, 3),
        "p50_ms": ms(figures[50]),
        "gpu_p50_ms": ms(percentile(result.gpu_samples, 0.5)),
        "p90_ms": ms(figures[90]),
        "p99_ms": ms(figures[99]),
        "no_percentile": no_percentile(len(result.samples)),
        "times_torch": None if ratio is None else asdict(ratio),
        "times_own_fp32": None if own is None else asdict(own),
        "no_ratio": too_few(len(result.rounds)),
        "parity": dict(result.parity),
        "failed": None if result.failed is None else asdict(result.failed),
    }


def reference(results: Sequence[BenchmarkResult]) -> str:
    """The engine that the others are compared with: PyTorch, on the CPU if it ran there."""
    measured = {result.engine for result in results}
    return next((name for name in REFERENCES if name in measured), REFERENCES[0])


def ratio_to(result: BenchmarkResult, results: Sequence[BenchmarkResult], *, engine: str) -> Ratio | None:
    """How many times faster ``result`` is than ``engine`` at FP32 at the same job in the same run.

    None if that was not measured, if it is ``result`` itself, if one of them failed, or if there were too few rounds.
    """
    for other in results:
        same = other.engine == engine and other.precision == FP32 and not other.recipe
        if same and other.job == result.job and other is not result:
            failed = other.failed is not None or result.failed is not None
            return None if failed else paired_ratio(other.rounds, result.rounds)
    return None


def disturbances(results: Sequence[BenchmarkResult], *, load: float, cores: int) -> list[str]:
    """Signs that another program used the machine: a high load average before the run, and rounds that differ wildly."""
    signs = []
    if load > cores:
        signs.append(f"the machine was busy: load average {load:.1f} on {cores} cores; measure again when it is idle")
    elif load > 0.5:
        signs.append("the machine was busy before the benchmark began; trust the ratios more than the milliseconds")
    worst = max((result for result in results if result.rounds), key=lambda row: spread(row.rounds), default=None)
    if worst is not None and (times := spread(worst.rounds)) > WILD:
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
    """For a block that measures ``samples`` latencies in ``rows`` rows: yields a function that writes the document to ``path``.

    The disk space is reserved first: if the disk is too full, :class:`UsageError` is raised before anything is measured. The
    file appears when the block ends. If the block is interrupted (by Ctrl-C or SIGTERM), it appears with what was written last;
    if it fails, or is interrupted before anything was written, it does not. Without a ``path`` nothing is written.
    """
    if path is None:
        yield lambda document: None
        return
    length = 0

    def write_over(document: Mapping[str, Any]) -> None:
        nonlocal length
        with _refused(path):
            content = _encoded(document)
            # Write over the reserved bytes and shorten the file only at the end: another process must not take them in between.
            stream.seek(0)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
            length = len(content)

    interruption: BaseException | None = None
    with replacing(destination(path)) as temporary, temporary.open("r+b") as stream:
        with _refused(path):
            _fill(stream, FIXED_BYTES + rows * ROW_BYTES + SAMPLE_BYTES * samples)
        try:
            yield write_over
        except (KeyboardInterrupt, SystemExit) as error:
            if not length:
                raise
            interruption = error
        stream.truncate(length)
    if interruption is not None:
        raise interruption


def _fill(stream: IO[bytes], size: int) -> None:
    """Write ``size`` random bytes, which take their full space even on a file system that compresses. Raise OSError if they do
    not fit."""
    if size > shutil.disk_usage(stream.name).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for start in range(0, size, PART):
        stream.write(os.urandom(min(PART, size - start)))
    stream.flush()
    os.fsync(stream.fileno())


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Turn an OSError in the block, such as that of a full disk, into a :class:`UsageError`."""
    try:
        yield
    except OSError as error:
        what = f"cannot write the results: {error.strerror or error}"
        raise UsageError(what, where=path, fix="free some space, or choose another --save") from error


class Document(msgspec.Struct, frozen=True):
    """What is read of a document."""

    command: list[str]
    suites: list[Suite]
    host: dict[str, Any]
    load_average: float
    warnings: list[str]
    bundle: dict[str, Any]
    method: dict[str, Any]
    finished_rounds: Count
    peaks: dict[str, Any] | None
    engines: dict[str, dict[str, Any]]
    results: tuple[BenchmarkResult, ...]


def read(path: Path) -> Document:
    """The document in the file ``path``. Raise :class:`DataError`, saying what is wrong with it."""
    fix = "make one: simmim-bench --save FILE"
    try:
        content = parse_json(read_file(path, most=MOST_BYTES).decode("utf-8"), finite=True)
    except FileNotFoundError as error:
        raise DataError("no such benchmark file", where=path, fix=fix) from error
    except (ValueError, OSError) as error:
        raise DataError(f"cannot read the benchmark file: {error}", where=path, fix=fix) from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        what = "not a benchmark file" if schema is None else f"a benchmark file of schema {schema!r:.20}, not {SCHEMA}"
        raise DataError(what, where=path, fix="measure again with this version: simmim-bench --save FILE")
    try:
        return msgspec.convert(content, Document)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:  # the latter for half a surrogate pair
        raise DataError(f"the benchmark file is damaged: {error}", where=path, fix=fix) from error
