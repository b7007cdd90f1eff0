"""Quantization settings, and the tensors of a checkpoint in any supported format."""
