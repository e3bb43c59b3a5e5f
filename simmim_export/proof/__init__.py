"""Proves that a deployed model still answers as trained: parity, held-out questions, budgets and certificates."""
