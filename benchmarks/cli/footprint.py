"""The command ``footprint``: the size and speed of an installation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simmim_export.console import print_json, progress_bar
from simmim_export.console.options import AsJson

EXAMPLES = ("simmim-bench footprint --bundle demo/bundle", "simmim-bench footprint --environment device/.venv --json")


def footprint(
    bundle: Annotated[Path, typer.Option("--bundle", metavar="BUNDLE", help="Bundle to run.")] = Path("demo/bundle"),
    source: Annotated[
        Path | None,
        typer.Option(
            "--source", metavar="DIR", help="Checkout to install.", show_default="the one that this command runs from"
        ),
    ] = None,
    environment: Annotated[
        Path | None,
        typer.Option(
            "--environment",
            metavar="DIR",
            help="Measure this virtual environment instead of a new one. It must have no PyTorch and no onnx.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the size and speed of an installation.

    Installs the runtime and ONNX Runtime into a new virtual environment, which needs a network. Measures its size, the time to a
    first result, memory, and the time of each command.
    """
    from simmim_export.benchmarks import footprint as suite
    from simmim_export.benchmarks import report

    with progress_bar("footprint") as watch:
        figures = suite.footprint(bundle, source=source, environment=environment, watch=watch)
    if as_json:
        print_json(figures)
    else:
        report.show_footprint(figures)
