"""Measurements: memory (`fit`), speed (`bench`) and correctness (`doctor`)."""
