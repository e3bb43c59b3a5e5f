"""The command ``train``: the speed of training."""

from __future__ import annotations

from typing import Annotated

import typer

from simmim_export.console import print_json, progress_bar
from simmim_export.console.options import AsJson

EXAMPLES = ("simmim-bench train --preset tiny", "simmim-bench train --json > throughput.json")


def train(
    preset: Annotated[
        list[str] | None,
        typer.Option(
            "--preset",
            metavar="PRESET",
            help="Preset to measure (tiny, small, base or large). Repeatable.",
            show_default="all",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure training speed in samples per second.

    A sample is an image in pretraining, and a question in finetuning. Also shows how the speed grows with the number of images,
    and of questions, in a batch. Takes up to a minute for each figure.
    """
    from simmim_export.benchmarks import report, throughput
    from simmim_export.errors import UsageError

    presets = list(dict.fromkeys(preset or throughput.SIZES))
    for name in presets:
        if name not in throughput.SIZES:
            raise UsageError(f"unknown preset {name!r}", fix=f"choose one of {', '.join(throughput.SIZES)}")
    with progress_bar("train") as watch:
        figures = throughput.throughput(presets, watch)
    if as_json:
        print_json(figures)
    else:
        report.show_throughput(figures)
