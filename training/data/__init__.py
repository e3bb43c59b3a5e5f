"""Data sets. One file or folder each."""
