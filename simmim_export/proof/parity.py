"""Does a session still compute what PyTorch computed? Checked without PyTorch, against tensors stored at export.

Every deployment hop (an export, a compile, the first run on a device) is judged by :func:`compare` and by nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from simmim_export.errors import BundleError, GateFailed, UsageError
from simmim_export.spec import TOLERANCES, GraphSpec, Precision, TensorSpec
from simmim_export.system.npz import DAMAGED, pack, unpack

Tensors = Mapping[str, np.ndarray]

# An export probes nine shapes; each case is run at least once.
MAX_CASES, MAX_NAME = 100, 100
_FIX = "export the bundle again, or copy it again, whole"
# The output of every head. Its softmax does not change if a number is added to a whole row, and a model may scale it.
LOGITS = "logits"
# Logits that differ by no more than so many roundings of the largest of them are equal.
ROUNDINGS = 8
# How far apart classes are at least, relative to their logits, for the tolerance of FP32 to be one of their difference.
RESOLVED = 0.003
# Which axis a mask pads.
MASKS: Mapping[str, str] = {"attention_mask": "sequence", "frame_mask": "frames"}


class Runs(Protocol):
    """The one thing that parity needs of a session."""

    def run(self, feeds: Tensors) -> dict[str, np.ndarray]:
        """Compute every output from every input."""
        ...


@runtime_checkable
class Limited(Protocol):
    """A session that was compiled for some shapes only: the others are no part of what it promises."""

    def fits(self, feeds: Tensors) -> bool:
        """Whether it takes ``feeds``."""
        ...


@dataclass(frozen=True)
class Golden:
    """Real inputs and PyTorch's FP32 outputs for them, one case for each probed shape.

    A case maps a tensor to its array: an input by its name (``pixels``), an output by its graph and name
    (``head.vqa:logits``), since several graphs may give a tensor of the same name.
    """

    cases: Mapping[str, Tensors]

    def save(self) -> bytes:
        """The content of golden.npz; the same tensors always give the same bytes."""
        return pack({f"{case}/{key}": array for case, tensors in self.cases.items() for key, array in tensors.items()})

    @classmethod
    def load(cls, path: Path, *, graphs: Sequence[GraphSpec] | None = None) -> Golden:
        """Read golden.npz, and :meth:`check` it for ``graphs``. Give those of the manifest for a bundle that is not your own.

        Raise :class:`BundleError` if it does not fit, or is damaged.
        """
        cases: dict[str, dict[str, np.ndarray]] = {}
        try:
            for name, array in unpack(path).items():
                case, _, key = name.partition("/")
                cases.setdefault(case, {})[key] = array
        except DAMAGED as error:
            raise BundleError(f"golden.npz cannot be read: {error}", where=path, fix=_FIX) from error
        golden = cls(cases)
        if graphs is not None:
            golden.check(graphs, path)
        return golden

    def check(self, graphs: Sequence[GraphSpec], where: object = None) -> None:
        """Raise :class:`BundleError`, naming the case and the tensor, unless each case holds every input and output of
        ``graphs`` and nothing else, each finite and with the dtype, rank and fixed sizes of its spec, and each dynamic axis
        has one size in the whole case, which is in the axis's range. Of every axis some case has the largest size: batches of
        one would not show what a graph does to several."""

        def refuse(what: str) -> BundleError:
            return BundleError(f"golden.npz {what}", where=where, fix=_FIX)

        if not 0 < len(self.cases) <= MAX_CASES:
            raise refuse(f"has {len(self.cases)} cases, not 1 to {MAX_CASES}")
        largest: dict[str, int] = {}
        for case, tensors in self.cases.items():
            if not case.isprintable() or not 0 < len(case) <= MAX_NAME:
                raise refuse(f"has a case named {case[:MAX_NAME]!r}")
            sizes: dict[str, int] = {}
            unused = set(tensors)
            for graph in graphs:
                outputs = [(tensor, f"{graph.name}:{tensor.name}") for tensor in graph.outputs]
                for tensor, key in [*((t, self._key(case, t.name)) for t in graph.inputs), *outputs]:
                    shown = f"case {case!r}, {key or tensor.name}"
                    if key is None or key not in tensors:
                        raise refuse(f"lacks a tensor: {shown}, of graph {graph.name}")
                    if problem := _misfit(tensors[key], tensor, graph, sizes):
                        raise refuse(f"has a wrong tensor: {shown}, of graph {graph.name}: {problem}")
                    unused.discard(key)
            if unused:
                raise refuse(f"has a tensor of no graph: case {case!r}, {min(unused)[:MAX_NAME]!r}")
            largest |= {name: max(size, largest.get(name, 0)) for name, size in sizes.items()}
        for graph in graphs:
            for axis in graph.axes:
                if largest.get(axis.name, 0) < axis.maximum:
                    promise = f"{graph.name} promises {axis.maximum}"
                    raise refuse(f"proves {axis.name!r} up to {largest.get(axis.name, 0)}, and {promise}")

    def largest(self) -> str:
        """The case with the most values: the largest batch of the longest texts."""
        return max(self.cases, key=lambda name: sum(array.size for array in self.cases[name].values()))

    def _key(self, case: str, name: str) -> str | None:
        """Where the input ``name`` of a graph is in ``case``: as stored, or as PyTorch's graph before it gave it."""
        keys = (key for key in self.cases[case] if key == name or key.endswith(f":{name}"))
        return min(keys, key=lambda key: key != name, default=None)

    def feeds(self, case: str, spec: GraphSpec) -> dict[str, np.ndarray]:
        """The inputs of ``spec`` in ``case``. KeyError for one that is not there."""
        tensors = self.cases[case]
        return {tensor.name: tensors[self._key(case, tensor.name) or tensor.name] for tensor in spec.inputs}

    def expected(self, case: str, spec: GraphSpec) -> dict[str, np.ndarray]:
        """PyTorch's outputs of ``spec`` in ``case``."""
        return {tensor.name: self.cases[case][f"{spec.name}:{tensor.name}"] for tensor in spec.outputs}


@dataclass(frozen=True)
class ParityRow:
    """One output in one check. ``scaled_error`` and ``cosine`` as in :class:`~simmim_export.spec.Tolerance`; of logits, the error
    is that of :func:`logits_error` if it is larger."""

    check: str
    output: str
    shape: tuple[int, ...]
    scaled_error: float
    cosine: float
    passed: bool


@dataclass(frozen=True)
class ParityReport:
    """Everything that was compared for one graph at one precision."""

    graph: str
    precision: Precision
    rows: tuple[ParityRow, ...]
    # The form of the graph that was run, where there are several for one precision.
    variant: str = ""

    @property
    def passed(self) -> bool:
        """True when something was compared and every row is within its tolerance."""
        return bool(self.rows) and all(row.passed for row in self.rows)

    @property
    def scaled_error(self) -> float:
        """The worst of the rows."""
        return max((row.scaled_error for row in self.rows), default=float("inf"))

    @property
    def cosine(self) -> float:
        """The worst of the rows."""
        return min((row.cosine for row in self.rows), default=-1.0)

    def summary(self) -> dict[str, float | int | bool]:
        """The figures that an artifact carries in the manifest."""
        return {
            "passed": self.passed,
            "checks": len(self.rows),
            "scaled_error": self.scaled_error,
            "cosine": self.cosine,
        }

    def require(self, where: object, fix: str) -> None:
        """Raise :class:`GateFailed` naming the worst rows unless there are some and all passed."""
        if not self.rows:
            raise GateFailed(f"{self.graph} at {self.precision} has no output that was compared", where=where, fix=fix)
        failed = sorted((row for row in self.rows if not row.passed), key=lambda row: -row.scaled_error)
        if failed:
            lines = [
                f"{r.check}, {r.output} {list(r.shape)}: error {r.scaled_error:.2e}, cosine {r.cosine:.6f}"
                for r in failed
            ]
            shown = "\n  ".join(lines[:5])
            raise GateFailed(
                f"{self.graph} at {self.precision} differs from PyTorch in {len(failed)} of {len(self.rows)} checks:\n  {shown}",
                where=where,
                fix=fix,
            )


def difference(found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """(max|a - b| / max(1, rms(b)), worst cosine over the last axis).

    (inf, -1), which no tolerance allows, for different shapes, empty arrays, values that are not real floats, NaN, infinity, and
    values so large that their squares are not finite.
    """
    failed = float("inf"), -1.0
    if found.shape != expected.shape or not found.size or {found.dtype.kind, expected.dtype.kind} != {"f"}:
        return failed
    a, b = (np.atleast_1d(array.astype(np.float64)) for array in (found, expected))
    with np.errstate(over="ignore", invalid="ignore"):
        scale = np.sqrt(np.mean(b * b))
        norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        # Two rows of zeros (padding) point the same way; one of them alone does not.
        both_zero = (np.abs(a).max(axis=-1) < 1e-9) & (np.abs(b).max(axis=-1) < 1e-9)
        cosine = np.where(both_zero, 1.0, (a * b).sum(axis=-1) / np.maximum(norms, 1e-30))
        error = np.abs(a - b).max() / max(1.0, float(scale))
    if not (np.isfinite(a).all() and np.isfinite(scale) and np.isfinite(norms).all() and np.isfinite(error)):
        return failed
    return float(error), float(cosine.min())


def logits_scale(expected: np.ndarray) -> float:
    """How far the classes of ``expected`` [..., classes] are apart: the root mean square of each row less its mean, and at least
    :data:`RESOLVED` of that of the values themselves, which is how well arithmetic in FP32 can tell them apart."""
    values = expected.astype(np.float64)
    apart = values - values.mean(axis=-1, keepdims=True)
    return max(float(np.sqrt(np.mean(apart * apart))), RESOLVED * float(np.sqrt(np.mean(values * values))))


def logits_error(found: np.ndarray, expected: np.ndarray, *, scale: float | None = None) -> float:
    """How far the logits ``found`` [..., classes] are from ``expected`` as answers, relative to ``scale``.

    Each row counts less its mean, since softmax does not see an offset, and the default scale is :func:`logits_scale`: without
    both, a large offset or a small scale would hide any other answer. Differences of :data:`ROUNDINGS` roundings in FP32 of the
    largest value are none. Infinite for what :func:`difference` cannot compare.
    """
    if not np.isfinite(difference(found, expected)[0]):
        return float("inf")
    a, b = found.astype(np.float64), expected.astype(np.float64)
    far = np.abs((a - a.mean(axis=-1, keepdims=True)) - (b - b.mean(axis=-1, keepdims=True))).max()
    excess = float(far - ROUNDINGS * np.finfo(np.float32).eps * np.abs(b).max())
    if excess <= 0:
        return 0.0
    scale = logits_scale(b) if scale is None else scale
    return excess / scale if scale else float("inf")


def _misfit(array: np.ndarray, tensor: TensorSpec, graph: GraphSpec, sizes: dict[str, int]) -> str | None:
    """What of ``array`` contradicts ``tensor`` of ``graph``; None if nothing. ``sizes`` collects those of dynamic axes."""
    try:
        tensor.check(array)
    except UsageError as error:
        return error.what
    ranges = {axis.name: axis for axis in graph.axes}
    for name, size in zip(tensor.shape, array.shape, strict=True):
        if not isinstance(name, str):
            continue
        axis = ranges.get(name)
        if axis is None or not max(1, axis.minimum) <= size <= axis.maximum:
            return f"its axis {name!r} has size {size}" + (f", not {axis.minimum} to {axis.maximum}" if axis else "")
        if sizes.setdefault(name, size) != size:
            return f"its axis {name!r} has size {size}, and {sizes[name]} in another tensor of the case"
    if not array.size:
        return "it is empty"
    return None if np.isfinite(array).all() else "it holds NaN or infinity"


def compare(session: Runs, spec: GraphSpec, golden: Golden, precision: Precision) -> ParityReport:
    """Run every golden case, then the invariance checks, and compare each output with PyTorch's.

    Batch invariance: each sample alone gives what it gives among others. Padding invariance: a text without its padding
    gives what it gives with it. Both are compared with PyTorch's outputs for the padded batch. Logits are also compared by
    :func:`logits_error`, at FP32 relative to their own size.

    ``precision`` says how close is close enough. KeyError for one without a tolerance. What a :class:`Limited` session does not
    take is left out, and shows in the number of rows; :class:`UsageError` if nothing is left.
    """
    tolerance = TOLERANCES[precision]
    rows: list[ParityRow] = []
    golden = _taken(session, spec, golden)
    heads = [golden.expected(case, spec)[LOGITS] for case in golden.cases if LOGITS in {o.name for o in spec.outputs}]
    # Of all cases together: in a single row the classes may be equal by chance.
    scale = max(map(logits_scale, heads), default=0.0)
    if precision is not Precision.FP32:
        scale = max(scale, 1.0)

    def judge(check: str, found: Tensors, expected: Tensors) -> None:
        for name, reference in expected.items():
            error, cosine = difference(found[name], reference)
            if name == LOGITS:
                error = max(error, logits_error(found[name], reference, scale=scale))
            good = error <= tolerance.scaled_error and cosine >= tolerance.cosine
            rows.append(ParityRow(check, name, reference.shape, error, cosine, good))

    for case in golden.cases:
        judge(case, session.run(golden.feeds(case, spec)), golden.expected(case, spec))
    largest = _largest(golden, spec)
    for check, index, alone, reference in _samples(golden.feeds(largest, spec), golden.expected(largest, spec), spec):
        if _takes(session, alone):
            judge(f"{check}, sample {index}", session.run(alone), reference)
    return ParityReport(spec.name, precision, tuple(rows))


def invariance(session: Runs, spec: GraphSpec, golden: Golden) -> dict[str, float]:
    """``batch`` and ``padding``: the largest scaled error of a sample alone, and of one without its padding, against what the
    same session gives it among others. 0 for what the graph does not have."""
    feeds = golden.feeds(_largest(_taken(session, spec, golden), spec), spec)
    among = session.run(feeds)
    found = {"batch": 0.0, "padding": 0.0}
    for check, _, alone, reference in _samples(feeds, among, spec):
        if not _takes(session, alone):
            continue
        outputs, kind = session.run(alone), "batch" if check == ALONE else "padding"
        found[kind] = max(found[kind], *(difference(outputs[name], values)[0] for name, values in reference.items()))
    return found


def _takes(session: Runs, feeds: Tensors) -> bool:
    return not isinstance(session, Limited) or session.fits(feeds)


def _taken(session: Runs, spec: GraphSpec, golden: Golden) -> Golden:
    """The cases that ``session`` takes; raise :class:`UsageError` if there are none."""
    cases = {name: case for name, case in golden.cases.items() if _takes(session, golden.feeds(name, spec))}
    if not cases:
        what = f"{spec.name} was compiled for shapes that no golden case has: nothing can prove it"
        raise UsageError(what, fix="compile it for a wider range, that of the bundle if nothing is asked for")
    return Golden(cases)


ALONE, UNPADDED = "alone", "without padding"


def _largest(golden: Golden, spec: GraphSpec) -> str:
    """The case with the largest batch; of those, the one with the longest texts: short ones are cut and need no padding."""

    def size(case: str) -> tuple[int, int]:
        batch = len(next(iter(golden.feeds(case, spec).values())))
        return batch, sum(array.size for array in golden.cases[case].values())

    return max(golden.cases, key=size)


def _samples(
    feeds: Tensors, expected: Tensors, spec: GraphSpec
) -> Iterator[tuple[str, int, dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """(check, number, inputs, outputs) of every sample alone, and again without its padding."""
    for index in range(len(next(iter(feeds.values())))):
        alone = {name: array[index : index + 1] for name, array in feeds.items()}
        reference = {name: array[index : index + 1] for name, array in expected.items()}
        yield ALONE, index, alone, reference
        for mask, axis in MASKS.items():
            if mask in alone:
                length = max(int(alone[mask].sum()), spec.axis(axis).minimum)
                shorter = _cut(alone, spec.inputs, axis, length)
                yield UNPADDED, index, shorter, _cut(reference, spec.outputs, axis, length)


def _cut(tensors: Tensors, specs: tuple, axis: str, length: int) -> dict[str, np.ndarray]:
    """Keep the first ``length`` positions of every tensor that has ``axis`` (always its second)."""
    shapes = {spec.name: spec.shape for spec in specs}
    return {name: array[:, :length] if axis in shapes[name] else array for name, array in tensors.items()}
