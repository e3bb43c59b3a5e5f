"""Searches a precision plan for every engine that is installed, and says in the manifest what the searches measured."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from simmim_export.bundle import Manifest
from simmim_export.engines import get_engine
from simmim_export.export.variants import Choice, Variants
from simmim_export.planning.judge import Judge
from simmim_export.planning.planner import Planned, Planner
from simmim_export.precision.passes import VARIANTS
from simmim_export.proof.budget import Budget
from simmim_export.proof.evidence import FILE as EVIDENCE
from simmim_export.spec import Precision, Variant

# Engines that plans are searched for, where they are installed.
PLANNED_ENGINES = ("ort", "openvino")
GOLDEN, TOKENIZER = "golden.npz", "tokenizer.json"


def search_plans(
    root: Path, manifest: Manifest, *, files: Variants, budget: Budget, watch: Callable[[str, int, int], None]
) -> list[Planned]:
    """A plan within ``budget`` for every engine that runs INT8 here. ``root`` holds the bundle in the making.

    All engines share one INT8 file of each graph: what one of them needs in float is in float for all. An engine is searched for
    again if another one changed a file that its plan uses.
    """
    results: dict[str, Planned] = {}
    waiting = [name for name in PLANNED_ENGINES if get_engine(name).why_unavailable() is None]
    while waiting:
        name = waiting.pop(0)
        with tempfile.TemporaryDirectory() as scratch:
            tokenizer = (root / TOKENIZER).read_text(encoding="utf-8")
            with Judge(name, manifest, tokenizer, root / EVIDENCE, root / GOLDEN) as judge:
                choice = Choice(files, get_engine(name), Path(scratch))
                results[name] = Planner(judge, choice, budget, watch).run()
                results[name].notes.extend(choice.refused.values())
        for graph, groups in results[name].chosen.kept.items():
            if files.keep(graph, groups):
                # What was measured of this graph at INT8 for another engine was another file.
                again = [e for e, plan in results.items() if e != name and plan.chosen.plan.of(graph) is Precision.INT8]
                waiting += [engine for engine in again if engine not in waiting]
    return list(results.values())


def as_table(plan: Planned) -> dict[str, object]:
    """Every trial of a search, for the manifest's provenance."""
    best = plan.pareto()
    rows = [
        {
            "plan": str(tried.plan),
            "float": {graph: list(groups) for graph, groups in tried.kept.items()},
            "why": tried.why,
            "share_of_fp32": round(tried.share, 4),
            "costs": [str(line) for line in tried.lines],
            "fits": tried.fits,
            "pareto": tried in best,
        }
        for tried in plan.tried
    ]
    return {"engine": plan.engine, "chosen": str(plan.chosen.plan), "notes": plan.notes, "tried": rows}


def can_spare(planned: Sequence[Planned], graph: str, variant: Variant) -> bool:
    """Whether a bundle with plans needs no file of ``variant`` of ``graph``: an INT8 file that no plan chose. No plan covers
    TensorRT, so its INT8 file can always be spared."""
    if not planned or variant not in VARIANTS[Precision.INT8]:
        return False
    chosen = any(plan.chosen.plan.of(graph) is Precision.INT8 for plan in planned)
    return variant != Variant.INT8_U8 or not chosen
