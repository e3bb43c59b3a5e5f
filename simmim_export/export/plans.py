"""Searches a precision plan for every engine that is installed, and tells the manifest what the searches measured."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from simmim_export.bundle import Manifest
from simmim_export.bundle.golden import FILE as GOLDEN
from simmim_export.engines import get_engine
from simmim_export.export.variants import EngineChoices, VariantFiles
from simmim_export.planning.judge import Judge
from simmim_export.planning.planner import Planner, SearchResult
from simmim_export.precision.passes import VARIANTS
from simmim_export.proof.budget import Budget
from simmim_export.proof.evidence import FILE as EVIDENCE
from simmim_export.spec import Precision, Variant
from simmim_export.system.watch import Watch

# Plans are searched for these engines, where they are installed.
PLANNED_ENGINES = ("ort", "openvino")
TOKENIZER = "tokenizer.json"


def search_plans(
    root: Path, manifest: Manifest, *, files: VariantFiles, budget: Budget, watch: Watch
) -> list[SearchResult]:
    """A plan within ``budget`` for every engine that runs INT8 here. ``root`` holds the bundle in the making.

    All engines share one INT8 file of each graph: what one of them needs in float is in float for all. If an engine changes a
    file that the plan of another one uses, the other engine is searched for again.
    """
    results: dict[str, SearchResult] = {}
    waiting = [name for name in PLANNED_ENGINES if get_engine(name).why_unavailable() is None]
    while waiting:
        name = waiting.pop(0)
        with tempfile.TemporaryDirectory() as scratch:
            tokenizer = (root / TOKENIZER).read_text(encoding="utf-8")
            with Judge(name, manifest, tokenizer, root / EVIDENCE, root / GOLDEN) as judge:
                choices = EngineChoices(files, get_engine(name), scratch=Path(scratch))
                result = Planner(judge=judge, choices=choices, budget=budget, watch=watch).run()
                results[name] = replace(result, notes=(*result.notes, *choices.refused.values()))
        for graph, groups in result.chosen.float_groups.items():
            if files.leave_float(graph, groups):
                # Another engine whose plan has this graph at INT8 was measured on the file from before.
                others = [e for e, other in results.items() if e != name and other.plan.of(graph) is Precision.INT8]
                waiting += [engine for engine in others if engine not in waiting]
    return list(results.values())


def as_table(result: SearchResult) -> dict[str, object]:
    """Every trial of a search, for the manifest's provenance."""
    best = result.pareto()
    rows = [
        {
            "plan": str(trial.plan),
            "float": {graph: list(groups) for graph, groups in trial.float_groups.items()},
            "why": trial.reason,
            "share_of_fp32": round(trial.share, 4),
            "costs": [str(line) for line in trial.lines],
            "fits": trial.fits,
            "pareto": trial in best,
        }
        for trial in result.trials
    ]
    return {"engine": result.engine, "chosen": str(result.plan), "notes": list(result.notes), "tried": rows}


def can_spare(searches: Sequence[SearchResult], graph: str, variant: Variant) -> bool:
    """Whether a bundle with plans does not need ``variant`` of ``graph``: an INT8 file that no plan chose. No plan covers
    TensorRT, so its INT8 file can always be spared."""
    if not searches or variant not in VARIANTS[Precision.INT8]:
        return False
    chosen = any(result.plan.of(graph) is Precision.INT8 for result in searches)
    return variant is not Variant.INT8_U8 or not chosen
