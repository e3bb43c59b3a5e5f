"""Checks evidence against the manifest of its bundle: it must be about that model, and hold exactly the references it needs."""

from __future__ import annotations

import numpy as np

from simmim_export.bundle import Manifest
from simmim_export.errors import BundleError
from simmim_export.proof.asked import IMAGES, LOGITS, TEXTS, asked, pipeline_of
from simmim_export.proof.evidence import RETRIEVAL, Evidence, Task, described
from simmim_export.spec import Kind, Pipeline, TensorSpec

# How far the length of a unit vector in FP32 may be from 1.
UNIT = 1e-3


def require_fit(evidence: Evidence, manifest: Manifest, *, where: object = None, referenced: bool = True) -> Evidence:
    """``evidence`` itself, if it passes :meth:`Evidence.check` and is about the model that ``manifest`` describes.

    With ``referenced``, its references must be exactly those that an examiner compares. Raise :class:`BundleError`, which names
    what does not fit and ``where`` the evidence is from.
    """
    try:
        evidence.check()
        _check_images(evidence, manifest)
        for name, task in evidence.tasks.items():
            clips = evidence.images[task.images].ndim == 5
            if name == RETRIEVAL:
                _check_retrieval(task, manifest, clips=clips)
            else:
                _check_task(name, task, manifest=manifest, clips=clips)
        if referenced:
            _check_references(evidence, manifest)
    except ValueError as error:
        what = f"the evidence does not fit the model: {error}"
        raise BundleError(what, where=where, fix="export the bundle again") from error
    return evidence


def _input(manifest: Manifest, kind: Kind) -> TensorSpec | None:
    """What the first graph that takes a tensor of ``kind`` takes."""
    return next((tensor for graph in manifest.graphs for tensor in graph.inputs if tensor.kind is kind), None)


def _size(manifest: Manifest, pipeline: Pipeline) -> int:
    """The size of the last dimension of a pipeline's first output: classes of logits, channels of an embedding."""
    wanted = pipeline.outputs[0]
    for name in reversed(pipeline.graphs):
        for tensor in manifest.graph(name).outputs:
            if tensor.name == wanted and isinstance(size := tensor.shape[-1], int):
                return size
    raise ValueError(f"no graph of {pipeline.name} gives {wanted} with a fixed size")


def _check_images(evidence: Evidence, manifest: Manifest) -> None:
    image, frames = _input(manifest, Kind.IMAGE), _input(manifest, Kind.FRAMES)
    for name, images in evidence.images.items():
        if image is not None and images.shape[-3:] != image.shape[1:]:
            raise ValueError(f"images {name!r} are {described(images)}, the model takes {list(image.shape[1:])}")
        if images.ndim == 5:
            if frames is None or not manifest.frame_graphs():
                raise ValueError(f"images {name!r} are clips, and the model does not take clips")
            least, most = _frame_counts(manifest, frames)
            if not least <= images.shape[1] <= most:
                raise ValueError(f"clips {name!r} have {images.shape[1]} frames, the model takes {least} to {most}")


def _frame_counts(manifest: Manifest, frames: TensorSpec) -> tuple[int, int]:
    size = frames.shape[1]
    if isinstance(size, int):
        return size, size
    axis = next(axis for graph in manifest.graphs if frames in graph.inputs for axis in graph.axes if axis.name == size)
    return axis.minimum, axis.maximum


def _check_retrieval(task: Task, manifest: Manifest, *, clips: bool) -> None:
    if clips or not task.texts:
        raise ValueError(f"task {RETRIEVAL!r} needs images and captions")
    towers = [pipeline for kind in (IMAGES, TEXTS) if (pipeline := pipeline_of(manifest, kind)) is not None]
    if len(towers) < 2 or len({_size(manifest, pipeline) for pipeline in towers}) > 1:
        raise ValueError(f"task {RETRIEVAL!r} needs a model that embeds images and texts in one space")


def _check_task(name: str, task: Task, *, manifest: Manifest, clips: bool) -> None:
    pipeline = pipeline_of(manifest, f"{LOGITS}/{name}")
    if pipeline is None:
        names = ", ".join(sorted({pipeline.labels for pipeline in manifest.pipelines if pipeline.labels}))
        raise ValueError(f"task {name!r} asks a head that the model does not have (it has: {names or 'none'})")
    kinds = manifest.takes(pipeline).keys()
    if clips != (Kind.FRAMES in kinds) or (clips and Kind.IMAGE in kinds):
        raise ValueError(f"task {name!r} has {'clips' if clips else 'images'}, its head reads the other kind")
    if bool(task.texts) != (Kind.TOKEN_IDS in kinds):
        what = "texts, which its head does not read" if task.texts else "no texts, which its head reads"
        raise ValueError(f"task {name!r} has {what}")
    if not task.texts and task.labels.shape[1] != 1:
        raise ValueError(f"labels of {name!r} are {described(task.labels)}, an image alone has one answer")
    classes = _size(manifest, pipeline)
    if task.labels.max() >= classes:
        raise ValueError(f"labels of {name!r} go up to {task.labels.max()}, the head has {classes} classes")
    if task.scores is not None and task.scores.shape[2] != classes:
        raise ValueError(f"scores of {name!r} are {described(task.scores)}, the head has {classes} classes")


def _check_references(evidence: Evidence, manifest: Manifest) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    for output, pipeline in asked(evidence, manifest).items():
        kind, _, name = output.partition("/")
        if kind == LOGITS:
            rows = evidence.tasks[name].labels.shape
        else:
            rows = (len(evidence.texts() if kind == TEXTS else evidence.images[name]),)
        shapes[output] = (*rows, _size(manifest, pipeline))
    if lacking := sorted(set(shapes) - set(evidence.reference)):
        raise ValueError(f"it has no reference for {', '.join(lacking)}")
    if strange := sorted(set(evidence.reference) - set(shapes)):
        raise ValueError(f"it has references that are compared with nothing: {', '.join(strange)}")
    for output, shape in shapes.items():
        values = evidence.reference[output]
        if values.shape != shape:
            raise ValueError(f"the reference {output!r} is {described(values)}, not {list(shape)}")
        if not output.startswith(f"{LOGITS}/"):
            far = np.abs(np.linalg.norm(values.astype(np.float64), axis=1) - 1).max()
            if far > UNIT:
                raise ValueError(f"the reference {output!r} is not of unit length: it is {far:.2g} off")
