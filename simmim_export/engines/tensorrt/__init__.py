"""TensorRT 10.12+ and 11, and TensorRT for RTX: compiles graphs ahead of time, and runs them without PyTorch.

============ ==============================================================================
engine       what the other packages see; imports neither TensorRT nor CUDA
library      which of the two this process uses
request      the options of a build: shapes, workspace, level; needs no GPU
plan_file    the sidecar of a plan file, checked before TensorRT sees a byte of the plan file
device       the GPU through NVIDIA's own bindings: memory, one stream, CUDA graphs
callbacks    what TensorRT calls back: its log and its progress
network      a graph as TensorRT's parser reads it
build        a graph to a plan file
rtx          what only TensorRT for RTX has: named GPUs, kernels that are finished on the device
session      runs a plan file
proof        what a plan file really computes in
============ ==============================================================================
"""

from simmim_export.engines.tensorrt.engine import TrtEngine, TrtRtxEngine

__all__ = ["TrtEngine", "TrtRtxEngine"]
