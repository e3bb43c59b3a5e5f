"""The program ``simmim-bench``: a command parses its options, calls, and prints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from simmim_export.benchmarks.measure import ROUNDS
from simmim_export.console import Version, check_output, new_app, print_json, progress_bar, run_app
from simmim_export.console.options import AsJson, Overwrite, Rounds, contestants


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


app = new_app(
    "Measure a bundle's engines side by side with PyTorch. Each engine runs in its own process; they take turns in every round, "
    "and the table shows on one row how fast an engine is and how close to PyTorch.",
    program="simmim-bench",
    main=bench,
    examples=(
        "simmim-bench --bundle bundle",
        "simmim-bench --engine ort --engine ort:int8 --engine openvino:int8",
        "simmim-bench --engine torch@cuda --engine ort@cuda:fp16 --save gpu.json",
    ),
)


@app.command(examples=("simmim-bench compare before.json after.json",))
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


@app.command(
    examples=("simmim-bench footprint --bundle demo/bundle", "simmim-bench footprint --environment .venv --json")
)
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
        typer.Option("--environment", metavar="DIR", help="Use this virtual environment instead of making a new one."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the size and speed of an installation.

    Installs the runtime and ONNX Runtime into a new virtual environment. Measures its size, the time to a first result, memory,
    and the time of each command.
    """
    from simmim_export.benchmarks import footprint as suite
    from simmim_export.benchmarks import report

    with progress_bar("footprint") as watch:
        figures = suite.footprint(bundle, source=source, environment=environment, watch=watch)
    if as_json:
        print_json(figures)
    else:
        report.show_footprint(figures)


@app.command(examples=("simmim-bench train --preset tiny", "simmim-bench train --json > throughput.json"))
def train(
    preset: Annotated[
        list[str] | None,
        typer.Option("--preset", metavar="PRESET", help="Preset to measure. Repeatable.", show_default="all"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure training speed in samples per second.

    Also shows how the speed grows with the number of images, and of questions, in a batch.
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


@app.command(
    examples=(
        "simmim-bench quantization --text-encoder MINILM",
        "simmim-bench quantization --text-encoder MINILM --recipe dynamic",
    )
)
def quantization(
    text_encoder: Annotated[
        str, typer.Option("--text-encoder", metavar="DIR", help="Folder of a Hugging Face text encoder with weights.")
    ],
    engine: Annotated[list[str] | None, contestants("ort and openvino at the precisions they have here")] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            "--recipe",
            metavar="RECIPE",
            help="Another way to quantize: static, dynamic, nncf, int8-s8, int8-u8, or none for ours alone. Repeatable.",
            show_default="all that are installed",
        ),
    ] = None,
    preset: Annotated[
        str, typer.Option("--preset", metavar="PRESET", help="Preset that the encoder is put into.")
    ] = "small",
    sentences: Annotated[
        int, typer.Option("--sentences", metavar="N", min=2, help="Held-out sentences to embed.")
    ] = 1200,
    rounds: Rounds = ROUNDS,
    as_json: AsJson = False,
) -> None:
    """Compare ways to quantize a real text encoder.

    Shows what each loses and how much faster it is, ours beside those of other tools.
    """
    import tempfile

    from simmim_export.benchmarks import driver, report
    from simmim_export.benchmarks import quantization as suite
    from simmim_export.errors import UsageError
    from simmim_export.precision import peers

    if engine is None:
        engines, absent = suite.available()
    else:
        engines, absent = [driver.Contestant.parse(name) for name in engine], {}
    for contestant in engines:
        contestant.require()
    lacking = {name: reason for name in peers.RECIPES if (reason := peers.lacking(name))}
    recipes = recipe or [*(name for name in peers.RECIPES if name not in lacking), *suite.OWN]
    recipes = [] if recipes == ["none"] else recipes
    for name in recipes:
        if name not in suite.OWN:
            peers.require(name)
    texts = suite.sentences()
    most = len(texts) - suite.CALIBRATION
    if sentences > most:
        raise UsageError(f"--sentences {sentences} is more than the {most} there are", fix=f"give {most} or fewer")
    judges, samples = texts[:sentences], texts[-suite.CALIBRATION :]
    with progress_bar("quantization") as watch, tempfile.TemporaryDirectory() as folder:
        watch("make the bundle", 0, 1)
        bundle = suite.make_bundle(text_encoder, preset, samples, Path(folder))
        for index, name in enumerate(recipes):
            watch(f"quantize with {name}", index, len(recipes))
            variant = suite.with_recipe(bundle, name, samples, Path(folder))
            lowered = dict.fromkeys(c.engine for c in engines if c.precision == "int8")
            engines += [driver.Contestant(engine=e, precision="int8", recipe=name, bundle=variant) for e in lowered]
        comparison = suite.measure(bundle, engines, judges, rounds, watch)
    if recipe is None:
        absent |= {name: f"{reason}; pip install 'simmim-export[peers]'" for name, reason in lacking.items()}
    if as_json:
        print_json(comparison | {"not_measured": absent})
    else:
        report.show_quantization(comparison, not_measured=absent)


def main() -> None:
    """Entry point of ``simmim-bench``."""
    run_app(app)


if __name__ == "__main__":
    main()
