"""Certificates: every engine and precision beside each other on this machine, judged by a budget.

Knows the driver's figures and the form of a certificate. Must not know how anything is measured.
"""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from simmim_export.benchmarks import driver
from simmim_export.bundle import Bundle
from simmim_export.certificate import Certificate
from simmim_export.engines import ENGINES, get_engine, versions
from simmim_export.engines.base import Engine, require_host
from simmim_export.errors import BundleError, EngineUnavailable, UsageError
from simmim_export.files import digest
from simmim_export.host import fingerprint
from simmim_export.proof.budget import Budget
from simmim_export.proof.examine import Examiner, require_evidence
from simmim_export.runtime.runtime import PLANNED, compiled, plan_of
from simmim_export.spec import Precision, PrecisionPlan

Watch = Callable[[str, int, int], None]
# The types of nodes that run at a precision, as proofs of engines name them.
_KINDS = {Precision.FP16: ("float16",), Precision.BF16: ("bfloat16",), Precision.INT8: ("int8", "uint8")}


def candidates(bundle: Bundle) -> tuple[list[driver.Contestant], list[str]]:
    """Every engine that runs here from the bundle's graphs, at every precision that it has and the bundle holds, and at its
    plan; and why the others are none. Raise :class:`EngineUnavailable` if none is left."""
    found, skipped = [], []
    for name in ENGINES:
        engine = get_engine(name)
        reason = engine.why_unavailable()
        if engine.reads_checkpoint:
            continue
        if reason is not None:
            skipped.append(f"{name}: {reason}")
            continue
        wanted = {str(precision): PrecisionPlan(precision) for precision in Precision}
        plan = PrecisionPlan.parse(bundle.manifest.plans[name]) if name in bundle.manifest.plans else PrecisionPlan()
        if plan.graphs:  # one of a single precision for all graphs is among them already
            wanted[PLANNED] = plan
        for asked, plan in wanted.items():
            try:
                _require(bundle, engine, plan)
            except (EngineUnavailable, BundleError) as error:
                skipped.append(f"{name}:{asked}: {error.what}")
            else:
                found.append(driver.Contestant(name, asked))
    if not found:
        raise EngineUnavailable("no engine can run this bundle here: " + "; ".join(skipped), where=bundle.root)
    return found, skipped


def _require(bundle: Bundle, engine: Engine, plan: PrecisionPlan) -> None:
    for graph in bundle.manifest.graphs:
        artifact = bundle.artifact(graph.name, engine.variant(plan.of(graph.name)))
        require_host(engine, artifact.built_for, artifact.path)
        # What is compiled ahead of time and is not yet is no candidate.
        compiled(bundle, engine, graph.name, plan)


def certify(
    path: Path, contestants: Sequence[driver.Contestant], budget: Budget, strict: bool, rounds: int, watch: Watch
) -> list[Certificate]:
    """A certificate for each of ``contestants``, measured together: latencies are of alternated rounds.

    Of a ``strict`` budget every limit must be measurable on what travels with the bundle, else :class:`UsageError`; of
    another those that are not are left out. Raise :class:`BundleError` for a bundle without evidence, which proves nothing,
    and :class:`UsageError` for an engine that is itself what the others are compared with.
    """
    bundle = Bundle.open(path)
    evidence = require_evidence(bundle)
    # PyTorch's own figures say what can be judged, before engines are asked for minutes.
    known = Examiner(bundle.manifest, evidence, lambda texts: {}).figures(evidence.reference)
    judged = budget if strict else budget.measurable(known)
    judged.require_measurable(known)
    for contestant in contestants:
        if get_engine(contestant.engine).reads_checkpoint:
            what = f"engine {contestant.engine!r} is what the others are proven by"
            raise UsageError(what, fix="name another --engine, or none for all that there are")
    targets = [f"pipeline:{pipeline.name}" for pipeline in bundle.manifest.pipelines]
    graphs = [graph.name for graph in bundle.manifest.graphs]
    plan = driver.Plan(path, None, contestants, targets, graphs, 1, rounds, iterations=20, warmup=3, evidence=True)
    run = datetime.now(UTC).isoformat(timespec="seconds")
    measured = driver.measure(plan, watch)
    found = []
    for contestant in contestants:
        info = measured.engines[str(contestant)]
        precisions = plan_of(bundle, contestant.engine, contestant.precision)
        engine = get_engine(contestant.engine)
        rows = {
            name: {
                "artifact": bundle.artifact(name, engine.variant(precisions.of(name))).sha256,
                "precision": str(precisions.of(name)),
                "parity": info["parity"][name],
                "invariance": info["invariance"][name],
                "executed": info["proof"][name],
                "compiled": None if (own := compiled(bundle, engine, name, precisions)) is None else digest(own),
            }
            for name in graphs
        }
        latency = {
            result.target.partition(":")[2]: statistics.median(statistics.median(part) for part in result.rounds)
            for result in measured.results
            if (result.engine, result.precision) == (contestant.engine, contestant.precision)
        }
        figures = info["figures"]
        untouched = unchanged(bundle, engine, precisions)
        lines = tuple(line.as_row() for line in judged.lines(figures)) + lowered(rows, untouched)
        found.append(
            Certificate(
                contestant.engine,
                contestant.precision,
                str(precisions),
                fingerprint(),
                dict(versions(contestant.engine)),
                rows,
                figures,
                latency,
                str(judged),
                lines,
                all(line["kept"] for line in lines) and all(row["passed"] for row in info["parity"].values()),
                shlex.join(
                    ["simmim-export", "certify", str(path), "--engine", f"{contestant.engine}:{contestant.precision}"]
                )
                + (f" --budget {judged}" if judged.limits else "")
                + f" --rounds {rounds}",
                run,
            )
        )
    return found


def unchanged(bundle: Bundle, engine: Engine, plan: PrecisionPlan) -> list[str]:
    """The graphs of which a pass made another file for their precision in ``plan``, and found nothing to change. An engine that
    lowers the FP32 file by itself has none: there is always something that it could."""
    variants = {graph.name: engine.variant(plan.of(graph.name)) for graph in bundle.manifest.graphs}
    exact = {name: bundle.artifact(name, "fp32").sha256 for name in variants}
    return [n for n, v in variants.items() if v != "fp32" and bundle.artifact(n, v).sha256 == exact[n]]


def lowered(graphs: Mapping[str, Mapping[str, Any]], untouched: Collection[str] = ()) -> tuple[dict[str, Any], ...]:
    """A line, as of a budget, for every precision below FP32 that ``graphs`` were asked for: of how many at least one node ran at
    it. In those of ``untouched`` there is nothing that could."""
    asked: dict[Precision, list[bool]] = {}
    for name, row in graphs.items():
        precision, executed = Precision(row["precision"]), row["executed"]["executed"]
        if precision in _KINDS and name not in untouched:
            asked.setdefault(precision, []).append(any(executed.get(kind) for kind in _KINDS[precision]))
    return tuple(
        {"name": f"graphs in {precision}", "found": sum(ran), "allowed": f"all {len(ran)}", "kept": all(ran)}
        for precision, ran in asked.items()
    )
