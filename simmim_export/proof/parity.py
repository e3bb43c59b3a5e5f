"""Does a session still compute what PyTorch computed? Checked without PyTorch, against tensors stored at export.

The reference of a model that came as ONNX files is ONNX Runtime in FP32 (:class:`~simmim_export.spec.Reference`).

Every step of a deployment (an export, a compile, the first run on a device) is judged by :func:`compare` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from simmim_export.bundle.golden import Golden
from simmim_export.engines.pipeline import Runs
from simmim_export.errors import GateFailed, UsageError
from simmim_export.spec import TOLERANCES, GraphSpec, Kind, Precision, Reference, TensorSpec, Tolerance

Tensors = Mapping[str, np.ndarray]

# Logits whose difference is at most this many roundings of the largest of them are equal.
ROUNDINGS = 8
# FP32 can tell classes apart if they differ by this share of their logits (root mean squares).
RESOLVED = 0.003
# An INT8 file may be this many times as far from PyTorch on a device as it was when it was exported. OpenVINO on x86 was at most
# 1.1 times as far, and ONNX Runtime on four Arm processors exactly as far. Where an engine's INT8 was broken (OpenVINO on Arm),
# it was 9 and 15 times as far. docs/decisions.md and docs/engines.md have the commands.
TIMES_EXPORTED = 3
# The two checks of a single sample.
ALONE, UNPADDED = "alone", "without padding"


@runtime_checkable
class Limited(Protocol):
    """A session that was compiled for some shapes only; it promises nothing for the others."""

    def fits(self, feeds: Tensors) -> bool:
        """Whether it takes ``feeds``."""
        ...


@dataclass(frozen=True, kw_only=True)
class ParityRow:
    """One output in one check. ``scaled_error`` and ``cosine`` as in :class:`~simmim_export.spec.Tolerance`; for logits, the
    error is that of :func:`logits_error` if it is larger."""

    check: str
    output: str
    shape: tuple[int, ...]
    scaled_error: float
    cosine: float
    passed: bool


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """Everything that was compared for one graph at one precision, and the ``tolerance``. ``variant`` is the form of the graph
    that was run, where there are several for one precision; ``reference`` is what it was compared with."""

    graph: str
    precision: Precision
    rows: tuple[ParityRow, ...]
    tolerance: Tolerance
    variant: str = ""
    reference: Reference = Reference.PYTORCH

    @property
    def passed(self) -> bool:
        """True when something was compared and every row is within its tolerance."""
        return bool(self.rows) and all(row.passed for row in self.rows)

    @property
    def scaled_error(self) -> float:
        """The largest of the rows, infinite if there are none."""
        return max((row.scaled_error for row in self.rows), default=float("inf"))

    @property
    def cosine(self) -> float:
        """The smallest of the rows, -1 if there are none."""
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
            raise GateFailed(f"{self.graph} at {self.precision} has no output to compare", where=where, fix=fix)
        failed = sorted((row for row in self.rows if not row.passed), key=lambda row: -row.scaled_error)
        if failed:
            count = f"{len(failed)} of {len(self.rows)} checks"
            lines = [
                f"{row.check}, {row.output} {list(row.shape)}: error {row.scaled_error:.2e}, cosine {row.cosine:.6f}"
                for row in failed[:5]
            ]
            allowed = f"allowed: error {self.tolerance.scaled_error:.2e}, cosine {self.tolerance.cosine:.6f}"
            differs = f"{self.graph} at {self.precision} differs from {self.reference.words}"
            what = "\n  ".join([f"{differs} in {count} ({allowed}):", *lines])
            raise GateFailed(what, where=where, fix=fix)


def difference(output: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """The scaled error max|a - b| / max(1, rms(b)), and the smallest cosine of two rows over the last axis.

    They are inf and -1, which no tolerance allows, for arrays of different shapes, empty arrays, values that are not real floats,
    NaN, infinity, and values so large that their squares are not finite.
    """
    failed = float("inf"), -1.0
    if output.shape != expected.shape or not output.size or {output.dtype.kind, expected.dtype.kind} != {"f"}:
        return failed
    a, b = (np.atleast_1d(array.astype(np.float64)) for array in (output, expected))
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
    """How far apart the classes of ``expected`` [..., classes] are: the root mean square of each row, less its mean.

    It is at least :data:`RESOLVED` times the root mean square of the values themselves: FP32 cannot tell classes apart better.
    """
    values = expected.astype(np.float64)
    apart = values - values.mean(axis=-1, keepdims=True)
    return max(float(np.sqrt(np.mean(apart * apart))), RESOLVED * float(np.sqrt(np.mean(values * values))))


def logits_error(output: np.ndarray, expected: np.ndarray, *, scale: float | None = None) -> float:
    """How far the logits ``output`` [..., classes] are from ``expected``, relative to ``scale``, as answers.

    The mean of each row is subtracted first, because softmax does not see an offset. The default scale is :func:`logits_scale`.
    Without both, a large offset or a small scale would hide a different answer. A difference of up to :data:`ROUNDINGS` FP32
    roundings of the largest value counts as 0. The result is infinite where :func:`difference` cannot compare.
    """
    if not np.isfinite(difference(output, expected)[0]):
        return float("inf")
    a, b = output.astype(np.float64), expected.astype(np.float64)
    far = np.abs((a - a.mean(axis=-1, keepdims=True)) - (b - b.mean(axis=-1, keepdims=True))).max()
    excess = float(far - ROUNDINGS * np.finfo(np.float32).eps * np.abs(b).max())
    if excess <= 0:
        return 0.0
    scale = logits_scale(b) if scale is None else scale
    return excess / scale if scale else float("inf")


def padded_axes(spec: GraphSpec) -> dict[str, str]:
    """The mask inputs of ``spec`` and the dynamic axis that each of them pads: the mask's second dimension."""
    masks = (tensor for tensor in spec.inputs if tensor.kind in (Kind.TEXT_MASK, Kind.FRAME_MASK))
    return {mask.name: axis for mask in masks for axis in mask.shape[1:2] if isinstance(axis, str)}


def cut(tensors: Tensors, specs: tuple[TensorSpec, ...], *, axis: str, length: int) -> dict[str, np.ndarray]:
    """``tensors`` with only the first ``length`` positions of ``axis``, wherever ``specs`` have it."""
    shapes = {spec.name: spec.shape for spec in specs}
    return {
        name: array[tuple(slice(length if size == axis else None) for size in shapes[name])]
        for name, array in tensors.items()
    }


def tolerance_of(precision: Precision, exported: Mapping[str, Any] | None) -> Tolerance:
    """How far outputs at ``precision`` may be from PyTorch's.

    At INT8 this depends on ``exported``, the parity that the manifest has of the file (:meth:`ParityReport.summary`):
    :data:`TIMES_EXPORTED` times its scaled error. The distance of its cosine from 1 grows with the square of the error, so that
    may be the square of it as large. The result is never stricter than the tolerance of FP32, and never looser than that of INT8.
    """
    tolerance, exact = TOLERANCES[precision], TOLERANCES[Precision.FP32]
    if precision is not Precision.INT8 or exported is None:
        return tolerance
    error = max(exact.scaled_error, TIMES_EXPORTED * exported["scaled_error"])
    cosine = min(exact.cosine, 1 - TIMES_EXPORTED**2 * (1 - exported["cosine"]))
    return Tolerance(scaled_error=min(tolerance.scaled_error, error), cosine=max(tolerance.cosine, cosine))


def compare(
    session: Runs,
    spec: GraphSpec,
    *,
    golden: Golden,
    precision: Precision,
    exported: Mapping[str, Any] | None = None,
    reference: Reference = Reference.PYTORCH,
) -> ParityReport:
    """Run every golden case, then the invariance checks, and compare each output with that of ``reference``.

    Batch invariance: each sample alone gives what it gives among others. Padding invariance: a text or clip without its padding
    gives what it gives with it. Both are compared with PyTorch's outputs for the padded batch. Logits are also compared by
    :func:`logits_error`, at FP32 relative to their own size.

    ``precision`` and ``exported`` say how close is close enough (:func:`tolerance_of`); KeyError for a precision without a
    tolerance. ``exported`` is None for a file that is just being exported. What a :class:`Limited` session does not take is left
    out, which shows in the number of rows; :class:`UsageError` if nothing is left.
    """
    tolerance = tolerance_of(precision, exported)
    rows: list[ParityRow] = []
    golden = _taken(session, spec, golden)
    # Over all cases together: in a single row the classes may be equal by chance.
    scales = {
        tensor.name: max(logits_scale(golden.expected(case, spec)[tensor.name]) for case in golden.cases)
        for tensor in spec.outputs
        if tensor.kind is Kind.LOGITS
    }
    if precision is not Precision.FP32:
        scales = {name: max(scale, 1.0) for name, scale in scales.items()}

    def judge(check: str, outputs: Tensors, expected: Tensors) -> None:
        for name, values in expected.items():
            error, cosine = difference(outputs[name], values)
            if name in scales:
                error = max(error, logits_error(outputs[name], values, scale=scales[name]))
            passed = error <= tolerance.scaled_error and cosine >= tolerance.cosine
            shape = values.shape
            row = ParityRow(check=check, output=name, shape=shape, scaled_error=error, cosine=cosine, passed=passed)
            rows.append(row)

    for case in golden.cases:
        judge(case, session.run(golden.feeds(case, spec)), golden.expected(case, spec))
    largest = _largest(golden, spec)
    for check, index, feeds, expected in _samples(golden.feeds(largest, spec), golden.expected(largest, spec), spec):
        if _takes(session, feeds):
            judge(f"{check}, sample {index}", session.run(feeds), expected)
    return ParityReport(
        graph=spec.name, precision=precision, rows=tuple(rows), tolerance=tolerance, reference=reference
    )


def invariance(session: Runs, spec: GraphSpec, *, golden: Golden) -> dict[str, float]:
    """The largest scaled error of a sample alone (``batch``), and of one without its padding (``padding``), against what the same
    session gives it among others. 0 where the graph has nothing to check."""
    feeds = golden.feeds(_largest(_taken(session, spec, golden), spec), spec)
    errors = {"batch": 0.0, "padding": 0.0}
    for check, _, alone, expected in _samples(feeds, session.run(feeds), spec):
        if _takes(session, alone):
            outputs, key = session.run(alone), "batch" if check == ALONE else "padding"
            far = (difference(outputs[name], values)[0] for name, values in expected.items())
            errors[key] = max(errors[key], *far)
    return errors


def _takes(session: Runs, feeds: Tensors) -> bool:
    return not isinstance(session, Limited) or session.fits(feeds)


def _taken(session: Runs, spec: GraphSpec, golden: Golden) -> Golden:
    """The cases that ``session`` takes; raise :class:`UsageError` if there are none."""
    cases = {name: case for name, case in golden.cases.items() if _takes(session, golden.feeds(name, spec))}
    if not cases:
        what = f"{spec.name} was compiled for shapes that no golden case has, so it cannot be checked"
        raise UsageError(what, fix="compile it for a wider range of shapes, or for the bundle's own range")
    return Golden(cases)


def _largest(golden: Golden, spec: GraphSpec) -> str:
    """The case with the largest batch; of those, the one with the longest texts: short ones are cut and need no padding."""

    def size(case: str) -> tuple[int, int]:
        batch = len(next(iter(golden.feeds(case, spec).values())))
        return batch, sum(array.size for array in golden.cases[case].values())

    return max(golden.cases, key=size)


def _samples(feeds: Tensors, expected: Tensors, spec: GraphSpec) -> Iterator[tuple[str, int, Tensors, Tensors]]:
    """Every row of ``feeds`` alone, and again without its padding: the check, the number of the row, what to feed, and what the
    outputs must be."""
    for index in range(len(next(iter(feeds.values())))):
        alone = {name: array[index : index + 1] for name, array in feeds.items()}
        reference = {name: array[index : index + 1] for name, array in expected.items()}
        yield ALONE, index, alone, reference
        for mask, axis in padded_axes(spec).items():
            length = max(int(alone[mask].sum()), spec.axis(axis).minimum)
            shorter = cut(alone, spec.inputs, axis=axis, length=length)
            outputs = cut(reference, spec.outputs, axis=axis, length=length)
            yield UNPADDED, index, shorter, outputs
