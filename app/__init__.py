"""The desktop chat: `exaone4-mlx app`. In the installed package this folder is `exaone4_mlx.app`."""
