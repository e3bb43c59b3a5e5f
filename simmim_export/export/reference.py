"""PyTorch's answers to the evidence, which travel with it."""

from __future__ import annotations

from collections.abc import Callable

from simmim_export.bundle import Manifest
from simmim_export.engines.torch import TorchSession
from simmim_export.models.family import SourceModel
from simmim_export.precision.calibration import MOST, distinct_images, distinct_texts
from simmim_export.proof.evidence import Evidence
from simmim_export.proof.examine import Examiner
from simmim_export.proof.fitting import require_fit
from simmim_export.runtime.text import Tokenizer

# Larger than a device's batch: the reference is the same, sooner.
BATCH = 64


def make_evidence(
    model: SourceModel, manifest: Manifest, *, where: object, watch: Callable[[str, int, int], None]
) -> Evidence:
    """The model's evidence with PyTorch's FP32 outputs for it.

    A model without any (untrained, or imported) gives its samples beyond those for calibration, or all if there are no more.
    Unlabeled, they show how embeddings change. Raise :class:`BundleError`, naming ``where``, for evidence that cannot be read or
    is about another model, and for answers of PyTorch that are not finite.
    """
    if model.evidence:
        evidence = Evidence.load(model.evidence, where)
    else:
        # In the order in which calibration takes them.
        images, texts = distinct_images(model.images), distinct_texts(model.texts)
        held_out = images[MOST:] if len(images) > MOST else images
        evidence = Evidence({"samples": held_out}, {}, {"name": "samples"}, texts[MOST:] or texts)
    tokenizer = Tokenizer(model.tokenizer, model.preprocessing["text"]["max_length"], graphs=manifest.graphs)
    require_fit(evidence, manifest, where, referenced=False)
    examiner = Examiner(manifest, evidence, tokenizer.feeds, watch, BATCH)
    answers = examiner.outputs(lambda name: TorchSession(model.graphs[name].module, model.graphs[name].spec))
    # PyTorch's answers may not be finite either: a model that overflows proves nothing.
    return require_fit(evidence.with_reference(answers), manifest, where)
