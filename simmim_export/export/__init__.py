"""PyTorch to ONNX: trace each graph, check it, compare it with PyTorch at many shapes, and write the bundle."""
