"""PyTorch from the checkpoint, running exactly the modules that the exporter traces.

In eager mode, on the CPU or a GPU, it is the reference that every other engine is measured against. On a GPU it can also be
compiled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from simmim_export.engines.base import LATENCY, PrecisionProof
from simmim_export.engines.checks import check_feeds, check_outputs, require_hint, require_variants, threads_for
from simmim_export.engines.failures import broken_package, cannot_run, closed, missing_package, running
from simmim_export.errors import CheckpointError, EngineUnavailable
from simmim_export.spec import GraphSpec, Kind, Precision, Variant
from simmim_export.system import nvidia
from simmim_export.system.libraries import require_no_libraries_here

# What the models are made with.
PACKAGES = ("torch", "torchvision", "transformers")


def broken() -> str | None:
    """None if all of :data:`PACKAGES` can be imported, else the reason in one line. Imports them, which takes seconds."""
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

            # reduce-overhead uses CUDA graphs, as one would for latency. Without fullgraph it would go on in eager mode after too
            # many shapes.
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
        # The weights are float16. Autocast is for what meets them as float32 (a mask) or must not be float16 (a softmax).
        with torch.inference_mode(), torch.autocast(self._device, torch.float16, enabled=self._half):
            values = call(*tensors)
        return values if isinstance(values, tuple) else (values,)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See :meth:`~simmim_export.engines.base.Session.run`."""
        arrays = check_feeds(feeds, self.inputs, axes=self._spec.axes)
        with self._running:
            values = self._forward(self._tensors(arrays))
            outputs = {t.name: value.float().cpu().numpy() for t, value in zip(self.outputs, values, strict=True)}
        check_outputs(self._engine, self._spec, feeds=arrays, outputs=outputs)
        return outputs

    def close(self) -> None:
        """Drop the module."""
        self._call, self._parameters = None, tuple

    def precision_proof(self) -> PrecisionProof:
        """Parameters by dtype; PyTorch computes in the type of its tensors."""
        counts = Counter(str(p.dtype).removeprefix("torch.") for p in self._parameters())
        return PrecisionProof(dict(counts), "parameters by dtype")


class TorchCudaSession(TorchSession):
    """The same on a GPU, which has a clock of its own; see :class:`~simmim_export.engines.base.GpuTimed`."""

    def gpu_seconds(self, feeds: Mapping[str, np.ndarray]) -> float:
        """Run once; the seconds between two events around the module, without copies."""
        import torch

        arrays = check_feeds(feeds, self.inputs, axes=self._spec.axes)
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
def _graphs(
    path: Path, modified_ns: int, attention: bool, size: tuple[int, int] | None, device: str, half: bool
) -> Any:
    from simmim_export.models.family import LoadOptions, family_of

    options = LoadOptions(max_batch=1, attention=attention, image_size=size)
    graphs = family_of(path).load(path, options).graphs
    for graph in graphs.values():
        graph.module.to(device)
        if half:
            graph.module.half()
    return graphs


def _image_size(spec: GraphSpec) -> Any:
    """The height and width of the images that ``spec`` takes; None if it takes none."""
    return next((tensor.shape[1:3] for tensor in spec.inputs if tensor.kind is Kind.IMAGE), None)


class TorchEngine:
    """PyTorch, eager, FP32."""

    name = "torch"
    install = "pip install 'simmim-export[export]'"
    reads_checkpoint = True
    hints = (LATENCY,)
    device: ClassVar[str] = "cpu"
    inductor: ClassVar[bool] = False
    precisions: ClassVar[tuple[Precision, ...]] = (Precision.FP32,)

    def why_unavailable(self) -> str | None:
        """None if :data:`PACKAGES` are installed. They are imported when a graph is opened and not before, so that a process
        which only asks, such as a benchmark, stays small."""
        return next((reason for package in PACKAGES if (reason := missing_package(package))), None)

    def variants(self, precision: Precision) -> tuple[Variant, ...]:
        """The variant of the same precision: this engine does not read graphs."""
        return require_variants(self.name, precision, variants={known: (Variant(known),) for known in self.precisions})

    def _require(self) -> None:
        """Raise :class:`EngineUnavailable` if a package is installed but cannot be imported, and :class:`UsageError` if importing
        torch could load a library from the working directory."""
        require_no_libraries_here()
        if (reason := broken()) is not None:
            raise cannot_run(self.name, reason, install=self.install)

    def open(
        self, path: Path, spec: GraphSpec, *, precision: Precision, threads: int | None = None, hint: str = LATENCY
    ) -> TorchSession:
        """Open one graph of the checkpoint at ``path``. Sets the number of PyTorch's threads for the whole process."""
        self.variants(precision)
        require_hint(self.name, hint, has=self.hints)
        self._require()
        import torch

        torch.set_num_threads(threads_for(threads))
        if not path.exists():
            raise CheckpointError("no such checkpoint", where=path, fix="give --checkpoint ckpt.pt")
        attention = any(tensor.kind is Kind.ATTENTION for tensor in spec.outputs)
        half = precision is Precision.FP16
        session = TorchSession if self.device == "cpu" else TorchCudaSession
        with running(self.name, spec, where=path, opens=True, error=CheckpointError):
            file, modified = path.resolve(), path.stat().st_mtime_ns
            graphs = _graphs(file, modified, attention, None, self.device, half)
            # A model that can take images of several sizes makes graphs of its own size, if it is not asked for another.
            if spec.name in graphs and _image_size(graphs[spec.name].spec) != (size := _image_size(spec)):
                graphs = _graphs(file, modified, attention, size, self.device, half)
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
        self, path: Path, spec: GraphSpec, *, precision: Precision, threads: int | None = None, hint: str = LATENCY
    ) -> TorchSession:
        """As on the CPU. Raise :class:`EngineUnavailable` if PyTorch was built without CUDA, or for a version that the driver
        cannot run."""
        self._require()
        import torch

        if not torch.cuda.is_available():
            what = f"PyTorch {torch.__version__} (built for CUDA {torch.version.cuda}) cannot use the GPU here"
            raise EngineUnavailable(what, fix="simmim-export doctor, and pip install a torch for the driver's CUDA")
        # cuDNN's convolutions use TF32 by default, and that is not FP32.
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
        return super().open(path, spec, precision=precision, threads=threads, hint=hint)


class TorchCompiledEngine(TorchCudaEngine):
    """The same through torch.compile: what a GPU engine has to be compared with."""

    name = "torch-compile@cuda"
    inductor = True
