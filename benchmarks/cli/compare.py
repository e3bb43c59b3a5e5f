"""The command ``compare``: how two saved runs differ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simmim_export.console import print_json
from simmim_export.console.options import AsJson

EXAMPLES = ("simmim-bench compare before.json after.json",)


def compare(
    first: Annotated[Path, typer.Argument(metavar="A.json", help="File that simmim-bench --save wrote.")],
    second: Annotated[Path, typer.Argument(metavar="B.json", help="Another such file.")],
    as_json: AsJson = False,
) -> None:
    """Compare two saved runs.

    Shows how many times faster the second run is, with 95 % intervals.
    """
    from simmim_export.benchmarks import report
    from simmim_export.benchmarks.compare import compare as compare_files

    comparison = compare_files(first, second)
    if as_json:
        print_json(comparison)
    else:
        report.show_comparison(comparison)
