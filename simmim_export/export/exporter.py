"""Turns a checkpoint into a bundle: traces every graph, writes its lower precisions, and compares every file with PyTorch.

:func:`assemble` is all of it but loading the model. A model that came as ONNX files goes through it as well.
"""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

from simmim_export.bundle import Artifact, Bundle, Manifest, Staging, check_draft
from simmim_export.bundle.golden import FILE as GOLDEN
from simmim_export.bundle.golden import Golden
from simmim_export.engines import require_engine
from simmim_export.errors import GateFailed, LeftOut, UsageError
from simmim_export.export.bundled_samples import with_samples
from simmim_export.export.description import describe, provenance
from simmim_export.export.evidence_folder import require_evidence, with_evidence
from simmim_export.export.golden import make_feeds, make_golden
from simmim_export.export.limits import MAX_BATCH, OPSET, require_batch, require_opset
from simmim_export.export.lower import Lower
from simmim_export.export.origin import AnyModel, parameters_of, reference_of, write_fp32
from simmim_export.export.plans import TOKENIZER, as_table, can_spare, plans_of, search_plans
from simmim_export.export.reference import make_evidence
from simmim_export.export.shortcuts import warn_of_shortcuts
from simmim_export.export.variants import VariantFiles
from simmim_export.export.work import (
    EVIDENCE_STEP,
    GOLDEN_STEP,
    INPUTS_STEP,
    PROVE_STEP,
    SEARCH_STEP,
    WRITE_STEP,
    file_step,
    work_of,
)
from simmim_export.models.family import LoadOptions, SourceModel, family_of
from simmim_export.planning.planner import SearchResult
from simmim_export.precision.calibration import Calibration, calibrate
from simmim_export.precision.passes import CachedPasses, provable, variants_of
from simmim_export.proof.evidence import FILE as EVIDENCE
from simmim_export.proof.parity import ParityReport, compare
from simmim_export.spec import GraphSpec, Kind, Precision, Reference, Variant
from simmim_export.system.files import digest
from simmim_export.system.watch import Watch, unwatched


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The bundle, a parity report for each graph and variant, and the search for a plan for each engine."""

    bundle: Bundle
    reports: list[ParityReport]
    searches: list[SearchResult]


def export_bundle(
    checkpoint: Path,
    output: Path,
    *,
    overwrite: bool = False,
    opset: int = OPSET,
    max_batch: int = MAX_BATCH,
    attention: bool = False,
    answers: tuple[str, ...] = (),
    image_size: tuple[int, int] | None = None,
    family: str = "",
    lower: Lower = Lower(),
    evidence: Path | None = None,
    progress: Watch = unwatched,
) -> Exported:
    """Export every graph of ``checkpoint`` to a bundle at ``output``.

    ``max_batch``, ``attention``, ``answers`` and ``image_size`` are those of
    :class:`simmim_export.models.family.LoadOptions`. ``family`` names the model family; by default it is the one that recognizes
    the checkpoint. ``lower`` says what to write besides FP32. ``evidence`` is a folder to judge a model by that has no labeled
    examples (:mod:`simmim_export.export.evidence_folder`). ``progress(step, done, total)`` is called before each step.

    Raise :class:`CheckpointError` for the input; :class:`DataError` for the calibration samples and the evidence, and
    :class:`ImageError` and :class:`TextError` for one of its files; :class:`UsageError` for the output, the opset, the batch, an
    option that the model has no use for, and a budget that cannot be measured;
    :class:`GateFailed` if a graph is not clean or differs from PyTorch, or no plan is within the budget. In every case nothing
    has been written at ``output``.
    """
    require_opset(opset)
    require_batch(max_batch)
    require_engine("ort")
    if evidence is not None:
        require_evidence(evidence, lower.calibration)
    with Staging(output, overwrite) as staging:
        progress("load the checkpoint", 0, 1)
        chosen = family_of(checkpoint, name=family)
        options = LoadOptions(max_batch=max_batch, attention=attention, answers=answers, image_size=image_size)
        model = with_samples(chosen.load(checkpoint, options))
        _check_attention(model, asked=attention)
        warn_of_shortcuts(model.metrics)
        origin = provenance(checkpoint, model, opset=opset)
        draft = describe(model, chosen.name, provenance=origin)
        check_draft(draft, checkpoint)
        return assemble(
            model,
            draft,
            staging=staging,
            max_batch=max_batch,
            opset=opset,
            where=checkpoint,
            lower=lower,
            evidence=evidence,
            progress=progress,
        )


def _check_attention(model: SourceModel, *, asked: bool) -> None:
    if asked and not any(t.kind is Kind.ATTENTION for graph in model.graphs.values() for t in graph.spec.outputs):
        what = f"no graph of the model {model.config['preset']!r} can give where a token looked"
        raise UsageError(what, fix="leave out --attention")


def assemble(
    model: AnyModel,
    draft: Manifest,
    *,
    staging: Staging,
    max_batch: int,
    opset: int,
    where: Path,
    lower: Lower,
    evidence: Path | None,
    progress: Watch,
) -> Exported:
    """All of an export that comes after ``model`` was loaded and its ``draft`` was checked: write its files to ``staging``,
    compare them with the reference, and publish the bundle. ``where`` names the model in messages. Raise as
    :func:`export_bundle` does."""
    if evidence is not None:
        model = with_evidence(model, evidence, draft)
    calibration = _calibration(model, lower)
    steps = _Steps(model=model, draft=draft, staging=staging, lower=lower, progress=progress)
    golden = steps.write_golden(max_batch)
    steps.write_fp32(opset)
    steps.write_evidence(where)
    files = steps.write_variants(calibration)
    searches = steps.search_plans(files)
    reports = steps.prove(golden, searches=searches)
    steps.begin(WRITE_STEP)
    manifest = replace(
        draft,
        artifacts=tuple(steps.artifact(report) for report in reports),
        plans=plans_of(searches),
        provenance={**draft.provenance, **_how_lowered(calibration, lower, files=files, searches=searches)},
    )
    bundle = staging.publish(manifest, (TOKENIZER, GOLDEN, EVIDENCE))
    return Exported(bundle=bundle, reports=reports, searches=searches)


def _calibration(model: AnyModel, lower: Lower) -> Calibration | None:
    """The samples that the lower precisions are calibrated on; None if none are asked for."""
    if not lower.precisions:
        return None
    image = model.preprocessing["image"]
    return calibrate(model.images, model.texts, folder=lower.calibration, preprocessing=image)


@dataclass(kw_only=True)
class _Steps:
    """The steps of an export that write files, each with its progress."""

    model: AnyModel
    draft: Manifest
    staging: Staging
    lower: Lower
    progress: Watch
    _done: int = field(default=0, init=False)
    _step: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self._folder = self.staging.add("graphs/x").parent
        self._wanted = [
            (graph, variant) for graph in self.model.graphs for variant in variants_of(self.lower.precisions)
        ]
        parameters = {name: parameters_of(graph) for name, graph in self.model.graphs.items()}
        self._work = work_of(parameters, self._wanted, searches=self.lower.budget is not None)

    def begin(self, step: str) -> None:
        self._done += self._work.get(self._step, 0)
        self._step = step
        self.progress(step, self._done, sum(self._work.values()))

    def _within(self, what: str, done: int, of: int) -> None:
        """The progress inside a step."""
        share = self._work[self._step] * done // max(of, 1)
        self.progress(f"{self._step}: {what} {done}/{of}", self._done + share, sum(self._work.values()))

    def _path(self, graph: str, variant: Variant) -> Path:
        return self._folder / f"{graph}.{variant}.onnx"

    def write_golden(self, max_batch: int) -> Golden:
        self.begin(GOLDEN_STEP)
        golden = make_golden(self.model, max_batch)
        self.staging.add(GOLDEN, golden.save())
        self.staging.add(TOKENIZER, self.model.tokenizer)
        return golden

    def write_fp32(self, opset: int) -> None:
        for name, graph in self.model.graphs.items():
            self.begin(file_step(name, Variant.FP32))
            write_fp32(graph, self._path(name, Variant.FP32), opset=opset)

    def write_evidence(self, checkpoint: Path) -> None:
        self.begin(EVIDENCE_STEP)
        budget = self.lower.budget
        evidence = make_evidence(self.model, self.draft, where=checkpoint, watch=self._within, budget=budget)
        self.staging.add(EVIDENCE, evidence.save())

    def write_variants(self, calibration: Calibration | None) -> VariantFiles | None:
        if calibration is None:
            return None
        self.begin(INPUTS_STEP)
        files = VariantFiles(
            root=self._folder,
            graphs=list(self.model.graphs),
            passes=CachedPasses(make_feeds(self.model, calibration), self._within),
        )
        for graph, variant in self._wanted:
            if variant is not Variant.FP32:
                self.begin(file_step(graph, variant))
                files.write(graph, variant)
        return files

    def search_plans(self, files: VariantFiles | None) -> list[SearchResult]:
        if self.lower.budget is None or files is None:
            return []
        self.begin(SEARCH_STEP)
        return search_plans(self.staging.root, self.draft, files=files, budget=self.lower.budget, watch=self._within)

    def prove(self, golden: Golden, *, searches: list[SearchResult]) -> list[ParityReport]:
        """Compare every file with the reference. Remove a file that differs if no plan needs it, with a :class:`LeftOut` warning;
        else raise :class:`GateFailed`."""
        self.begin(PROVE_STEP)
        reports = []
        for index, (graph, variant) in enumerate(self._wanted):
            self._within(f"{graph}.{variant}", index + 1, len(self._wanted))
            path, spec = self._path(graph, variant), self.model.graphs[graph].spec
            planned, reference = bool(searches), reference_of(self.model)
            try:
                reports.append(_prove(path, variant, spec=spec, golden=golden, planned=planned, reference=reference))
            except GateFailed as error:
                if not can_spare(searches, graph, variant):
                    raise
                reason = error.what.splitlines()[0].rstrip(":")
                what = f"{reason}: no plan needs it, and the bundle has no {variant} of it"
                warnings.warn(what, LeftOut, stacklevel=3)
                path.unlink()
        return reports

    def artifact(self, report: ParityReport) -> Artifact:
        """The file that ``report`` is about, as the manifest describes it."""
        variant = Variant(report.variant)
        path = self._path(report.graph, variant)
        return Artifact(
            graph=report.graph,
            variant=variant,
            path=str(path.relative_to(self.staging.root)),
            sha256=digest(path),
            bytes=path.stat().st_size,
            engine=None,
            precision=variant.precision,
            parity=report.summary() | {"engine": "ort"},
        )


def _prove(
    path: Path, variant: Variant, *, spec: GraphSpec, golden: Golden, planned: bool, reference: Reference
) -> ParityReport:
    """Compare the file at ``path`` with ``reference``; raise :class:`GateFailed` if they differ too much."""
    precision = variant.precision
    with tempfile.TemporaryDirectory() as scratch:
        session = require_engine("ort").open(provable(variant, path, Path(scratch)), spec, precision=Precision.FP32)
        report = compare(session, spec, golden=golden, precision=precision, reference=reference)
        report = replace(report, variant=variant)
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


def _how_lowered(
    samples: Calibration | None, lower: Lower, *, files: VariantFiles | None, searches: list[SearchResult]
) -> dict[str, object]:
    """How the lower precisions were made, for the manifest's provenance."""
    if samples is None or files is None:
        return {}
    calibration = {
        "images": len(samples.images),
        "texts": len(samples.texts),
        "sha256": samples.digest,
        # Of a folder only its name: a bundle does not tell where on which machine it was made.
        "source": Path(samples.source).name,
    }
    made: dict[str, object] = {"calibration": calibration}
    if searches:
        made |= {"planning": [as_table(result) for result in searches], "budget": str(lower.budget)}
        # One file serves every engine, so this is what any of their plans leaves in float.
        kept: dict[str, dict[str, list[str]]] = {}
        for (graph, variant), groups in files.float_groups.items():
            kept.setdefault(variant, {})[graph] = sorted(groups)
        made |= {"kept_float": kept}
        if not any(result.variant is Variant.INT8_DOT for result in searches):
            # This processor cannot run it exactly. `certify` measures it on one that can.
            made |= {"not_measured": [Variant.INT8_DOT]}
    return made
