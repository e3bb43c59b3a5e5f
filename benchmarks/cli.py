"""The command ``simmim-bench``: parses options, calls, prints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from simmim_export.benchmarks.measure import ROUNDS, Ratio
from simmim_export.console import Version, check_output, print_json, progress_bar, run_app, stdout_console

app = typer.Typer(
    help="Measure a bundle's engines against PyTorch: one process an engine, rounds alternated, parity beside latency.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    invoke_without_command=True,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.callback()
def bench(
    context: typer.Context,
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", help="Bundle to measure; else ./bundle, else a cached reference of random weights."),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            "--engine", help="ENGINE[@DEVICE][:PRECISION], as ort@cuda:fp16; repeatable; torch and ort by default."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="For engines that name none: cuda, or where they are at home.")
    ] = None,
    precision: Annotated[
        str, typer.Option("--precision", help="For engines that say none; PyTorch stays fp32.")
    ] = "fp32",
    pipeline: Annotated[
        list[str] | None,
        typer.Option("--pipeline", help="Pipeline to measure with its graphs; repeatable; all by default."),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Batch size.")] = 1,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, help="Rounds, engines alternating; a ratio takes 6.")
    ] = ROUNDS,
    iterations: Annotated[int, typer.Option("--iterations", min=1, help="Timed runs in a round.")] = 20,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Untimed runs before each round.")] = 3,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="For PyTorch; else ckpt.pt beside the bundle.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write everything, raw samples included, here.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    version: Version = False,
) -> None:
    """Measure engines on a bundle; exit 4 if one of them does not compute what PyTorch computed."""
    if context.invoked_subcommand is not None:
        _refuse_options(context, context.invoked_subcommand)
        return
    from simmim_export.benchmarks import driver

    if json_file is not None:
        check_output(json_file, overwrite, "--json")
    engines = list(
        dict.fromkeys(driver.Contestant.parse(text, precision, device=device) for text in engine or ["torch", "ort"])
    )
    # First of all: an engine that is not there should say so at once, not after a bundle was built.
    for contestant in engines:
        contestant.require()
    from simmim_export.benchmarks import reference, report, suites
    from simmim_export.errors import UsageError

    read = any(contestant.reads_checkpoint for contestant in engines)
    if checkpoint is not None and not read:
        raise UsageError("no engine that was named reads a checkpoint", where=checkpoint, fix="drop --checkpoint")
    bundle, checkpoint = reference.find(bundle, checkpoint)
    if read:
        checkpoint = reference.require_checkpoint(checkpoint, bundle)
    targets, graphs = suites.targets(bundle, pipeline, batch)
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
    with report.room(json_file, len(targets) * len(engines), rounds * iterations) as write:
        with progress_bar("benchmark") as watch:
            measured = driver.measure(plan, watch)
        # The tables first: if the file cannot be written after all, they are not lost.
        report.show(plan, measured, load)
        write(report.as_document(plan, measured, load))
    report.require(measured, bundle)


def _refuse_options(context: typer.Context, command: str) -> None:
    """Raise :class:`UsageError` for options of the measurement given to ``command``, which would not heed them."""
    from simmim_export.errors import UsageError

    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if (source := context.get_parameter_source(parameter.name or "")) is not None and source.name == "COMMANDLINE"
    ]
    if given:
        what = f"{', '.join(given)} before {command} would be ignored"
        raise UsageError(what, fix=f"write what is for {command} behind it: simmim-bench {command} --help")


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A.json", help="File that simmim-bench --json wrote.")],
    second: Annotated[Path, typer.Argument(metavar="B.json", help="Another one.")],
    as_json: AsJson = False,
) -> None:
    """Compare two runs: how many times faster the second is, with intervals."""
    from rich.table import Table

    from simmim_export.benchmarks.compare import compare as run

    found = run(first, second)
    if as_json:
        print_json(found)
        return
    console = stdout_console()
    if found["differs"]:
        console.print(
            f"warning: the runs differ in {' and '.join(found['differs'])}; the ratios hold for neither alone"
        )
    table = Table(title=f"{second} against {first}")
    for column in ("target", "engine", "precision", "batch", "first ms", "second ms", "times faster", "95 %", ""):
        table.add_column(column)
    for row in found["rows"]:
        names = (row["target"], row["engine"], row["precision"], str(row["batch"]))
        medians = [f"{value:.3f}" for value in row["medians_ms"]]
        if row["times_faster"] is None:
            table.add_row(*names, *medians, "", "", row["reason"])
            continue
        ratio = Ratio(row["times_faster"], row["low"], row["high"])
        table.add_row(*names, *medians, f"{ratio.value:.2f}", ratio.span, "" if ratio.shown else "no difference shown")
    console.print(table)


@app.command()
def footprint(
    bundle: Annotated[Path, typer.Option("--bundle", help="Bundle to run.")] = Path("demo/bundle"),
    source: Annotated[
        Path | None,
        typer.Option("--source", help="Checkout to install; by default the one that this command runs from."),
    ] = None,
    environment: Annotated[
        Path | None, typer.Option("--environment", help="Use this virtual environment instead of making one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure an environment with the runtime and ONNX Runtime alone: size, cold start, memory, commands."""
    from simmim_export.benchmarks import footprint as measure

    with progress_bar("footprint") as watch:
        found = measure.footprint(bundle, source=source, environment=environment, watch=watch)
    if as_json:
        print_json(found)
        return
    console = stdout_console()
    console.print(f"packages: {', '.join(found['packages'])}")
    console.print(
        f"environment: {found['environment_bytes'] / 1e6:.0f} MB, of which pip {found['pip_bytes'] / 1e6:.0f} MB"
    )
    for kind, row in found["cold_start"].items():
        console.print(
            f"process to first {kind} embedding: {row['total']:.2f} s (interpreter {row['interpreter']:.2f}, import and "
            f"open {row['import_and_open']:.2f}, first result {row['first_result']:.2f}), "
            f"peak {row['peak_memory'] / 1e6:.0f} MB"
        )
    console.print("commands: " + ", ".join(f"{name} {taken:.2f} s" for name, taken in found["commands"].items()))


@app.command()
def train(
    preset: Annotated[
        list[str] | None, typer.Option("--preset", help="Preset to measure; repeatable; all by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure training: samples a second of each preset, and how that grows with images and questions in a batch."""
    from rich.table import Table

    from simmim_export.benchmarks import throughput
    from simmim_export.errors import UsageError

    presets = list(dict.fromkeys(preset or throughput.SIZES))
    for name in presets:
        if name not in throughput.SIZES:
            raise UsageError(f"unknown preset {name!r}", fix=f"choose one of {', '.join(throughput.SIZES)}")
    with progress_bar("train") as watch:
        found = throughput.throughput(presets, watch)
    if as_json:
        print_json(found)
        return
    table = Table(title=f"training on {found['threads']} threads; samples are images, or in finetune questions")
    for column in ("preset", "stage", "images", "questions each", "samples/s", "s a step"):
        table.add_column(column, justify="left" if column in ("preset", "stage") else "right")
    for row in found["rows"]:
        questions = str(row["questions"]) if row["stage"] == "finetune" else ""
        figures = (f"{row['samples_per_second']:.1f}", f"{row['seconds_per_step']:.3f}")
        table.add_row(row["preset"], row["stage"], str(row["images"]), questions, *figures)
    stdout_console().print(table)


@app.command()
def quantization(
    text_encoder: Annotated[str, typer.Option("--text-encoder", help="Folder of a Hugging Face encoder with weights.")],
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", help="ENGINE:PRECISION; repeatable; by default ort and openvino, as there are here."),
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            "--recipe",
            help="static, dynamic, nncf, int8-s8, full-range or none: other INT8 graphs on the same engines; repeatable; by "
            "default all that are installed.",
        ),
    ] = None,
    preset: Annotated[str, typer.Option("--preset", help="Preset that the encoder is put into.")] = "small",
    sentences: Annotated[int, typer.Option("--sentences", min=2, help="Held-out sentences to embed.")] = 1200,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, help="Timed rounds, engines alternating; a ratio takes 6.")
    ] = ROUNDS,
    as_json: AsJson = False,
) -> None:
    """Measure what a lower precision costs a text tower with real weights, what it saves, and what other quantizers reach."""
    import tempfile

    from simmim_export.benchmarks import driver, report
    from simmim_export.benchmarks import quantization as suite
    from simmim_export.errors import UsageError
    from simmim_export.precision import peers

    if engine is None:
        contestants, absent = suite.available()
    else:
        contestants, absent = [driver.Contestant.parse(name) for name in engine], {}
    for contestant in contestants:
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
        raise UsageError(f"there are {most} sentences to judge by", fix=f"give --sentences {most} or less")
    judges, samples = texts[:sentences], texts[-suite.CALIBRATION :]
    with progress_bar("quantization") as watch, tempfile.TemporaryDirectory() as folder:
        watch("make the bundle", 0, 1)
        bundle = suite.make_bundle(text_encoder, preset, samples, Path(folder))
        for index, name in enumerate(recipes):
            watch(f"quantize by {name}", index, len(recipes))
            made = suite.with_recipe(bundle, name, samples, Path(folder))
            lowered = dict.fromkeys(c.engine for c in contestants if c.precision == "int8")
            contestants += [driver.Contestant(engine, "int8", name, made) for engine in lowered]
        found = suite.measure(bundle, contestants, judges, rounds, watch)
    if recipe is None:
        absent |= {name: f"{reason}; pip install 'simmim-export[peers]'" for name, reason in lacking.items()}
    if as_json:
        print_json(found | {"not_measured": absent})
        return
    report.show_quantization(found)
    for name, reason in absent.items():
        stdout_console().print(f"not measured: {name}: {reason}")


def main() -> None:
    """Entry point of ``simmim-bench``."""
    run_app(app)


if __name__ == "__main__":
    main()
