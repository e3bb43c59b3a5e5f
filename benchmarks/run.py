"""A whole measurement: its rounds, its file, and what is kept of it if it is interrupted."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from simmim_export.benchmarks.contestants import Plan
from simmim_export.benchmarks.document import Document, Host, as_document, described, method, read, reserved
from simmim_export.benchmarks.driver import Measured, Measurement
from simmim_export.benchmarks.limit.peaks import measure_peaks
from simmim_export.benchmarks.limit.rows import with_floors
from simmim_export.console import check_output, progress_bar, say
from simmim_export.errors import DataError, UsageError

# What of the machine must be the same when a measurement is continued.
SAME_HOST = ("cpu", "gpu", "threads_used", "packages")


# Writes a document.
Write = Callable[[Mapping[str, Any]], None]


def run(
    plan: Plan,
    path: Path | None,
    *,
    host: Host,
    show: Callable[[Measured, dict[str, Any]], None],
    earlier: Measured | None = None,
    floor: bool = False,
) -> Measured:
    """Measure ``plan`` with a progress bar, ``show`` the results, and write them to ``path``. With ``floor`` the peaks of this
    host are measured first, and each row gets its floor.

    If Ctrl-C or SIGTERM ends the run, ``path`` has the rounds that were finished, if any. Raise as :meth:`Measurement.run` does,
    and :class:`UsageError` if the file cannot be written.
    """
    measurement = Measurement(plan, earlier=earlier)
    rows = sum(engine.runs(job) for job in plan.jobs for engine in plan.engines)
    samples = plan.rounds * sum(job.iterations for job in plan.jobs) * len(plan.engines)
    how = method(plan)
    with keeping(path, rows=rows, samples=samples, show=lambda document: show(measured, document)) as (keep, write):
        with progress_bar("benchmark") as watch:
            peaks = measure_peaks(watch) if floor else None
            measured = measurement.run(
                lambda partial: keep(as_document(partial, bundle=plan.bundle, method=how, host=host)), watch=watch
            )
        if peaks is not None:
            measured = replace(measured, results=with_floors(measured.results, plan.bundle, peaks=peaks))
        document = as_document(
            measured,
            bundle=plan.bundle,
            method=how,
            host=host,
            peaks=None if peaks is None else asdict(peaks),
        )
        write(document)
    return measured


def results_file(save: Path | None, resume: Path | None, *, overwrite: bool) -> Path | None:
    """The file that results are written to, from the options --save, --resume and --overwrite; None for none.

    Raise :class:`UsageError` if both name one, or if it must not be written.
    """
    if save is not None and resume is not None:
        raise UsageError("--save and --resume both name the file of the results", fix="drop --save")
    if overwrite and save is None:
        raise UsageError("--overwrite is about the file of --save, which is not given", fix="drop --overwrite")
    if save is not None:
        check_output(save, "--save", overwrite=overwrite)
    return save or resume


@contextmanager
def keeping(
    path: Path | None, *, rows: int, samples: int, show: Callable[[dict[str, Any]], None]
) -> Iterator[tuple[Write, Callable[[dict[str, Any]], None]]]:
    """For a block that measures ``samples`` latencies in ``rows`` rows, and writes them to ``path``.

    Yields two functions that write a document: one for the rounds that are finished so far, and one for the whole, which is then
    given to ``show``: after the file is in place, whatever becomes of stdout, and also if it could not be written. If Ctrl-C or
    SIGTERM ends the block after the first was called, ``path`` has those rounds, and a message says how to go on. Raise as
    :func:`~simmim_export.benchmarks.document.reserved` does.
    """
    kept = False
    whole: dict[str, Any] | None = None
    try:
        with reserved(path, rows=rows, samples=samples) as write:

            def keep(partial: Mapping[str, Any]) -> None:
                nonlocal kept
                # A disk that is full now may have room at the end; the last write says so if it has not.
                with suppress(UsageError):
                    write(partial)
                    kept = True

            def finish(document: dict[str, Any]) -> None:
                nonlocal whole
                whole = document
                write(document)

            yield keep, finish
    except UsageError:
        if whole is not None:
            show(whole)
        raise
    except (KeyboardInterrupt, SystemExit):
        if path is not None and kept:
            where = f"the rounds that were finished are in {path}"
            say(f"interrupted: {where}; to go on, type the same with --resume {path}", error=True)
        raise
    if whole is not None:
        show(whole)


def resumed(plan: Plan, path: Path, *, host: Host) -> Measured:
    """The finished rounds in the file ``path``, to continue with ``plan`` on ``host``.

    Raise :class:`DataError` if the file is not of an interrupted run of this very plan on such a machine, naming what differs.
    """
    document = read(path)
    keys = {row.key for row in document.results}
    jobs = {(*job.key, *engine.key): job for job in plan.jobs for engine in plan.engines if engine.runs(job)}
    require_unfinished(
        document,
        path,
        bundle=plan.bundle,
        host=host,
        same={
            "engines": (list(document.engines), [str(engine) for engine in plan.engines]),
            "suites and their sizes": (keys, set(jobs)),
            "method": (document.method, method(plan)),
        },
    )
    for row in document.results:
        job = jobs[row.key]
        lengths = {len(row.rounds), len(row.gpu_rounds) or len(row.rounds)}
        lacks = len(lengths) > 1 or (row.failed is None and lengths != {document.finished_rounds})
        other = {len(each) for each in (*row.rounds, *row.gpu_rounds)} - {job.iterations} or row.items != job.items
        if lacks or (other and not row.memory):
            what = f"the benchmark file is damaged: {row.target} on {row.engine} has other rounds than its method says"
            raise DataError(what, where=path, fix="measure again with --save FILE")
    if any(row.memory for row in document.results):
        what = "a soak cannot be continued: a new process has new memory"
        raise DataError(what, where=path, fix="measure it again: simmim-bench --suite soak")
    return Measured(list(document.results), document.engines, document.finished_rounds)


def require_unfinished(
    document: Document, path: Path, *, bundle: Path, host: Host, same: Mapping[str, tuple[Any, Any]]
) -> None:
    """Raise :class:`DataError` unless ``document``, read from ``path``, is of an interrupted run on ``bundle`` and ``host``.

    ``same``: by name, what else must be the same: what the document says, and what it is now.
    """
    pairs = {
        "bundle": (document.bundle, described(bundle)),
        **same,
        **{f"host's {key}": (document.host.get(key), host.described[key]) for key in SAME_HOST},
    }
    if differs := [name for name, (before, now) in pairs.items() if before != now]:
        what = f"this file is of another measurement: it differs in {', '.join(differs)}"
        fix = f"repeat the options that made it, with --resume in place of --save: {shlex.join(document.command)}"
        raise DataError(what, where=path, fix=fix)
    is_compared = all(row.parity or row.accuracy is not None or row.failed for row in document.results)
    if document.finished_rounds >= document.method["rounds"] and is_compared:
        what = f"all {document.finished_rounds} rounds of this measurement are finished"
        raise DataError(what, where=path, fix=f"look at it: simmim-bench report {shlex.quote(str(path))}")
