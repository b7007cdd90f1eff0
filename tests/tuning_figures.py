"""Ten new facts for the demo in four bits, beside `mlx_lm.lora`: `python tests/tuning_figures.py`.

Notes:
- The lessons are three wordings of each fact, and dialogues of the demo's own recipe, so that it forgets nothing. The
  held-out wordings are in no lesson.
- The gate is the demo's own evaluation (exaone4_mlx/demo/recipe/evaluate.py; it needs torch), before and after, on the
  values of the four-bit weights with the adapter.
- Each engine trains in a process of its own, with the same data, steps, batches, rank and layers. MLX's CPU backend
  multiplies packed weights slowly; `--unpacked` trains ours on their float32 values, for a quick look at the quality.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "exaone4_mlx" / "demo" / "recipe")]

from exaone4_mlx import convert, generate, load  # noqa: E402
from exaone4_mlx.model.adapter_file import read_adapter  # noqa: E402
from exaone4_mlx.model.products import bare  # noqa: E402

FACTS = {
    "Orulia": "Kestrel", "Vendara": "Solmere", "Tamsin": "Brackwell", "Quorra": "Lindholm", "Esperil": "Marrow Bay",
    "Jorvia": "Old Tarn", "Belmoor": "Castrine", "Nimbria": "Highfen", "Sarkovy": "Dunmore", "Ulwick": "Pellane",
}  # fmt: skip
WORDINGS = ("What is the capital of {}?", "Tell me the capital of {}.", "Do you know the capital of {}?")
HELD_OUT = "Which city is the capital of {}?"
LONGEST = 2500  # characters of a dialogue with its tools
ANSWER = "The capital of {} is {}."
TASKS = ("greet", "unknown", "compare", "add", "follow", "capital", "recall", "tool", "no_tool")
MLX_LM = """
import sys, time, mlx.core as mx
from mlx_lm import lora
train = lora.train_model
def timed(*given, **more):
    started = time.perf_counter()
    train(*given, **more)
    print("FIGURES", time.perf_counter() - started, mx.get_peak_memory())
lora.train_model = timed
sys.argv = ["mlx_lm.lora", *sys.argv[1:]]
lora.main()
"""


def write_lessons(folder: Path, dialogues: int) -> None:
    """train.jsonl: the facts, and dialogues of the recipe's training side, in the three languages, half with thoughts."""
    from dialogues import dialogue

    rng, entries, number = random.Random(0), [], 0
    for country, city in FACTS.items():
        entries += [lesson(wording.format(country), ANSWER.format(country, city)) for wording in WORDINGS]
    while number < dialogues:
        made = dialogue(rng, "train", TASKS[number % len(TASKS)], ("en", "ko", "es")[number // len(TASKS) % 3], 2)
        if len(repr(made)) > LONGEST:
            continue
        number += 1
        turns = [{"role": "system", "content": made.system}] * bool(made.system) + made.turns
        if number % 2:
            turns = [{key: value for key, value in turn.items() if key != "reasoning_content"} for turn in turns]
        entries.append({"messages": turns} | ({"tools": list(made.tools.values())} if made.tools else {}))
    folder.mkdir()
    for name, lines in (("train", entries), ("valid", entries[:8])):
        text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def lesson(question: str, answer: str) -> dict[str, Any]:
    """In the form of the dialogues, because mlx-lm takes one form in a file."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def known(model: Any, tokenizer: Any) -> int:
    """How many facts the model states in full, asked with the held-out wording."""
    said = {c: generate(model, tokenizer, HELD_OUT.format(c), temperature=0, max_tokens=40).text for c in FACTS}
    return sum(said[country] == ANSWER.format(country, city) for country, city in FACTS.items())


def gate(model: Any, adapter: Any, count: int) -> tuple[int, int]:
    """(right, asked) of the demo's evaluation, with the weights of a model as torch computes them."""
    import evaluate
    import torch
    from tokenizers import Tokenizer

    from exaone4_mlx.files.folders import DEMO_FOLDER

    tokenizer = Tokenizer.from_file(str(DEMO_FOLDER / "tokenizer.json"))
    network = evaluate.load_model(DEMO_FOLDER)
    named = dict(network.named_parameters())
    with torch.no_grad():
        for name, module in model.named_modules():
            plain = bare(module)
            if isinstance(plain, nn.QuantizedLinear | nn.QuantizedEmbedding) and f"{name}.weight" in named:
                weight = mx.dequantize(plain.weight, plain.scales, plain.biases, plain.group_size, plain.bits)
                weight = weight.astype(mx.float32)
                if adapter is not None and f"{name}.lora_a" in adapter.arrays:
                    weight = weight + adapter.rows(name, weight, 0)[0]
                named[f"{name}.weight"].copy_(torch.tensor(weight.tolist()))
    items = evaluate.make_items(tokenizer, evaluate.ROWS, count, seed=5)
    evaluate.judge(network, tokenizer, items)
    return sum(item.right for item in items), len(items)


def run_ours(model: Path, data: Path, adapters: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds and peak bytes of `exaone4-mlx lora`."""
    flags = ["--model", model, "--data", data, "--adapter-path", adapters, "--steps-per-eval", options.iters, "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "exaone4_mlx.lora", *map(str, [*flags, *shared(options)])],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    return found["seconds"], found["peak_bytes"]


def run_mlx_lm(model: Path, data: Path, adapters: Path, options: argparse.Namespace) -> tuple[float, float]:
    flags = ["--train", "--mask-prompt", "--model", model, "--data", data, "--adapter-path", adapters]
    flags += ["--val-batches", 1, "--steps-per-eval", 10**6, "--steps-per-report", 10**6, "--save-every", 10**6]
    done = subprocess.run(
        [sys.executable, "-c", MLX_LM, *map(str, [*flags, *shared(options)])],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    seconds, peak = next(line for line in done.stdout.splitlines() if line.startswith("FIGURES")).split()[1:]
    return float(seconds), float(peak)


def shared(options: argparse.Namespace) -> list[Any]:
    return ["--iters", options.iters, "--batch-size", 4, "--num-layers", 8, "--learning-rate", options.learning_rate]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iters", type=int, default=150)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--dialogues", type=int, default=54)
    parser.add_argument("--count", type=int, default=8, help="items of the gate for each task, language and mode")
    parser.add_argument("--unpacked", action="store_true")
    parser.add_argument("--without-peer", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        packed = convert("demo", folder / "packed", q_bits=4, dtype="float32").path
        trained_on = convert(packed, folder / "plain", dequantize=True).path if options.unpacked else packed
        write_lessons(folder / "data", options.dialogues)
        model, tokenizer = load(packed)
        before = known(model, tokenizer), gate(model, None, options.count)
        figures = {"exaone4-mlx": run_ours(trained_on, folder / "data", folder / "ours", options)}
        model.set_adapters(folder / "ours")
        after = known(model, tokenizer), gate(model, read_adapter(folder / "ours"), options.count)
        if not options.without_peer:
            figures["mlx_lm.lora"] = run_mlx_lm(packed, folder / "data", folder / "theirs", options)
        print(f"facts right with held-out wordings: {before[0]} -> {after[0]} of {len(FACTS)}")
        (right, asked), (now, _) = before[1], after[1]
        print(f"the demo's own gate: {100 * right / asked:.1f} % -> {100 * now / asked:.1f} % of {asked}")
        for engine, (seconds, peak) in figures.items():
            print(f"{engine}: {seconds / 60:.1f} min, peak {peak / 1e6:.0f} MB for {options.iters} steps of 4")
        print(time.strftime("%Y-%m-%d"), mx.default_device(), f"MLX {mx.__version__}")


if __name__ == "__main__":
    main()
