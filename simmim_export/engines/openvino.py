"""OpenVINO on the CPU, imported without its telemetry.

FP32, BF16 and FP16 use the same graph with another inference hint. For INT8 the graph itself is quantized, and what it leaves in
float runs in float32.
"""

from __future__ import annotations

import os
import platform
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from simmim_export.engines.base import LATENCY, THROUGHPUT, PrecisionProof
from simmim_export.engines.checks import (
    check_feeds,
    check_outputs,
    int8_for_this_cpu,
    require_hint,
    require_variants,
    threads_for,
)
from simmim_export.engines.failures import broken_package, closed, running
from simmim_export.errors import EngineUnavailable, FewerThreads
from simmim_export.spec import GraphSpec, Precision, Variant
from simmim_export.system.cache import kept
from simmim_export.system.files import digest
from simmim_export.system.host import has_integer_dot
from simmim_export.system.telemetry import without_telemetry

DEVICE = "CPU"
# INT8 is refused on Arm unless the environment variable UNPROVEN has this value. On Arm, OpenVINO 2026.4.1 cannot open our INT8
# convolutions ("Convolution input precision should be single"), and the errors of its INT8 products were 9 and 15 times those of
# the export, with and without dot-product instructions. docs/engines.md has the commands.
UNPROVEN, _ALLOWED_PAIR = "SIMMIM_EXPORT_UNPROVEN", "openvino:int8"
_ARM = ("aarch64", "arm64")
# The hint for each precision, and the capability that the device must report for it.
_PRECISIONS = {
    Precision.FP32: ("f32", "FP32"),
    Precision.BF16: ("bf16", "BF16"),
    Precision.FP16: ("f16", "FP16"),
    Precision.INT8: ("f32", "INT8"),
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
# If only the weight of a product is INT8, OpenVINO quantizes its activations at run time, in groups of this many channels. Our
# own graphs have no such product. With 32, a MiniLM that has them took 14 % longer.
_GROUP = 128
_NOT_EXECUTED = ("Const", "Input", "Output")
_CONVERSIONS = ("FakeQuantize", "Convert", "Reorder", "Quantize", "Dequantize")


@cache
def _core() -> Any:
    with without_telemetry("openvino"):
        import openvino

    return openvino.Core()


@cache
def _capabilities() -> tuple[str, ...]:
    """The capabilities that the CPU plugin reports. Raise RuntimeError if the plugin cannot be loaded."""
    return tuple(_core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"))


class OpenVinoSession:
    """A graph in OpenVINO; see :class:`~simmim_export.engines.base.Session`."""

    def __init__(self, path: Path, spec: GraphSpec, *, precision: Precision, threads: int, hint: str) -> None:
        self.inputs, self.outputs = spec.inputs, spec.outputs
        self._spec = spec
        self._running = running(OpenVinoEngine.name, spec, where=path)
        # LATENCY is one stream over all threads: a call answers as soon as it can. THROUGHPUT is several streams of fewer threads
        # each, for as many calls at once. The number of threads is given because OpenVINO knows the affinity of this process, but
        # not the quota of its control group.
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[precision][0],
            "PERFORMANCE_HINT": hint.upper(),
            "INFERENCE_NUM_THREADS": threads,
        }
        if precision is Precision.INT8:
            options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = _GROUP
        # A request serves one call at a time. A call takes a free one, and waits if there is none.
        self._free: SimpleQueue[Any] = SimpleQueue()
        with running(OpenVinoEngine.name, spec, where=path, opens=True):
            self._model: Any = _compile(path, options)
            if precision is Precision.INT8 and threads > 1 and has_integer_dot() is False and self._convolves_in_int8():
                what = "OpenVINO's INT8 convolutions are wrong on several threads of a processor without VNNI"
                warnings.warn(f"{what}: {spec.name} uses one for each call", FewerThreads, stacklevel=3)
                one_thread = {"INFERENCE_NUM_THREADS": 1} if hint == LATENCY else {"NUM_STREAMS": threads}
                self._model = _compile(path, options | one_thread)
            count = 1 if hint == LATENCY else int(self._model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
            for _ in range(count):
                self._free.put(self._model.create_infer_request())

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See :meth:`~simmim_export.engines.base.Session.run`."""
        arrays = check_feeds(feeds, self.inputs, axes=self._spec.axes)
        request = self._free.get()
        try:
            if self._model is None:
                raise closed(self._spec.name)
            with self._running:
                results = request.infer(arrays)
                outputs = {tensor.name: results[tensor.name] for tensor in self.outputs}
        finally:
            self._free.put(request)
        check_outputs(OpenVinoEngine.name, self._spec, feeds=arrays, outputs=outputs)
        return outputs

    def close(self) -> None:
        """Drop the session, and let waiting calls know."""
        self._model = None
        with suppress(Empty):
            while True:
                self._free.get_nowait()
        # In place of a request: each waiting call takes it and puts it back for the next one.
        self._free.put(None)

    def _executed(self) -> Iterator[tuple[str, str]]:
        """Layer and type of every node of OpenVINO's own execution graph. Constants, inputs and outputs are left out, because
        they run nothing; a node that only changes a type has the type "conversion"."""
        for node in self._model.get_runtime_model().get_ops():
            info = node.get_rt_info()
            if info["layerType"].value not in _NOT_EXECUTED:
                layer, kind = info["layerType"].value, info["runtimePrecision"].value
                yield layer, "conversion" if layer in _CONVERSIONS else _NAMES.get(kind, kind)

    def _convolves_in_int8(self) -> bool:
        """Whether a convolution runs in INT8. With OpenVINO 2026.4.1 on AVX2 and two threads, such a convolution gave tokens that
        were off by up to 1.0 (0.1 on one thread) for batches of 2 and more, different ones each time. Matrix products were
        right."""
        return any(layer == "Convolution" and kind in ("int8", "uint8") for layer, kind in self._executed())

    def precision_proof(self) -> PrecisionProof:
        """The number of nodes of OpenVINO's own execution graph by the type that they run in."""
        if self._model is None:
            raise closed(self._spec.name)
        with self._running:
            counts = Counter(kind for _, kind in self._executed())
        return PrecisionProof(dict(counts), "the compiled execution graph: nodes by runtimePrecision")


def _compile(path: Path, options: Mapping[str, Any]) -> Any:
    # With a cache of compiled models the text encoder of preset base opened in 0.22 s instead of 1.83, that of tiny in 0.01
    # instead of 0.05.
    with kept("openvino", digest(path)) as folder:
        cache = {} if folder is None else {"CACHE_DIR": str(folder)}
        return _core().compile_model(str(path), DEVICE, {**options, **cache})


class OpenVinoEngine:
    """OpenVINO's CPU plugin."""

    name = "openvino"
    install = "pip install 'simmim-export[openvino]'"
    reads_checkpoint = False
    hints = (LATENCY, THROUGHPUT)

    def why_unavailable(self) -> str | None:
        """None if openvino can be imported and has its plugin for the CPU. Imports it."""
        with without_telemetry("openvino"):
            reason = broken_package("openvino")
        if reason is not None:
            return reason
        try:
            _capabilities()
        except RuntimeError as error:
            return f"OpenVINO cannot load its CPU plugin: {' '.join(str(error).split())}"
        return None

    def variants(self, precision: Precision) -> tuple[Variant, ...]:
        """INT8 has graphs of its own; the others share the FP32 graph. Which precisions there are depends on the CPU.

        Raise :class:`EngineUnavailable` for INT8 on Arm, where it is wrong, unless the environment variable :data:`UNPROVEN`
        allows it.
        """
        if (
            precision is Precision.INT8
            and platform.machine().lower() in _ARM
            and os.environ.get(UNPROVEN) != _ALLOWED_PAIR
        ):
            what = f"engine {self.name!r} has no int8 on Arm: it cannot open INT8 convolutions, and INT8 products are wrong"
            measure = f"{UNPROVEN}={_ALLOWED_PAIR} simmim-export certify BUNDLE --engine {_ALLOWED_PAIR}"
            raise EngineUnavailable(what, fix=f"use --engine ort, or --precision fp32; to measure it here: {measure}")
        capabilities = _capabilities() if self.why_unavailable() is None else ("FP32",)
        variants = {
            known: int8_for_this_cpu() if known is Precision.INT8 else (Variant.FP32,)
            for known, (_, capability) in _PRECISIONS.items()
            if capability in capabilities
        }
        return require_variants(self.name, precision, variants=variants)

    def open(
        self, path: Path, spec: GraphSpec, *, precision: Precision, threads: int | None = None, hint: str = LATENCY
    ) -> OpenVinoSession:
        """Open an ONNX file; raise :class:`BundleError` if OpenVINO refuses it."""
        self.variants(precision)
        require_hint(self.name, hint, has=self.hints)
        return OpenVinoSession(path, spec, precision=precision, threads=threads_for(threads), hint=hint)
