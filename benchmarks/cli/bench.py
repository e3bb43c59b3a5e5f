"""What ``simmim-bench`` does without a command: it measures engines on a bundle."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from simmim_export.benchmarks.measure import ROUNDS
from simmim_export.benchmarks.memory import MINUTES, SLICES
from simmim_export.console import Version, print_json
from simmim_export.console.options import (
    MOST_MINUTES,
    MOST_ROUNDS,
    MOST_RUNS,
    AsJson,
    Overwrite,
    Resume,
    Save,
    Warmup,
    contestants,
)

EXAMPLES = (
    "simmim-bench --bundle bundle",
    "simmim-bench --engine ort --engine ort:int8 --engine openvino:int8",
    "simmim-bench --suite photos --suite reuse --engine torch --engine ort:int8",
    "simmim-bench --suite soak --minutes 10 --engine ort",
    "simmim-bench --engine torch@cuda --engine ort@cuda:fp16 --save gpu.json",
)


def bench(
    context: typer.Context,
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle",
            metavar="BUNDLE",
            help="Bundle to measure.",
            show_default="./bundle, or else a reference bundle of random weights that is built once",
        ),
    ] = None,
    engine: Annotated[list[str] | None, contestants("torch and ort")] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="DEVICE",
            help="For every --engine without @DEVICE: cuda or cpu.",
            show_default="cpu, or the GPU for trt",
            rich_help_panel="Engine",
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            metavar="PRECISION",
            help="For every --engine without :PRECISION: fp32, fp16, bf16, int8 or planned. PyTorch stays at fp32.",
            rich_help_panel="Engine",
        ),
    ] = "fp32",
    pipeline: Annotated[
        list[str] | None,
        typer.Option(
            "--pipeline",
            metavar="PIPELINE",
            help="Pipeline to measure, together with its graphs. Repeatable.",
            show_default="all",
        ),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite",
            metavar="SUITE",
            help="What to measure: latency, ladder, throughput, reuse, photos, growth; or soak alone. Repeatable.",
            show_default="latency",
        ),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Batch size of the suite latency.")] = 1,
    rounds: Annotated[
        int | None,
        typer.Option(
            "--rounds",
            metavar="N",
            min=1,
            max=MOST_ROUNDS,
            help="Timed rounds; the engines take turns in each. Ratios need 6 or more.",
            show_default=f"{ROUNDS}; {SLICES} in the suite soak",
        ),
    ] = None,
    iterations: Annotated[
        int | None,
        typer.Option(
            "--iterations",
            metavar="N",
            min=1,
            max=MOST_RUNS,
            help="Timed runs in each round.",
            show_default="20 in latency and ladder, 8 in photos and growth, 4 in throughput and reuse",
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes",
            metavar="M",
            min=0.1,
            max=MOST_MINUTES,
            help="How long the suite soak takes, for all engines together.",
            show_default=f"{MINUTES:g}",
        ),
    ] = None,
    warmup: Warmup = 3,
    floor: Annotated[
        bool,
        typer.Option(
            "--floor", help="Also measure the peaks of this host, and show how many times its floor each row takes."
        ),
    ] = False,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="CKPT",
            help="Checkpoint that PyTorch runs.",
            show_default="ckpt.pt beside the bundle",
            rich_help_panel="Engine",
        ),
    ] = None,
    save: Save = None,
    resume: Resume = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    version: Version = False,
) -> None:
    """Measure engines on a bundle.

    Exit code 4 if an engine does not compute what PyTorch computed, or if memory grows during a soak. If an engine fails, the
    others are measured and written, and then its error ends the command.
    """
    if context.invoked_subcommand is not None:
        _refuse_options(context, context.invoked_subcommand)
        return
    from simmim_export.benchmarks import reference, suites, tables
    from simmim_export.benchmarks.contestants import Contestant, Plan
    from simmim_export.benchmarks.document import Host
    from simmim_export.benchmarks.run import results_file, resumed, run
    from simmim_export.errors import UsageError

    path = results_file(save, resume, overwrite=overwrite)
    wanted = suites.parse_suites(suite)
    suites.require_options(wanted, batch=batch, iterations=iterations, minutes=minutes)
    names = dict.fromkeys(engine or ["torch", "ort"])
    engines = list(dict.fromkeys(Contestant.parse(name, precision, device=device) for name in names))
    # First of all: the user should not wait for a bundle to be built only to learn that an engine is missing.
    for contestant in engines:
        contestant.require()
    with_checkpoint = any(contestant.reads_checkpoint for contestant in engines)
    if checkpoint is not None and not with_checkpoint:
        raise UsageError(
            "only PyTorch reads a checkpoint", where=checkpoint, fix="add --engine torch, or drop --checkpoint"
        )
    bundle, checkpoint = reference.find(bundle, checkpoint)
    if with_checkpoint:
        checkpoint = reference.require_checkpoint(checkpoint, bundle)
    request = suites.Request.of(bundle, pipeline, batch=batch)
    rounds = rounds or (SLICES if "soak" in wanted else ROUNDS)
    jobs = (
        [suites.soak(request, minutes=minutes or MINUTES, slices=rounds * len(engines))]
        if "soak" in wanted
        else suites.jobs(request, wanted, iterations=iterations)
    )
    with tempfile.TemporaryDirectory() as pictures:
        plan = Plan(
            bundle=bundle,
            checkpoint=checkpoint,
            engines=engines,
            jobs=jobs,
            graphs=request.graphs,
            rounds=rounds,
            warmup=warmup,
            pictures=Path(pictures),
        )
        suites.require(plan)
        host = Host.now()
        suites.make_pictures(jobs, Path(pictures))
        earlier = None if resume is None else resumed(plan, resume, host=host)

        def show(measured: Any, document: dict[str, Any]) -> None:
            if as_json:
                print_json(document)
            else:
                tables.show(plan, measured, document=document)

        measured = run(plan, path, host=host, show=show, earlier=earlier, floor=floor)
    tables.require(plan, measured)


def _refuse_options(context: typer.Context, command: str) -> None:
    """Raise :class:`UsageError` if options of the measurement were given in front of ``command``, which would ignore them."""
    from simmim_export.errors import UsageError

    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if (source := context.get_parameter_source(parameter.name or "")) is not None and source.name == "COMMANDLINE"
    ]
    if given:
        what = f"{command} would ignore {', '.join(given)} in front of it"
        raise UsageError(what, fix=f"see which options {command} has: simmim-bench {command} --help")
