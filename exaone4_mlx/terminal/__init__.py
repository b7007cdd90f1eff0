"""A conversation in the terminal: `python -m exaone4_mlx.chat`. With a terminal it draws, without one it prints."""
