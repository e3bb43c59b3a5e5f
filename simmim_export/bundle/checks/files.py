"""Checks what a manifest says about its files, its precision plans and its metrics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import msgspec

from simmim_export.bundle.checks.problem import Problem, refusal
from simmim_export.bundle.golden import FILE as GOLDEN
from simmim_export.bundle.schema import metrics_row
from simmim_export.errors import UsageError
from simmim_export.spec import Precision, PrecisionPlan, Variant

if TYPE_CHECKING:
    from simmim_export.bundle.manifest import Manifest

REQUIRED_FILES = ("tokenizer.json", GOLDEN)
# The manifest itself, and what a device writes.
RESERVED = ("manifest.json", "certificate.json", "engines")


def file_problems(manifest: Manifest) -> Iterator[Problem]:
    """Artifacts and files that are missing, are there twice, or are named by a path that not every system understands."""
    yield from _artifacts(manifest)
    yield from (("$.files", f"{name} is missing") for name in REQUIRED_FILES if name not in manifest.files)
    named = [(f"$.files.{path}", path) for path in manifest.files]
    named += [(f"$.artifacts[{i}].path", artifact.path) for i, artifact in enumerate(manifest.artifacts)]
    seen = set()
    for place, path in named:
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or "\\" in path or not path.isprintable():
            yield place, f"the path leads outside the bundle, or is not portable: {path!r}"
        elif str(pure) != path or not pure.parts:
            yield place, f"the path {path!r} is not in its shortest form"
        elif pure.parts[0].casefold() in RESERVED:
            yield place, f"the manifest may not name {path}"
        # Some file systems do not distinguish upper case and lower case.
        elif path.casefold() in seen:
            yield place, f"{path} is listed twice"
        seen.add(path.casefold())


def _artifacts(manifest: Manifest) -> Iterator[Problem]:
    graphs, seen = {graph.name for graph in manifest.graphs}, set()
    for index, artifact in enumerate(manifest.artifacts):
        place, key = f"$.artifacts[{index}]", (artifact.graph, artifact.variant, artifact.engine)
        if key in seen:
            yield place, f"{' '.join(part for part in key if part)} is listed twice"
        seen.add(key)
        if artifact.graph not in graphs:
            yield f"{place}.graph", f"unknown graph {artifact.graph}"
        if artifact.precision is not artifact.variant.precision:
            what = f"the precision of {artifact.variant} is {artifact.variant.precision}, not {artifact.precision}"
            yield f"{place}.precision", what
    for index, graph in enumerate(manifest.graphs):
        if (graph.name, Variant.FP32, None) not in seen:
            yield f"$.graphs[{index}]", f"{graph.name} has no fp32 artifact"


def plan_problems(manifest: Manifest) -> Iterator[Problem]:
    """Precision plans that do not parse or that name unknown graphs."""
    for engine, plans in manifest.plans.items():
        for variant, text in plans.items():
            place = f"$.plans.{engine}.{variant}"
            if variant.precision is not Precision.INT8:
                yield place, f"{variant} is not an INT8 variant"
            try:
                PrecisionPlan.parse(text).check(graph.name for graph in manifest.graphs)
            except UsageError as error:
                yield place, error.what


def metrics_problems(manifest: Manifest) -> Iterator[Problem]:
    """Metrics that could not be printed."""
    for name, row in manifest.metrics.items():
        try:
            msgspec.convert(row, metrics_row(row))
        except msgspec.ValidationError as error:
            yield refusal(error, f"$.metrics.{name}")
