"""A checkpoint to a bundle: trace every graph, prove it in ONNX Runtime against PyTorch, publish.

Knows the order of the steps. Must not know how any of them is done.
"""

from __future__ import annotations

import hashlib
import itertools
import platform
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from simmim_export.bundle import Artifact, Bundle, Manifest, Staging, check_draft
from simmim_export.console.metrics import control_accuracies
from simmim_export.engines import get_engine, require_engine, versions
from simmim_export.engines.base import Engine
from simmim_export.errors import GateFailed, LeftOut, ShortcutLearned
from simmim_export.export.golden import make_feeds, make_golden
from simmim_export.export.limits import MAX_BATCH, OPSET, require_batch, require_opset
from simmim_export.export.lower import Lower
from simmim_export.export.onnx import trace
from simmim_export.export.reference import make_evidence
from simmim_export.export.variants import Choice, Variants
from simmim_export.models.simmim.checkpoint import Checkpoint, build, load
from simmim_export.models.simmim.graphs import Graph, graphs, pipelines
from simmim_export.models.simmim.model import SimMIM
from simmim_export.planning.judge import Judge
from simmim_export.planning.planner import Planned, Planner
from simmim_export.precision.calibration import Calibration, calibrate
from simmim_export.precision.passes import VARIANTS, Passes, provable
from simmim_export.proof.budget import Budget
from simmim_export.proof.evidence import FILE as EVIDENCE
from simmim_export.proof.parity import Golden, ParityReport, compare
from simmim_export.runtime.text import Tokenizer
from simmim_export.spec import GraphSpec, Precision, Variant
from simmim_export.system.files import digest
from simmim_export.version import __version__

# Engines that INT8 is planned for, where they are installed.
PLANNED_ENGINES = ("ort", "openvino")

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
    checkpoint_path: Path,
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

    With ``maps`` the fusion also gives where each word looked. ``progress(step, done, total)`` is called before each step.
    Raises :class:`CheckpointError` for the input, :class:`DataError` for the calibration samples, :class:`UsageError` for the
    output, the opset, the batch or a budget that cannot be measured, :class:`GateFailed` if a graph is not clean, differs from
    PyTorch, or no plan keeps the budget; in every case nothing has been written at ``output``.
    """
    require_opset(opset)
    require_batch(max_batch)
    engine = require_engine("ort")
    with Staging(output, overwrite) as staging:
        progress("load the checkpoint", 0, 1)
        checkpoint = load(checkpoint_path)
        warn_of_shortcuts(checkpoint.metrics)
        model = build(checkpoint, checkpoint_path)
        found = graphs(model, max_batch, maps)
        source = provenance(checkpoint_path, checkpoint, opset)
        manifest = _manifest(checkpoint, model, found, source)
        check_draft(manifest, checkpoint_path)
        samples, full_range = _samples(checkpoint, lower), bool(lower.full_range)
        wanted = [Precision.FP32, *lower.precisions]
        variants = {precision: VARIANTS.get(precision, (str(precision),)) for precision in wanted}
        total = len(found) * sum(map(len, variants.values())) + 3
        progress("golden tensors", 0, total)
        golden = make_golden(checkpoint, found, max_batch)
        staging.add("golden.npz", golden.save())
        staging.add("tokenizer.json", checkpoint.tokenizer)
        folder = staging.add("graphs/x").parent
        steps = itertools.count(1)
        for name, graph in found.items():
            progress(name, next(steps), total)
            trace(graph, folder / f"{name}.fp32.onnx", opset)
        progress("what PyTorch answers to the evidence", next(steps), total)
        watch = _within(progress, total)
        staging.add(EVIDENCE, make_evidence(checkpoint, manifest, found, checkpoint_path, watch).save())
        made = None
        if samples is not None:
            progress("real inputs of every graph", next(steps), total)
            tokenizer = Tokenizer(checkpoint.tokenizer, checkpoint.config.max_length)
            feeds = make_feeds(found, samples, tokenizer.encode)
            made = Variants(folder, list(found), Passes(feeds), full_range)
            for name, variant in ((n, v) for n in found for p in lower.precisions for v in variants[p]):
                progress(f"{name}.{variant}", next(steps), total)
                made.make(name, variant)
            source |= {"calibration": _describe(samples), "full_range": full_range}
        planned: list[Planned] = []
        if lower.budget is not None and made is not None:
            planned = _plan(staging, manifest, checkpoint, made, lower.budget, watch)
            source |= {"planning": [_as_table(plan) for plan in planned], "budget": str(lower.budget)}
            # One file serves every engine, so this is what any of their plans keeps.
            source |= {"kept_float": {graph: sorted(groups) for graph, groups in made.kept.items()}}
        reports, artifacts = [], []
        for name, precision, variant in ((n, p, v) for n in found for p in wanted for v in variants[p]):
            progress(f"prove {name}.{variant}", total - 1, total)
            path = folder / f"{name}.{variant}.onnx"
            try:
                report = _prove(engine, path, variant, found[name].spec, precision, golden, bool(planned))
            except GateFailed as error:
                if not spare(planned, name, variant):
                    raise
                reason = error.what.splitlines()[0].rstrip(":")
                warnings.warn(
                    f"{reason}: no plan needs it, and the bundle has no {variant} of it", LeftOut, stacklevel=2
                )
                path.unlink()
                continue
            reports.append(report)
            needs = {} if made is None else made.needs(name, variant)
            parity = report.summary() | {"engine": engine.name}
            where = (str(path.relative_to(staging.root)), digest(path), path.stat().st_size)
            artifacts.append(Artifact(name, Variant(variant), *where, None, precision, needs, parity))
        progress("write the bundle", total - 1, total)
        plans = {plan.engine: str(plan.chosen.plan) for plan in planned}
        manifest = replace(manifest, artifacts=tuple(artifacts), provenance=source, plans=plans)
        bundle = staging.publish(manifest, ("tokenizer.json", "golden.npz", EVIDENCE))
    return Exported(bundle, reports, planned)


def _manifest(
    checkpoint: Checkpoint, model: SimMIM, found: Mapping[str, Graph], source: Mapping[str, object]
) -> Manifest:
    """All of it but what the files will be."""
    labels = {name: tuple(classes) for name, classes in checkpoint.labels.items() if name in checkpoint.config.heads}
    return Manifest(
        model=asdict(checkpoint.config),
        graphs=tuple(graph.spec for graph in found.values()),
        pipelines=pipelines(model),
        preprocessing=checkpoint.preprocessing,
        labels=labels,
        embedding={"dim": checkpoint.config.embed_dim, "digest": embedding_digest(checkpoint)},
        files={},
        artifacts=(),
        metrics=checkpoint.metrics,
        provenance=source,
    )


def _samples(checkpoint: Checkpoint, lower: Lower) -> Calibration | None:
    if not lower.precisions:
        return None
    own = checkpoint.samples["pixels"].numpy(), checkpoint.samples["texts"]
    return calibrate(*own, lower.calibration, checkpoint.preprocessing["image"])


def _describe(samples: Calibration) -> dict[str, object]:
    return {
        "images": len(samples.pixels),
        "texts": len(samples.texts),
        "sha256": samples.digest,
        "source": samples.source,
    }


def _within(progress: Progress, total: int) -> Progress:
    """Progress inside of a step: its words alone."""
    return lambda step, done, of: progress(f"{step} {done}/{of}", total - 2, total)


def _plan(
    staging: Staging, manifest: Manifest, checkpoint: Checkpoint, made: Variants, budget: Budget, watch: Progress
) -> list[Planned]:
    """A plan for every engine that runs INT8 here; what one of them needs float is float for all, in one file."""
    found: dict[str, Planned] = {}
    root = staging.root
    waiting = [name for name in PLANNED_ENGINES if get_engine(name).why_unavailable() is None]
    while waiting:
        name = waiting.pop(0)
        with tempfile.TemporaryDirectory() as scratch:
            files = (root / EVIDENCE, root / "golden.npz")
            with Judge(name, manifest, checkpoint.tokenizer, *files) as judge:
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
    engine: Engine,
    path: Path,
    variant: str,
    spec: GraphSpec,
    precision: Precision,
    golden: Golden,
    planned: bool,
) -> ParityReport:
    with tempfile.TemporaryDirectory() as scratch:
        session = engine.open(provable(variant, path, Path(scratch)), spec, precision=Precision.FP32)
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


# A head that is hardly better than it would be blind has learned the questions and not the images.
LEAST_GAP = 0.05
# What a head may not use that is hardly better than a control; of any other control, its input.
_UNUSED = {
    "question_only": "its image",
    "shuffled_image": "its image",
    "image_only": "its text",
    "shuffled_frames": "the order of the frames",
    "single_frame": "more than one frame",
}


def warn_of_shortcuts(metrics: Mapping[str, Any]) -> None:
    """Warn :class:`ShortcutLearned` of every head that is less than LEAST_GAP (of 1) above its best blind control.

    A control that could not be measured on the data says nothing; one that was measured on some questions alone is compared
    with the model's accuracy on the same ones.
    """
    for name, figure in metrics.items():
        if "accuracy" not in figure:
            continue
        blind = control_accuracies(figure)
        gaps = {key: figure["controls"][key].get("model", figure["accuracy"]) - value for key, value in blind.items()}
        closest = min(gaps, key=lambda key: gaps[key], default=None)
        if closest is not None and gaps[closest] < LEAST_GAP:
            model, unused = blind[closest] + gaps[closest], _UNUSED.get(closest, "its input")
            what = f"{model:.1%} correct, and {blind[closest]:.1%} by {closest.replace('_', ' ')}"
            warnings.warn(f"{name}: {what}: it may not look at {unused}", ShortcutLearned, stacklevel=3)


def embedding_digest(checkpoint: Checkpoint) -> str:
    """SHA-256 of all that decides an embedding: the towers' weights, the tokenizer, the preprocessing.

    Vectors of different digests live in different spaces and must not be compared.
    """
    found = hashlib.sha256()
    for key in sorted(checkpoint.state):
        if key.startswith(("image_encoder.", "text_encoder.")):
            found.update(key.encode() + checkpoint.state[key].contiguous().numpy().tobytes())
    found.update(checkpoint.tokenizer.encode() + repr(sorted(checkpoint.preprocessing.items())).encode())
    return found.hexdigest()


def provenance(path: Path, checkpoint: Checkpoint, opset: int) -> dict[str, object]:
    """Where a bundle comes from: the checkpoint's digest and history, and the versions that exported it."""
    return {
        "checkpoint_sha256": digest(path),
        "training": checkpoint.provenance,
        "opset": opset,
        "simmim_export": __version__,
        "python": platform.python_version(),
        "packages": {"onnx": version("onnx"), **_versions("torch"), **_versions("ort")},
    }


def _versions(engine: str) -> dict[str, str]:
    return {name: found for name, found in versions(engine).items() if name != "simmim-export"}
