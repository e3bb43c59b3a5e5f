"""Is evidence what it must be: whole, finite, of the declared types and shapes, and about this very model?

:func:`check` needs the evidence alone; :func:`require_fit` also compares it with the manifest of a bundle.
"""

from __future__ import annotations

import numpy as np

from simmim_export.bundle import Manifest
from simmim_export.errors import BundleError
from simmim_export.proof.evidence import RETRIEVAL, Evidence, Task
from simmim_export.spec import TensorSpec

# More than any training takes along (1,024 images, 8 texts each); a file may not make a device work for days.
MOST_SETS, MOST_IMAGES, MOST_EACH, MOST_TEXTS, LONGEST_TEXT = 64, 1 << 16, 4096, 1 << 17, 1 << 16
# How far the length of a unit vector in FP32 may be from 1.
UNIT = 1e-3


def check(evidence: Evidence) -> None:
    """Raise ValueError naming the first tensor or text that is empty, not finite, of another type, or does not fit the others."""
    if not evidence.images and not evidence.texts():
        raise ValueError("it holds neither images nor texts")
    if max(len(evidence.images), len(evidence.tasks), len(evidence.reference)) > MOST_SETS:
        raise ValueError(f"it has more than {MOST_SETS} sets of images, tasks or references")
    for name, images in evidence.images.items():
        fits = images.dtype == np.uint8 and images.ndim in (4, 5) and images.shape[-1] == 3
        if not fits or not images.size or len(images) > MOST_IMAGES:
            raise ValueError(f"images {name!r} are {_said(images)}")
    for name, task in evidence.tasks.items():
        _check_task(name, task, evidence)
    texts = evidence.texts()
    if len(texts) > MOST_TEXTS:
        raise ValueError(f"it has {len(texts)} texts, at most {MOST_TEXTS} are read")
    for text in texts:
        if not text.strip() or len(text) > LONGEST_TEXT:
            raise ValueError(f"it has a text of {len(text)} characters: {text[:40]!r}")
    for name, values in evidence.reference.items():
        if values.dtype != np.float32 or not values.size:
            raise ValueError(f"the reference {name!r} is {_said(values)}, not float32 with values")
        if broken := int((~np.isfinite(values)).sum()):
            raise ValueError(f"the reference {name!r} has {broken} values that are not finite")


def _check_task(name: str, task: Task, evidence: Evidence) -> None:
    if task.images not in evidence.images:
        raise ValueError(f"task {name!r} asks about images {task.images!r}, which are not there")
    count, labels = len(evidence.images[task.images]), task.labels
    fits = labels.dtype == np.int64 and labels.ndim == 2 and len(labels) == count and 1 <= labels.shape[1] <= MOST_EACH
    if not fits or labels.min() < 0:
        raise ValueError(f"labels of {name!r} are {_said(labels)} for {count} images")
    if task.texts and [len(row) for row in task.texts] != [labels.shape[1]] * count:
        raise ValueError(f"texts of {name!r} are not {list(labels.shape)}")
    scores = task.scores
    if scores is None:
        return
    fits = scores.dtype == np.float32 and scores.ndim == 3 and scores.shape[:2] == labels.shape and scores.size > 0
    if not fits or not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError(f"scores of {name!r} are {_said(scores)}")


def require_fit(evidence: Evidence, manifest: Manifest, where: object = None, *, referenced: bool = True) -> Evidence:
    """``evidence`` itself, if it passes :func:`check` and is about the model that ``manifest`` describes.

    With ``referenced``, its references must be exactly those that an examiner compares. Raise :class:`BundleError` naming what
    does not fit.
    """
    try:
        check(evidence)
        _check_against(evidence, manifest)
        if referenced:
            _check_references(evidence, manifest)
    except ValueError as error:
        what = f"the evidence does not fit the model: {error}"
        raise BundleError(what, where=where, fix="export the bundle again") from error
    return evidence


def _tensor(manifest: Manifest, graph: str, name: str) -> TensorSpec:
    """The tensor ``name`` of a graph; ValueError where the model has none."""
    for spec in manifest.graphs:
        for tensor in (*spec.inputs, *spec.outputs):
            if (spec.name, tensor.name) == (graph, name):
                return tensor
    raise ValueError(f"the model has no {name} of {graph}")


def _last(manifest: Manifest, graph: str, name: str) -> int:
    size = _tensor(manifest, graph, name).shape[-1]
    if not isinstance(size, int):
        raise ValueError(f"{name} of {graph} has no fixed size")
    return size


def _check_against(evidence: Evidence, manifest: Manifest) -> None:
    frames = {axis.name: axis for graph in manifest.graphs if graph.name == "video_encoder" for axis in graph.axes}
    for name, images in evidence.images.items():
        wanted = _tensor(manifest, "image_encoder", "pixels").shape[1:]
        if images.shape[-3:] != wanted:
            raise ValueError(f"images {name!r} are {_said(images)}, the model takes {list(wanted)}")
        if images.ndim == 5:
            axis = frames.get("frames")
            if axis is None:
                raise ValueError(f"images {name!r} are clips, and the model has no video encoder")
            if not axis.minimum <= images.shape[1] <= axis.maximum:
                allowed = f"{axis.minimum} to {axis.maximum}"
                raise ValueError(f"clips {name!r} have {images.shape[1]} frames, the model takes {allowed}")
    pipelines = {pipeline.graphs[-1]: pipeline.graphs for pipeline in manifest.pipelines if pipeline.graphs}
    for name, task in evidence.tasks.items():
        clips = evidence.images[task.images].ndim == 5
        if name == RETRIEVAL:
            if clips or not task.texts:
                raise ValueError(f"task {name!r} needs images and captions")
            continue
        if f"head.{name}" not in pipelines:
            heads = ", ".join(sorted(graph.removeprefix("head.") for graph in pipelines if graph.startswith("head.")))
            raise ValueError(f"task {name!r} asks a head that the model does not have (it has: {heads or 'none'})")
        graphs = pipelines[f"head.{name}"]
        if clips != ("video_encoder" in graphs):
            raise ValueError(f"task {name!r} has {'clips' if clips else 'images'}, its head reads the other kind")
        if bool(task.texts) != ("fusion" in graphs):
            raise ValueError(f"task {name!r} has {'' if task.texts else 'no '}texts, its head reads them or does not")
        if not task.texts and task.labels.shape[1] != 1:
            raise ValueError(f"labels of {name!r} are {_said(task.labels)}, an image alone has one answer")
        classes = _last(manifest, f"head.{name}", "logits")
        if task.labels.max() >= classes:
            raise ValueError(f"labels of {name!r} go up to {task.labels.max()}, the head has {classes} classes")
        if task.scores is not None and task.scores.shape[2] != classes:
            raise ValueError(f"scores of {name!r} are {_said(task.scores)}, the head has {classes} classes")


def _check_references(evidence: Evidence, manifest: Manifest) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, images in evidence.images.items():
        if images.ndim == 4:
            shapes[f"images/{name}"] = (len(images), _last(manifest, "image_encoder", "image_embed"))
    if texts := evidence.texts():
        shapes["text_embed"] = (len(texts), _last(manifest, "text_encoder", "text_embed"))
    for name, task in evidence.tasks.items():
        if name != RETRIEVAL:
            shapes[f"logits/{name}"] = (*task.labels.shape, _last(manifest, f"head.{name}", "logits"))
    if lacking := sorted(set(shapes) - set(evidence.reference)):
        raise ValueError(f"it has no reference for {', '.join(lacking)}")
    if strange := sorted(set(evidence.reference) - set(shapes)):
        raise ValueError(f"it has references that nothing is compared with: {', '.join(strange)}")
    for name, shape in shapes.items():
        values = evidence.reference[name]
        if values.shape != shape:
            raise ValueError(f"the reference {name!r} is {_said(values)}, not {list(shape)}")
        if not name.startswith("logits/"):
            far = np.abs(np.linalg.norm(values.astype(np.float64), axis=1) - 1).max()
            if far > UNIT:
                raise ValueError(f"the reference {name!r} is not of unit length: it is {far:.2g} off")


def _said(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"
