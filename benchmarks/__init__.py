"""Benchmarks: each engine runs in its own process, engines alternate in rounds on identical inputs, and results keep every sample
and the error against PyTorch."""
