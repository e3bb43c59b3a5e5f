"""Dual encoders of transformers: two encoders of any kind, and Chinese CLIP."""
