"""Commands that make, prove and show bundles: onnx, verify, inspect, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simmim_export.cli.options import AsJson, BundlePath, CheckpointOption, EngineName, PrecisionName, Threads
from simmim_export.console import print_json, progress_bar, stdout_console

if TYPE_CHECKING:
    from simmim_export.parity import ParityReport


def register(app: typer.Typer) -> None:
    """Add the commands of this file to ``app``."""
    for command in (onnx, verify, inspect, doctor):
        app.command()(command)


def onnx(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint that simmim-train wrote.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="BUNDLE", help="Folder to write.")] = Path("bundle"),
    opset: Annotated[int, typer.Option(help="ONNX opset, 18 to 24.")] = 20,
    max_batch: Annotated[int, typer.Option(help="Largest batch that is probed and promised.")] = 8,
    attention: Annotated[
        bool, typer.Option("--attention", help="Let the fusion also say where each word looked, for ask --explain.")
    ] = False,
    precision: Annotated[
        list[str] | None,
        typer.Option("--precision", help="int8: write every graph in INT8 as well; fp32 is always there."),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration", metavar="DIR", help="Pictures to measure ranges on, instead of the checkpoint's."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
    as_json: AsJson = False,
) -> None:
    """Export every graph of a checkpoint to ONNX and prove each against PyTorch."""
    # Before the imports: a wrong path should not cost the seconds that PyTorch takes to load.
    from simmim_export.bundle import Staging
    from simmim_export.errors import EngineUnavailable, UsageError
    from simmim_export.spec import Precision

    wanted = {Precision.parse(name) for name in precision or []}
    if wanted - {Precision.FP32, Precision.INT8}:
        what = f"no graph is written in {', '.join(sorted(wanted - {Precision.FP32, Precision.INT8}))}"
        raise UsageError(
            what, fix="bf16 and fp16 on openvino run the fp32 graph: simmim-export verify --precision bf16"
        )
    with Staging(output, overwrite):
        pass
    try:
        from simmim_export.export.exporter import export_bundle
    except ModuleNotFoundError as error:
        raise EngineUnavailable(
            f"exporting needs the package {error.name}", fix="pip install 'simmim-export[export]'"
        ) from error
    with progress_bar("export") as progress:
        bundle, reports = export_bundle(
            checkpoint,
            output,
            overwrite=overwrite,
            opset=opset,
            max_batch=max_batch,
            maps=attention,
            int8=Precision.INT8 in wanted,
            calibration=calibration,
            progress=progress,
        )
    if as_json:
        print_json({"bundle": str(bundle.root), "parity": by_graph(reports)})
        return
    print_parity(reports, f"{output}: ONNX Runtime against PyTorch, at every probed shape")


def verify(
    bundle: BundlePath,
    engine: EngineName = "ort",
    precision: PrecisionName = "fp32",
    checkpoint: CheckpointOption = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Prove on this machine that every graph computes what PyTorch computed; exit 4 if one does not."""
    from simmim_export.runtime import load

    with load(bundle, engine, precision, checkpoint=checkpoint, threads=threads) as model:
        files = model.bundle.check()
        reports = model.verify()
        proof = {report.graph: dict(model.session(report.graph).precision_proof().executed) for report in reports}
    if as_json:
        parity = {r.graph: r.summary() | {"executed": proof[r.graph]} for r in reports}
        print_json({"bundle": str(bundle), "engine": engine, "precision": precision, "files": files, "parity": parity})
    else:
        print_parity(reports, f"{bundle}: {engine} {precision} against PyTorch; {files} files unaltered", proof)
    for report in reports:
        report.require(bundle, "export it again on this machine, or choose another --engine or --precision")


def inspect(bundle: BundlePath, as_json: AsJson = False) -> None:
    """Show what a bundle holds: graphs, shapes, sizes, labels, metrics and where it came from."""
    from simmim_export.bundle import Bundle
    from simmim_export.spec import as_json as plain

    opened = Bundle.open(bundle)
    opened.check()
    manifest = opened.manifest
    if as_json:
        print_json(plain(manifest))
        return
    from rich.table import Table

    console = stdout_console()
    table = Table(title=f"{bundle}: preset {manifest.model['preset']}, schema {manifest.schema}")
    for column in ("graph", "variant", "inputs", "outputs", "MB", "error to PyTorch"):
        table.add_column(column, justify="right" if column in ("MB", "error to PyTorch") else "left")
    for artifact in manifest.artifacts:
        spec = manifest.graph(artifact.graph)
        inputs, outputs = (
            "\n".join(f"{t.name} {_shape(t.shape)}" for t in side) for side in (spec.inputs, spec.outputs)
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
    console.print(f"exported from checkpoint {manifest.provenance['checkpoint_sha256'][:12]}")


def _shape(shape: tuple[int | str, ...]) -> str:
    return "(" + ", ".join(str(d) for d in shape) + ")"


def doctor(as_json: AsJson = False) -> None:
    """Say what this machine has and what each engine is missing."""
    from simmim_export.doctor import examine

    found = examine()
    if as_json:
        print_json(found)
        return
    console = stdout_console()
    console.print(f"simmim-export {found['simmim_export']}, Python {found['python']}, {found['system']}")
    console.print(f"{found['cpu']}: {found['cpus']} CPUs, {found['threads_used']} usable by this process")
    console.print("packages: " + ", ".join(f"{k} {v or '-'}" for k, v in found["packages"].items()))
    for name, state in found["engines"].items():
        text = "available" if state["available"] else f"not available: {state['reason']}; {state['install']}"
        console.print(f"engine {name}: {text}", markup=False)
    for problem in found["problems"]:
        console.print(f"problem: {problem}")


def by_graph(reports: list[ParityReport]) -> dict[str, dict[str, Any]]:
    """Each graph's figures at FP32, with those of other precisions under their names."""
    found: dict[str, dict[str, Any]] = {}
    for report in reports:
        if report.precision == "fp32":
            found.setdefault(report.graph, {}).update(report.summary())
        else:
            found.setdefault(report.graph, {})[report.precision] = report.summary()
    return found


def print_parity(reports: list[ParityReport], title: str, proof: dict[str, dict[str, int]] | None = None) -> None:
    """A table of parity, one row a graph."""
    from rich.table import Table

    table = Table(title=title)
    for column in ("graph", "", "checks", "worst error", "worst cosine", "passed", *(["executed"] if proof else [])):
        table.add_column(column, justify="left" if column in ("graph", "", "executed") else "right")
    for report in reports:
        row: list[Any] = [
            report.graph,
            report.precision,
            str(len(report.rows)),
            f"{report.scaled_error:.1e}",
            f"{report.cosine:.7f}",
        ]
        row.append("yes" if report.passed else "NO")
        if proof:
            row.append(", ".join(f"{count} {kind}" for kind, count in proof[report.graph].items()))
        table.add_row(*row)
    stdout_console().print(table)
