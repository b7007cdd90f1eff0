"""Converts a model to 4 and to 8 bits, and measures what they cost on texts of your own."""

import tempfile
from pathlib import Path

from exaone4_mlx import convert, evaluate, fit

with tempfile.TemporaryDirectory() as folder:
    texts = Path(folder, "texts.txt")
    texts.write_text("What is the capital of South Korea?\n---\n대한민국의 수도는 서울입니다.\n", encoding="utf-8")
    for bits in (4, 8):
        summary = convert("demo", Path(folder, f"demo-{bits}bit"), q_bits=bits)
        found = evaluate(summary.path, "demo", data=texts)
        print(f"{summary.bits_per_weight:.2f} bits per weight, mean KL {found.rows[0].mean_kl:.4f}")
print(f"The demo needs {fit('demo', max_kv_size=4096).total_bytes / 1e6:.0f} MB for 4,096 tokens.")
