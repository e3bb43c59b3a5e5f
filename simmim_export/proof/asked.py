"""What the evidence asks of a model: the outputs that are compared with references, and the graphs that make each of them.

An output is named ``images/SET`` (the embeddings of a set of images), ``texts`` (those of every distinct text) or ``logits/TASK``
(the logits of a task, which is named by the ``labels`` of its pipeline).
"""

from __future__ import annotations

from simmim_export.bundle import Manifest
from simmim_export.proof.evidence import RETRIEVAL, Evidence
from simmim_export.spec import Kind, Pipeline, Verb

# The first part of an output's name. The embeddings of a model are judged under the first two.
IMAGES, TEXTS, LOGITS = "images", "texts", "logits"


def pipeline_of(manifest: Manifest, output: str) -> Pipeline | None:
    """The pipeline whose first output is ``output``; None for what the model does not give."""
    kind, _, name = output.partition("/")
    if kind == IMAGES:
        return manifest.pipeline_for(Verb.EMBED_IMAGE)
    if kind == TEXTS:
        return manifest.pipeline_for(Verb.EMBED_TEXT)
    return next((pipeline for pipeline in manifest.pipelines if name and pipeline.labels == name), None)


def asked(evidence: Evidence, manifest: Manifest) -> dict[str, Pipeline]:
    """Every output of the model that ``evidence`` has a use for, and its pipeline. Clips are not embedded."""
    names = [f"{IMAGES}/{name}" for name, images in evidence.images.items() if images.ndim == 4]
    names += [TEXTS] if evidence.texts() else []
    names += [f"{LOGITS}/{name}" for name in evidence.tasks if name != RETRIEVAL]
    return {name: pipeline for name in names if (pipeline := pipeline_of(manifest, name)) is not None}


def graphs_behind(manifest: Manifest, output: str) -> tuple[str, ...]:
    """The names of the graphs that make ``output``, in order; for clips, with those that their frames go through. KeyError for an
    output that the model does not give."""
    pipeline = pipeline_of(manifest, output)
    if pipeline is None:
        raise KeyError(output)
    frames = manifest.frame_graphs() if Kind.FRAMES in manifest.takes(pipeline) else ()
    return tuple(dict.fromkeys((*(spec.name for spec in frames), *pipeline.graphs)))
