"""What several commands print: parity, plans, what a model still knows, certificates. Knows their forms; must not know how
anything was found."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

from simmim_export.console import stacked, stdout_console

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from simmim_export.planning.planner import SearchResult
    from simmim_export.proof.certificate import Certificate
    from simmim_export.proof.parity import ParityReport


def by_graph(reports: list[ParityReport]) -> dict[str, dict[str, Any]]:
    """Each graph's figures at FP32, with those of other precisions under their names."""
    found: dict[str, dict[str, Any]] = {}
    for report in reports:
        if report.precision == "fp32":
            found.setdefault(report.graph, {}).update(report.summary())
        else:
            found.setdefault(report.graph, {})[report.variant or report.precision] = report.summary()
    return found


def print_parity(reports: list[ParityReport], title: str, proof: dict[str, dict[str, int]] | None = None) -> None:
    """A table of parity, one row a graph."""
    from rich.table import Table

    table = Table(title=title)
    for column in ("graph", "", "checks", "worst error", "worst cosine", "passed", *(["executed"] if proof else [])):
        table.add_column(column, justify="left" if column in ("graph", "", "executed") else "right")
    for report in reports:
        row: list[Any] = [
            report.graph,
            report.variant or report.precision,
            str(len(report.rows)),
            f"{report.scaled_error:.1e}",
            f"{report.cosine:.7f}",
        ]
        row.append("yes" if report.passed else "NO")
        if proof:
            row.append(", ".join(f"{count} {kind}" for kind, count in proof[report.graph].items()))
        table.add_row(*row)
    stdout_console().print(table)


def print_plan(result: SearchResult) -> None:
    """Print the trials of a search, the fastest first, and the plan that it chose; "!" marks a limit that is exceeded."""
    from rich.table import Table

    best = result.pareto()
    table = Table(title=f"{result.engine}: plans inside {result.budget}, and what was tried on the way")
    table.add_column("plan")
    table.add_column(stacked(["time,", "FP32 = 1"]), justify="right")
    cells = _limits(table, [[line.as_row() for line in trial.lines] for trial in result.trials])
    table.add_column("fits")
    table.add_column(stacked(["best", "so fast"]))
    for trial, limits in sorted(zip(result.trials, cells, strict=True), key=lambda row: row[0].seconds):
        floats = [f"  {graph} float: {', '.join(groups)}" for graph, groups in trial.float_groups.items()]
        fits = ("yes" if trial.fits else "NO", "yes" if trial in best else "")
        plan = stacked([*str(trial.plan).split(","), *floats])
        table.add_row(plan, f"{trial.share:.2f}", *limits, *fits)
    console = stdout_console()
    console.print(table)
    for note in result.notes:
        console.print(note)
    console.print(f"{result.engine}: chosen {result.plan}, {result.chosen.share:.2f}x the time of FP32")


def _limits(table: Table, rows: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[str]]:
    """A column of ``table`` for every limit, and for each row of lines its cells; "!" marks what is exceeded."""
    from simmim_export.spec import shown

    def cell(found: float | None) -> str:
        return "not computed" if found is None or not isfinite(found) else shown(found)

    limits = {line["name"]: line["allowed"] for row in rows for line in row}
    for name, allowed in limits.items():
        table.add_column(stacked(f"{name} {allowed}".split(" ")), justify="right")
    cells = [{line["name"]: cell(line["measured"]) + ("" if line["kept"] else " !") for line in row} for row in rows]
    return [[row.get(name, "") for name in limits] for row in cells]


def print_figures(figures: Mapping[str, Any], title: str) -> None:
    """A table of what the evidence says: embeddings, then tasks. Outputs that are not finite and results that are better than
    chance explains are marked."""
    from rich.table import Table

    table = Table(title=title)
    for column in ("", "what", "n", "found", "FP32", "lost|(points)", "95 % sure|at most", "as FP32"):
        table.add_column(stacked(column.split("|")), justify="left" if column in ("", "what") else "right")
    for name, row in figures["embeddings"].items():
        cosine = f"{row['cosine_mean']:.5f}, 1 % {row['cosine_p1']:.5f}, least {row['cosine_min']:.5f}{_broken(row)}"
        table.add_row(name, f"cosine {cosine}", str(row["n"]), "", "", "", "", f"{row['top1']:.1%}")
    for name, row in figures["tasks"].items():
        cells = (f"{row['value']:.2%}", f"{row['reference']:.2%}", f"{row['loss']:+.2f}", f"{row['interval'][1]:+.2f}")
        remark = " (suspicious)" if row["suspicious"] else ""
        table.add_row(name, row["metric"] + remark + _broken(row), str(row["n"]), *cells, f"{row['top1']:.1%}")
    stdout_console().print(table)


def _broken(row: Mapping[str, Any]) -> str:
    return f" ({row['not_finite']} not finite)" if row["not_finite"] else ""


def print_certificates(certificates: Sequence[Certificate], title: str) -> None:
    """A table of certificates, the fastest first: latencies by pipeline beside what the budget says."""
    from rich.table import Table

    table = Table(title=title)
    table.add_column("engine", no_wrap=True)
    names = list(dict.fromkeys(name for certificate in certificates for name in certificate.latency))
    for name in names:
        table.add_column(stacked([*name.split("_"), "ms"]), justify="right")
    cells = _limits(table, [[line.as_row() for line in one.lines] for one in certificates])
    table.add_column("certified")
    for certificate, found in sorted(zip(certificates, cells, strict=True), key=lambda row: row[0].speed()):
        table.add_row(
            stacked(certificate.name.split(",")),
            *(f"{1000 * certificate.latency[name]:.2f}" for name in names),
            *found,
            ("yes" if certificate.passed else "NO") + (", suspicious" if certificate.suspicious else ""),
        )
    stdout_console().print(table)
