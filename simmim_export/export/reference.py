"""PyTorch's answers to the evidence, which travel with it. Knows evidence and graph wrappers; must not know ONNX or files."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from simmim_export.bundle import Manifest
from simmim_export.engines.torch import TorchSession
from simmim_export.models.simmim.checkpoint import Checkpoint
from simmim_export.models.simmim.graphs import Graph
from simmim_export.precision.calibration import MOST, distinct_images, distinct_texts
from simmim_export.proof.evidence import Evidence
from simmim_export.proof.examine import Examiner
from simmim_export.proof.fitting import require_fit
from simmim_export.runtime.text import Tokenizer

# Larger than a device's batch: the reference is the same, sooner.
BATCH = 64


def make_evidence(
    checkpoint: Checkpoint,
    manifest: Manifest,
    graphs: Mapping[str, Graph],
    where: object,
    watch: Callable[[str, int, int], None],
) -> Evidence:
    """The checkpoint's evidence with PyTorch's FP32 outputs for it.

    A checkpoint without any (untrained, or imported) gives its samples beyond those for calibration, or all where there are
    no more: unlabeled, they show how embeddings change. Raise :class:`BundleError` for evidence that cannot be read or is
    about another model, and for answers of PyTorch that are not finite.
    """
    if len(checkpoint.evidence):
        evidence = Evidence.load(checkpoint.evidence.numpy().tobytes(), where)
    else:
        pixels, texts = checkpoint.samples["pixels"].numpy(), checkpoint.samples["texts"]
        # In the order in which calibration takes them.
        pixels, texts = distinct_images(pixels), distinct_texts(texts)
        images = pixels[MOST:] if len(pixels) > MOST else pixels
        evidence = Evidence({"samples": images}, {}, {"name": "samples"}, texts[MOST:] or texts)
    tokenizer = Tokenizer(checkpoint.tokenizer, checkpoint.config.max_length)
    require_fit(evidence, manifest, where, referenced=False)
    examiner = Examiner(manifest, evidence, tokenizer.feeds, watch, BATCH)
    answers = examiner.outputs(lambda name: TorchSession(graphs[name].module, graphs[name].spec))
    # What PyTorch gives may not be finite either: a model that overflows proves nothing.
    return require_fit(evidence.with_reference(answers), manifest, where)
