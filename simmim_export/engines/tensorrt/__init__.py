"""TensorRT 10.12+ and 11: graphs compiled for one GPU ahead of time, and run without PyTorch.

============ ==============================================================================
engine       what the other packages see; imports neither TensorRT nor CUDA
request      what a build was asked for: shapes, workspace, level; what is known without a GPU
plan         the sidecar of a plan, read before TensorRT sees a byte of the plan
device       the GPU through NVIDIA's own bindings: memory, one stream, CUDA graphs
callbacks    what TensorRT calls back: its log and its progress
build        a graph to a plan
session      a plan, run
proof        what a plan really computes in
============ ==============================================================================
"""

from simmim_export.engines.tensorrt.engine import TrtEngine

__all__ = ["TrtEngine"]
