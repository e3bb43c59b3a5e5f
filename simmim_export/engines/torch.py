"""PyTorch in eager mode, from the checkpoint: the reference that every other engine is measured against.

Knows checkpoints and the graph wrappers. The only engine that may import torch. It runs exactly the modules that the
exporter traces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from simmim_export.engines.base import (
    LATENCY,
    PrecisionProof,
    check_feeds,
    missing_package,
    no_such_precision,
    require_hint,
)
from simmim_export.errors import CheckpointError
from simmim_export.host import available_threads
from simmim_export.spec import GraphSpec, Precision


class TorchSession:
    """A graph wrapper in eager mode; see :class:`~simmim_export.engines.base.Session`."""

    def __init__(self, module: Any, spec: GraphSpec) -> None:
        self.inputs, self.outputs = spec.inputs, spec.outputs
        self._module = module

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute every output; feeds may hold more tensors than the graph takes."""
        import torch

        arrays = check_feeds(feeds, self.inputs)
        with torch.inference_mode():
            found = self._module(*(torch.from_numpy(np.ascontiguousarray(arrays[t.name])) for t in self.inputs))
        values = found if isinstance(found, tuple) else (found,)
        return {t.name: value.numpy() for t, value in zip(self.outputs, values, strict=True)}

    def close(self) -> None:
        """Drop the module."""
        self._module = None

    def precision_proof(self) -> PrecisionProof:
        """Parameters by dtype; eager mode computes in the type of its tensors."""
        counts = Counter(str(p.dtype).removeprefix("torch.") for p in self._module.parameters())
        return PrecisionProof(dict(counts), "parameters by dtype")


@lru_cache(maxsize=2)
def _graphs(path: Path, modified_ns: int, maps: bool) -> Any:
    from simmim_export.models.checkpoint import build, load
    from simmim_export.models.graphs import graphs

    return graphs(build(load(path), path), max_batch=1, maps=maps)


class TorchEngine:
    """PyTorch, eager, FP32."""

    name = "torch"
    install = "pip install 'simmim-export[export]'"
    reads_checkpoint = True
    hints = (LATENCY,)

    def why_unavailable(self) -> str | None:
        """None when torch, torchvision and transformers are installed."""
        reasons = [missing_package(name) for name in ("torch", "torchvision", "transformers")]
        return next((reason for reason in reasons if reason), None)

    def variant(self, precision: Precision) -> str:
        """fp32: this engine is the reference."""
        if precision is not Precision.FP32:
            raise no_such_precision(self.name, precision, (Precision.FP32,))
        return "fp32"

    def compiled(self, root: Path, spec: GraphSpec, precision: Precision, sha256: str) -> None:
        """None: it runs from a checkpoint."""

    def open(
        self, path: Path, spec: GraphSpec, precision: Precision, threads: int | None = None, hint: str = LATENCY
    ) -> TorchSession:
        """Open one graph of the checkpoint at ``path``; sets torch's threads for the whole process."""
        import torch

        self.variant(precision)
        require_hint(self.name, hint, self.hints)
        torch.set_num_threads(threads or available_threads())
        if not path.exists():
            raise CheckpointError("no such checkpoint", where=path, fix="give --checkpoint ckpt.pt")
        # Only a fusion that was exported with attention maps has that output.
        maps = any(tensor.name == "attention" for tensor in spec.outputs)
        found = _graphs(path.resolve(), path.stat().st_mtime_ns, maps)
        if spec.name not in found:
            raise CheckpointError(f"the checkpoint has no graph {spec.name!r}", where=path, fix="give the bundle's own")
        return TorchSession(found[spec.name].module, spec)
