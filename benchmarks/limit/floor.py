"""The floor of a graph: the least time that its operations and bytes can take on this host.

A floor is ``max(flops / peak, bytes / bandwidth)`` (the roofline of Williams, Waterman and Patterson, 2009), with these rules:

- ``flops`` are those of the graph's products, all at the peak of the row's precision. The rest, such as a softmax, is free.
- ``bytes`` are the graph's inputs and outputs, and its weights as stored in the file; of an embedding table, only the rows that
  are looked up. Of the weights, at most the size of the last-level cache can have stayed there since the call before. If that
  size is unknown, all weights may have stayed.
- ``bandwidth`` is the larger of copying and reading, and the peak of a lower precision is never below that of FP32.

So nothing that uses these products and files can be faster, except by the error of the peaks. The floor of a pipeline is the sum
of its graphs' floors, because they run one after another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from simmim_export.benchmarks.limit.peaks import Peaks
from simmim_export.benchmarks.results import Floor
from simmim_export.bundle import Bundle
from simmim_export.engines import CPU, device_of, get_engine
from simmim_export.errors import UsageError
from simmim_export.precision.cost import Cost, count
from simmim_export.spec import BATCH, Precision, PrecisionPlan, Variant


def floor(cost: Cost, precision: Precision, *, peaks: Peaks) -> Floor | None:
    """The floor of a graph that costs ``cost``; None if this host's peak at ``precision`` was not measured."""
    peak = peaks.of(precision)
    if peak is None:
        return None
    kept = cost.weights if peaks.cache is None else min(cost.weights, peaks.cache)
    moved = cost.values + cost.weights - kept
    compute, memory = cost.flops / peak, moved / peaks.bandwidth
    return Floor(
        seconds=max(compute, memory), flops=cost.flops, bytes=moved, bound="compute" if compute >= memory else "memory"
    )


def floor_of(
    bundle: Bundle, target: str, *, engine: str, plan: PrecisionPlan, sizes: Mapping[str, int], peaks: Peaks
) -> Floor | None:
    """The floor of ``target``, ``graph:NAME`` or ``pipeline:NAME``, at the axis ``sizes``.

    None for an engine that does not run on the processor, and for a precision without a peak. Raise what
    :func:`~simmim_export.precision.cost.count` raises.
    """
    if device_of(engine) != CPU:
        return None
    kind, _, name = target.partition(":")
    graphs = (name,) if kind == "graph" else bundle.manifest.pipeline(name).graphs
    floors = []
    for graph in graphs:
        precision = plan.of(graph)
        # An engine that runs from the checkpoint does the work of the FP32 graph.
        reader = get_engine(engine)
        variants = (Variant.FP32,) if reader.reads_checkpoint else reader.variants(precision)
        variant = bundle.artifact(graph, *variants).variant
        one = floor(cost_of(bundle, graph, variant=variant, sizes=sizes), precision, peaks=peaks)
        if one is None:
            return None
        floors.append(one)
    slowest = max(floors, key=lambda one: one.seconds)
    return Floor(
        seconds=sum(one.seconds for one in floors),
        flops=sum(one.flops for one in floors),
        bytes=sum(one.bytes for one in floors),
        bound=slowest.bound,
    )


def cost_of(bundle: Bundle, graph: str, *, variant: Variant, sizes: Mapping[str, int]) -> Cost:
    """The cost of ``graph`` in ``variant`` at the axis ``sizes``. Raise :class:`EngineUnavailable` for a variant that the bundle
    lacks."""
    return _counted(bundle.file(bundle.artifact(graph, variant).path), tuple(sorted(sizes.items())))


@cache
def _counted(path: Path, sizes: tuple[tuple[str, int], ...]) -> Cost:
    return count(path, dict(sizes))


def golden_sizes(bundle: Bundle, *, batch: int) -> dict[str, int]:
    """The size of every axis in the inputs that the benchmark feeds: the largest golden case, with ``batch`` rows."""
    golden = bundle.golden()
    case = golden.largest()
    sizes: dict[str, int] = {}
    for graph in bundle.manifest.graphs:
        feeds = golden.feeds(case, graph)
        for tensor in graph.inputs:
            shape = feeds[tensor.name].shape
            sizes |= {name: size for name, size in zip(tensor.shape, shape, strict=True) if isinstance(name, str)}
    return sizes | {BATCH: batch}


def chosen_sizes(bundle: Bundle, choices: Sequence[str]) -> dict[str, int]:
    """:func:`golden_sizes` for one row, changed by the ``choices``, each written ``NAME=N``.

    Raise :class:`UsageError` for a choice that is not an axis of the bundle, or for a size that the axis does not have.
    """
    sizes = golden_sizes(bundle, batch=1)
    axes = {axis.name: axis for graph in bundle.manifest.graphs for axis in graph.axes}
    for choice in choices:
        name, equals, size = choice.partition("=")
        if name not in axes or not equals or not size.isdecimal():
            raise UsageError(
                f"--axis {choice!r} is not an axis and a size", fix=f"write NAME=N for {' or '.join(axes)}"
            )
        least, most = axes[name].minimum, axes[name].maximum
        if not least <= int(size) <= most:
            raise UsageError(f"--axis {choice}: {name} has {least} to {most}", fix=f"give --axis {name}={most} or less")
        sizes[name] = int(size)
    return sizes
