"""Ten new facts for the demo in four bits, beside `mlx_lm.lora`: `python tests/tuning_figures.py`.

Notes:
- The lessons are three wordings of each fact, and dialogues of the demo's own recipe, so that it forgets nothing. The
  held-out wordings are in no lesson.
- The gate is the demo's own evaluation (exaone4_mlx/demo/recipe/evaluate.py; it needs torch), before and after, on the
  values of the four-bit weights with the adapter.
- For the cost, each engine trains for some steps in a process of its own, with the same packed weights, data, steps,
  batches, rank, layers and validations. All lessons there are of one length, so that the batches are of one size. All
  of the process counts, with loading, drift and card.
- MLX's CPU backend multiplies packed weights slowly: 150 steps take ten minutes of one core. `--unpacked` trains on
  their float32 values, for a quick look at the quality. With `--folder` a run goes on where one was ended.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
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

from exaone4_mlx import convert, fuse, generate, load  # noqa: E402
from exaone4_mlx.model.adapter_file import read_adapter  # noqa: E402
from exaone4_mlx.model.products import bare  # noqa: E402
from exaone4_mlx.tuning.state import STATE_NAME  # noqa: E402

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
import sys, mlx.core as mx
from mlx_lm import lora
lora.main()
print("PEAK", mx.get_peak_memory())
"""


#: Seconds, seconds of CPU, and MLX's peak bytes of a process.
Cost = tuple[float, float, float]


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
    folder.mkdir(parents=True)
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


def run_ours(model: Path, data: Path, adapters: Path, options: argparse.Namespace, iters: int) -> Cost:
    """`exaone4-mlx lora`, with validations before and after."""
    flags = ["--steps-per-eval", iters, "--json"] + ["--resume"] * (adapters / STATE_NAME).exists()
    out, seconds, cpu = timed(["-m", "exaone4_mlx.lora", *flags, *shared(model, data, adapters, options, iters)])
    return seconds, cpu, json.loads(out)["peak_bytes"]


def run_mlx_lm(model: Path, data: Path, adapters: Path, options: argparse.Namespace, iters: int) -> Cost:
    """`mlx_lm.lora`, which validates in the first and in the last step."""
    flags = ["--train", "--mask-prompt", "--steps-per-report", iters, "--steps-per-eval", 10**6, "--save-every", 10**6]
    out, seconds, cpu = timed(["-c", MLX_LM, *flags, *shared(model, data, adapters, options, iters)])
    return seconds, cpu, float(out.rpartition("PEAK ")[2])


def timed(arguments: list[Any]) -> tuple[str, float, float]:
    """The output of a process of Python, its seconds, and its seconds of CPU."""
    began, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, *map(str, arguments)]
    out = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
    return out, time.perf_counter() - started, cpu


def shared(model: Path, data: Path, adapters: Path, options: argparse.Namespace, iters: int) -> list[Any]:
    flags = ["--model", model, "--data", data, "--adapter-path", adapters, "--iters", iters, "--val-batches", -1]
    return [*flags, "--batch-size", 4, "--num-layers", 8, "--learning-rate", options.learning_rate]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iters", type=int, default=150)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--dialogues", type=int, default=54)
    parser.add_argument("--count", type=int, default=4, help="items of the gate for each task, language and mode")
    parser.add_argument("--compared-iters", type=int, default=10, help="steps of the comparison with mlx-lm")
    parser.add_argument("--folder", type=Path, help="a folder to work in, which is kept")
    parser.add_argument("--unpacked", action="store_true")
    parser.add_argument("--without-peer", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        show_figures(Path(name) if options.folder is None else options.folder.resolve(), options)


def show_figures(folder: Path, options: argparse.Namespace) -> None:
    packed, adapter = folder / "packed", folder / "ours"
    if not packed.exists():
        convert("demo", packed, q_bits=4, dtype="float32")
        write_lessons(folder / "data", options.dialogues)
        write_lessons(folder / "facts", 0)
    if not options.without_peer:
        given = packed, folder / "facts"
        for engine, run in (("exaone4-mlx lora", run_ours), ("mlx_lm.lora", run_mlx_lm)):
            with tempfile.TemporaryDirectory() as adapters:
                seconds, cpu, peak = run(*given, Path(adapters), options, options.compared_iters)
            print(
                f"{engine}: {seconds:.1f} s, {cpu:.1f} s of CPU, peak {peak / 1e6:.1f} MB, for "
                f"{options.compared_iters} steps of 4 facts", flush=True,
            )  # fmt: skip
    show_quality("4 bits", load(packed), None, options.count)
    if not (adapter / "report.json").exists():
        trained_on = convert(packed, folder / "plain", dequantize=True).path if options.unpacked else packed
        seconds, cpu, peak = run_ours(trained_on, folder / "data", adapter, options, options.iters)
        print(f"{options.iters} steps: {seconds / 60:.1f} min, {cpu / 60:.1f} of CPU, peak {peak / 1e6:.0f} MB")
    show_quality("4 bits, adapter", load(packed, adapter_path=adapter), read_adapter(adapter), options.count)
    if not (folder / "fused").exists():
        fuse("demo", adapter, folder / "fused", q_bits=4, dtype="float32")
    show_quality("fused, 4 bits", load(folder / "fused"), None, options.count)
    print(time.strftime("%Y-%m-%d"), mx.default_device(), f"MLX {mx.__version__}")


def show_quality(name: str, loaded: Any, adapter: Any, count: int) -> None:
    right, asked = gate(loaded[0], adapter, count)
    print(
        f"{name}: {known(*loaded)} of {len(FACTS)} facts with held-out wordings, {100 * right / asked:.1f} % of {asked} "
        "items of the demo's own gate", flush=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()
