"""The program ``simmim-bench``. A command parses its options, calls the module that does the work, and prints the result."""

from __future__ import annotations

from simmim_export.benchmarks.cli import bench, compare, footprint, limit, pair, peers, quantization, report, train
from simmim_export.console import new_app, run_app

app = new_app(
    "Measure the engines of a bundle side by side with PyTorch. Each engine runs in its own process, and the engines take turns "
    "in every round. Each row of the table shows how fast an engine is, and how close its results are to PyTorch's. Exit code 4 "
    "if they differ too much, or if memory grows during a soak.",
    program="simmim-bench",
    main=bench.bench,
    examples=bench.EXAMPLES,
)
COMMANDS = (
    (compare.compare, compare.EXAMPLES),
    (pair.pair, pair.EXAMPLES),
    (report.report, report.EXAMPLES),
    (footprint.footprint, footprint.EXAMPLES),
    (train.train, train.EXAMPLES),
    (limit.limit, limit.EXAMPLES),
    (peers.peers, peers.EXAMPLES),
    (quantization.quantization, quantization.EXAMPLES),
)
for command, examples in COMMANDS:
    app.command(examples=examples)(command)


def main() -> None:
    """Entry point of ``simmim-bench``."""
    run_app(app)
