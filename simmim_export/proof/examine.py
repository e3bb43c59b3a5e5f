"""Examines a model on the evidence: asks it everything, and compares its answers with the references.

A wrong shape is an error; outputs that are not finite are counted in the figures.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import isfinite
from typing import Any

import numpy as np

from simmim_export.bundle import Bundle, Manifest
from simmim_export.errors import BundleError, GateFailed
from simmim_export.proof.asked import IMAGES, LOGITS, TEXTS, graphs_behind
from simmim_export.proof.asking import Asker
from simmim_export.proof.evidence import FILE, RETRIEVAL, ZERO_SHOT, Evidence, Task
from simmim_export.proof.figures import agreement, choices, first_choices, gallery, nearest_texts, paired_loss
from simmim_export.proof.fitting import require_fit
from simmim_export.proof.parity import difference, logits_error
from simmim_export.proof.records import Line
from simmim_export.spec import TOLERANCES, Precision

# The name of the line that says whether FP32 gives the references.
REFERENCES = "references"
# The least share of FP32's answers that must be those of the references. On honest references every answer is the same unless two
# classes are equal to within a rounding: that happens to fewer than one of a thousand questions, also before any training.
SAME_ANSWERS = 0.999


def require_evidence(bundle: Bundle) -> Evidence:
    """The evidence in ``bundle``, checked against its manifest.

    Raise :class:`BundleError` if there is none, or if it is damaged, not finite, or about another model.
    """
    if FILE not in bundle.manifest.files:
        raise BundleError("the bundle holds no evidence", where=bundle.root, fix="export it again with this version")
    path = bundle.file(FILE)
    return require_fit(Evidence.load(path), bundle.manifest, where=path)


def reproduction(manifest: Manifest, figures: Mapping[str, Any], *, exact: Collection[str]) -> Line | None:
    """A line like those of a budget: do graphs at FP32 give the references that the evidence holds?

    ``exact`` names the graphs that ran at FP32. Only outputs that these graphs make are compared; None if there are none.
    ``measured`` is the worst scaled error divided by the number of graphs behind the output, and ``allowed`` the tolerance of
    FP32 for one graph. The line also fails if embeddings point elsewhere, or if less than :data:`SAME_ANSWERS` of a task's
    answers are those of its references. References that fail were altered or belong to another model, so every loss measured
    against them is meaningless.
    """
    errors, wrong, tolerance = dict[str, float](), "", TOLERANCES[Precision.FP32]
    for output, row in figures["references"].items():
        graphs = graphs_behind(manifest, output)
        if not set(graphs) <= set(exact):
            continue
        errors[output] = row["scaled_error"] / len(graphs)
        kind, _, task = output.partition("/")
        if kind == LOGITS:
            same = figures["tasks"][task]["top1"]
            if same < SAME_ANSWERS:
                wrong = wrong or f"{same:.1%} of the answers of {task} at FP32 are those of the references"
        elif row["cosine"] < tolerance.cosine:
            wrong = wrong or f"the cosine of {output} at FP32 to its reference is {row['cosine']:.6f}"
    if not errors:
        return None
    worst, limit = max(errors, key=lambda output: errors[output]), tolerance.scaled_error
    if not errors[worst] <= limit:
        wrong = f"FP32 does not give the reference of {worst}"
    reason = f"{wrong}: the evidence is wrong, or FP32 is" if wrong else ""
    measured = errors[worst] if isfinite(errors[worst]) else None
    return Line(name=REFERENCES, measured=measured, allowed=f"at most {limit:g}", kept=not wrong, reason=reason)


def suspicions(figures: Mapping[str, Any]) -> list[str]:
    """A remark for every task on which a model is better than the reference by more than chance
    (:func:`~simmim_export.proof.figures.paired_loss`)."""
    return [
        f"suspicious: {name} is {-row['loss']:.2f} points better than the reference in FP32 ({row['gained']} images better, "
        f"{row['lost']} worse): are the references right?"
        for name, row in figures["tasks"].items()
        if row["suspicious"]
    ]


class Examiner(Asker):
    """Asks a model what the evidence holds, and compares the answers with the references."""

    def figures(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Compare ``outputs`` with the references of the evidence.

        ``embeddings`` says how much those of ``images`` and of ``texts`` agree with the reference; ``tasks`` holds for each task
        the paired loss and ``top1``, the share of answers (or of zero-shot choices) that are the reference's; ``references`` says
        how far each output is from its reference, by :func:`~simmim_export.proof.parity.difference`, for logits by
        :func:`~simmim_export.proof.parity.logits_error`; ``source`` says where the evidence is from.

        ``not_finite`` in the rows counts outputs that are NaN or infinite. They count as wrong, and no budget is kept with any.
        Raise :class:`BundleError` for evidence without a reference, and :class:`GateFailed` for outputs of another shape.
        """
        reference = self.evidence.reference
        needed = {*outputs, *(name for name in self._asked if name.startswith(f"{LOGITS}/"))}
        if RETRIEVAL in self.evidence.tasks:
            needed |= {TEXTS, f"{IMAGES}/{self.evidence.tasks[RETRIEVAL].images}"}
        if lacking := needed - set(reference):
            what = f"the evidence has no reference for {', '.join(sorted(lacking))}"
            raise BundleError(what, fix="export the bundle again")
        for name in sorted(needed):
            values = outputs.get(name)
            if values is None or values.shape != reference[name].shape or not np.issubdtype(values.dtype, np.floating):
                said = "nothing" if values is None else f"{values.dtype} {list(values.shape)}"
                what = f"the graphs gave {said} for {name}, and the reference is {list(reference[name].shape)}"
                raise GateFailed(what, fix="export the bundle again")
        embeddings: dict[str, Any] = {}
        references: dict[str, Any] = {}
        for name, values in outputs.items():
            kind = name.partition("/")[0]
            error, cosine = difference(values, reference[name])
            if kind == LOGITS:
                error = logits_error(values, reference[name])
            else:
                row, worst = agreement(reference[name], values), embeddings.get(kind)
                # The worst of several sets of images stands for all of them.
                if worst is None or _badness(row) > _badness(worst):
                    embeddings[kind] = row
            references[name] = {"scaled_error": error, "cosine": cosine}
        tasks = {}
        for name, task in self.evidence.tasks.items():
            output = f"{LOGITS}/{name}"
            if name == RETRIEVAL:
                tasks[name] = self._retrieval(task, reference, outputs)
            elif output in self._asked:
                tasks[name] = _answers(task, reference[output], outputs[output])
        if (choice := self._zero_shot(reference, outputs)) is not None:
            tasks[ZERO_SHOT] = choice
        source = dict(self.evidence.source)
        return {"embeddings": embeddings, "tasks": tasks, "references": references, "source": source}

    def _retrieval(
        self, task: Task, reference: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        rows = self._numbers(task.texts)
        images = f"{IMAGES}/{task.images}"
        chosen = [first_choices(given[images], given[TEXTS][rows]) for given in (reference, outputs)]
        own = np.arange(len(rows))[:, None]
        broken = sum((~np.isfinite(outputs[name]).all(axis=1)).sum() for name in (images, TEXTS))
        return paired_loss(*((choice == own).astype(np.float64) for choice in chosen)) | {
            "metric": f"recall at 1 among {gallery(len(rows))}",
            "top1": float((chosen[0] == chosen[1]).mean()),
            "not_finite": int(broken),
        }

    def _zero_shot(
        self, reference: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> dict[str, Any] | None:
        """How many images choose the same of the plain texts as by the reference, which counts as right. If the reference chose
        few of the texts, that says little, so the metric names how many. None if there is no choice: fewer than two texts, no
        images, or no embeddings of both in one space."""
        plain = list(dict.fromkeys(self.evidence.plain))
        sets = [name for name in outputs if name.startswith(f"{IMAGES}/")]
        sizes = {outputs[name].shape[-1] for name in (*sets, TEXTS) if name in outputs}
        if len(plain) < 2 or not sets or TEXTS not in outputs or len(sizes) > 1:
            return None
        rows = self._numbers([plain])[0]
        images = [np.concatenate([given[name] for name in sets]) for given in (reference, outputs)]
        texts = [given[TEXTS][rows] for given in (reference, outputs)]
        chosen = [nearest_texts(*pair) for pair in zip(images, texts, strict=True)]
        same = (chosen[0] == chosen[1]).astype(np.float64)[:, None]
        return paired_loss(np.ones_like(same), same) | {
            "metric": f"same of {len(plain)} texts ({len(np.unique(chosen[0]))} chosen)",
            "top1": float(same.mean()),
            "not_finite": int((chosen[1] < 0).sum()),
        }


def _badness(row: Mapping[str, Any]) -> tuple[int, float]:
    return row["not_finite"], -row["cosine_mean"]


def _answers(task: Task, reference: np.ndarray, logits: np.ndarray) -> dict[str, Any]:
    chosen = [choices(values) for values in (reference, logits)]
    right = [task.right(classes) for classes in chosen]
    same = {"metric": "accuracy", "top1": float((chosen[0] == chosen[1]).mean())}
    return paired_loss(*right) | same | {"not_finite": int((chosen[1] < 0).sum())}
