"""Commands that make and show bundles: onnx, inspect, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simmim_export.cli.options import AsJson, BudgetOption, BundlePath
from simmim_export.cli.tables import by_graph, print_parity, print_plan
from simmim_export.console import print_json, progress_bar, stacked, stdout_console
from simmim_export.console.metrics import print_metrics
from simmim_export.export.limits import MAX_BATCH, OPSET


def register(app: typer.Typer) -> None:
    """Add the commands of this file to ``app``."""
    for command in (onnx, inspect, doctor):
        app.command()(command)


def onnx(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint that simmim-train wrote.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="BUNDLE", help="Folder to write.")] = Path("bundle"),
    opset: Annotated[int, typer.Option(help="ONNX opset, 18 to 24.")] = OPSET,
    max_batch: Annotated[
        int, typer.Option(help="Largest batch that is probed and promised, 2 to 256; more is run in parts.")
    ] = MAX_BATCH,
    attention: Annotated[
        bool, typer.Option("--attention", help="Let the fusion also say where each word looked, for ask --explain.")
    ] = False,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            "--precision", help="fp16 or int8: write every graph in it as well; repeatable; fp32 is always there."
        ),
    ] = None,
    budget: BudgetOption = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="DIR",
            help="Pictures, and texts.txt with a text a line, to measure ranges on, instead of the checkpoint's.",
        ),
    ] = None,
    full_range: Annotated[
        bool | None,
        typer.Option(
            "--full-range/--reduce-range",
            help="INT8 weights in 8 bits, which processors without VNNI multiply slowly (ort) or not at all (openvino); or in "
            "7, as by default, which every processor multiplies exactly.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
    as_json: AsJson = False,
) -> None:
    """Export every graph of a checkpoint to ONNX and prove each against PyTorch.

    With --budget also find, for every engine that is installed, the fastest plan of precisions that keeps it. Exit 4 if a graph
    differs from PyTorch, or no plan keeps the budget.
    """
    # Before the imports: a wrong path or number should not cost the seconds that PyTorch takes to load.
    from simmim_export.bundle import Staging
    from simmim_export.errors import EngineUnavailable, UsageError
    from simmim_export.export.limits import family_of, require_batch, require_opset
    from simmim_export.export.lower import Lower
    from simmim_export.proof.budget import Budget
    from simmim_export.spec import Precision
    from simmim_export.system.outputs import full_disk, no_empty_folders

    wanted = tuple(dict.fromkeys(Precision.parse(name) for name in precision or []))
    if Precision.BF16 in wanted:
        fix = "it runs the fp32 graph: simmim-export verify BUNDLE --engine openvino --precision bf16"
        raise UsageError("no graph is written in bf16", fix=fix)
    limits = None if budget is None else Budget.parse(budget)
    lowered = tuple(p for p in wanted if p is not Precision.FP32)
    lower = Lower(lowered, calibration, full_range, limits)
    require_opset(opset)
    require_batch(max_batch)
    family_of(checkpoint)
    with no_empty_folders(output), Staging(output, overwrite):
        pass
    try:
        from simmim_export.export.exporter import export_bundle
    except ModuleNotFoundError as error:
        raise EngineUnavailable(
            f"exporting needs the package {error.name}", fix="pip install 'simmim-export[export]'"
        ) from error
    with full_disk(output), progress_bar("export") as progress:
        done = export_bundle(
            checkpoint,
            output,
            overwrite=overwrite,
            opset=opset,
            max_batch=max_batch,
            attention=attention,
            lower=lower,
            progress=progress,
        )
    if as_json:
        planning = done.bundle.manifest.provenance.get("planning", [])
        print_json({"bundle": str(done.bundle.root), "parity": by_graph(done.reports), "planning": planning})
        return
    print_parity(done.reports, f"{output}: ONNX Runtime against PyTorch, at every probed shape")
    for result in done.searches:
        print_plan(result)


def inspect(bundle: BundlePath, as_json: AsJson = False) -> None:
    """Show what a bundle holds: graphs, shapes, sizes, labels, metrics and where it came from."""
    from simmim_export.bundle import Bundle
    from simmim_export.spec import as_json as plain

    opened = Bundle.open(bundle)
    opened.check()
    manifest = opened.manifest
    if as_json:
        print_json(plain(manifest) | {"digest": opened.digest})
        return
    from rich.table import Table

    console = stdout_console()
    table = Table(title=f"{bundle}: preset {manifest.model['preset']}, schema {manifest.schema}")
    for column in ("graph", "variant", "inputs", "outputs", "MB", "error to PyTorch"):
        table.add_column(column, justify="right" if column in ("MB", "error to PyTorch") else "left")
    for artifact in manifest.artifacts:
        spec = manifest.graph(artifact.graph)
        inputs, outputs = (
            stacked(f"{tensor.name} {_shape(tensor.shape)}" for tensor in side) for side in (spec.inputs, spec.outputs)
        )
        error = f"{artifact.parity['scaled_error']:.1e}"
        table.add_row(artifact.graph, artifact.variant, inputs, outputs, f"{artifact.bytes / 1e6:.2f}", error)
    console.print(table)
    for pipeline in manifest.pipelines:
        console.print(f"pipeline {pipeline.name}: {' > '.join(pipeline.graphs)}")
    for head, labels in manifest.labels.items():
        console.print(f"labels of {head}: {', '.join(labels)}")
    image, text = manifest.preprocessing["image"], manifest.preprocessing["text"]
    console.print(f"image: {image['height']}x{image['width']}, {image['resize']}, {image['interpolation']}")
    console.print(f"text: at most {text['max_length']} tokens")
    console.print(f"embedding: {manifest.embedding['dim']} channels, space {manifest.embedding['digest'][:12]}")
    console.print(f"digest: {opened.digest}")
    console.print(f"exported from checkpoint {manifest.provenance['checkpoint_sha256'][:12]}")
    if manifest.metrics:
        print_metrics(manifest.metrics)


def _shape(shape: tuple[int | str, ...]) -> str:
    return "(" + ", ".join(str(d) for d in shape) + ")"


def doctor(as_json: AsJson = False) -> None:
    """Say what this machine has and what each engine is missing."""
    from simmim_export.engines.doctor import examine

    found = examine(thorough=True)
    if as_json:
        print_json(found)
        return
    console = stdout_console()
    console.print(f"simmim-export {found['simmim_export']}, Python {found['python']}, {found['system']}")
    console.print(f"{found['cpu']}: {found['cpus']} CPUs, {found['threads_used']} usable by this process")
    gpu = found["gpu"]
    names = ", ".join(
        f"{one['name']} (compute {one['compute']}, {one['memory'] / 2**30:.0f} GiB)" for one in gpu["gpus"]
    )
    about = f"{names}; driver {gpu['driver'] or '-'}, CUDA {gpu['cuda']} at most"
    console.print(f"GPU: {about if gpu['gpus'] else gpu['reason']}")
    console.print("packages: " + ", ".join(f"{k} {v or '-'}" for k, v in found["packages"].items()))
    for name, state in found["engines"].items():
        text = "available" if state["available"] else f"not available: {state['reason']}; {state['install']}"
        console.print(f"engine {name}: {text}")
    for problem in found["problems"]:
        console.print(f"problem: {problem}")
