"""The command ``limit``: what this host can do at best, and the floor of each graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simmim_export.console import print_json, progress_bar
from simmim_export.console.options import AsJson

EXAMPLES = ("simmim-bench limit --bundle bundle", "simmim-bench limit --bundle bundle --axis sequence=12")


def limit(
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle",
            metavar="BUNDLE",
            help="Bundle whose graphs are analyzed.",
            show_default="./bundle, or else a reference bundle of random weights that is built once",
        ),
    ] = None,
    axis: Annotated[
        list[str] | None,
        typer.Option(
            "--axis",
            metavar="NAME=N",
            help="Size of a dynamic axis, such as sequence=12: batch, sequence, frames, ... Repeatable.",
            show_default="batch=1; the other axes as in the largest golden inputs",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure this host's peaks, and each graph's least time.

    Peaks are the fastest matrix products in FP32, BF16 and INT8 of the installed libraries, and the bandwidth of memory.
    """
    from simmim_export.benchmarks import reference
    from simmim_export.benchmarks.limit import table
    from simmim_export.benchmarks.limit.floor import chosen_sizes
    from simmim_export.benchmarks.limit.peaks import measure_peaks
    from simmim_export.bundle import Bundle

    folder, _ = reference.find(bundle, None)
    opened = Bundle.open(folder)
    sizes = chosen_sizes(opened, axis or [])
    with progress_bar("limit") as watch:
        peaks = measure_peaks(watch)
    limits = table.limits(opened, peaks, sizes=sizes)
    if as_json:
        print_json(limits)
    else:
        table.show(limits)
