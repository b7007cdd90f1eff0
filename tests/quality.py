"""Measures the tables of docs/convert-and-measure.md of the quality loss of 4 bits: `python tests/quality.py`.

Notes:
- Each method converts a checkpoint of the demo's tokenizer (`--model`, default: the demo) with its calibration.
- Two held-out parts measure the loss: the package's texts, and chats of the demo's domain (`--chats` of them). The
  chats are the test split of the demo's recipe: every value that they ask about is kept out of training by its hash.
- MLX's CPU backend multiplies 25 times faster with LD_PRELOAD of Debian's libopenblas.so.0.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from exaone4_mlx import Evaluation, convert, evaluate
from exaone4_mlx.files.folders import DEMO_FOLDER

METHODS: dict[str, dict[str, Any]] = {
    "mlx-lm's plain 4 bits (`--no-search`: the same bytes)": {"search": False},
    "least error (the default)": {},
    "`--calibrate gptq`": {"calibrate": "gptq"},
    "`--calibrate distill`": {"calibrate": "distill"},
    "`--recipe 4bit-quality`": {"recipe": "4bit-quality"},
    "`--recipe 4bit-quality --calibrate gptq`": {"recipe": "4bit-quality", "calibrate": "gptq"},
    "`--recipe 4bit-quality --calibrate distill`": {"recipe": "4bit-quality", "calibrate": "distill"},
}


def domain_chats(count: int, split: str = "test", seed: int = 0) -> list[dict[str, Any]]:
    """Dialogues of the demo's recipe as lines of a .jsonl file of texts. Every second one ends with a thought."""
    sys.path.insert(0, str(DEMO_FOLDER / "recipe"))
    import dialogues
    import render

    rng, lines = Random(seed), []
    for number in range(count):
        example = dialogues.dialogue(rng, split)
        messages = render.messages(example)
        if number % 2:
            messages[-1] = {**messages[-1], "reasoning_content": example.turns[-1]["reasoning_content"]}
        lines.append({"kind": example.task, "messages": messages, "tools": list(example.tools.values())})
    return lines


def measured(model: str, folder: Path, methods: list[str], chats: int) -> Iterator[tuple[str, list[Evaluation]]]:
    """The evaluations on texts and on chats of each method."""
    file = folder / "chats.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in domain_chats(chats)))
    for number, name in enumerate(methods):
        convert(model, folder / str(number), **METHODS[name])
        yield name, [evaluate(folder / str(number), model, data=data) for data in (None, file)]
    floor = [evaluate(model, model, data=data, dtype="bfloat16") for data in (None, file)]
    yield "unquantized, computed in bfloat16: the noise floor", floor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--chats", type=int, default=160)
    parser.add_argument("--methods", type=int, nargs="+", default=range(len(METHODS)), help="their numbers, from 0")
    options = parser.parse_args()
    methods = [list(METHODS)[number] for number in options.methods]
    with tempfile.TemporaryDirectory() as folder:
        plain: list[float] = []
        print("| four bits | bits per weight | texts | of plain | chats | of plain | replies | of plain | same top-1 |")
        print("|---|---|---|---|---|---|---|---|---|")
        for name, (texts, chats) in measured(options.model, Path(folder), methods, options.chats):
            figures = [texts.rows[0].mean_kl, chats.rows[0].mean_kl, chats.rows[-1].mean_kl]
            plain = plain or figures
            shares = [f"{figure:.4f} | {figure / first:.2f}" for figure, first in zip(figures, plain, strict=True)]
            agreement = f"{100 * chats.rows[-1].top1_agreement:.1f} %"
            print(f"| {name} | {texts.bits_per_weight:.3f} | {' | '.join(shares)} | {agreement} |", flush=True)


if __name__ == "__main__":
    main()
