"""What is measured: the pipelines asked for and every graph in them, and whether the engines can run those."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from simmim_export.benchmarks.driver import Plan
from simmim_export.bundle import Bundle
from simmim_export.engines.checks import require_host
from simmim_export.errors import UsageError
from simmim_export.runtime import load
from simmim_export.runtime.loading import compiled


def targets(bundle: Path, pipelines: Sequence[str] | None, batch: int) -> tuple[list[str], list[str]]:
    """(targets, graphs) of a bundle: ``graph:NAME`` for each graph used, then ``pipeline:NAME`` for each pipeline.

    Raises :class:`UsageError` for an unknown pipeline or a batch that a graph does not promise.
    """
    manifest = Bundle.open(bundle).manifest
    wanted = [manifest.pipeline(name) for name in pipelines] if pipelines else list(manifest.pipelines)
    graphs = list(dict.fromkeys(name for pipeline in wanted for name in pipeline.graphs))
    limit = min(manifest.graph(name).axis("batch").maximum for name in graphs)
    if batch > limit:
        fix = f"give --batch {limit} or less, or export with --max-batch {batch}"
        raise UsageError(f"batch {batch} is over the bundle's limit of {limit}", fix=fix)
    return [*(f"graph:{name}" for name in graphs), *(f"pipeline:{p.name}" for p in wanted)], graphs


def require(plan: Plan) -> None:
    """Raise the error that an engine of ``plan`` would end with when it opens its graphs, before any process is started.

    A wrong precision or graph is :class:`UsageError`, one that the bundle or the device lacks :class:`EngineUnavailable`, and
    a checkpoint that is not the bundle's :class:`CheckpointError`.
    """
    for each in plan.engines:
        checkpoint = plan.checkpoint if each.reads_checkpoint else None
        with load(each.bundle or plan.bundle, each.engine, precision=each.precision, checkpoint=checkpoint) as model:
            if each.reads_checkpoint:
                continue
            for graph in plan.graphs:
                artifact = model.bundle.artifact(graph, model.engine.variant(model.plan.of(graph)))
                require_host(model.engine, artifact.built_for, where=artifact.path)
                compiled(model.bundle, model.engine, graph=graph, plan=model.plan)
