"""Whole histories on a real API server: what the writers did, against what the sink was told."""
