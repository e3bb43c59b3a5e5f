"""The command ``web``: a page that runs a bundle in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from simmim_export.console import print_json, print_table, progress_bar, say
from simmim_export.console.options import AsJson, BundlePath, Overwrite, output

EXAMPLES = (
    "simmim-export web bundle -o site",
    "simmim-export web bundle -o site --precision int8 --overwrite",
    "simmim-export web bundle -o site --measure",
)


def web(
    bundle: BundlePath,
    output: Annotated[Path, output("FOLDER", "Folder to write.")] = Path("site"),
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            metavar="PRECISION",
            help="fp32, fp16, int8, planned (what onnx --budget chose), or one per graph: image_encoder=int8,text_encoder=fp16.",
            show_default="fp32",
        ),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Also measure ONNX Runtime on this machine. The page shows its times beside the browser's.",
        ),
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write a web page that runs the bundle in a browser.

    The folder can be served by any static host, and the page loads nothing from elsewhere. It checks its files and compares every
    graph with PyTorch. The first time, npm downloads two packages.
    """
    from simmim_export.bundle import Bundle
    from simmim_export.web.site import artifacts_for, build, how_to_serve, plan_for_browser

    opened = Bundle.open(bundle)
    plan = plan_for_browser(opened, precision or "fp32")
    artifacts = artifacts_for(opened, plan)
    with progress_bar("web") as watch:
        native = None
        if measure:
            from simmim_export.benchmarks.native import native_times

            # A page without special headers has one thread.
            native = native_times(opened, artifacts, threads=1, watch=watch)
        site = build(opened, output, plan=plan, native=native, overwrite=overwrite, watch=watch)
    if as_json:
        document: dict[str, Any] = {
            "site": str(output),
            "bundle": str(bundle),
            "precision": str(plan),
            "native": native,
        }
        document |= {"files": site.files, "bytes": site.bytes, "download": site.download, "graphs": dict(site.variants)}
        print_json(document)
        return
    rows = [(graph, artifact.variant, f"{artifact.bytes / 1e6:.2f}") for graph, artifact in artifacts.items()]
    print_table(f"{output}: {bundle} at {plan}", ("graph", "variant", ">MB"), rows)
    plain, small = (site.download[key] / 1e6 for key in ("bytes", "gzipped"))
    say(
        f"a browser loads {plain:.1f} MB, {small:.1f} MB compressed; the folder has {site.files} files, {site.bytes / 1e6:.1f} MB"
    )
    say(f"try it: {how_to_serve(output)}, then open http://localhost:8000")
