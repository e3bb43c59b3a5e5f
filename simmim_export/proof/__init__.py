"""What a deployed model is proven by: held-out questions, figures with intervals, certificates. Needs no PyTorch, no ONNX."""
