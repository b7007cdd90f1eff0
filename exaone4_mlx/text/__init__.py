"""Strings and ids: tokenizer, chat template, reply parser. Nothing in here imports MLX."""
