"""What a graph computes for real inputs, in ONNX Runtime: any of its tensors, their largest magnitudes, their moments."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from simmim_export.errors import DataError
from simmim_export.precision.base import Feeds
from simmim_export.system.host import available_threads
from simmim_export.system.telemetry import without_telemetry
from simmim_export.system.watch import Watch, unwatched

# Bytes of second moments that are held at a time. Those of base's whole text tower are half as many.
MOMENT_BYTES = 1 << 30
# Bytes of activations that wait until they are multiplied.
WAITING_BYTES = 1 << 28
# Rows of a sum that are computed in one product.
STRIP = 768
# The outputs for so many feeds are kept, to show that an edited graph still computes the same. One would do: an error in the
# algebra is in every value.
PROOF_FEEDS = 4


def run(
    model: onnx.ModelProto, feeds: Feeds, names: Iterable[str], *, optimized: bool = True
) -> Iterator[dict[str, np.ndarray]]:
    """The tensors ``names`` of ``model``, outputs or not, for each of ``feeds``.

    Without ``optimized`` ONNX Runtime fuses no nodes, so that every tensor is what its own node makes.
    """
    with without_telemetry("onnxruntime"):
        import onnxruntime

    names = list(names)
    present = {output.name for output in model.graph.output}
    added = onnx.ModelProto()
    added.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    # Protobuf merges messages that stand one after the other, so that the weights need not be copied first.
    wider = model.SerializeToString() + added.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_threads()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(wider, options, providers=["CPUExecutionProvider"])
    inputs = [value.name for value in session.get_inputs()]
    for feed in feeds:
        yield dict(zip(names, session.run(names, {name: feed[name] for name in inputs}), strict=True))


@dataclass(frozen=True)
class Activation:
    """What was seen of a tensor [..., M, K]: the greatest M (1 if it has no such axis), the number ``tokens`` of its rows [K] in
    all, and ``lowest`` and ``highest`` float32 [K], the least and the greatest value of each channel.

    If K differs from sample to sample, as the width of a picture may, the last two are [1]: the extremes of all values.
    """

    rows: int
    tokens: int
    lowest: np.ndarray
    highest: np.ndarray

    @property
    def largest(self) -> np.ndarray:
        """float32 [K]: the largest magnitude of each channel."""
        return np.maximum(self.highest, -self.lowest)

    @classmethod
    def of(cls, tensor: np.ndarray) -> Activation:
        """What one ``tensor`` shows."""
        rows = _rows(tensor)
        height = tensor.shape[-2] if tensor.ndim > 1 else 1
        return cls(height, len(rows), rows.min(axis=0), rows.max(axis=0))

    def __or__(self, other: Activation) -> Activation:
        """What both saw."""
        lowest, highest = [self.lowest, other.lowest], [self.highest, other.highest]
        if lowest[0].shape != lowest[1].shape:
            lowest, highest = (
                [each.min(keepdims=True) for each in lowest],
                [each.max(keepdims=True) for each in highest],
            )
        rows, tokens = max(self.rows, other.rows), self.tokens + other.tokens
        return Activation(rows, tokens, np.minimum(*lowest), np.maximum(*highest))


class Record:
    """What tensors of an FP32 ``model`` hold on ``feeds``. All INT8 variants of a graph share one, so the graph runs once.

    It keeps what it has measured; moments up to :data:`MOMENT_BYTES`, and for those of larger graphs the graph runs again.
    ``watch`` is told which feed is running. Methods raise :class:`DataError` if they have to measure and there are no feeds.
    """

    def __init__(self, model: onnx.ModelProto, feeds: Feeds, watch: Watch = unwatched) -> None:
        self.model, self.feeds, self.watch = model, feeds, watch
        self._activations: dict[str, Activation] = {}
        self._moments: dict[str, np.ndarray] = {}
        self._outputs: list[dict[str, np.ndarray]] = []

    def activations(self, names: Iterable[str]) -> dict[str, Activation]:
        """An :class:`Activation` for each tensor of ``names``, over all feeds."""
        names = list(dict.fromkeys(names))
        missing = [name for name in names if name not in self._activations]
        if missing:
            self._measure(missing, moments_of=())
        return {name: self._activations[name] for name in names}

    def moments(self, names: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
        """For each tensor [.., K] of ``names``, in any order: its name and the sum of x^T x over all its rows x, float32 [K, K].

        The number of rows is in its :class:`Activation`.
        """
        waiting = list(dict.fromkeys(names))
        while waiting:
            if self._moments.keys().isdisjoint(waiting):
                self._moments.clear()
                self._measure(waiting, moments_of=waiting)
            held = {name: self._moments[name] for name in waiting if name in self._moments}
            yield from held.items()
            waiting = [name for name in waiting if name not in held]

    def outputs(self) -> list[dict[str, np.ndarray]]:
        """The outputs of the graph for the first :data:`PROOF_FEEDS` feeds."""
        if not self._outputs:
            self._outputs = list(run(self.model, self.feeds[:PROOF_FEEDS], self._output_names()))
        return self._outputs

    def prepare(self, names: Iterable[str]) -> None:
        """Measure activations and moments of ``names`` in one run, as far as the moments fit."""
        next(self.moments(names), None)

    def _output_names(self) -> list[str]:
        return [output.name for output in self.model.graph.output]

    def _measure(self, names: Sequence[str], *, moments_of: Collection[str]) -> None:
        """Run the graph on all feeds and keep what is seen of ``names``, with the moments of ``moments_of`` that fit."""
        if not self.feeds:
            raise DataError("no samples to measure channels on", fix="give 8 or more real ones")
        seen: dict[str, Activation] = {}
        outputs, sums = self._output_names(), _Moments()
        for index, tensors in enumerate(run(self.model, self.feeds, dict.fromkeys([*names, *outputs]))):
            self.watch("sample", index + 1, len(self.feeds))
            if len(self._outputs) <= index < PROOF_FEEDS:
                self._outputs.append({name: tensors[name] for name in outputs})
            for name in names:
                one = Activation.of(tensors[name])
                seen[name] = seen[name] | one if name in seen else one
                if name in moments_of:
                    sums.add(name, _rows(tensors[name]))
        self._activations |= seen
        self._moments |= sums.finish()


class _Moments:
    """Sums of x^T x of several tensors. It collects rows first: a sum of base's feed-forward has 38 MB, too much to read and
    write for the few rows of one sample."""

    def __init__(self) -> None:
        self._sums: dict[str, np.ndarray] = {}
        self._rows: defaultdict[str, list[np.ndarray]] = defaultdict(list)
        self._bytes, self._waiting = 0, 0

    def add(self, name: str, rows: np.ndarray) -> None:
        """Add ``rows`` float32 [M, K] to the sum ``name``, unless it is new and the others take up :data:`MOMENT_BYTES`."""
        if name not in self._sums:
            if self._bytes >= MOMENT_BYTES:
                return
            self._sums[name] = np.zeros((rows.shape[1],) * 2, np.float32)
            self._bytes += self._sums[name].nbytes
        self._rows[name].append(rows)
        self._waiting += rows.nbytes
        if self._waiting >= WAITING_BYTES:
            self._multiply()

    def finish(self) -> dict[str, np.ndarray]:
        """The sums of all rows, by name."""
        self._multiply()
        for total in self._sums.values():
            for start in range(0, len(total), STRIP):
                stop = start + STRIP
                total[stop:, start:stop] = total[start:stop, stop:].T
        return self._sums

    def _multiply(self) -> None:
        for name, parts in self._rows.items():
            rows = np.concatenate(parts)
            # A product is symmetric: strips from the diagonal to the right hold all of it.
            for start in range(0, rows.shape[1], STRIP):
                strip = slice(start, start + STRIP)
                self._sums[name][strip, start:] += rows[:, strip].T @ rows[:, start:]
        self._rows.clear()
        self._waiting = 0


def _rows(tensor: np.ndarray) -> np.ndarray:
    return tensor.reshape(-1, tensor.shape[-1])
