"""A checkpoint to a bundle: trace every graph, prove it in ONNX Runtime against PyTorch, publish."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from simmim_export.bundle import Artifact, Bundle, Manifest, Staging, check_draft
from simmim_export.engines import get_engine, require_engine
from simmim_export.errors import GateFailed, LeftOut
from simmim_export.export.description import describe, provenance
from simmim_export.export.golden import make_feeds, make_golden
from simmim_export.export.limits import MAX_BATCH, OPSET, require_batch, require_opset
from simmim_export.export.lower import Lower
from simmim_export.export.onnx import trace
from simmim_export.export.reference import make_evidence
from simmim_export.export.shortcuts import warn_of_shortcuts
from simmim_export.export.variants import Choice, Variants
from simmim_export.models.family import SourceModel, family_of
from simmim_export.planning.judge import Judge
from simmim_export.planning.planner import Planned, Planner
from simmim_export.precision.calibration import Calibration, calibrate
from simmim_export.precision.passes import VARIANTS, Passes, provable
from simmim_export.proof.budget import Budget
from simmim_export.proof.evidence import FILE as EVIDENCE
from simmim_export.proof.parity import Golden, ParityReport, compare
from simmim_export.spec import GraphSpec, Precision, Variant
from simmim_export.system.files import digest

# Engines that INT8 is planned for, where they are installed.
PLANNED_ENGINES = ("ort", "openvino")
GOLDEN, TOKENIZER = "golden.npz", "tokenizer.json"

Progress = Callable[[str, int, int], None]


def _quiet(step: str, done: int, total: int) -> None:
    """The progress of a caller who does not watch."""


@dataclass(frozen=True)
class Exported:
    """The bundle, a parity report for each graph and variant, and for each engine what its planner found."""

    bundle: Bundle
    reports: list[ParityReport]
    planned: list[Planned]


def export_bundle(
    checkpoint: Path,
    output: Path,
    *,
    overwrite: bool = False,
    opset: int = OPSET,
    max_batch: int = MAX_BATCH,
    maps: bool = False,
    lower: Lower = Lower(),
    progress: Progress = _quiet,
) -> Exported:
    """Export every graph of a checkpoint.

    With ``maps``, graphs that can also give where each token looked. ``progress(step, done, total)`` is called before each step.
    Raises :class:`CheckpointError` for the input, :class:`DataError` for the calibration samples, :class:`UsageError` for the
    output, the opset, the batch or a budget that cannot be measured, :class:`GateFailed` if a graph is not clean, differs from
    PyTorch, or no plan keeps the budget. In every case nothing has been written at ``output``.
    """
    require_opset(opset)
    require_batch(max_batch)
    require_engine("ort")
    with Staging(output, overwrite) as staging:
        progress("load the checkpoint", 0, 1)
        family = family_of(checkpoint)
        model = family.load(checkpoint, max_batch=max_batch, attention=maps)
        warn_of_shortcuts(model.metrics)
        origin = provenance(checkpoint, model, opset)
        draft = describe(model, family.name, origin)
        check_draft(draft, checkpoint)
        calibration = _calibration(model, lower)
        export = _Export(model, draft, staging, lower, progress)
        export.write_golden(max_batch)
        export.trace(opset)
        export.write_evidence(checkpoint)
        export.write_variants(calibration)
        export.plan()
        artifacts = export.prove()
        progress("write the bundle", export.total - 1, export.total)
        plans = {plan.engine: str(plan.chosen.plan) for plan in export.planned}
        lowered = export.provenance(calibration)
        manifest = replace(draft, artifacts=tuple(artifacts), provenance=origin | lowered, plans=plans)
        bundle = staging.publish(manifest, (TOKENIZER, GOLDEN, EVIDENCE))
    return Exported(bundle, export.reports, export.planned)


class _Export:
    """The steps of an export, and what each leaves for the next."""

    def __init__(self, model: SourceModel, draft: Manifest, staging: Staging, lower: Lower, progress: Progress) -> None:
        self._model, self._draft, self._staging, self._lower = model, draft, staging, lower
        self._wanted = [
            (name, precision, Variant(variant))
            for name in model.graphs
            for precision in (Precision.FP32, *lower.precisions)
            for variant in VARIANTS.get(precision, (str(precision),))
        ]
        self._progress, self._done = progress, 0
        self.total = len(self._wanted) + 3
        self._folder = staging.add("graphs/x").parent
        self._golden: Golden
        self._variants: Variants | None = None
        self.planned: list[Planned] = []
        self.reports: list[ParityReport] = []

    def _step(self, what: str) -> None:
        self._progress(what, self._done, self.total)
        self._done += 1

    def _within(self, what: str, done: int, of: int) -> None:
        """The progress inside of a step: its words alone."""
        self._progress(f"{what} {done}/{of}", self.total - 2, self.total)

    def _path(self, graph: str, variant: Variant) -> Path:
        return self._folder / f"{graph}.{variant}.onnx"

    def write_golden(self, max_batch: int) -> None:
        self._step("golden tensors")
        self._golden = make_golden(self._model, max_batch)
        self._staging.add(GOLDEN, self._golden.save())
        self._staging.add(TOKENIZER, self._model.tokenizer)

    def trace(self, opset: int) -> None:
        for name, graph in self._model.graphs.items():
            self._step(name)
            trace(graph, self._path(name, Variant.FP32), opset)

    def write_evidence(self, checkpoint: Path) -> None:
        self._step("what PyTorch answers to the evidence")
        evidence = make_evidence(self._model, self._draft, where=checkpoint, watch=self._within)
        self._staging.add(EVIDENCE, evidence.save())

    def write_variants(self, calibration: Calibration | None) -> None:
        if calibration is None:
            return
        self._step("real inputs of every graph")
        passes = Passes(make_feeds(self._model, calibration))
        self._variants = Variants(self._folder, list(self._model.graphs), passes, bool(self._lower.full_range))
        for name, precision, variant in self._wanted:
            if precision is not Precision.FP32:
                self._step(f"{name}.{variant}")
                self._variants.make(name, variant)

    def plan(self) -> None:
        if self._lower.budget is not None and self._variants is not None:
            self.planned = _plan(self._staging, self._draft, self._variants, self._lower.budget, self._within)

    def prove(self) -> list[Artifact]:
        """Compare every file with PyTorch, and describe those that stay in the bundle."""
        artifacts = []
        for name, precision, variant in self._wanted:
            self._progress(f"prove {name}.{variant}", self.total - 1, self.total)
            path, spec = self._path(name, variant), self._model.graphs[name].spec
            try:
                report = _prove(path, variant, spec, precision, self._golden, bool(self.planned))
            except GateFailed as error:
                if not spare(self.planned, name, variant):
                    raise
                reason = error.what.splitlines()[0].rstrip(":")
                what = f"{reason}: no plan needs it, and the bundle has no {variant} of it"
                warnings.warn(what, LeftOut, stacklevel=3)
                path.unlink()
                continue
            self.reports.append(report)
            artifacts.append(
                Artifact(
                    graph=name,
                    variant=variant,
                    path=str(path.relative_to(self._staging.root)),
                    sha256=digest(path),
                    bytes=path.stat().st_size,
                    engine=None,
                    precision=precision,
                    built_for={} if self._variants is None else self._variants.needs(name, variant),
                    parity=report.summary() | {"engine": "ort"},
                )
            )
        return artifacts

    def provenance(self, calibration: Calibration | None) -> dict[str, object]:
        """How the lower precisions were made."""
        rows: dict[str, object] = {}
        if calibration is not None:
            rows = {"calibration": _describe(calibration), "full_range": bool(self._lower.full_range)}
        if self.planned and self._variants is not None:
            rows |= {"planning": [_as_table(plan) for plan in self.planned], "budget": str(self._lower.budget)}
            # One file serves every engine, so this is what any of their plans keeps.
            rows |= {"kept_float": {graph: sorted(groups) for graph, groups in self._variants.kept.items()}}
        return rows


def _calibration(model: SourceModel, lower: Lower) -> Calibration | None:
    if not lower.precisions:
        return None
    return calibrate(model.images, model.texts, lower.calibration, model.preprocessing["image"])


def _describe(samples: Calibration) -> dict[str, object]:
    return {
        "images": len(samples.pixels),
        "texts": len(samples.texts),
        "sha256": samples.digest,
        "source": samples.source,
    }


def _plan(staging: Staging, manifest: Manifest, made: Variants, budget: Budget, watch: Progress) -> list[Planned]:
    """A plan for every engine that runs INT8 here; what one of them needs float is float for all, in one file."""
    found: dict[str, Planned] = {}
    root = staging.root
    waiting = [name for name in PLANNED_ENGINES if get_engine(name).why_unavailable() is None]
    while waiting:
        name = waiting.pop(0)
        with tempfile.TemporaryDirectory() as scratch:
            files = (root / EVIDENCE, root / GOLDEN)
            tokenizer = (root / TOKENIZER).read_text(encoding="utf-8")
            with Judge(name, manifest, tokenizer, *files) as judge:
                choice = Choice(made, get_engine(name), Path(scratch))
                found[name] = Planner(judge, choice, budget, watch).run()
                found[name].notes.extend(choice.refused.values())
        for graph, groups in found[name].chosen.kept.items():
            if made.keep(graph, groups):
                # What was measured of this graph at INT8 for another engine was another file.
                again = [e for e, plan in found.items() if e != name and plan.chosen.plan.of(graph) is Precision.INT8]
                waiting += [engine for engine in again if engine not in waiting]
    return list(found.values())


def _as_table(plan: Planned) -> dict[str, object]:
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


def spare(planned: Sequence[Planned], graph: str, variant: str) -> bool:
    """Whether a bundle that was planned can do without ``variant`` of ``graph``: an INT8 file that no plan chose. What TensorRT
    would run is in no plan."""
    if not planned or variant not in VARIANTS[Precision.INT8]:
        return False
    chosen = any(plan.chosen.plan.of(graph) is Precision.INT8 for plan in planned)
    return variant != VARIANTS[Precision.INT8][0] or not chosen


def _prove(
    path: Path,
    variant: str,
    spec: GraphSpec,
    precision: Precision,
    golden: Golden,
    planned: bool,
) -> ParityReport:
    with tempfile.TemporaryDirectory() as scratch:
        session = require_engine("ort").open(provable(variant, path, Path(scratch)), spec, precision=Precision.FP32)
        report = replace(compare(session, spec, golden, precision), variant=variant)
        session.close()
    fix = "report this with the versions that simmim-export doctor prints"
    if precision is Precision.INT8:
        fix = "calibrate on more samples with --calibration, or leave out --precision int8"
        if not planned:
            fix = f"add --budget, which keeps in float what needs it; {fix}"
    elif precision is not Precision.FP32:
        fix = f"leave out --precision {precision}"
    report.require(spec.name, fix)
    return report
