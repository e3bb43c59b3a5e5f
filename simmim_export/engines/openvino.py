"""OpenVINO on the CPU, imported without its telemetry.

FP32, BF16 and FP16 are one graph with another inference hint; INT8 is what the graph says, and what it leaves in float runs in
float32.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from simmim_export.engines.base import (
    LATENCY,
    THROUGHPUT,
    PrecisionProof,
    broken_package,
    check_feeds,
    check_outputs,
    closed,
    no_such_precision,
    require_hint,
    threads_for,
)
from simmim_export.engines.failures import running
from simmim_export.errors import FewerThreads
from simmim_export.spec import GraphSpec, Precision
from simmim_export.system.cache import kept
from simmim_export.system.files import digest
from simmim_export.system.host import has_integer_dot
from simmim_export.system.telemetry import without_telemetry

DEVICE = "CPU"
# The hint for each precision, the capability that the device must report for it, and the graph variant.
_PRECISIONS = {
    Precision.FP32: ("f32", "FP32", "fp32"),
    Precision.BF16: ("bf16", "BF16", "fp32"),
    Precision.FP16: ("f16", "FP16", "fp32"),
    Precision.INT8: ("f32", "INT8", "int8-u8"),
}
_NAMES = {
    "f32": "float32",
    "bf16": "bfloat16",
    "f16": "float16",
    "i8": "int8",
    "u8": "uint8",
    "i32": "int32",
    "i64": "int64",
}
# Activations of a product with INT8 weights are quantised as they come, so many channels of a token at a time. On MiniLM
# 128 was 8 % faster than 64 and lost half as much cosine again (0.9990 for 0.9993).
_GROUP = 64
_NOT_EXECUTED = ("Const", "Input", "Output")
_CONVERSIONS = ("FakeQuantize", "Convert", "Reorder", "Quantize", "Dequantize")


@cache
def _core() -> Any:
    with without_telemetry("openvino"):
        import openvino

    return openvino.Core()


@cache
def _capabilities() -> tuple[str, ...]:
    """What the CPU's plugin says it has; RuntimeError where the plugin cannot be loaded."""
    return tuple(_core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"))


class OpenVinoSession:
    """A graph in OpenVINO; see :class:`~simmim_export.engines.base.Session`."""

    def __init__(self, path: Path, spec: GraphSpec, precision: Precision, threads: int, hint: str) -> None:
        self.inputs, self.outputs = spec.inputs, spec.outputs
        self._spec = spec
        self._running = running(OpenVinoEngine.name, spec, where=path)
        with running(OpenVinoEngine.name, spec, where=path, opens=True):
            self._start(path, precision, threads, hint)

    def _start(self, path: Path, precision: Precision, threads: int, hint: str) -> None:
        spec = self._spec
        # LATENCY is one stream over all threads: a call answers as soon as it can. THROUGHPUT is several streams of fewer
        # threads each, for as many calls at once. Threads are said, because OpenVINO knows affinity but no control group's
        # quota.
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[precision][0],
            "PERFORMANCE_HINT": hint.upper(),
            "INFERENCE_NUM_THREADS": threads,
        }
        if precision is Precision.INT8:
            options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = _GROUP
        self._model: Any = _compile(path, options)
        if precision is Precision.INT8 and threads > 1 and has_integer_dot() is False and self._convolves():
            what = f"OpenVINO's INT8 convolutions are wrong on several threads of a processor without VNNI: {spec.name} uses one"
            warnings.warn(f"{what} for each call", FewerThreads, stacklevel=4)
            alone = {"INFERENCE_NUM_THREADS": 1} if hint == LATENCY else {"NUM_STREAMS": threads}
            self._model = _compile(path, options | alone)
        count = 1 if hint == LATENCY else int(self._model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        # A request serves one call at a time. Which one is free is known here, and a call beyond them waits.
        self._free: SimpleQueue[Any] = SimpleQueue()
        for _ in range(count):
            self._free.put(self._model.create_infer_request())

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute every output; feeds may hold more tensors than the graph takes."""
        arrays = check_feeds(feeds, self.inputs, self._spec.axes)
        request = self._free.get()
        try:
            if self._model is None:
                raise closed(self._spec.name)
            with self._running:
                results = request.infer(arrays)
                outputs = {tensor.name: results[tensor.name] for tensor in self.outputs}
        finally:
            self._free.put(request)
        check_outputs(OpenVinoEngine.name, self._spec, arrays, outputs)
        return outputs

    def close(self) -> None:
        """Drop the session, and let calls that wait know."""
        self._model = None
        with suppress(Empty):
            while True:
                self._free.get_nowait()
        # In place of a request, passed on from call to call.
        self._free.put(None)

    def _executed(self) -> Iterator[tuple[str, str]]:
        """Kind and type of every node of OpenVINO's own execution graph; constants, inputs and outputs run nothing, and what only
        changes a type is a "conversion"."""
        for node in self._model.get_runtime_model().get_ops():
            info = node.get_rt_info()
            if info["layerType"].value not in _NOT_EXECUTED:
                layer, kind = info["layerType"].value, info["runtimePrecision"].value
                yield layer, "conversion" if layer in _CONVERSIONS else _NAMES.get(kind, kind)

    def _convolves(self) -> bool:
        """Whether a convolution runs in INT8. Of those, with 2026.4.1 on AVX2 and two threads, tokens of a batch of 2 and more
        were off by up to 1.0 (0.1 on one thread), other ones each time; matrix products were not."""
        return any(kind == "Convolution" and found in ("int8", "uint8") for kind, found in self._executed())

    def precision_proof(self) -> PrecisionProof:
        """Nodes of OpenVINO's own execution graph by the type they run in."""
        if self._model is None:
            raise closed(self._spec.name)
        with self._running:
            counts = Counter(kind for _, kind in self._executed())
        return PrecisionProof(dict(counts), "the compiled execution graph: nodes by runtimePrecision")


def _compile(path: Path, options: Mapping[str, Any]) -> Any:
    # Compiled models are kept: with them base's text tower opened in 0.22 s instead of 1.83, tiny's in 0.01 for 0.05.
    with kept("openvino", digest(path)) as folder:
        cache = {} if folder is None else {"CACHE_DIR": str(folder)}
        return _core().compile_model(str(path), DEVICE, {**options, **cache})


class OpenVinoEngine:
    """OpenVINO's CPU plugin."""

    name = "openvino"
    install = "pip install 'simmim-export[openvino]'"
    reads_checkpoint = False
    saturates = True
    hints = (LATENCY, THROUGHPUT)

    def why_unavailable(self) -> str | None:
        """None when openvino can be imported, which is done, and has its plugin for the CPU."""
        with without_telemetry("openvino"):
            reason = broken_package("openvino")
        if reason is not None:
            return reason
        try:
            _capabilities()
        except RuntimeError as error:
            return f"OpenVINO cannot load its CPU plugin: {' '.join(str(error).split())}"
        return None

    def variant(self, precision: Precision) -> str:
        """The graph for ``precision``; raise :class:`EngineUnavailable` for one that this CPU has no instructions for."""
        has: tuple[Precision, ...] = (Precision.FP32,)
        if self.why_unavailable() is None:
            found = _capabilities()
            has = tuple(known for known, (_, capability, _) in _PRECISIONS.items() if capability in found)
        if precision not in has:
            raise no_such_precision(self.name, precision, has)
        return _PRECISIONS[precision][2]

    def compiled(self, root: Path, spec: GraphSpec, precision: Precision, sha256: str) -> None:
        """None: it opens graphs themselves, and keeps what it compiles in a cache of its own."""

    def open(
        self, path: Path, spec: GraphSpec, precision: Precision, threads: int | None = None, hint: str = LATENCY
    ) -> OpenVinoSession:
        """Open an ONNX file; raise :class:`BundleError` if OpenVINO refuses it."""
        self.variant(precision)
        require_hint(self.name, hint, self.hints)
        return OpenVinoSession(path, spec, precision, threads_for(threads), hint)
