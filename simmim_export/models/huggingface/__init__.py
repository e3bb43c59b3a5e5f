"""What the families of Hugging Face's transformers share: their folders, tokenizers, image processors and attention masks."""
