"""The floors of a bundle's graphs as rows, and the tables that ``simmim-bench limit`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from simmim_export.benchmarks.limit.floor import cost_of, floor
from simmim_export.benchmarks.limit.peaks import Peaks
from simmim_export.bundle import Bundle
from simmim_export.console import print_table, stdout_console
from simmim_export.spec import Precision, Variant


def limits(bundle: Bundle, peaks: Peaks, *, sizes: Mapping[str, int]) -> dict[str, Any]:
    """The peaks, and a row for each graph and variant of ``bundle`` at the axis ``sizes``.

    BF16 computes the FP32 file. A row of a precision whose peak was not measured has the ``floor`` None.
    """
    rows = []
    for graph in bundle.manifest.graphs:
        variants = [each.variant for each in bundle.manifest.artifacts if each.graph == graph.name and not each.engine]
        forms = [(variant, Variant(variant).precision) for variant in variants]
        for variant, precision in [*forms, (Variant.FP32, Precision.BF16)]:
            cost = cost_of(bundle, graph.name, variant=Variant(variant), sizes=sizes)
            least = floor(cost, precision, peaks=peaks)
            name = {"graph": graph.name, "variant": str(variant), "precision": str(precision)}
            rows.append(name | {"cost": asdict(cost), "floor": None if least is None else asdict(least)})
    return {"peaks": asdict(peaks), "sizes": dict(sizes), "rows": rows}


def show(limit: Mapping[str, Any]) -> None:
    """Print what :func:`limits` returned."""
    peaks, console = limit["peaks"], stdout_console()
    for precision, peak in peaks["products"].items():
        speed = peak["flops_per_second"] / 1e9
        console.print(
            f"{precision}: {speed:.0f} GFLOP/s ({peak['library']}, {peak['rows']} rows), {peaks['threads']} threads"
        )
    for precision, reason in peaks["missing"].items():
        console.print(f"{precision}: not measured: {reason}")
    cache = "unknown" if peaks["cache"] is None else f"{peaks['cache'] / 2**20:.0f} MiB"
    console.print(
        f"memory: copy {peaks['copy'] / 1e9:.1f} GB/s, read {peaks['read'] / 1e9:.1f} GB/s; last-level cache {cache}"
    )
    console.print("")
    rows = []
    for row in limit["rows"]:
        cost, least = row["cost"], row["floor"]
        counted = (f"{cost['flops'] / 1e6:.1f}", f"{cost['weights'] / 1e6:.2f}", f"{cost['values'] / 1e6:.3f}")
        cells = ("-", "-") if least is None else (f"{1000 * least['seconds']:.3f}", least["bound"])
        rows.append((row["graph"], row["variant"], row["precision"], *counted, *cells))
    sizes = ", ".join(f"{name} {size}" for name, size in limit["sizes"].items())
    columns = (
        "graph",
        "variant",
        "precision",
        ">million|operations",
        ">weights|MB",
        ">in and|out MB",
        ">floor|ms",
        "limited by",
    )
    print_table(f"the least time of each graph at {sizes}", columns, rows)
