"""Passes from ONNX to ONNX that change the number format that a graph computes in; one module for each pass."""
