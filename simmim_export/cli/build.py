"""The command ``build``: TensorRT plan files, for the GPU of this machine or for others."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simmim_export.console import print_json, print_table, progress_bar, say, stacked
from simmim_export.console.options import AsJson, BundlePath, Precision

if TYPE_CHECKING:
    from simmim_export.bundle import Bundle
    from simmim_export.engines.tensorrt import TrtEngine
    from simmim_export.engines.tensorrt.request import Request
    from simmim_export.spec import PrecisionPlan

EXAMPLES = (
    "simmim-export build bundle --precision fp16",
    "simmim-export build bundle --precision fp16 --opt batch=1,sequence=12",
    "simmim-export build bundle --engine trt-rtx --target sm86 --precision fp16",
    "simmim-export build bundle --precision int8 --dry-run",
)
SHAPES = "Shapes to build for"


def build(
    bundle: BundlePath,
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            metavar="ENGINE",
            help="trt builds for the GPU of this machine; trt-rtx builds for the GPUs in --target, on any machine. Other engines "
            "need no build.",
        ),
    ] = "trt",
    precision: Precision = None,
    workspace: Annotated[
        str | None,
        typer.Option(
            "--workspace",
            metavar="SIZE",
            help="GPU memory that the build may use, such as 2GiB.",
            show_default="all that is free; with trt-rtx no limit",
        ),
    ] = None,
    level: Annotated[
        int,
        typer.Option(
            "--level", metavar="N", min=0, max=5, help="How long to search for faster kernels: 0 builds fastest."
        ),
    ] = 3,
    compatibility: Annotated[
        str,
        typer.Option(
            "--hardware-compatibility",
            metavar="GPUS",
            help="GPUs that the plan files run on: none (only this kind), same_compute_capability or ampere_plus.",
        ),
    ] = "none",
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="GPUS",
            help="With trt-rtx: the GPU generations to build for, such as sm86,sm89,sm120. The plan files are built, never run: "
            "verify them on the device.",
            show_default=False,
        ),
    ] = None,
    least: Annotated[
        list[str] | None,
        typer.Option(
            "--min",
            metavar="AXIS=SIZE",
            help="Smallest size of an axis: batch=1,sequence=4. Repeatable.",
            rich_help_panel=SHAPES,
        ),
    ] = None,
    best: Annotated[
        list[str] | None,
        typer.Option("--opt", metavar="AXIS=SIZE", help="Size to be fastest at. Repeatable.", rich_help_panel=SHAPES),
    ] = None,
    largest: Annotated[
        list[str] | None,
        typer.Option("--max", metavar="AXIS=SIZE", help="Largest size. Repeatable.", rich_help_panel=SHAPES),
    ] = None,
    shapes: Annotated[
        Path | None,
        typer.Option(
            "--shapes",
            metavar="LOG",
            help='Shapes of real calls, one per line: {"batch": 1, "sequence": 12}. Builds for their range, and to be '
            "fastest at the most frequent one.",
            rich_help_panel=SHAPES,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only check every graph and show its shapes. Needs no GPU. NVIDIA's own parser checks too, if TensorRT "
            "for RTX is installed or trt can build here.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compile every graph with TensorRT.

    With trt, each plan file is compared with PyTorch on this machine's GPU and kept only if it passes. With trt-rtx, plan files
    are built for the GPUs in --target and never run: only the types of their layers are checked, so verify them on the device.
    Plan files that already fit are not built again, so an interrupted build continues where it stopped. Exit code 4 if a plan
    file differs from PyTorch or computes in a precision other than the one you asked for; with --dry-run, if TensorRT would
    refuse a graph.
    """
    from simmim_export.engines import get_engine
    from simmim_export.engines.failures import cannot_run
    from simmim_export.engines.tensorrt import TrtEngine
    from simmim_export.engines.tensorrt.request import Request, parse_size, parse_sizes, parse_targets, read_traffic
    from simmim_export.errors import UsageError

    request = Request(
        workspace=None if workspace is None else parse_size(workspace),
        level=level,
        compatibility=compatibility,
        least=parse_sizes(least or []),
        best=parse_sizes(best or []),
        largest=parse_sizes(largest or []),
        traffic={} if shapes is None else read_traffic(shapes),
        targets=() if target is None else parse_targets(target),
    )
    compiler = get_engine(engine)
    if not isinstance(compiler, TrtEngine):
        what = f"engine {engine!r} opens graphs without building anything"
        raise UsageError(what, fix=f"simmim-export verify {shlex.quote(str(bundle))} --engine {shlex.quote(engine)}")
    if not dry_run and (reason := compiler.why_no_build()) is not None:
        raise cannot_run(engine, reason, install=compiler.install)
    # These imports take time, and a missing engine is reported without them.
    from simmim_export.bundle import Bundle
    from simmim_export.runtime.loading import plan_of

    opened = Bundle.open(bundle)
    plan = plan_of(opened, engine, precision=precision or "fp32")
    if dry_run:
        _dry_run(opened, compiler, plan=plan, request=request, as_json=as_json)
        return
    from simmim_export.runtime.build import build as build_all

    with progress_bar("build") as watch:
        built = build_all(opened, compiler, plan=plan, request=request, modules=_modules, watch=watch)
    if as_json:
        print_json({"bundle": str(bundle), "engine": engine, "graphs": {b.sidecar.graph: b.as_json() for b in built}})
        return
    rows = []
    for one in built:
        card = one.sidecar
        layers = stacked(f"{count / sum(card.executed.values()):.0%} {kind}" for kind, count in card.executed.items())
        error = "never run" if card.parity is None else f"{card.parity['scaled_error']:.1e}"
        figures = (f"{card.bytes / 1e6:.2f}", layers, error)
        rows.append((card.graph, card.precision, *figures, "new" if one.new else "kept"))
    columns = ("graph", "precision", ">MB", "layers", f">error to|{opened.manifest.reference.words}", "plan file")
    print_table(f"{bundle}: {built[0].sidecar.target}", columns, rows)
    if any(one.sidecar.parity is None for one in built):
        say(f"built, never run; on the device: simmim-export verify {shlex.quote(str(bundle))} --engine {engine}")


def _dry_run(bundle: Bundle, engine: TrtEngine, *, plan: PrecisionPlan, request: Request, as_json: bool) -> None:
    from simmim_export.errors import EngineUnavailable

    try:
        from simmim_export.tensorrt_rules.dry_run import rehearse, require_clean
    except ModuleNotFoundError as error:
        fix = "pip install 'simmim-export[export]'"
        raise EngineUnavailable(f"a dry run needs the package {error.name}", fix=fix) from error
    rehearsals = rehearse(bundle, engine, plan=plan, request=request)
    if as_json:
        print_json({"bundle": str(bundle.root), "graphs": {one.graph: one.as_json() for one in rehearsals}})
    else:
        rows = (
            (
                one.graph,
                one.variant,
                stacked(str(one.profile).split("; ")),
                str(sum(not finding.advice for finding in one.findings)),
                str(sum(finding.advice for finding in one.findings)),
                "not installed" if one.verdict is None else "refuses" if one.verdict.refused else "accepts",
            )
            for one in rehearsals
        )
        columns = ("graph", "variant", "shapes", ">rules|broken", ">advice", "parser")
        verdict = rehearsals[0].verdict
        parser = "" if verdict is None else f" ({verdict.parser})"
        print_table(f"{bundle.root}: what TensorRT would build{parser}", columns, rows)
    require_clean(rehearsals, bundle.root)


def _modules(path: Path) -> Callable[[str], str]:
    """A function that names the PyTorch module of a node. It needs the package onnx, which a device may not have."""
    try:
        from simmim_export.tensorrt_rules.dry_run import modules
    except ModuleNotFoundError:
        return lambda name: "a module that the package onnx would name"
    return modules(path)
