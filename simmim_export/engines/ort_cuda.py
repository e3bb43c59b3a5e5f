"""ONNX Runtime on an NVIDIA GPU: its CUDA provider, with every tensor bound to memory on the device.

Nothing here falls back to the CPU. ONNX Runtime would in three cases: a provider that cannot be loaded, one that fails at the
start, and one that fails later. Each of these is an error here.

``ort-graph@cuda`` records each shape as a CUDA graph and replays it, which saves one launch per node. It has to be asked for,
because it has limits: addresses and shapes are frozen, the memory of a recorded shape is never given back, a thread that calls
for the first time records again, and ONNX Runtime refuses a graph whose nodes move tensors to the CPU in between.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from simmim_export.engines.base import PrecisionProof, Session
from simmim_export.engines.checks import axis_sizes, check_feeds, check_outputs, require_variants
from simmim_export.engines.failures import broken_package, closed, exhausted, last_line, missing_package, running
from simmim_export.engines.ort import OrtEngine, open_session, proof_of, require_provider
from simmim_export.errors import BundleError, EngineUnavailable
from simmim_export.spec import GraphSpec, Precision, TensorSpec, Variant
from simmim_export.system import nvidia
from simmim_export.system.conflicts import INSTALL_GPU, missing_libraries, ort_files
from simmim_export.system.telemetry import without_telemetry

PROVIDER = "CUDAExecutionProvider"
# TF32 keeps only 10 bits of each factor, so FP32 with it is not FP32.
OPTIONS: Mapping[str, str] = {"use_tf32": "0"}
# The run option with the number of the recorded graph, and the number that records nothing.
GRAPH_ID, NO_GRAPH = "gpu_graph_id", -1
# So many shapes keep their memory (and their CUDA graph); every other shape gets memory for one call.
SHAPES = 16
_VARIANTS = {Precision.FP32: (Variant.FP32,), Precision.FP16: (Variant.FP16,)}


@dataclass(frozen=True)
class _Bound:
    """Memory on the device for one shape of every tensor."""

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    binding: Any
    options: Any


class OrtCudaSession:
    """A graph on the GPU; see :class:`~simmim_export.engines.base.Session`. It runs one call at a time; others wait."""

    provider: ClassVar[str] = PROVIDER
    device: ClassVar[str] = "cuda"
    provider_options: ClassVar[Mapping[str, str]] = OPTIONS

    def __init__(self, path: Path, spec: GraphSpec, *, threads: int, graphs: bool) -> None:
        self.inputs, self.outputs = spec.inputs, spec.outputs
        self._path, self._spec, self._threads, self._graphs = path, spec, threads, graphs
        self._name = OrtCudaGraphEngine.name if graphs else OrtCudaEngine.name
        self._running = running(self._name, spec, where=path)
        self._lock = threading.Lock()
        self._kept: dict[tuple[tuple[int, ...], ...], _Bound] = {}
        _preload()
        self._session: Any = self._open({"enable_cuda_graph": "1"} if graphs else {})
        require_provider(self._session, self.provider, fix=_how_to_load())
        self._session.disable_fallback()

    def _open(self, more: Mapping[str, str], profile: Path | None = None) -> Any:
        # ONNX Runtime adds the CPU provider itself, and computes the sizes of dynamic axes on it.
        providers = [(self.provider, {**self.provider_options, **more})]
        try:
            with running(self._name, self._spec, where=self._path, opens=True):
                return self._start(providers, profile)
        except BundleError as error:
            if "graph capture" in str(error.__cause__):
                fix = "run it without: --engine ort --device cuda"
                raise EngineUnavailable(f"no CUDA graph of {self._spec.name}: {error.what}", fix=fix) from error
            raise

    def _start(self, providers: list[Any], profile: Path | None) -> Any:
        try:
            return open_session(self._path, self._threads, providers=providers, profile=profile)
        except _failures() as error:
            if exhausted(error):
                raise
            what = f"{self.provider} does not start: {last_line(error)}"
            raise EngineUnavailable(what, fix=_how_to_load()) from error

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See :meth:`~simmim_export.engines.base.Session.run`."""
        arrays = check_feeds(feeds, self.inputs, axes=self._spec.axes)
        with self._lock:
            if self._session is None:
                raise closed(self._spec.name)
            with self._running:
                bound = self._bound(arrays)
                for name, array in arrays.items():
                    bound.inputs[name].update_inplace(np.ascontiguousarray(array))
                self._session.run_with_iobinding(bound.binding, bound.options)
                shared = {name: value.numpy() for name, value in bound.outputs.items()}
            check_outputs(self._name, self._spec, feeds=arrays, outputs=shared)
            # From the GPU it is already a copy. Host memory is shared instead, and the next call writes to it.
            return {name: array if array.flags.owndata else array.copy() for name, array in shared.items()}

    def _bound(self, arrays: Mapping[str, np.ndarray]) -> _Bound:
        shapes = tuple(array.shape for array in arrays.values())
        if shapes in self._kept:
            return self._kept[shapes]
        keep = len(self._kept) < SHAPES
        bound = self._bind(arrays, len(self._kept) + 1 if keep else NO_GRAPH)
        if keep:
            self._kept[shapes] = bound
        return bound

    def _bind(self, arrays: Mapping[str, np.ndarray], graph: int) -> _Bound:
        with without_telemetry("onnxruntime"):
            import onnxruntime

        sizes = axis_sizes(arrays, self.inputs)

        def allocate(tensor: TensorSpec) -> Any:
            shape, kind = list(tensor.resolve(sizes)), np.dtype(tensor.dtype).type
            return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind, self.device, 0)

        inputs = {tensor.name: allocate(tensor) for tensor in self.inputs}
        outputs = {tensor.name: allocate(tensor) for tensor in self.outputs}
        binding, options = self._session.io_binding(), onnxruntime.RunOptions()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        if self._graphs:
            options.add_run_config_entry(GRAPH_ID, str(graph))
        return _Bound(inputs, outputs, binding, options)

    def close(self) -> None:
        """Drop the session and its memory."""
        with self._lock:
            self._kept.clear()
            self._session = None

    def precision_proof(self) -> PrecisionProof:
        """How many nodes ran in each type, with those on the CPU counted apart; see :func:`~simmim_export.engines.ort.proof_of`.
        A recorded CUDA graph runs the same nodes."""
        with self._running:
            return proof_of(lambda folder: self._open({}, folder), self._spec, provider=self.provider)


def _failures() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises for a provider that does not start. These types share no base class but Exception."""
    with without_telemetry("onnxruntime"):
        from onnxruntime.capi.onnxruntime_pybind11_state import EPFail, RuntimeException

    return RuntimeError, RuntimeException, EPFail


def _preload() -> None:
    """Load the libraries of CUDA and cuDNN from their wheels, where the dynamic loader does not look. Messages go to stderr."""
    with without_telemetry("onnxruntime"):
        import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21
        with contextlib.redirect_stdout(sys.stderr):
            onnxruntime.preload_dlls()


def _how_to_load() -> str:
    """What to do if the CUDA provider is installed and does not start."""
    files = ort_files()
    missing = missing_libraries(int(files.cuda.partition(".")[0])) if files and files.cuda else []
    if not missing:
        return "simmim-export doctor"
    return f"{INSTALL_GPU}; these libraries cannot be loaded here: {', '.join(missing)}"


class OrtCudaEngine(OrtEngine):
    """ONNX Runtime's CUDA provider."""

    name = "ort@cuda"
    install = f"on a machine with an NVIDIA GPU: pip uninstall -y onnxruntime onnxruntime-gpu && {INSTALL_GPU}"
    graphs: ClassVar[bool] = False

    def why_unavailable(self) -> str | None:
        """The package, provider or GPU that is missing, or why the package cannot be imported."""
        files = ort_files()
        if files is None:
            return missing_package("onnxruntime")
        if not files.provider:
            return f"{files.package} has no {PROVIDER}"
        return nvidia.why_no_gpu() or broken_package("onnxruntime")

    def variants(self, precision: Precision) -> tuple[Variant, ...]:
        """FP32 and FP16. INT8 is refused: ONNX Runtime fuses Q and DQ to operators that have no CUDA kernel and so run on the CPU
        (microsoft/onnxruntime issues 12229 and 24807), and whatever it does not fuse multiplies in float."""
        if precision is Precision.INT8:
            has = ", ".join(_VARIANTS)
            what = f"engine {self.name!r} has no {precision} (it has: {has}): it has no INT8 kernels for the GPU"
            raise EngineUnavailable(what, fix="use --precision fp16, or --engine trt")
        return require_variants(self.name, precision, variants=_VARIANTS)

    def start(self, path: Path, spec: GraphSpec, *, threads: int) -> Session:
        """A session on the GPU."""
        return OrtCudaSession(path, spec, threads=threads, graphs=self.graphs)


class OrtCudaGraphEngine(OrtCudaEngine):
    """The same with CUDA graphs."""

    name = "ort-graph@cuda"
    graphs = True
