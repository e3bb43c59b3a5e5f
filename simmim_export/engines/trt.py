"""TensorRT. For now it only knows whether it could run here; building and running engines comes with its own issue.

It is in the table already so that asking for it says what to install instead of "unknown engine".
"""

from __future__ import annotations

from pathlib import Path

from simmim_export.engines.base import LATENCY, Session, missing_package, no_such_precision
from simmim_export.errors import EngineUnavailable
from simmim_export.spec import GraphSpec, Precision


class TrtEngine:
    """NVIDIA TensorRT."""

    name = "trt"
    install = "on a machine with an NVIDIA GPU: pip install 'simmim-export[gpu]' (JetPack brings its own tensorrt)"
    reads_checkpoint = False
    hints = (LATENCY,)

    def why_unavailable(self) -> str | None:
        """The package that is missing, or that this version has no TensorRT session yet."""
        return missing_package("tensorrt") or "this version of simmim-export cannot run TensorRT engines yet"

    def variant(self, precision: Precision) -> str:
        """fp32 and fp16 graphs as they are; int8 with symmetric activations."""
        variants = {Precision.FP32: "fp32", Precision.FP16: "fp16", Precision.INT8: "int8-s8"}
        if precision not in variants:
            raise no_such_precision(self.name, precision, tuple(variants))
        return variants[precision]

    def open(
        self, path: Path, spec: GraphSpec, precision: Precision, threads: int | None = None, hint: str = LATENCY
    ) -> Session:
        """Always :class:`EngineUnavailable` in this version."""
        raise EngineUnavailable(f"engine 'trt' cannot run here: {self.why_unavailable()}", fix=self.install)
