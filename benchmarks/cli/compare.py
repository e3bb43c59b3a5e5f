"""The command ``compare``: how two saved runs differ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simmim_export.console import print_json
from simmim_export.console.options import AsJson

EXAMPLES = (
    "simmim-bench compare pair/first.json pair/second.json",
    "simmim-bench compare before.json after.json --accept runs --fail-on nothing",
)
Threshold = Annotated[
    float,
    typer.Option("--threshold", metavar="PERCENT", min=0, max=100, help="Smallest difference that counts, in percent."),
]
FailOn = Annotated[
    str,
    typer.Option(
        "--fail-on",
        metavar="WHAT",
        help="When to end with exit code 4: slower (if a row is slower or failed), or nothing (never).",
    ),
]


def compare(
    first: Annotated[Path, typer.Argument(metavar="A.json", help="File that simmim-bench --save or pair wrote.")],
    second: Annotated[Path, typer.Argument(metavar="B.json", help="Another such file.")],
    threshold: Threshold = 2.0,
    accept: Annotated[
        list[str] | None,
        typer.Option(
            "--accept",
            metavar="DIFFERENCE",
            help="Compare although this differs: runs (not measured side by side), inputs, method or host. Repeatable.",
        ),
    ] = None,
    fail_on: FailOn = "slower",
    as_json: AsJson = False,
) -> None:
    """Compare two saved runs.

    Shows for each row whether the second run is faster or slower, with an interval. With 95 % confidence, all intervals contain
    the true ratio. Exit code 4 if a row is slower, or failed in the second run alone; --fail-on nothing turns this off.
    """
    from simmim_export.benchmarks import compare as suite
    from simmim_export.benchmarks import report

    require_fail_on(fail_on)
    require_accept(accept or [])
    comparison = suite.compare(first, second, threshold=threshold / 100, accept=accept or [])
    if as_json:
        print_json(comparison)
    else:
        report.show_comparison(comparison)
    if fail_on == "slower":
        suite.require_none_slower(comparison)


def require_fail_on(value: str) -> None:
    """Raise :class:`UsageError` unless ``value`` is one that ``--fail-on`` takes."""
    from simmim_export.errors import UsageError

    if value not in ("slower", "nothing"):
        raise UsageError(f"--fail-on {value!r} is unknown", fix="choose slower or nothing")


def require_accept(values: list[str]) -> None:
    """Raise :class:`UsageError` unless ``--accept`` takes all of ``values``."""
    from simmim_export.benchmarks.compare import ACCEPTED
    from simmim_export.errors import UsageError

    for value in values:
        if value not in ACCEPTED:
            raise UsageError(f"--accept {value!r} is unknown", fix=f"choose among {', '.join(ACCEPTED)}")
