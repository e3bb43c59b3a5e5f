"""Honest measurement: one process an engine, rounds alternated, locked inputs, raw samples kept, parity beside latency."""
