"""What TensorRT's parser and its INT8 fusion accept, checked on ONNX files without TensorRT."""
