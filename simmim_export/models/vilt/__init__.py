"""ViLT: answers from a fixed list, and matching of an image and a text."""
