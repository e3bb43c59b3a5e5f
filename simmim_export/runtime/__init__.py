"""What a device runs: decode and tokenise on the host, everything else in the graphs. Never imports PyTorch or ONNX."""

from simmim_export.runtime.runtime import Answer, Runtime, load

__all__ = ["Answer", "Runtime", "load"]
