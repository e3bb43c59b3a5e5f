"""What runs on a device: it decodes images, tokenizes texts and runs the graphs. Imports neither PyTorch nor onnx."""

from simmim_export.runtime.loading import load
from simmim_export.runtime.model import Model

__all__ = ["Model", "load"]
