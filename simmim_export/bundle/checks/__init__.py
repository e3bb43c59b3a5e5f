"""Checks that the fields of a manifest agree: names exist, orders are possible, sizes match.

The type and the range of each field by itself are in :mod:`simmim_export.bundle.schema`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from simmim_export.bundle.checks.files import file_problems, metrics_problems, plan_problems
from simmim_export.bundle.checks.graphs import graph_problems
from simmim_export.bundle.checks.pipelines import label_problems, pipeline_problems
from simmim_export.bundle.checks.problem import Problem
from simmim_export.bundle.checks.tensors import clip_problems, giver_problems, tensor_problems

if TYPE_CHECKING:
    from simmim_export.bundle.manifest import Manifest


def problems(manifest: Manifest) -> Iterator[Problem]:
    """Everything that is wrong in ``manifest``, whose fields have the types and ranges of the schema."""
    yield from graph_problems(manifest)
    yield from tensor_problems(manifest)
    yield from clip_problems(manifest)
    yield from giver_problems(manifest)
    yield from pipeline_problems(manifest)
    yield from label_problems(manifest)
    yield from file_problems(manifest)
    yield from plan_problems(manifest)
    yield from metrics_problems(manifest)
