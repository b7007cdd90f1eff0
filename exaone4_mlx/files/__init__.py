"""Folders and files on disk or on the hub, and the tensors of safetensors files."""
