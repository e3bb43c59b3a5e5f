"""Adopts ONNX files that somebody else exported: reads the spec file, makes graphs as ours of the files, and proves them."""
