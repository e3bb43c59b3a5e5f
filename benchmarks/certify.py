"""Certificates: every engine and precision beside each other on this machine, judged by a budget."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from simmim_export.benchmarks import driver, suites
from simmim_export.bundle import Bundle
from simmim_export.engines import ENGINES, get_engine, versions
from simmim_export.engines.base import Engine
from simmim_export.errors import BundleError, EngineUnavailable, UsageError
from simmim_export.proof.budget import Budget, NotJudged, Promised, promised
from simmim_export.proof.certificate import PLANNED
from simmim_export.proof.examine import Examiner, reproduction, require_evidence, suspicions
from simmim_export.proof.records import Certificate, CertifiedGraph, Figures, Line, verdict
from simmim_export.runtime.loading import compiled, plan_of
from simmim_export.spec import Precision, PrecisionPlan, Variant
from simmim_export.system.files import digest
from simmim_export.system.host import fingerprint
from simmim_export.system.plain import as_json
from simmim_export.system.watch import Watch

# The types of nodes that run at a precision, as proofs of engines name them.
_KINDS = {Precision.FP16: ("float16",), Precision.BF16: ("bfloat16",), Precision.INT8: ("int8", "uint8")}


def candidates(bundle: Bundle) -> tuple[list[driver.Contestant], list[str]]:
    """Every engine that can run the bundle's graphs here, at every precision that both support and at its precision plan; and
    the reasons why others are left out. Raise :class:`EngineUnavailable` if there are no candidates."""
    contestants, skipped = [], []
    for name in ENGINES:
        engine = get_engine(name)
        reason = engine.why_unavailable()
        if engine.reads_checkpoint:
            continue
        if reason is not None:
            skipped.append(f"{name}: {reason}")
            continue
        wanted = {str(precision): PrecisionPlan(precision) for precision in Precision}
        if name in bundle.manifest.plans:
            try:
                plan = plan_of(bundle, name, precision=PLANNED)
            except EngineUnavailable as error:
                skipped.append(f"{name}:{PLANNED}: {error.what}")
            else:
                if plan.graphs:  # a plan with one precision for all graphs is already among them
                    wanted[PLANNED] = plan
        for asked, plan in wanted.items():
            try:
                _require(bundle, engine, plan)
            except (EngineUnavailable, BundleError) as error:
                skipped.append(f"{name}:{asked}: {error.what}")
            else:
                contestants.append(driver.Contestant(name, asked))
    if not contestants:
        raise EngineUnavailable("no engine can run this bundle here: " + "; ".join(skipped), where=bundle.root)
    return contestants, skipped


def _require(bundle: Bundle, engine: Engine, plan: PrecisionPlan) -> None:
    for graph in bundle.manifest.graphs:
        bundle.artifact(graph.name, *engine.variants(plan.of(graph.name)))
        # An engine that compiles ahead of time is a candidate only if it did.
        compiled(bundle, engine, graph=graph.name, plan=plan)


def certify(
    path: Path,
    contestants: Sequence[driver.Contestant],
    *,
    budget: Budget,
    strict: bool,
    rounds: int,
    watch: Watch,
) -> list[Certificate]:
    """A certificate for each of ``contestants``, measured together in alternated rounds.

    If the budget is ``strict``, raise :class:`UsageError` for a limit that the bundle's evidence cannot judge; otherwise the
    certificates list such limits. Raise :class:`BundleError` for evidence that is missing, does not fit or can judge nothing, and
    :class:`UsageError` for the engine that the others are compared with.
    """
    bundle = Bundle.open(path)
    of, left_out = judgeable(bundle, budget, strict)
    for contestant in contestants:
        if get_engine(contestant.engine).reads_checkpoint:
            what = f"engine {contestant.engine!r} is the one that the others are compared with"
            raise UsageError(what, fix="name another --engine, or omit it to certify every engine here")
    witness = choose_witness(bundle, contestants)
    graphs = [graph.name for graph in bundle.manifest.graphs]
    plan = driver.Plan(
        bundle=path,
        checkpoint=None,
        engines=contestants,
        jobs=[job for job in suites.latency(suites.Request.of(path)) if job.target.startswith("pipeline:")],
        graphs=graphs,
        rounds=rounds,
        warmup=3,
        evidence=True,
    )
    run = datetime.now(UTC).isoformat(timespec="seconds")
    measured = driver.measure(plan, watch)
    witnessed = references(bundle, contestants, measured, witness, plan, watch)
    certificates = []
    for contestant in contestants:
        info = measured.engines[str(contestant)]
        precisions = plan_of(bundle, contestant.engine, precision=contestant.precision)
        engine = get_engine(contestant.engine)
        rows = {}
        for name in graphs:
            own = compiled(bundle, engine, graph=name, plan=precisions)
            artifact = bundle.artifact(name, *engine.variants(precisions.of(name)))
            rows[name] = {
                "artifact": artifact.sha256,
                "variant": artifact.variant,
                "precision": str(precisions.of(name)),
                "parity": info["parity"][name],
                "invariance": info["invariance"][name],
                "executed": info["proof"][name],
                "compiled": None if own is None else digest(own),
            }
        latency = {
            result.target.partition(":")[2]: statistics.median(statistics.median(part) for part in result.rounds)
            for result in measured.results
            if (result.engine, result.precision) == (contestant.engine, contestant.precision)
        }
        figures = info["figures"]
        judged, unjudged = budget.judge(figures, of=of, left_out=left_out)
        lines = _typed(
            msgspec.to_builtins(
                [*judged, *lowered(rows, unchanged(bundle, engine, precisions)), witnessed[contestant]]
            ),
            tuple[Line, ...],
        )
        proven = _typed(rows, dict[str, CertifiedGraph])
        words = ["simmim-export", "certify", str(path), "--engine", f"{contestant.engine}:{contestant.precision}"]
        words += [*(["--budget", str(budget)] if strict else []), "--rounds", str(rounds)]
        certificates.append(
            Certificate(
                engine=contestant.engine,
                precision=contestant.precision,
                plan=str(precisions),
                host=fingerprint(),
                versions=dict(versions(contestant.engine)),
                graphs=proven,
                figures=_typed(figures, Figures),
                latency=latency,
                budget=str(budget),
                lines=lines,
                not_judged=tuple(one.record() for one in unjudged),
                suspicious=tuple(suspicions(figures)),
                passed=verdict(lines, proven),
                command=shlex.join(words),
                run=run,
            )
        )
    return certificates


def _typed(value: Any, kind: Any) -> Any:
    """``value`` as a record of a certificate. Raise :class:`msgspec.ValidationError` if it lacks a figure."""
    return msgspec.convert(as_json(value), type=kind)


def judgeable(bundle: Bundle, budget: Budget, strict: bool) -> tuple[Promised, list[NotJudged]]:
    """What ``bundle`` promises, and the limits of ``budget`` that its evidence cannot judge. PyTorch's own figures show this
    before any engine runs. Raises as :func:`certify` does."""
    evidence, of = require_evidence(bundle), promised(bundle.manifest)
    known = Examiner(bundle.manifest, evidence, tokens=lambda texts: {}).figures(evidence.reference)
    if strict:
        budget.require_measurable(known, of=of)
    left_out = budget.not_judged(known, of=of)
    if not budget.lines(known, of=of, without=[one.name for one in left_out]):
        what = f"the evidence is not enough to judge anything of {budget}: {left_out[0].why}"
        raise BundleError(what, where=bundle.root, fix=left_out[0].fix)
    return of, left_out


def choose_witness(bundle: Bundle, contestants: Sequence[driver.Contestant]) -> driver.Contestant:
    """The engine that runs the bundle's graphs at FP32, to show that they give the references in the evidence.

    It is a contestant at FP32, or else an engine that is installed here, preferably a contestant's. Raise
    :class:`EngineUnavailable` if none can run them.
    """
    for contestant in contestants:
        if contestant.precision == driver.FP32:
            return contestant
    reasons = []
    for name in dict.fromkeys((*(contestant.engine for contestant in contestants), *ENGINES)):
        engine = get_engine(name)
        if engine.reads_checkpoint or engine.why_unavailable() is not None:
            continue
        try:
            _require(bundle, engine, PrecisionPlan())
        except (EngineUnavailable, BundleError) as error:
            reasons.append(f"{name}: {error.what}")
        else:
            return driver.Contestant(name)
    what = "no engine runs the graphs at FP32 here, so the references cannot be checked: " + "; ".join(reasons)
    raise EngineUnavailable(what, where=bundle.root, fix="pip install 'simmim-export[ort]'")


def references(
    bundle: Bundle,
    contestants: Sequence[driver.Contestant],
    measured: driver.Measured,
    witness: driver.Contestant,
    plan: driver.Plan,
    watch: Watch,
) -> dict[driver.Contestant, Line]:
    """For each contestant the line that says whether the graphs at FP32 give the references in the evidence. Without this line,
    altered references could make any precision look exact.

    A contestant at FP32 has its own line. Another one has the line of its engine at FP32 if that was measured, else that of
    ``witness``, which runs now if it is not a contestant.
    """
    exact = [graph.name for graph in bundle.manifest.graphs]
    figures = {c: measured.engines[str(c)]["figures"] for c in contestants if c.precision == driver.FP32}
    if witness not in figures:
        watch(f"what {witness} at FP32 gives for the references", 0, 1)
        figures[witness] = driver.examine(witness, plan=plan)
    lines = dict[driver.Contestant, Line]()
    for contestant, own in figures.items():
        line = reproduction(bundle.manifest, own, exact=exact)
        if line is None:
            raise BundleError("the evidence holds no reference", where=bundle.root, fix="export the bundle again")
        lines[contestant] = line
    by_engine = {contestant.engine: line for contestant, line in lines.items()}
    return {c: lines.get(c) or by_engine.get(c.engine) or lines[witness] for c in contestants}


def unchanged(bundle: Bundle, engine: Engine, plan: PrecisionPlan) -> list[str]:
    """The graphs whose file for their precision in ``plan`` is a copy of the FP32 file, because the pass had nothing to change.
    A graph that ``engine`` lowers from the FP32 file by itself is not among them."""
    same = []
    for name in (graph.name for graph in bundle.manifest.graphs):
        artifact = bundle.artifact(name, *engine.variants(plan.of(name)))
        if artifact.variant is not Variant.FP32 and artifact.sha256 == bundle.artifact(name, Variant.FP32).sha256:
            same.append(name)
    return same


def lowered(graphs: Mapping[str, Mapping[str, Any]], untouched: Collection[str] = ()) -> list[Line]:
    """A line for every precision below FP32 that ``graphs`` were asked for: in how many of them at least one node ran at that
    precision. Graphs in ``untouched`` do not count, because none of their nodes can."""
    asked: dict[Precision, list[bool]] = {}
    for name, row in graphs.items():
        precision, executed = Precision(row["precision"]), row["executed"]["executed"]
        if precision in _KINDS and name not in untouched:
            asked.setdefault(precision, []).append(any(executed.get(kind) for kind in _KINDS[precision]))
    return [
        Line(name=f"graphs in {precision}", measured=sum(ran), allowed=f"all {len(ran)}", kept=all(ran))
        for precision, ran in asked.items()
    ]
