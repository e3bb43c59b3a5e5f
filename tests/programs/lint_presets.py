"""Lint every graph of the presets, in every variant that TensorRT is given: ``make lint-graphs``.

Weights are random and inputs are noise. The rules read operators, types and shapes only; other tests use real weights.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch

from simmim_export.console import progress_bar, run_app, say
from simmim_export.errors import GateFailed
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
from simmim_export.tensorrt_rules.lint import Finding, lint

# What TensorRT is given.
VARIANTS = (Variant.FP32, Variant.FP16, Variant.INT8_S8, Variant.INT8_S8_FP16)
MAX_BATCH, FRAMES, CLASSES, SAMPLES = 8, 8, 32, 4


@dataclass(frozen=True, kw_only=True)
class Linted:
    """One graph in one variant. ``graph`` names a fusion with its interaction: ``fusion film x graph``."""

    preset: str
    graph: str
    variant: Variant
    findings: tuple[Finding, ...]


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


def lint_preset(name: str) -> Iterator[Linted]:
    """Every graph of preset ``name`` in every variant."""
    every = full(name)
    feeds = noise(every, preset(name))
    for label, graph in itertools.chain(((n, g) for n, g in every.items() if n != "fusion"), fusions(name)):
        with tempfile.TemporaryDirectory() as folder:
            for variant, findings in lint_graph(graph, feeds[graph.spec.name], Path(folder)).items():
                yield Linted(preset=name, graph=label, variant=variant, findings=findings)


def main() -> None:
    """Lint the presets that are named, or all; exit with 4 if there are findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", action="append", choices=list(PRESETS))
    broken: list[Linted] = []
    for name in parser.parse_args().preset or list(PRESETS):
        started, rows = time.monotonic(), []
        with progress_bar("lint") as watch:
            for row in lint_preset(name):
                rows.append(row)
                watch(f"{name}: {row.graph}.{row.variant}", len(rows), (len(HEADS) + len(pairs()) + 4) * len(VARIANTS))
        broken += [row for row in rows if row.findings]
        count = sum(len(row.findings) for row in rows)
        say(f"{name}: {len(rows)} graphs, {count} findings, {time.monotonic() - started:.0f} s")
    for row in broken:
        for finding in row.findings:
            say(f"{row.preset}: {row.graph}.{row.variant}: {finding}")
    if broken:
        fix = "change the module that is named, or leave its node in float"
        raise GateFailed(f"{len(broken)} graphs break rules of TensorRT", fix=fix)


if __name__ == "__main__":
    run_app(main)
