"""Checks each graph of a manifest by itself: its names, its axes and the size of its tensors."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from simmim_export.bundle.checks.problem import Problem, repeated
from simmim_export.bundle.schema import MAX_TENSOR_BYTES
from simmim_export.spec import BATCH, GraphSpec, Kind

if TYPE_CHECKING:
    from simmim_export.bundle.manifest import Manifest


def graph_problems(manifest: Manifest) -> Iterator[Problem]:
    """What is wrong with each graph alone."""
    yield from repeated("$.graphs", [graph.name for graph in manifest.graphs])
    for index, graph in enumerate(manifest.graphs):
        yield from _names(f"$.graphs[{index}]", graph)
        yield from _axes(f"$.graphs[{index}]", graph)
        yield from _shapes(f"$.graphs[{index}]", graph)


def _names(place: str, graph: GraphSpec) -> Iterator[Problem]:
    seen = set()
    for side, tensors in (("inputs", graph.inputs), ("outputs", graph.outputs)):
        for index, tensor in enumerate(tensors):
            if tensor.name in seen:
                yield f"{place}.{side}[{index}]", f"{tensor.name} is listed twice"
            seen.add(tensor.name)
    logits = [index for index, tensor in enumerate(graph.outputs) if tensor.kind is Kind.LOGITS]
    for index in logits[1:]:
        yield f"{place}.outputs[{index}]", f"{graph.name} gives logits twice"


def _axes(place: str, graph: GraphSpec) -> Iterator[Problem]:
    yield from repeated(f"{place}.axes", [axis.name for axis in graph.axes])
    for index, axis in enumerate(graph.axes):
        there = f"{place}.axes[{index}]"
        if axis.minimum > axis.maximum:
            yield there, f"the minimum {axis.minimum} of {axis.name} exceeds its maximum {axis.maximum}"
        if axis.name == BATCH and axis.minimum != 1:
            yield there, f"{axis.name} must begin at 1, because a user may ask about one image"
        if not any(axis.name in tensor.shape for tensor in graph.inputs):
            yield there, f"no input has the axis {axis.name}"


def _only_shared(graph: GraphSpec) -> bool:
    return all(tensor.shared for tensor in graph.inputs)


def _shapes(place: str, graph: GraphSpec) -> Iterator[Problem]:
    largest = {axis.name: axis.maximum for axis in graph.axes}
    for side, tensors in (("inputs", graph.inputs), ("outputs", graph.outputs)):
        for index, tensor in enumerate(tensors):
            there = f"{place}.{side}[{index}].shape"
            unknown = [size for size in tensor.shape if isinstance(size, str) and size not in largest]
            if unknown:
                yield there, f"{tensor.name} has the axis {unknown[0]}, which the graph does not describe"
                continue
            if tensor.shape[0] != BATCH or BATCH in tensor.shape[1:]:
                yield there, f"the first dimension of {tensor.name}, and no other, must be {BATCH!r}"
            if tensor.shared and (side == "outputs" or tensor.kind is not Kind.HIDDEN or _only_shared(graph)):
                what = f"{tensor.name} is shared: only an input that another graph gives may be, beside one that is not"
                yield f"{place}.{side}[{index}].shared", what
            if prod(tensor.resolve(largest)) * np.dtype(tensor.dtype).itemsize > MAX_TENSOR_BYTES:
                yield there, f"{tensor.name} may take more than {MAX_TENSOR_BYTES / 2**30:.0f} GiB"
