"""Passes from ONNX to ONNX that change in what a graph computes. One file a pass; each requires, transforms, ensures."""
