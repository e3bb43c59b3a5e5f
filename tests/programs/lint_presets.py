"""Lint every graph of the presets, in every variant that TensorRT is given, and build it with TensorRT for RTX:
``make lint-graphs``.

Weights are random and inputs are noise. The rules read operators, types and shapes only; other tests use real weights. Without
TensorRT for RTX nothing is built, and the last line says so.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch

from simmim_export.console import progress_bar, run_app, say
from simmim_export.engines.tensorrt.library import RTX, use
from simmim_export.engines.tensorrt.proof import read_layer_list, require_precision
from simmim_export.engines.tensorrt.request import Request
from simmim_export.errors import GateFailed, SimmimError
from simmim_export.export.golden import Inputs, feeds_of
from simmim_export.export.onnx import trace
from simmim_export.models.family import Graph
from simmim_export.models.simmim.fusion import FUSIONS
from simmim_export.models.simmim.graphs import STACKED, graphs
from simmim_export.models.simmim.heads import HEADS
from simmim_export.models.simmim.interaction import INTERACTIONS
from simmim_export.models.simmim.model import SimMIM
from simmim_export.models.simmim.presets import PRESETS, ModelConfig, preset
from simmim_export.precision.base import Feeds
from simmim_export.precision.passes import write_variant
from simmim_export.spec import Variant
from simmim_export.system.watch import unwatched
from simmim_export.tensorrt_rules.lint import Finding, lint

# What TensorRT is given.
VARIANTS = (Variant.FP32, Variant.FP16, Variant.INT8_S8, Variant.INT8_S8_FP16)
# What is built is for this GPU generation; the kernels hardly depend on it.
TARGET = "8.6"
MAX_BATCH, FRAMES, CLASSES, SAMPLES = 8, 8, 32, 4


@dataclass(frozen=True, kw_only=True)
class Linted:
    """One graph in one variant. ``graph`` names a fusion with its interaction: ``fusion film x graph``. ``built`` has the number
    of kernels by type if it was built, and ``refused`` the error if it could not be."""

    preset: str
    graph: str
    variant: Variant
    findings: tuple[Finding, ...]
    built: Mapping[str, int] | None = None
    refused: str = ""


def pairs() -> list[tuple[str, str]]:
    """Every fusion with every interaction that has something to attend to in it."""
    both = itertools.product(FUSIONS, INTERACTIONS)
    return [(fusion, mixing) for fusion, mixing in both if not FUSIONS[fusion].single or mixing == "linear"]


def full(name: str) -> dict[str, Graph]:
    """The graphs of preset ``name`` with a video encoder and every head."""
    config = replace(preset(name), heads=dict.fromkeys(HEADS, CLASSES), frames=FRAMES)
    return graphs(_model(config), MAX_BATCH)


def fusions(name: str) -> Iterator[tuple[str, Graph]]:
    """The fusion of preset ``name`` with every pair, and with attention maps. It reads tokens of one width from any text
    encoder, so the smallest text encoder stands in for the preset's."""
    small = replace(preset(name), text=PRESETS["tiny"].text)
    for fusion, mixing in pairs():
        model = _model(replace(small, fusion=fusion, interaction=mixing))
        yield f"fusion {fusion} x {mixing}", graphs(model, MAX_BATCH)["fusion"]
    yield "fusion with maps", graphs(_model(small), MAX_BATCH, attention=True)["fusion"]


def _model(config: ModelConfig) -> SimMIM:
    torch.manual_seed(0)
    return SimMIM(config)


def noise(every: dict[str, Graph], config: ModelConfig) -> dict[str, list[dict[str, np.ndarray]]]:
    """For each graph of :func:`full` what the passes measure ranges on, from random pixels and token ids."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (SAMPLES, config.image_size, config.image_size, 3), dtype=np.uint8)
    ids = random.integers(5, config.text["vocab_size"], (SAMPLES, config.max_length))
    return feeds_of(Inputs(every, stacked=STACKED), images=images, ids=ids, mask=np.ones_like(ids))


def lint_graph(graph: Graph, feeds: Feeds, folder: Path) -> dict[Variant, tuple[Finding, ...]]:
    """Trace ``graph`` into ``folder``, apply the passes, and return the findings in each of :data:`VARIANTS`."""
    source = folder / f"{graph.spec.name}.{Variant.FP32}.onnx"
    trace(graph, source)
    findings = {}
    for variant in VARIANTS:
        path = folder / f"{graph.spec.name}.{variant}.onnx"
        if variant is not Variant.FP32:
            write_variant(source, path, variant=variant, feeds=feeds)
        findings[variant] = tuple(lint(onnx.load(path)))
    return findings


def use_rtx() -> bool:
    """Let this process use TensorRT for RTX, which the tests keep in a folder of its own. False if it is not installed."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "engines/trt"))
    import bindings

    with suppress(bindings.NotInstalled):
        sys.path.insert(0, str(bindings.folder("rtx")))
    if RTX.why_missing() is not None:
        return False
    use(RTX)
    return True


def built(path: Path, graph: Graph, variant: Variant) -> Mapping[str, int]:
    """The number of kernels by type that TensorRT for RTX builds from the file at ``path``. Raise if it refuses the graph, or
    computes more than half of the quantized products in floating point. Fewer are a warning."""
    from simmim_export.engines.tensorrt.build import build_plan_file
    from simmim_export.engines.tensorrt.rtx import for_targets

    request = Request(targets=(TARGET,))
    compiled = build_plan_file(
        path,
        graph.spec,
        request=request,
        on=None,
        configure=for_targets(request),
        module_of=lambda name: "",
        watch=unwatched,
    )
    proof, multiplied = read_layer_list(compiled.layers)
    require_precision(
        proof,
        variant.precision,
        quantized=compiled.quantized,
        multiplied=multiplied,
        graph=graph.spec.name,
        where=path,
    )
    return proof.executed


def lint_preset(name: str, *, build: bool = False) -> Iterator[Linted]:
    """Every graph of preset ``name`` in every variant."""
    every = full(name)
    feeds = noise(every, preset(name))
    for label, graph in itertools.chain(((n, g) for n, g in every.items() if n != "fusion"), fusions(name)):
        with tempfile.TemporaryDirectory() as folder:
            for variant, findings in lint_graph(graph, feeds[graph.spec.name], Path(folder)).items():
                row = Linted(preset=name, graph=label, variant=variant, findings=findings)
                if build:
                    try:
                        path = Path(folder) / f"{graph.spec.name}.{variant}.onnx"
                        row = replace(row, built=built(path, graph, variant))
                    except SimmimError as error:
                        row = replace(row, refused=error.what)
                yield row


def main() -> None:
    """Lint the named presets, or all. Exit with 4 if a graph breaks a rule or is not built."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", action="append", choices=list(PRESETS))
    broken: list[Linted] = []
    build = use_rtx()
    for name in parser.parse_args().preset or list(PRESETS):
        started, rows = time.monotonic(), []
        with progress_bar("lint") as watch:
            for row in lint_preset(name, build=build):
                rows.append(row)
                watch(f"{name}: {row.graph}.{row.variant}", len(rows), (len(HEADS) + len(pairs()) + 4) * len(VARIANTS))
        broken += [row for row in rows if row.refused or any(not finding.advice for finding in row.findings)]
        count = sum(len(row.findings) for row in rows)
        done = [row for row in rows if row.built is not None]
        say(f"{name}: {len(rows)} graphs, {count} findings, {len(done)} built, {time.monotonic() - started:.0f} s")
        for label in ("text_encoder", "image_encoder", "fusion with maps"):
            kernels = {row.variant: dict(row.built) for row in done if row.graph == label and row.built is not None}
            say(f"  {label}: {'; '.join(f'{variant} {sum(k.values())} kernels {k}' for variant, k in kernels.items())}")
    if not build:
        say(f"nothing was built: {RTX.why_missing()}")
    for row in broken:
        if row.refused:
            say(f"{row.preset}: {row.graph}.{row.variant}: {row.refused}")
        for finding in row.findings:
            say(f"{row.preset}: {row.graph}.{row.variant}: {finding}")
    if broken:
        fix = "change the module that is named, or leave its node in float"
        raise GateFailed(f"{len(broken)} graphs break a rule or were not built", fix=fix)


if __name__ == "__main__":
    run_app(main)
