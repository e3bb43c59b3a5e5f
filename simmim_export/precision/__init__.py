"""Passes that turn an FP32 ONNX graph into one of lower precision. passes.py lists them."""
