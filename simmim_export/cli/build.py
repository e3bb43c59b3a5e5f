"""The command that compiles a bundle for this device: build."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simmim_export.cli.options import AsJson, BundlePath, PrecisionName
from simmim_export.console import print_json, progress_bar, stacked, stdout_console

if TYPE_CHECKING:
    from rich.table import Table

    from simmim_export.bundle import Bundle
    from simmim_export.engines.tensorrt import TrtEngine
    from simmim_export.engines.tensorrt.request import Request
    from simmim_export.spec import PrecisionPlan


def register(app: typer.Typer) -> None:
    """Add the commands of this file to ``app``."""
    app.command()(build)


def build(
    bundle: BundlePath,
    engine: Annotated[
        str, typer.Option("--engine", help="trt: the other engines open graphs as they are, with nothing to build.")
    ] = "trt",
    precision: PrecisionName = None,
    workspace: Annotated[
        str | None,
        typer.Option("--workspace", metavar="SIZE", help="Memory for the build, as 2GiB; by default all that is free."),
    ] = None,
    level: Annotated[
        int, typer.Option("--level", min=0, max=5, help="How long to look for faster kernels: 0 (fastest build) to 5.")
    ] = 3,
    compatibility: Annotated[
        str,
        typer.Option(
            "--hardware-compatibility",
            help="Which GPUs the plan is for: none (this kind), same_compute_capability or ampere_plus (Ampere and later).",
        ),
    ] = "none",
    least: Annotated[
        list[str] | None,
        typer.Option("--min", metavar="AXIS=SIZE", help="Least size of an axis: batch=1,sequence=4; repeatable."),
    ] = None,
    best: Annotated[
        list[str] | None, typer.Option("--opt", metavar="AXIS=SIZE", help="Size to be fastest at; repeatable.")
    ] = None,
    largest: Annotated[
        list[str] | None, typer.Option("--max", metavar="AXIS=SIZE", help="Largest size of an axis; repeatable.")
    ] = None,
    shapes: Annotated[
        Path | None,
        typer.Option(
            "--shapes",
            metavar="LOG",
            help='Shapes of real calls, a line each as {"batch": 1, "sequence": 12}: the range seen, best at the most frequent.',
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check every graph and show its shapes; needs neither TensorRT nor a GPU."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compile every graph for the GPU of this device and prove each plan against PyTorch; what fails is not kept.

    What is built already and fits is left alone, so that a build which was cut off goes on. Exit 4 for a plan that differs, that
    runs in another precision than asked for, or with --dry-run for a graph that TensorRT would refuse.
    """
    from simmim_export.engines import get_engine, require_engine
    from simmim_export.engines.tensorrt import TrtEngine
    from simmim_export.engines.tensorrt.request import Request, parse_size, parse_sizes, read_traffic
    from simmim_export.errors import UsageError

    request = Request(
        workspace=None if workspace is None else parse_size(workspace),
        level=level,
        compatibility=compatibility,
        least=parse_sizes(least or []),
        best=parse_sizes(best or []),
        largest=parse_sizes(largest or []),
        traffic={} if shapes is None else read_traffic(shapes),
    )
    compiler = get_engine(engine) if dry_run else require_engine(engine)
    if not isinstance(compiler, TrtEngine):
        raise UsageError(f"engine {engine!r} opens graphs as they are: there is nothing to build", fix="--engine trt")
    # Now, and not before: where the engine is missing, saying so should not cost what the rest takes to load.
    from simmim_export.bundle import Bundle
    from simmim_export.runtime.loading import plan_of

    opened = Bundle.open(bundle)
    plan = plan_of(opened, engine, precision=precision or "fp32")
    if dry_run:
        _dry_run(opened, compiler, plan, request, as_json)
        return
    from simmim_export.runtime.build import build as build_all

    with progress_bar("build") as watch:
        built = build_all(opened, compiler, plan=plan, request=request, modules=_modules, watch=watch)
    if as_json:
        print_json({"bundle": str(bundle), "engine": engine, "graphs": {b.sidecar.graph: b.as_json() for b in built}})
        return
    table = _table(f"{bundle}: {built[0].sidecar.target}", "precision", "MB", "layers", "error to PyTorch", "")
    for one in built:
        card = one.sidecar
        layers = ", ".join(f"{count / sum(card.executed.values()):.0%} {name}" for name, count in card.executed.items())
        figures = (f"{card.bytes / 1e6:.2f}", layers, f"{card.parity['scaled_error']:.1e}")
        table.add_row(card.graph, card.precision, *figures, "built" if one.new else "was there")
    stdout_console().print(table)


def _dry_run(bundle: Bundle, engine: TrtEngine, plan: PrecisionPlan, request: Request, as_json: bool) -> None:
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
        table = _table(f"{bundle.root}: what TensorRT would be given", "variant", "shapes", "findings")
        for one in rehearsals:
            table.add_row(one.graph, one.variant, stacked(str(one.profile).split("; ")), str(len(one.findings)))
        stdout_console().print(table)
    require_clean(rehearsals, bundle.root)


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title)
    for column in ("graph", *columns):
        table.add_column(column)
    return table


def _modules(path: Path) -> Callable[[str], str]:
    """What names the PyTorch module of a node in an error message; onnx is no part of a device's installation."""
    try:
        from simmim_export.tensorrt_rules.dry_run import modules
    except ModuleNotFoundError:
        return lambda name: "a module that the package onnx would name"
    return modules(path)
