"""Cheap checks that find a model which loads, runs, and means nothing.

The most common failure of a foreign export is a model that gives the same vector for everything. It has no other symptom: ONNX
Runtime is its own reference here, and compares equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simmim_export.errors import CheckpointError, GateFailed
from simmim_export.export.adopt.probe import Samples, Tensors
from simmim_export.export.adopt.wiring import DYNAMIC, SEQUENCE
from simmim_export.export.golden import Inputs
from simmim_export.export.origin import AdoptedModel
from simmim_export.proof.parity import difference
from simmim_export.runtime.inputs import second_axis
from simmim_export.spec import TOLERANCES, GraphSpec, Kind, Precision, TensorSpec

# So many different images and texts are compared with each other.
COMPARED = 8
# Outputs that differ by less than this, relative to their size, are the same: rounding alone gives up to 1e-6.
SAME = 1e-5
# How far the length of an embedding may be from 1.
UNIT = 1e-3
CLOSE = TOLERANCES[Precision.FP32].scaled_error

# What each canary found if it fails, and what to do about it.
_FINDINGS: Mapping[str, tuple[str, str]] = {
    "finite": (
        "gives NaN or infinity for real samples",
        "check mean and std in the spec, and that the model was exported from FP32 weights",
    ),
    "original": (
        "is not what the original file computes",
        "report this with the versions that simmim-export doctor prints, and name the tool that exported the file",
    ),
    "distinct": (
        "is the same for different inputs, so it means nothing",
        "check that the weights were loaded before the export; then the spec: kinds of inputs, mean, std, tokenizer",
    ),
    "unit": (
        "is an embedding whose length is not 1",
        "add normalize = true to this output in the spec",
    ),
    "batch": (
        "changes with what else is in the batch",
        f"export the model in eval mode; or {DYNAMIC}",
    ),
    "padding": (
        "changes with the padding of a text",
        "name the attention mask as an input of kind text_mask; or export the model for texts of a fixed length",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Canary:
    """One check of one output. It passes if ``measured`` is at most ``limit``, for ``distinct`` if it is above it: the smallest
    difference of two samples. ``unit`` is the largest distance of a length from 1, ``finite`` the share of values that are not;
    the others are scaled errors (:class:`simmim_export.spec.Tolerance`)."""

    name: str
    graph: str
    output: str
    measured: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether it passed. A value that is not a number does not."""
        return self.measured > self.limit if self.name == "distinct" else self.measured <= self.limit

    def as_row(self) -> dict[str, Any]:
        """For JSON and the manifest."""
        return asdict(self) | {"passed": self.passed}


def require(canaries: Iterable[Canary], where: Path) -> None:
    """Raise :class:`GateFailed` for the first kind of canary that failed, naming every output of which it did."""
    failed = [canary for canary in canaries if not canary.passed]
    for name, (finding, fix) in _FINDINGS.items():
        those = [canary for canary in failed if canary.name == name]
        if those:
            lines = [f"{one.graph}: {one.output}: {one.measured:.3g}, limit {one.limit:.3g}" for one in those[:10]]
            outputs = ", ".join(one.output for one in those[:10])
            raise GateFailed("\n  ".join([f"{outputs} {finding}:", *lines]), where=where, fix=fix)


def compare_with_original(
    graph: str, outputs: Mapping[str, np.ndarray], original: Mapping[str, np.ndarray]
) -> list[Canary]:
    """Does the rewired graph compute what the original file does?"""
    return [
        Canary(
            name="original",
            graph=graph,
            output=name,
            measured=_finite(difference(outputs[name], value)[0]),
            limit=CLOSE,
        )
        for name, value in original.items()
        if value.dtype.kind == "f" and np.isfinite(value).all()
    ]


def check_model(model: AdoptedModel, samples: Samples, *, where: Path) -> list[Canary]:
    """The other canaries, on every graph of ``model``. Raise :class:`CheckpointError` naming ``where`` if the tokenizer gives the
    same tokens for all ``samples``."""
    inputs = Inputs.of(model)
    least, longest = second_axis(inputs.specs, Kind.TOKEN_IDS)
    rows = _tokens(samples, longest, where=where) if longest else [[0]] * COMPARED
    rows = rows[: min(COMPARED, len(samples.images))]
    ids, mask = _padded(rows, samples.vocabulary.pad, least=least)
    feeds = inputs.named({Kind.IMAGE: samples.images[: len(rows)], Kind.TOKEN_IDS: ids, Kind.TEXT_MASK: mask})
    outputs = inputs.run(feeds)
    alone = [inputs.run({name: array[row : row + 1] for name, array in feeds.items()}) for row in range(len(rows))]
    canaries = []
    for spec in inputs.specs:
        for tensor in spec.outputs:
            key = f"{spec.name}:{tensor.name}"
            canaries += _of_output(spec.name, tensor, outputs[key], alone=[one[key] for one in alone])
    return canaries + _padding(inputs, feeds, outputs=outputs, lengths=[max(least, len(row)) for row in rows])


def _of_output(graph: str, tensor: TensorSpec, values: np.ndarray, *, alone: list[np.ndarray]) -> list[Canary]:
    """The canaries of one output: its ``values`` for a batch, and for each row ``alone``."""

    def canary(name: str, measured: float, limit: float) -> Canary:
        return Canary(name=name, graph=graph, output=tensor.name, measured=_finite(measured), limit=limit)

    canaries = [canary("finite", float((~np.isfinite(values)).mean()), 0.0)]
    if values.dtype.kind != "f" or not np.isfinite(values).all():
        return canaries
    if tensor.kind in (Kind.EMBEDDING, Kind.LOGITS):
        canaries.append(canary("distinct", _closest(values), SAME))
    if tensor.kind is Kind.EMBEDDING:
        canaries.append(canary("unit", float(np.abs(np.linalg.norm(values, axis=-1) - 1).max()), UNIT))
    errors = [difference(one, values[row : row + 1])[0] for row, one in enumerate(alone)]
    return [*canaries, canary("batch", max(errors), CLOSE)]


def _padding(inputs: Inputs, feeds: Tensors, *, outputs: Tensors, lengths: list[int]) -> list[Canary]:
    """Every text of ``feeds`` again without its padding, if the graphs take texts of any length. ``lengths`` are in tokens."""
    shapes = {tensor.name: tensor.shape for spec in inputs.specs for tensor in (*spec.inputs, *spec.outputs)}
    longest = max((array.shape[1] for name, array in feeds.items() if SEQUENCE in shapes[name]), default=0)
    # What a graph gives for an image says nothing about padding.
    texts = {f"{spec.name}:{t.name}" for spec in inputs.specs if _reads_text(spec) for t in spec.outputs}
    worst: dict[str, float] = {}
    for row, length in enumerate(lengths):
        if length >= longest:
            continue
        shorter = {name: _cut(array[row : row + 1], shapes[name], length) for name, array in feeds.items()}
        for key, value in inputs.run(shorter).items():
            if key in texts and value.dtype.kind == "f":
                padded = _cut(outputs[key][row : row + 1], shapes[key.partition(":")[2]], length)
                worst[key] = max(worst.get(key, 0.0), _finite(difference(value, padded)[0]))
    return [
        Canary(name="padding", graph=key.partition(":")[0], output=key.partition(":")[2], measured=error, limit=CLOSE)
        for key, error in worst.items()
    ]


def _reads_text(spec: GraphSpec) -> bool:
    return any(SEQUENCE in tensor.shape for tensor in spec.inputs)


def _tokens(samples: Samples, longest: int, *, where: Path) -> list[list[int]]:
    """The token ids of each text, each once."""
    tokenizer = samples.vocabulary.tokenizer
    tokenizer.enable_truncation(longest)
    rows = dict.fromkeys(tuple(tokenizer.encode(text).ids) for text in samples.texts)
    if len(rows) < 2:
        what = f"the tokenizer gives the same tokens for all of {len(samples.texts)} texts"
        fix = "give the model's own tokenizer.json, or texts in its language with samples = [...] in [text]"
        raise CheckpointError(what, where=where, fix=fix)
    return [list(row) for row in rows]


def _padded(rows: list[list[int]], pad: int, *, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask, int64 [rows, tokens] each."""
    length = max(least, *(len(row) for row in rows))
    ids, mask = np.full((len(rows), length), pad, np.int64), np.zeros((len(rows), length), np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
    return ids, mask


def _cut(array: np.ndarray, shape: tuple[int | str, ...], length: int) -> np.ndarray:
    return array[tuple(slice(length if size == SEQUENCE else None) for size in shape)]


def _closest(values: np.ndarray) -> float:
    """The smallest largest difference of two rows, relative to the size of all."""
    rows = values.reshape(len(values), -1).astype(np.float64)
    scale = max(float(np.sqrt(np.mean(rows * rows))), 1e-30)
    pairs = [np.abs(rows[i] - rows[j]).max() for i in range(len(rows)) for j in range(i)]
    return float(min(pairs, default=0.0)) / scale


def _finite(value: float) -> float:
    """JSON has no infinity."""
    return value if np.isfinite(value) else 1e30
