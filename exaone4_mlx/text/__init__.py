"""Text and token ids: tokenizer, chat template, events, reply parser. Nothing here imports MLX."""
