"""Checkpoints in and out: loading, quantizing, converting."""
