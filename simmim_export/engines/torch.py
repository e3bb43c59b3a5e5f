"""PyTorch from the checkpoint: in eager mode the reference that every other engine is measured against, on the CPU or a GPU,
and compiled on a GPU. It runs exactly the modules that the exporter traces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from simmim_export.engines.base import (
    LATENCY,
    PrecisionProof,
    broken_package,
    cannot_run,
    check_feeds,
    check_outputs,
    closed,
    missing_package,
    no_such_precision,
    require_hint,
    threads_for,
)
from simmim_export.engines.failures import running
from simmim_export.errors import CheckpointError, EngineUnavailable
from simmim_export.spec import GraphSpec, Kind, Precision
from simmim_export.system import nvidia
from simmim_export.system.libraries import require_no_libraries_here

# What the models are made with.
PACKAGES = ("torch", "torchvision", "transformers")


def broken() -> str | None:
    """None when all of :data:`PACKAGES` can be imported, which is done and takes seconds; else the reason in one line."""
    return next((reason for package in PACKAGES if (reason := broken_package(package))), None)


class TorchSession:
    """A graph wrapper on a device; see :class:`~simmim_export.engines.base.Session`."""

    def __init__(
        self,
        module: Any,
        spec: GraphSpec,
        *,
        engine: str = "torch",
        device: str = "cpu",
        half: bool = False,
        compiled: bool = False,
    ) -> None:
        self.inputs, self.outputs = spec.inputs, spec.outputs
        self._spec, self._engine = spec, engine
        self._running = running(engine, spec)
        self._parameters = module.parameters
        self._device, self._half = device, half
        self._call: Any = module
        if compiled:
            import torch

            # With CUDA graphs, as one compiles for latency. fullgraph: past its limit of shapes it would go on in eager mode.
            self._call = torch.compile(module, mode="reduce-overhead", fullgraph=True)

    def _tensors(self, arrays: Mapping[str, np.ndarray]) -> list[Any]:
        import torch

        tensors = [torch.from_numpy(np.ascontiguousarray(arrays[t.name])).to(self._device) for t in self.inputs]
        return [tensor.half() if self._half and tensor.is_floating_point() else tensor for tensor in tensors]

    def _forward(self, tensors: list[Any]) -> tuple[Any, ...]:
        import torch

        call = self._call
        if call is None:
            raise closed(self._spec.name)
        # The weights are halves; autocast is for what meets them as float32 (a mask) or must not be half (a softmax).
        with torch.inference_mode(), torch.autocast(self._device, torch.float16, enabled=self._half):
            values = call(*tensors)
        return values if isinstance(values, tuple) else (values,)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute every output; feeds may hold more tensors than the graph takes."""
        arrays = check_feeds(feeds, self.inputs, self._spec.axes)
        with self._running:
            values = self._forward(self._tensors(arrays))
            outputs = {t.name: value.float().cpu().numpy() for t, value in zip(self.outputs, values, strict=True)}
        check_outputs(self._engine, self._spec, arrays, outputs)
        return outputs

    def close(self) -> None:
        """Drop the module."""
        self._call, self._parameters = None, tuple

    def precision_proof(self) -> PrecisionProof:
        """Parameters by dtype; PyTorch computes in the type of its tensors."""
        counts = Counter(str(p.dtype).removeprefix("torch.") for p in self._parameters())
        return PrecisionProof(dict(counts), "parameters by dtype")


class TorchCudaSession(TorchSession):
    """The same on a GPU, which has a clock; see :class:`~simmim_export.engines.base.GpuTimed`."""

    def gpu_seconds(self, feeds: Mapping[str, np.ndarray]) -> float:
        """Run once; the seconds between two events around the module, copies left out."""
        import torch

        arrays = check_feeds(feeds, self.inputs, self._spec.axes)
        with self._running:
            tensors = self._tensors(arrays)
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            before.record()
            self._forward(tensors)
            after.record()
            after.synchronize()
            return float(before.elapsed_time(after)) / 1000


@lru_cache(maxsize=2)
def _graphs(path: Path, modified_ns: int, attention: bool, device: str, half: bool) -> Any:
    from simmim_export.models.family import family_of

    graphs = family_of(path).load(path, max_batch=1, attention=attention).graphs
    for graph in graphs.values():
        graph.module.to(device)
        if half:
            graph.module.half()
    return graphs


class TorchEngine:
    """PyTorch, eager, FP32."""

    name = "torch"
    install = "pip install 'simmim-export[export]'"
    reads_checkpoint = True
    saturates = False
    hints = (LATENCY,)
    device: ClassVar[str] = "cpu"
    inductor: ClassVar[bool] = False
    precisions: ClassVar[tuple[Precision, ...]] = (Precision.FP32,)

    def why_unavailable(self) -> str | None:
        """None when :data:`PACKAGES` are installed. Whether they can be imported shows when a graph is opened, so that a process
        which only asks, as a benchmark does, stays small."""
        return next((reason for package in PACKAGES if (reason := missing_package(package))), None)

    def variant(self, precision: Precision) -> str:
        """The precision's own name: this engine reads no graph."""
        if precision not in self.precisions:
            raise no_such_precision(self.name, precision, self.precisions)
        return str(precision)

    def compiled(self, root: Path, spec: GraphSpec, precision: Precision, sha256: str) -> None:
        """None: it runs from a checkpoint."""

    def _require(self) -> None:
        """Raise :class:`EngineUnavailable` if a package is installed and cannot be imported, and :class:`UsageError` where
        importing torch could load a library from the working directory."""
        require_no_libraries_here()
        if (reason := broken()) is not None:
            raise cannot_run(self.name, reason, self.install)

    def open(
        self, path: Path, spec: GraphSpec, precision: Precision, threads: int | None = None, hint: str = LATENCY
    ) -> TorchSession:
        """Open one graph of the checkpoint at ``path``; sets torch's threads for the whole process."""
        self.variant(precision)
        require_hint(self.name, hint, self.hints)
        self._require()
        import torch

        torch.set_num_threads(threads_for(threads))
        if not path.exists():
            raise CheckpointError("no such checkpoint", where=path, fix="give --checkpoint ckpt.pt")
        attention = any(tensor.kind is Kind.ATTENTION for tensor in spec.outputs)
        half = precision is Precision.FP16
        session = TorchSession if self.device == "cpu" else TorchCudaSession
        with running(self.name, spec, where=path, opens=True, error=CheckpointError):
            graphs = _graphs(path.resolve(), path.stat().st_mtime_ns, attention, self.device, half)
            if spec.name not in graphs:
                what = f"the checkpoint has no graph {spec.name!r}"
                raise CheckpointError(what, where=path, fix="give the bundle's own")
            module = graphs[spec.name].module
            return session(module, spec, engine=self.name, device=self.device, half=half, compiled=self.inductor)


class TorchCudaEngine(TorchEngine):
    """PyTorch on an NVIDIA GPU: eager, FP32 without TF32, or FP16."""

    name = "torch@cuda"
    install = "on a machine with an NVIDIA GPU: pip install 'simmim-export[export]'"
    device = "cuda"
    precisions = (Precision.FP32, Precision.FP16)

    def why_unavailable(self) -> str | None:
        """The package or the GPU that is missing."""
        return super().why_unavailable() or nvidia.why_no_gpu()

    def open(
        self, path: Path, spec: GraphSpec, precision: Precision, threads: int | None = None, hint: str = LATENCY
    ) -> TorchSession:
        """As on the CPU; raise :class:`EngineUnavailable` for a PyTorch that was built without CUDA, or for another."""
        self._require()
        import torch

        if not torch.cuda.is_available():
            what = f"PyTorch {torch.__version__} (built for CUDA {torch.version.cuda}) cannot use the GPU here"
            raise EngineUnavailable(what, fix="simmim-export doctor, and pip install a torch for the driver's CUDA")
        # cuDNN's convolutions take TF32 unless they are told not to, and that is no FP32.
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
        return super().open(path, spec, precision, threads, hint)


class TorchCompiledEngine(TorchCudaEngine):
    """The same through torch.compile: what a GPU engine has to be compared with."""

    name = "torch-compile@cuda"
    inductor = True
