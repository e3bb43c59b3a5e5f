"""ONNX Runtime on the CPU, and what its other providers share with it."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simmim_export.engines.base import LATENCY, PrecisionProof, Session
from simmim_export.engines.checks import (
    check_feeds,
    check_outputs,
    int8_for_this_cpu,
    require_hint,
    require_variants,
    threads_for,
)
from simmim_export.engines.failures import broken_package, closed, running
from simmim_export.errors import EngineUnavailable
from simmim_export.spec import GraphSpec, Precision, Variant
from simmim_export.system.telemetry import without_telemetry

PROVIDER = "CPUExecutionProvider"
# Kernels that multiply INT8 and give float; and nodes that only convert one type to another.
_INTEGER_KERNELS = ("MatMulNBits", "DynamicQuantizeMatMul", "MatMulIntegerToFloat")
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "Cast")


def open_session(path: Path, threads: int, *, providers: Sequence[Any], profile: Path | None = None) -> Any:
    """An ``onnxruntime.InferenceSession`` of the file at ``path``. With ``profile`` it writes what it runs into that folder.

    Raises whatever ONNX Runtime raises: call it within :class:`~simmim_export.engines.failures.running`.
    """
    with without_telemetry("onnxruntime"):
        import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # It raises its errors as well, and its log would print names from the graph without escaping them.
    options.log_severity_level = 4
    # Products with weights in blocks (MatMulNBits): level 4 quantizes the activation and multiplies integers. By default they
    # are multiplied in float.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    # By default the threads of a session spin after a run, while the next session of a pipeline needs the processor: a question
    # through four sessions took 55 ms with spinning and 15 without (preset small at 128 pixels, 2 cores).
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile / "ort")
    # With its own fallback, a provider that fails would give a line on stdout and a session on the CPU.
    return onnxruntime.InferenceSession(str(path), options, providers=list(providers), enable_fallback=0)


def require_provider(session: Any, provider: str, *, fix: str) -> None:
    """Raise :class:`EngineUnavailable` unless ``provider`` is the first one that ``session`` really uses."""
    active = session.get_providers()
    if active[:1] != [provider]:
        raise EngineUnavailable(f"asked for {provider}, ONNX Runtime activated {active}", fix=fix)


def proof_of(open_profiled: Callable[[Path], Any], spec: GraphSpec, *, provider: str) -> PrecisionProof:
    """How many nodes ran in each type, from ONNX Runtime's own profile of one run.

    A node counts by the type of its first output, as int8 if its kernel multiplies INT8 and gives float, and as "conversion" if
    it only changes a type. A node that another provider than ``provider`` ran is counted under the name of that provider.
    """
    sizes = {axis.name: axis.minimum for axis in spec.axes}
    feeds = {t.name: np.ones(t.resolve(sizes), t.dtype) for t in spec.inputs}
    with tempfile.TemporaryDirectory() as folder:
        session = open_profiled(Path(folder))
        session.run([tensor.name for tensor in spec.outputs], feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    counts: Counter[str] = Counter()
    for event in events:
        outputs = event.get("args", {}).get("output_type_shape")
        if event.get("cat") == "Node" and outputs:
            name, kind = event["args"].get("op_name"), next(iter(outputs[0]))
            kind = "int8" if name in _INTEGER_KERNELS else "conversion" if name in _CONVERSIONS else kind
            ran = event["args"].get("provider", provider)
            counts[kind if ran == provider else f"{kind} on {ran.removesuffix('ExecutionProvider')}"] += 1
    return PrecisionProof(dict(counts), "profile of one run: nodes by kernel, or by the type of their first output")


class OrtSession:
    """A graph in ONNX Runtime; see :class:`~simmim_export.engines.base.Session`."""

    def __init__(self, path: Path, spec: GraphSpec, *, threads: int) -> None:
        self.inputs, self.outputs = spec.inputs, spec.outputs
        self._path, self._spec, self._threads = path, spec, threads
        self._names = [tensor.name for tensor in spec.outputs]
        self._running = running(OrtEngine.name, spec, where=path)
        self._session: Any = self._open()
        require_provider(self._session, PROVIDER, fix="reinstall onnxruntime in a fresh environment")

    def _open(self, profile: Path | None = None) -> Any:
        with running(OrtEngine.name, self._spec, where=self._path, opens=True):
            return open_session(self._path, self._threads, providers=[PROVIDER], profile=profile)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See :meth:`~simmim_export.engines.base.Session.run`."""
        arrays, session = check_feeds(feeds, self.inputs, axes=self._spec.axes), self._session
        if session is None:
            raise closed(self._spec.name)
        with self._running:
            outputs = dict(zip(self._names, session.run(self._names, arrays), strict=True))
        check_outputs(OrtEngine.name, self._spec, feeds=arrays, outputs=outputs)
        return outputs

    def close(self) -> None:
        """Drop the session."""
        self._session = None

    def precision_proof(self) -> PrecisionProof:
        """How many nodes ran in each type; see :func:`proof_of`."""
        with self._running:
            return proof_of(self._open, self._spec, provider=PROVIDER)


class OrtEngine:
    """ONNX Runtime's CPU provider."""

    name = "ort"
    install = "pip install 'simmim-export[ort]'"
    reads_checkpoint = False
    hints = (LATENCY,)

    def why_unavailable(self) -> str | None:
        """None if onnxruntime can be imported. Imports it."""
        return broken_package("onnxruntime")

    def variants(self, precision: Precision) -> tuple[Variant, ...]:
        """FP32 and INT8. Its CPU kernels compute FP16 and BF16 in FP32 with casts around them, which gains nothing."""
        variants = {Precision.FP32: (Variant.FP32,), Precision.INT8: int8_for_this_cpu()}
        return require_variants(self.name, precision, variants=variants)

    def open(
        self, path: Path, spec: GraphSpec, *, precision: Precision, threads: int | None = None, hint: str = LATENCY
    ) -> Session:
        """Open an ONNX file. Raise :class:`BundleError` if ONNX Runtime refuses it, and :class:`EngineUnavailable` if its
        provider does not start."""
        self.variants(precision)
        require_hint(self.name, hint, has=self.hints)
        return self.start(path, spec, threads=threads_for(threads))

    def start(self, path: Path, spec: GraphSpec, *, threads: int) -> Session:
        """A session on this engine's provider."""
        return OrtSession(path, spec, threads=threads)
