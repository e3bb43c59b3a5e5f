"""Opens a graph as a user of each tool opens it, and runs it: PyTorch, ONNX Runtime, OpenVINO, and our own engines.

These are not our engines: they check nothing, and set only the number of threads and the precision.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simmim_export.benchmarks.peers.contestants import COMPILED, OPENVINO, ORT, TORCH
from simmim_export.bundle import Bundle
from simmim_export.models.family import LoadOptions, family_of
from simmim_export.runtime import load
from simmim_export.spec import GraphSpec, Precision
from simmim_export.system.host import available_threads
from simmim_export.system.telemetry import without_telemetry

Feeds = Mapping[str, np.ndarray]
Run = Callable[[Feeds], Mapping[str, np.ndarray]]
# OpenVINO's names of precisions. INT8 is in the graph; the rest runs in FP32, as with our own graphs.
_HINTS = {Precision.FP32: "f32", Precision.BF16: "bf16", Precision.INT8: "f32"}


@dataclass(frozen=True, kw_only=True)
class Runner:
    """``run`` is what is timed. ``run_any`` gives the same outputs for inputs of any length, perhaps more slowly."""

    run: Run
    run_any: Run


def open_ours(bundle: Path, spec: GraphSpec, *, engine: str, precision: Precision) -> Runner:
    """The graph of the bundle on one of our engines."""
    session = load(bundle, engine, precision=str(precision)).session(spec.name)
    return Runner(run=session.run, run_any=session.run)


def open_torch(checkpoint: Path, spec: GraphSpec, *, engine: str, precision: Precision) -> Runner:
    """The module that the exporter traces: eager, or through torch.compile with its defaults.

    For BF16 the weights are converted, and autocast serves what meets them in FP32, such as a mask.
    """
    import torch

    # torch.compile looks for CUDA and says that it found none.
    logging.getLogger("torch").setLevel(logging.ERROR)
    torch.set_num_threads(available_threads())
    module = family_of(checkpoint).load(checkpoint, LoadOptions(max_batch=1)).graphs[spec.name].module
    half = precision is Precision.BF16
    if half:
        module.bfloat16()

    def runs(call: Any) -> Run:
        def run(feeds: Feeds) -> Mapping[str, np.ndarray]:
            tensors = [torch.from_numpy(feeds[tensor.name]) for tensor in spec.inputs]
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
                values = call(*tensors)
            values = values if isinstance(values, tuple) else (values,)
            return {tensor.name: value.float().numpy() for tensor, value in zip(spec.outputs, values, strict=True)}

        return run

    if engine != COMPILED:
        return Runner(run=runs(module), run_any=runs(module))
    # A graph of its own for each length that is timed. Sentences have dozens of lengths: for them one graph serves all lengths,
    # because after a few graphs torch.compile would go on in eager mode.
    fixed, any_length = torch.compile(module, dynamic=False), torch.compile(module, dynamic=True)
    return Runner(run=runs(fixed), run_any=runs(any_length))


def open_ort(path: Path, spec: GraphSpec, *, engine: str, precision: Precision) -> Runner:
    """A plain session of ONNX Runtime."""
    with without_telemetry("onnxruntime"):
        import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(feeds: Feeds) -> Mapping[str, np.ndarray]:
        return _named(spec, session.run(None, {name: feeds[name] for name in names}))

    return Runner(run=run, run_any=run)


def open_openvino(path: Path, spec: GraphSpec, *, engine: str, precision: Precision) -> Runner:
    """OpenVINO's CPU plugin with its hint for latency."""
    with without_telemetry("openvino"):
        import openvino

    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": available_threads(),
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
    }
    model = openvino.Core().compile_model(str(path), "CPU", options)
    request = model.create_infer_request()
    names = [port.any_name for port in model.inputs]

    def run(feeds: Feeds) -> Mapping[str, np.ndarray]:
        results = request.infer({name: feeds[name] for name in names})
        return _named(spec, [results[port] for port in model.outputs])

    return Runner(run=run, run_any=run)


def _named(spec: GraphSpec, values: Any) -> Mapping[str, np.ndarray]:
    """The outputs by the names of the spec: other tools keep their order, and give them names of their own."""
    return {tensor.name: value for tensor, value in zip(spec.outputs, values, strict=True)}


def open_runner(source: Path, bundle: Path, *, graph: str, engine: str, precision: str, is_ours: bool) -> Runner:
    """``source`` is the file that the peer runs: the bundle, the checkpoint or a graph. The ``bundle`` has the spec."""
    openers = {TORCH: open_torch, COMPILED: open_torch, ORT: open_ort, OPENVINO: open_openvino}
    opener = open_ours if is_ours else openers[engine]
    return opener(source, Bundle.open(bundle).manifest.graph(graph), engine=engine, precision=Precision(precision))
