"""Conversations on disk: files, search, branches, deletion, export and import. Nothing here imports MLX."""
