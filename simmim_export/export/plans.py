"""Searches a precision plan for every engine that is installed, and tells the manifest what the searches measured."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from simmim_export.bundle import Manifest
from simmim_export.bundle.golden import FILE as GOLDEN
from simmim_export.engines import get_engine
from simmim_export.errors import GateFailed
from simmim_export.export.variants import EngineChoices, VariantFiles
from simmim_export.planning.judge import Judge
from simmim_export.planning.planner import Planner, SearchResult
from simmim_export.proof.budget import Budget
from simmim_export.proof.evidence import FILE as EVIDENCE
from simmim_export.spec import Precision, PrecisionPlan, Variant
from simmim_export.system.watch import Watch

# Plans are searched for these engines, where they are installed.
PLANNED_ENGINES = ("ort", "openvino")
TOKENIZER = "tokenizer.json"


def search_plans(
    root: Path, manifest: Manifest, *, files: VariantFiles, budget: Budget, watch: Watch
) -> list[SearchResult]:
    """Plans within ``budget`` for every engine that runs INT8 here: one for the INT8 variant that it takes on this processor, and
    one for each other variant that is exact here too, because other processors take that. ``root`` holds the bundle in the
    making.

    All engines share one file of each graph and variant: what one of them needs in float is in float for all. If an engine
    changes a file that the plan of another one uses, the other engine is searched for again.

    Where a variant is not exact, its files leave in float what those of the variant that was measured do.

    Raise :class:`GateFailed` if no plan for the variant of this processor is within the budget. If that is so for another
    variant, the notes say it, and the variant has no plan.
    """
    results: dict[tuple[str, Variant], SearchResult] = {}
    failures: dict[tuple[str, Variant], tuple[str, ...]] = {}
    engines = {n: get_engine(n) for n in PLANNED_ENGINES if get_engine(n).why_unavailable() is None}
    waiting = [(name, variant) for name, engine in engines.items() for variant in engine.variants(Precision.INT8)]

    def leave_float(name: str, variant: Variant, float_groups: Mapping[str, Collection[str]]) -> None:
        for graph, groups in float_groups.items():
            if files.leave_float(graph, variant, groups=groups):
                # Another engine whose plan has this graph at INT8 was measured on the file from before.
                others = [key for key in results if key[0] != name and key[1] is variant and key not in waiting]
                waiting.extend(key for key in others if results[key].plan.of(graph) is Precision.INT8)

    while waiting:
        name, variant = waiting.pop(0)
        own = engines[name].variants(Precision.INT8)[0]
        like = None if variant is own else results[name, own].plan
        if like is not None:
            # Whatever 8 bits need in float, 7 bits need in float as well.
            leave_float(name, variant, results[name, own].chosen.float_groups)
        try:
            result = _search(
                root, manifest, files=files, budget=budget, watch=watch, engine=name, variant=variant, like=like
            )
        except GateFailed as error:
            if like is None:
                raise
            results.pop((name, variant), None)
            failures[name, own] = (f"{name} has no plan for processors that take {variant}: {error.what}",)
            continue
        results[name, variant] = result
        leave_float(name, variant, result.chosen.float_groups)
    if not any(variant is Variant.INT8_DOT for _, variant in results):
        for graph in files.graphs:
            files.leave_float(graph, Variant.INT8_DOT, groups=files.floats(graph, Variant.INT8_U8))
    return [replace(result, notes=result.notes + failures.get(key, ())) for key, result in results.items()]


def _search(
    root: Path,
    manifest: Manifest,
    *,
    engine: str,
    variant: Variant,
    like: PrecisionPlan | None,
    files: VariantFiles,
    budget: Budget,
    watch: Watch,
) -> SearchResult:
    """One search; see :meth:`Planner.run`."""
    tokenizer = (root / TOKENIZER).read_text(encoding="utf-8")
    with (
        tempfile.TemporaryDirectory() as scratch,
        Judge(engine, manifest, tokenizer, root / EVIDENCE, root / GOLDEN) as judge,
    ):
        choices = EngineChoices(files, get_engine(engine), int8=variant, scratch=Path(scratch))
        return Planner(judge=judge, choices=choices, budget=budget, watch=watch).run(like=like)


def plans_of(searches: Sequence[SearchResult]) -> dict[str, dict[Variant, str]]:
    """The plan of every engine for each INT8 variant that it takes on some processor.

    int8-dot cannot be measured where it is not exact. There it has the plan of int8-u8, whose weights have one bit less.
    """
    plans: dict[str, dict[Variant, str]] = {}
    for result in searches:
        plans.setdefault(result.engine, {})[result.variant] = str(result.plan)
    for own in plans.values():
        if Variant.INT8_DOT not in own:
            own[Variant.INT8_DOT] = own[Variant.INT8_U8]
    return plans


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
    return {
        "engine": result.engine,
        "variant": result.variant,
        "chosen": str(result.plan),
        "notes": list(result.notes),
        "tried": rows,
    }


def can_spare(searches: Sequence[SearchResult], graph: str, variant: Variant) -> bool:
    """Whether a bundle with plans does not need ``variant`` of ``graph``: an INT8 file that no plan chose. No plan covers
    TensorRT, so its INT8 file can always be spared."""
    if not searches or variant.precision is not Precision.INT8:
        return False
    chosen = (PrecisionPlan.parse(own[variant]) for own in plans_of(searches).values() if variant in own)
    return not any(plan.of(graph) is Precision.INT8 for plan in chosen)
