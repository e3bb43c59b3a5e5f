"""What simmim-bench measures, and whether the engines can run it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from simmim_export.benchmarks.driver import Plan
from simmim_export.bundle import Bundle
from simmim_export.errors import UsageError
from simmim_export.runtime import load
from simmim_export.runtime.loading import compiled
from simmim_export.spec import BATCH


def targets(bundle: Path, pipelines: Sequence[str] | None, *, batch: int) -> tuple[list[str], list[str]]:
    """(targets, graphs) for ``pipelines``, by default all of the bundle's.

    The targets are ``graph:NAME`` for each graph in them, then ``pipeline:NAME`` for each pipeline. Raise :class:`UsageError`
    for an unknown pipeline, or for a batch that a graph does not accept.
    """
    manifest = Bundle.open(bundle).manifest
    chosen = [manifest.pipeline(name) for name in pipelines] if pipelines else list(manifest.pipelines)
    graphs = list(dict.fromkeys(name for pipeline in chosen for name in pipeline.graphs))
    limit = min(manifest.graph(name).axis(BATCH).maximum for name in graphs)
    if batch > limit:
        fix = f"give --batch {limit} or less, or export with --max-batch {batch}"
        raise UsageError(f"batch {batch} is above the bundle's limit of {limit}", fix=fix)
    return [*(f"graph:{name}" for name in graphs), *(f"pipeline:{p.name}" for p in chosen)], graphs


def require(plan: Plan) -> None:
    """Raise, before any process starts, the error that an engine of ``plan`` would raise when it opens its graphs.

    :class:`UsageError` for a wrong precision or graph, :class:`EngineUnavailable` for one that the bundle or the device lacks,
    :class:`CheckpointError` for a checkpoint that is not the bundle's.
    """
    for each in plan.engines:
        checkpoint = plan.checkpoint if each.reads_checkpoint else None
        with load(each.bundle or plan.bundle, each.engine, precision=each.precision, checkpoint=checkpoint) as model:
            if each.reads_checkpoint:
                continue
            for graph in plan.graphs:
                model.bundle.artifact(graph, *model.engine.variants(model.plan.of(graph)))
                compiled(model.bundle, model.engine, graph=graph, plan=model.plan)
