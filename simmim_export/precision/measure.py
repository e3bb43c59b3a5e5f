"""What a graph computes for real inputs, in ONNX Runtime: any of its tensors, their largest magnitudes, their moments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from simmim_export.precision.base import Feeds
from simmim_export.system.host import available_threads
from simmim_export.system.telemetry import without_telemetry

# Bytes of second moments that are held at a time. Those of base's whole text tower are four times as many.
MOMENT_BYTES = 1 << 28


def run(
    model: onnx.ModelProto, feeds: Feeds, names: Iterable[str], *, optimized: bool = True
) -> Iterator[dict[str, np.ndarray]]:
    """The tensors ``names`` of ``model``, outputs or not, for each of ``feeds``.

    Without ``optimized`` ONNX Runtime fuses no nodes, so that every tensor is what its own node makes.
    """
    with without_telemetry("onnxruntime"):
        import onnxruntime

    names = list(names)
    wider = onnx.ModelProto()
    wider.CopyFrom(model)
    present = {output.name for output in model.graph.output}
    wider.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_threads()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(wider.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inputs = [value.name for value in session.get_inputs()]
    for feed in feeds:
        yield dict(zip(names, session.run(names, {name: feed[name] for name in inputs}), strict=True))


@dataclass(frozen=True)
class Activation:
    """What was seen of a tensor [..., M, K]: the greatest M (1 if it has no such axis), and ``largest`` float32 [K], the
    largest magnitude of every channel."""

    rows: int
    largest: np.ndarray


def observe(model: onnx.ModelProto, feeds: Feeds, names: Iterable[str]) -> dict[str, Activation]:
    """An :class:`Activation` for each tensor of ``names``, over all ``feeds``."""
    activations: dict[str, Activation] = {}
    for tensors in run(model, feeds, names):
        for name, tensor in tensors.items():
            channels = tensor.shape[-1]
            largest = np.abs(tensor.reshape(-1, channels)).max(axis=0)
            before = activations.get(name, Activation(1, np.zeros(channels, np.float32)))
            rows = tensor.shape[-2] if tensor.ndim > 1 else 1
            activations[name] = Activation(max(before.rows, rows), np.maximum(before.largest, largest))
    return activations


def moments(model: onnx.ModelProto, feeds: Feeds, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray, int]]:
    """For each tensor [.., K] of ``names`` over all ``feeds``: its name, the sum of x^T x over its rows x as float64 [K, K], and
    the number of rows. At most :data:`MOMENT_BYTES` of sums are held at a time; the graph runs again for the others.
    """
    waiting = list(names)
    while waiting:
        sums: dict[str, np.ndarray] = {}
        rows: Counter[str] = Counter()
        for tensors in run(model, feeds, waiting):
            for name, tensor in tensors.items():
                if name not in sums and sum(held.nbytes for held in sums.values()) >= MOMENT_BYTES:
                    continue
                x = tensor.reshape(-1, tensor.shape[-1])
                sums[name] = sums.get(name, 0.0) + (x.T @ x).astype(np.float64)
                rows[name] += len(x)
        for name, moment in sums.items():
            yield name, moment, rows[name]
        waiting = [name for name in waiting if name not in sums]
