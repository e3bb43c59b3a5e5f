"""Tables that several commands print: parity, precision plans, figures on the evidence, certificates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from simmim_export.console import Row, print_table, say, stacked

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from simmim_export.planning.planner import SearchResult
    from simmim_export.proof.parity import ParityReport
    from simmim_export.proof.records import Certificate, Line


def print_parity(
    reports: Sequence[ParityReport], title: str, *, executed: Mapping[str, Mapping[str, int]] | None = None
) -> None:
    """Print one row per report. ``executed``: for each graph the number of nodes that ran in each number format."""
    columns = ["graph", "variant", ">checks", ">worst|error", ">worst|cosine", "passed"]
    rows = []
    for report in reports:
        figures = (str(len(report.rows)), f"{report.scaled_error:.1e}", f"{report.cosine:.7f}")
        row: list[Any] = [report.graph, report.variant or report.precision, *figures, "yes" if report.passed else "NO"]
        if executed is not None:
            row.append(stacked(f"{count} {kind}" for kind, count in executed[report.graph].items()))
        rows.append(row)
    print_table(title, columns if executed is None else [*columns, "nodes|executed"], rows)


def print_search(search: SearchResult) -> None:
    """Print the trials of a search, the fastest first, and the plan that it chose. "!" marks an exceeded limit."""
    best = search.pareto()
    limits = {line.name: line.allowed for trial in search.trials for line in trial.lines}
    rows: list[Row] = []
    for trial in sorted(search.trials, key=lambda trial: trial.seconds):
        floats = [f"  {graph} float: {', '.join(groups)}" for graph, groups in trial.float_groups.items()]
        cells = _limit_cells(trial.lines, limits)
        verdict = ("yes" if trial.fits else "NO", "yes" if trial in best else "")
        rows.append((stacked([*str(trial.plan).split(","), *floats]), f"{trial.share:.2f}", *cells, *verdict))
    columns = ("plan", ">time /|FP32", *_limit_columns(limits), "fits", "best at|its speed")
    say()
    name = f"{search.engine} with {search.variant}"
    print_table(f"{name}: precision plans tried, judged by {search.budget}", columns, rows)
    for note in search.notes:
        say(note)
    say(f"{name}: chose {search.plan}, {search.chosen.share:.2f} of the time of FP32")


def print_figures(figures: Mapping[str, Any], title: str) -> None:
    """Print what was measured on the evidence: embeddings, then tasks.

    Marks outputs that are not finite, and results that are better than chance can explain.
    """
    say()
    if figures["embeddings"]:
        columns: tuple[str, ...] = (">n", ">mean|cosine", ">1st per-|centile", ">least", ">same nearest|neighbor")
        print_table(f"{title}: embeddings", ("embedding", *columns), _embeddings(figures["embeddings"]))
    if figures["tasks"]:
        columns = ("metric", ">n", ">here", ">FP32", ">lost|points", ">at most|(95 %)", ">same|answer")
        print_table(f"{title}: tasks", ("task", *columns), _tasks(figures["tasks"]))


def _embeddings(figures: Mapping[str, Mapping[str, Any]]) -> Iterator[Row]:
    for name, row in figures.items():
        cosines = (f"{row[key]:.5f}" for key in ("cosine_mean", "cosine_p1", "cosine_min"))
        yield (name + _not_finite(row), str(row["n"]), *cosines, f"{row['top1']:.1%}")


def _tasks(figures: Mapping[str, Mapping[str, Any]]) -> Iterator[Row]:
    for name, row in figures.items():
        metric = row["metric"] + (" (suspicious)" if row["suspicious"] else "") + _not_finite(row)
        values = (f"{row['value']:.2%}", f"{row['reference']:.2%}")
        losses = (f"{row['loss']:+.2f}", f"{row['interval'][1]:+.2f}")
        yield (name, metric, str(row["n"]), *values, *losses, f"{row['top1']:.1%}")


def print_certificates(certificates: Sequence[Certificate], title: str) -> None:
    """Print the certificates, the fastest first: latencies by pipeline, then what the budget says."""
    ordered = sorted(certificates, key=lambda certificate: certificate.speed())
    pipelines = list(dict.fromkeys(name for certificate in certificates for name in certificate.latency))
    limits = {line.name: line.allowed for certificate in certificates for line in certificate.lines}
    latencies: list[Row] = []
    losses: list[Row] = []
    for certificate in ordered:
        name = stacked(certificate.name.split(","))
        verdict = ("yes" if certificate.passed else "NO") + (", suspicious" if certificate.suspicious else "")
        milliseconds = (f"{1000 * certificate.latency[pipeline]:.2f}" for pipeline in pipelines)
        latencies.append((name, verdict, *milliseconds))
        losses.append((name, *_limit_cells(certificate.lines, limits)))
    columns = (f">{name.replace('_', '|')}|ms" for name in pipelines)
    print_table(title, ("engine", "certified", *columns), latencies)
    say()
    print_table("measured, below its limit; ! marks an exceeded limit", ("engine", *_limit_columns(limits)), losses)


def _limit_columns(limits: Mapping[str, str]) -> list[str]:
    """A column for each limit: the words of its name above what is allowed, such as "at most" above "0.5 pt"."""
    columns = []
    for name, allowed in limits.items():
        words = allowed.split(" ")
        columns.append(">" + "|".join([*name.split(" "), " ".join(words[:2]), " ".join(words[2:])]).rstrip("|"))
    return columns


def _limit_cells(lines: Iterable[Line], limits: Mapping[str, str]) -> list[str]:
    cells = {line.name: line.figure() + ("" if line.kept else " !") for line in lines}
    return [cells.get(name, "") for name in limits]


def _not_finite(row: Mapping[str, Any]) -> str:
    return f" ({row['not_finite']} not finite)" if row["not_finite"] else ""
