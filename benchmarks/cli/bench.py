"""What ``simmim-bench`` does without a command: it measures the latency of engines on a bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from simmim_export.benchmarks.measure import ROUNDS
from simmim_export.console import Version, check_output, print_json, progress_bar
from simmim_export.console.options import AsJson, Overwrite, Rounds, contestants

EXAMPLES = (
    "simmim-bench --bundle bundle",
    "simmim-bench --engine ort --engine ort:int8 --engine openvino:int8",
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
            help="For every --engine without :PRECISION. PyTorch stays at fp32.",
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
    batch: Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Batch size.")] = 1,
    rounds: Rounds = ROUNDS,
    iterations: Annotated[int, typer.Option("--iterations", metavar="N", min=1, help="Timed runs in each round.")] = 20,
    warmup: Annotated[int, typer.Option("--warmup", metavar="N", min=0, help="Untimed runs before each round.")] = 3,
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
    save: Annotated[
        Path | None,
        typer.Option("--save", metavar="FILE", help="Also write everything to this JSON file, raw samples included."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    version: Version = False,
) -> None:
    """Measure the latency of engines on a bundle.

    Exit code 4 if an engine does not compute what PyTorch computed.
    """
    if context.invoked_subcommand is not None:
        _refuse_options(context, context.invoked_subcommand)
        return
    from simmim_export.benchmarks import driver

    if save is not None:
        check_output(save, "--save", overwrite=overwrite)
    names = dict.fromkeys(engine or ["torch", "ort"])
    engines = list(dict.fromkeys(driver.Contestant.parse(name, precision, device=device) for name in names))
    # First of all: the user should not wait for a bundle to be built only to learn that an engine is missing.
    for contestant in engines:
        contestant.require()
    from simmim_export.benchmarks import reference, report, suites
    from simmim_export.benchmarks.document import as_document, reserved
    from simmim_export.errors import UsageError

    with_checkpoint = any(contestant.reads_checkpoint for contestant in engines)
    if checkpoint is not None and not with_checkpoint:
        raise UsageError(
            "only PyTorch reads a checkpoint", where=checkpoint, fix="add --engine torch, or drop --checkpoint"
        )
    bundle, checkpoint = reference.find(bundle, checkpoint)
    if with_checkpoint:
        checkpoint = reference.require_checkpoint(checkpoint, bundle)
    targets, graphs = suites.targets(bundle, pipeline, batch=batch)
    plan = driver.Plan(
        bundle=bundle,
        checkpoint=checkpoint,
        engines=engines,
        targets=targets,
        graphs=graphs,
        batch=batch,
        rounds=rounds,
        iterations=iterations,
        warmup=warmup,
    )
    suites.require(plan)
    load = os.getloadavg()[0]
    with reserved(save, rows=len(targets) * len(engines), samples=rounds * iterations) as write:
        with progress_bar("benchmark") as watch:
            measured = driver.measure(plan, watch)
        document = as_document(plan, measured, load=load)
        # Print first: if the file cannot be written after all, the figures are not lost.
        if as_json:
            print_json(document)
        else:
            report.show(plan, measured, document=document)
        write(document)
    report.require(measured, bundle)


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
