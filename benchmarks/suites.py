"""What is measured: the pipelines asked for, and every graph in them. Knows names; must not know engines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from simmim_export.bundle import Bundle
from simmim_export.errors import UsageError


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
