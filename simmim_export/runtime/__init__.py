"""What a device runs: the host decodes and tokenizes, the graphs do everything else. Never imports PyTorch or ONNX."""

from simmim_export.runtime.loading import load
from simmim_export.runtime.model import Model

__all__ = ["Model", "load"]
