"""PyTorch to ONNX: trace, check the graph, probe it against PyTorch, write the bundle."""
