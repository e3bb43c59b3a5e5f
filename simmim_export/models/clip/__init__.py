"""CLIP and models of its kind: an image encoder and a causal text encoder, trained to embed an image and its caption alike."""
