"""``simmim-bench report``: results as a page that people look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simmim_export.console import check_output, print_json, say
from simmim_export.console.options import AsJson, Overwrite, output

EXAMPLES = (
    "simmim-bench report bench.json -o report.html",
    "simmim-bench report latency.json peers.json --svg docs/plots",
)


def report(
    results: Annotated[
        list[Path], typer.Argument(metavar="FILE.json", help="Files that --save wrote. No row may be in two of them.")
    ],
    path: Annotated[Path, output("FILE.html", "Page to write.")] = Path("report.html"),
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="DIR", help="Also write each plot as an SVG file to this folder.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write a page with plots and tables of saved runs.

    One HTML file that loads nothing from the network: accuracy against latency beside the peers, where the time goes, how it
    grows, throughput, memory over time, and the host.
    """
    from simmim_export.benchmarks.html import page
    from simmim_export.errors import UsageError
    from simmim_export.system.outputs import destination, replacing

    page.require_libraries()
    check_output(path, "-o", overwrite=overwrite)
    if path.resolve() in {each.resolve() for each in results}:
        raise UsageError("-o names a file of results, which it would replace", where=path, fix="choose another -o")
    if svg is not None and svg.resolve() == path.resolve():
        raise UsageError("-o and --svg name the same place", where=path, fix="choose another --svg")
    made = page.report(results)
    files = {path: made.html()} | {svg / name: text for name, text in (made.svg_files() if svg else {}).items() if svg}
    for each in files:
        if each != path:
            check_output(each, "--svg", overwrite=overwrite)
    for each, text in files.items():
        with replacing(destination(each)) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if as_json:
        print_json({"page": str(path), "plots": [str(each) for each in files if each != path]})
    else:
        say(f"wrote {', '.join(str(each) for each in files)}")
