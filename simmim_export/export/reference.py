"""The reference's answers to the evidence. They travel with it, so that a device needs no PyTorch."""

from __future__ import annotations

from simmim_export.bundle import Manifest
from simmim_export.export.origin import AnyModel, reference_session
from simmim_export.precision.calibration import MOST, distinct_images, distinct_texts
from simmim_export.proof.budget import Budget
from simmim_export.proof.evidence import SAMPLES, Evidence
from simmim_export.proof.examine import Examiner
from simmim_export.proof.fitting import require_fit
from simmim_export.runtime.text import Tokenizer
from simmim_export.system.watch import Watch

# Larger than the batch of a device. The answers are the same, and come sooner.
BATCH = 64


def make_evidence(
    model: AnyModel, manifest: Manifest, *, where: object, watch: Watch, budget: Budget | None = None
) -> Evidence:
    """The model's evidence with the reference's FP32 outputs for it: PyTorch's, or ONNX Runtime's for a model that came as ONNX
    files.

    A model that has none (because it is untrained, or was imported) gives its samples: those that calibration does not use,
    or all if there are no others. They have no labels, and show how embeddings change. Raise :class:`BundleError`, naming
    ``where``, for evidence that cannot be read or is about another model, and for outputs of the reference that are not finite;
    and :class:`UsageError` for a ``budget`` that it cannot measure, before minutes are spent on lower precisions.
    """
    if model.evidence:
        evidence = Evidence.load(model.evidence, where)
    else:
        # In the order in which calibration takes them.
        images, texts = distinct_images(model.images), distinct_texts(model.texts)
        held_out = images[MOST:] if len(images) > MOST else images
        plain = tuple(texts[MOST:] or texts)
        evidence = Evidence(images={"samples": held_out}, tasks={}, source={"name": SAMPLES}, plain=plain)
    tokenizer = Tokenizer(model.tokenizer, model.preprocessing["text"]["max_length"], graphs=manifest.graphs)
    require_fit(evidence, manifest, where=where, referenced=False)
    examiner = Examiner(manifest, evidence, tokens=tokenizer.feeds, watch=watch, batch=BATCH)
    outputs = examiner.outputs(lambda name: reference_session(model.graphs[name]))
    # The reference's own outputs may not be finite. Such a model proves nothing.
    whole = require_fit(evidence.with_reference(outputs), manifest, where=where)
    if budget is not None:
        budget.require_measurable(Examiner(manifest, whole, tokens=tokenizer.feeds).figures(outputs))
    return whole
