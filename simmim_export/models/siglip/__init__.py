"""SigLIP and SigLIP 2 of transformers."""
