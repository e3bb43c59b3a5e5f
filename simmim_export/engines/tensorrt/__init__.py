"""TensorRT 10.12+ and 11: compiles graphs for one GPU ahead of time, and runs them without PyTorch.

============ ==============================================================================
engine       what the other packages see; imports neither TensorRT nor CUDA
request      the options of a build: shapes, workspace, level; needs no GPU
plan_file    the sidecar of a plan file, checked before TensorRT sees a byte of the plan file
device       the GPU through NVIDIA's own bindings: memory, one stream, CUDA graphs
callbacks    what TensorRT calls back: its log and its progress
build        a graph to a plan file
session      runs a plan file
proof        what a plan file really computes in
============ ==============================================================================
"""

from simmim_export.engines.tensorrt.engine import TrtEngine

__all__ = ["TrtEngine"]
