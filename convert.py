from exaone4_mlx.cli import run_command

run_command("convert")
