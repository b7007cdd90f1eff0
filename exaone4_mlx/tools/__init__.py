"""Tools that a model can call: schemas, checks, the built-in tools. Nothing here imports MLX."""
