"""Runs foreign and rewired files on real samples, to learn the shapes of outputs and whether both compute the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simmim_export.bundle.vocabulary import Vocabulary
from simmim_export.engines.checks import threads_for
from simmim_export.engines.failures import running
from simmim_export.engines.ort import PROVIDER, open_session
from simmim_export.errors import CheckpointError
from simmim_export.export.adopt.spec_file import GraphTable, ImageTable
from simmim_export.export.adopt.wiring import DYNAMIC, SEQUENCE
from simmim_export.export.golden import sample_texts
from simmim_export.spec import BATCH, GraphSpec, Kind, TensorSpec

Tensors = dict[str, np.ndarray]
LIKELY = "check the kinds of its inputs and max_length in the spec; run the file in ONNX Runtime by hand"


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Different ``images``, uint8 [n, height, width, 3], and ``texts``."""

    images: np.ndarray
    texts: Sequence[str]
    vocabulary: Vocabulary


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One run of all graphs: ``batch`` rows of ``length`` tokens. ``flowing`` are the tensors that earlier graphs gave."""

    batch: int
    length: int
    flowing: Tensors

    def feeds(self, inputs: Sequence[TensorSpec], samples: Samples) -> Tensors:
        """What a graph with ``inputs`` is fed in this run."""
        fed = {}
        for tensor in inputs:
            if tensor.kind is Kind.IMAGE:
                fed[tensor.name] = samples.images[np.arange(self.batch) % len(samples.images)]
            elif tensor.kind in (Kind.TOKEN_IDS, Kind.TEXT_MASK):
                length = tensor.shape[1] if isinstance(tensor.shape[1], int) else self.length
                texts = sample_texts(samples.vocabulary, samples.texts, count=self.batch, length=length)
                fed[tensor.name] = texts[0 if tensor.kind is Kind.TOKEN_IDS else 1]
            else:
                fed[tensor.name] = self.flowing[tensor.name]
        return fed


def probe_pair(*, shortest: int, longest: int) -> tuple[Probe, Probe]:
    """Two runs whose batches and lengths differ, so that a size of an output tells which of them it follows."""
    first, second = (2, 5) if (shortest, longest) != (2, 5) else (3, 4)
    return (
        Probe(batch=first, length=shortest, flowing={}),
        Probe(batch=second, length=longest, flowing={}),
    )


def run_file(path: Path, feeds: Mapping[str, np.ndarray], names: Sequence[str], *, graph: str) -> list[np.ndarray]:
    """The outputs ``names`` of the ONNX file at ``path``. Raise :class:`CheckpointError` if ONNX Runtime refuses or fails."""
    nothing = GraphSpec(graph, (), (), ())
    try:
        with running("ort", nothing, where=path, opens=True, error=CheckpointError):
            session = open_session(path, threads_for(None), providers=[PROVIDER])
        with running("ort", nothing, where=path, error=CheckpointError):
            outputs: list[np.ndarray] = session.run(list(names), dict(feeds))
    except CheckpointError as error:
        raise CheckpointError(error.what, where=path, fix=LIKELY) from error
    return outputs


def output_shapes(
    path: Path, spec: GraphSpec, names: Sequence[str], *, probes: tuple[Probe, Probe], samples: Samples, where: Path
) -> list[tuple[int | str, ...]]:
    """The shapes of the outputs ``names`` of the rewired file at ``path``, with the names of dynamic axes. Their values are added
    to what flows in ``probes``.

    Raise :class:`CheckpointError` naming ``where`` if the file runs at one batch only, or if a size follows neither the batch nor
    the text.
    """
    results = []
    for probe in probes:
        feeds = probe.feeds(spec.inputs, samples)
        try:
            outputs = run_file(path, feeds, names, graph=spec.name)
        except CheckpointError as error:
            alone = {name: array[:1] for name, array in feeds.items()}
            try:
                run_file(path, alone, names, graph=spec.name)
            except CheckpointError:
                raise CheckpointError(error.what, where=where, fix=error.fix) from error
            what = f"graph {spec.name} runs a batch of 1, and fails at {probe.batch}: the size is fixed inside it"
            raise CheckpointError(what, where=where, fix=DYNAMIC) from error
        probe.flowing.update(zip(names, outputs, strict=True))
        results.append(outputs)
    shapes = []
    for name, first, second in zip(names, *results, strict=True):
        shape: list[int | str] = []
        for one, other in zip(first.shape, second.shape, strict=True):
            if one == other:
                shape.append(int(one))
            elif (one, other) == tuple(probe.batch for probe in probes):
                shape.append(BATCH)
            elif (one, other) == tuple(probe.length for probe in probes):
                shape.append(SEQUENCE)
            else:
                what = (
                    f"graph {spec.name}: {name!r} has sizes {list(first.shape)} and {list(second.shape)}, which follow "
                )
                raise CheckpointError(f"{what}neither the batch nor the text", where=where, fix=LIKELY)
        if not shape or shape[0] != BATCH or BATCH in shape[1:]:
            what = f"graph {spec.name}: {name!r} has the shape {shape}; the first axis, and no other, must be the batch"
            raise CheckpointError(what, where=where, fix=DYNAMIC)
        shapes.append(tuple(shape))
    return shapes


def foreign_outputs(
    path: Path,
    table: GraphTable,
    feeds: Mapping[str, np.ndarray],
    *,
    types: Mapping[str, str],
    image: ImageTable | None,
    layout: str,
) -> Tensors:
    """What the original file at ``path`` gives for ``feeds``, which are those of the rewired file, by the names in the bundle.

    Pixels, pooling and normalization are computed here in NumPy, apart from the nodes that :mod:`.wiring` adds. ``types`` are the
    NumPy types of the file's own inputs, and ``layout`` is the order of the axes of its pixels.
    """
    foreign: Tensors = {}
    mask: np.ndarray | None = None
    ids = next((feeds[one.known_as] for one in table.inputs if one.kind == "token_ids"), None)
    for one in table.inputs:
        if one.kind == "zeros":
            assert ids is not None
            foreign[one.name] = np.zeros(ids.shape, types[one.name])
        elif one.kind == "image":
            foreign[one.name] = _pixels(feeds[one.known_as], image, dtype=types[one.name], layout=layout)
        else:
            mask = feeds[one.known_as] if one.kind == "text_mask" else mask
            foreign[one.name] = feeds[one.known_as].astype(types[one.name])
    values = run_file(path, foreign, [one.name for one in table.outputs], graph=table.name)
    outputs: Tensors = {}
    for output, value in zip(table.outputs, values, strict=True):
        if output.pool == "first":
            value = value[:, 0]
        elif output.pool == "mean":
            weights = np.ones(value.shape[:2], np.float32) if mask is None else mask.astype(np.float32)
            value = np.einsum("bsc,bs->bc", value, weights) / weights.sum(axis=1, keepdims=True)
        if output.normalize:
            value = value / np.maximum(np.linalg.norm(value, axis=-1, keepdims=True), 1e-12)
        outputs[output.known_as] = value
    return outputs


def _pixels(pixels: np.ndarray, image: ImageTable | None, *, dtype: str, layout: str) -> np.ndarray:
    assert image is not None
    planes = pixels if layout == "NHWC" else pixels.transpose(0, 3, 1, 2)
    if dtype == "uint8" or image.mean is None or image.std is None:
        return np.ascontiguousarray(planes)
    sides = (-1,) if layout == "NHWC" else (-1, 1, 1)
    mean, std = (np.array(values).reshape(sides) for values in (image.mean, image.std))
    return ((planes / 255 - mean) / std).astype(np.float32)
