"""The command ``pair``: two versions, measured side by side."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from simmim_export.benchmarks.cli.compare import FailOn, Threshold, require_fail_on
from simmim_export.benchmarks.measure import PAIR_ITERATIONS, PAIR_ROUNDS
from simmim_export.console import check_output, print_json, progress_bar
from simmim_export.console.options import MOST_ROUNDS, MOST_RUNS, AsJson, Overwrite, contestants

EXAMPLES = (
    "simmim-bench pair --bundle bundle --against-python before/bin/python",
    "simmim-bench pair --bundle bundle --against-bundle older-bundle --save pair",
)


def pair(
    bundle: Annotated[Path, typer.Option("--bundle", metavar="BUNDLE", help="Bundle of the second, new version.")],
    against_bundle: Annotated[
        Path | None,
        typer.Option(
            "--against-bundle", metavar="BUNDLE", help="Bundle of the first version.", show_default="--bundle"
        ),
    ] = None,
    against_python: Annotated[
        Path | None,
        typer.Option(
            "--against-python",
            metavar="PYTHON",
            help="Interpreter of the environment with the first version's code.",
            show_default="this environment",
        ),
    ] = None,
    engine: Annotated[list[str] | None, contestants("ort")] = None,
    pipeline: Annotated[
        list[str] | None,
        typer.Option(
            "--pipeline",
            metavar="PIPELINE",
            help="Pipeline to measure with its graphs. Repeatable.",
            show_default="all",
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option("--rounds", metavar="N", min=1, max=MOST_ROUNDS, help="Rounds, each in new processes.")
    ] = PAIR_ROUNDS,
    iterations: Annotated[
        int,
        typer.Option(
            "--iterations",
            metavar="N",
            min=1,
            max=MOST_RUNS,
            help="Timed runs of each row in a round, after 3 that are not timed.",
        ),
    ] = PAIR_ITERATIONS,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="CKPT",
            help="Checkpoint that PyTorch runs. Needed for --engine torch.",
            rich_help_panel="Engine",
        ),
    ] = None,
    threshold: Threshold = 2.0,
    fail_on: FailOn = "slower",
    save: Annotated[
        Path | None, typer.Option("--save", metavar="DIR", help="Also write first.json and second.json to this folder.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Measure two versions side by side, and compare them.

    In each round both run in new processes and take turns, so that a busy machine disturbs both alike. Without --against-bundle
    and --against-python it compares a version with itself. This shows the smallest difference that can be detected on this
    machine. Exit code 4 if a row is slower; --fail-on nothing turns this off.
    """
    from simmim_export.benchmarks import compare, report, suites
    from simmim_export.benchmarks import pair as sides
    from simmim_export.benchmarks.contestants import Contestant, Plan
    from simmim_export.benchmarks.document import Host, write

    require_fail_on(fail_on)
    files = () if save is None else (save / "first.json", save / "second.json")
    for path in files:
        check_output(path, "--save", overwrite=overwrite)
    engines = list(dict.fromkeys(Contestant.parse(name) for name in engine or ["ort"]))
    for contestant in engines:
        contestant.require()
    request = suites.Request.of(bundle, pipeline)
    with tempfile.TemporaryDirectory() as pictures:
        plan = Plan(
            bundle=bundle,
            checkpoint=checkpoint,
            engines=engines,
            jobs=suites.jobs(request, ["latency"], iterations=iterations),
            graphs=request.graphs,
            rounds=rounds,
            warmup=3,
            pictures=Path(pictures),
        )
        suites.require(plan)
        both = (sides.Side(bundle=against_bundle or bundle, python=against_python), sides.Side(bundle=bundle))
        with progress_bar("pair") as watch:
            documents = sides.documents(plan, both, host=Host.now(), watch=watch)
    first, second = (sides.parsed(document) for document in documents)
    comparison = {"first": str(both[0].python or both[0].bundle), "second": str(bundle)}
    comparison |= compare.verdicts(first, second, threshold=threshold / 100)
    try:
        for path, document in zip(files, documents, strict=bool(files)):
            write(document, path)
    finally:
        # The figures are not lost if a file cannot be written.
        if as_json:
            print_json(comparison)
        else:
            report.show_comparison(comparison)
    if fail_on == "slower":
        compare.require_none_slower(comparison)
