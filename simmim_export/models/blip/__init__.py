"""BLIP: matching of images and texts, and ranking of answers to a question."""
