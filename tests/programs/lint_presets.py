"""Every graph of the presets, in every variant that TensorRT is given, against the lint: ``make lint-graphs``.

Knows which models there are, the tracer and the passes. Must not know what any rule says. Weights are random and inputs are
noise: rules read operators, types and shapes, and what is worth quantising is decided on real ones elsewhere.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch

from simmim_export.console import progress_bar, run_app, say
from simmim_export.errors import FewSamples, GateFailed
from simmim_export.export.golden import make_feeds
from simmim_export.export.onnx import trace
from simmim_export.models.simmim.fusion import FUSIONS
from simmim_export.models.simmim.graphs import Graph, graphs
from simmim_export.models.simmim.heads import HEADS
from simmim_export.models.simmim.interaction import INTERACTIONS
from simmim_export.models.simmim.model import SimMIM
from simmim_export.models.simmim.presets import PRESETS, ModelConfig, preset
from simmim_export.precision import fp16, int8_s8
from simmim_export.precision.calibration import LEAST, Calibration
from simmim_export.precision.passes import Feeds, Options, apply
from simmim_export.tensorrt_rules.lint import Finding, lint

FP32 = "fp32"
VARIANTS = (FP32, fp16.VARIANT, int8_s8.VARIANT)
MAX_BATCH, FRAMES, CLASSES = 8, 8, 32


@dataclass(frozen=True)
class Linted:
    """One graph in one variant. ``graph`` names a fusion with its interaction: ``fusion film x graph``."""

    preset: str
    graph: str
    variant: str
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
    encoder, so that the smallest stands in for the preset's."""
    small = replace(preset(name), text=PRESETS["tiny"].text)
    for fusion, mixing in pairs():
        model = _model(replace(small, fusion=fusion, interaction=mixing))
        yield f"fusion {fusion} x {mixing}", graphs(model, MAX_BATCH)["fusion"]
    yield "fusion with maps", graphs(_model(small), MAX_BATCH, attention=True)["fusion"]


def _model(config: ModelConfig) -> SimMIM:
    torch.manual_seed(0)
    return SimMIM(config)


def noise(found: Mapping[str, Graph], config: ModelConfig) -> dict[str, list[dict[str, np.ndarray]]]:
    """For each graph of :func:`full` what the passes measure ranges on, from random pixels and token ids."""
    source = np.random.default_rng(0)
    pixels = source.integers(0, 256, (LEAST, config.image_size, config.image_size, 3), dtype=np.uint8)

    def tokens(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        ids = source.integers(5, config.text["vocab_size"], (len(texts), config.max_length))
        return ids, np.ones_like(ids)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewSamples)
        samples = Calibration(pixels, tuple(str(index) for index in range(LEAST)), "noise")
    return make_feeds(found, samples, tokens)


def lint_graph(graph: Graph, feeds: Feeds, folder: Path) -> dict[str, tuple[Finding, ...]]:
    """Trace ``graph`` into ``folder``, apply the passes, and say what the lint finds in each of :data:`VARIANTS`."""
    source = folder / f"{graph.spec.name}.{FP32}.onnx"
    trace(graph, source)
    found = {}
    for variant in VARIANTS:
        path = folder / f"{graph.spec.name}.{variant}.onnx"
        if variant != FP32:
            apply(variant, source, path, feeds, Options())
        found[variant] = tuple(lint(onnx.load(path)))
    return found


def lint_preset(name: str) -> Iterator[Linted]:
    """Every graph of preset ``name`` in every variant, as it is linted."""
    found = full(name)
    feeds = noise(found, preset(name))
    for label, graph in itertools.chain(((n, g) for n, g in found.items() if n != "fusion"), fusions(name)):
        with tempfile.TemporaryDirectory() as folder:
            for variant, findings in lint_graph(graph, feeds[graph.spec.name], Path(folder)).items():
                yield Linted(name, label, variant, findings)


def main() -> None:
    """Lint the presets that are named, or all; exit with 4 if anything is found."""
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
