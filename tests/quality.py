"""Measures the tables of docs/convert-and-measure.md of the quality loss of 4 bits: `python tests/quality.py`.

Notes:
- Each method converts a checkpoint with the demo's tokenizer and domain (`--model`, default: the demo).
- Two held-out parts measure the loss: the package's texts, and chats of the demo's domain (`--chats` of them). The
  chats are the test split of the demo's recipe: every value that they ask about is kept out of training by its hash.
  An interval is that of 95 % of the resamples of whole chats, each with both models.
- `--gate N` asks the recipe's questions, N of a task, language and mode, and counts exact answers.
- mlx-lm's methods run on the package's calibration texts in place of those that they download, in float32. Its AWQ
  refuses this architecture.
- MLX's CPU backend multiplies 25 times faster with LD_PRELOAD of Debian's libopenblas.so.0.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from exaone4_mlx import Exaone4ForCausalLM, Tokenizer, convert
from exaone4_mlx.conversion.evaluate import divergence
from exaone4_mlx.conversion.layerwise import LayerwiseModel
from exaone4_mlx.conversion.texts import (
    CALIBRATION,
    HELD_OUT,
    encode,
    encode_reply,
    read_passage,
    read_passages,
    windows,
)
from exaone4_mlx.files.folders import DEMO_FOLDER
from exaone4_mlx.model.pretrained import OpenCheckpoint, open_checkpoint

WINDOW, RESAMPLES = 512, 1000
DWQ_RATE = 1e-4  # its default, 1e-6, moves little in 56 steps
ROWS = ("greet", "unknown", "compare", "add", "follow", "capital", "recall", "not_told", "tool_call", "tool_answer", "no_tool")  # fmt: skip


def ours(source: Path, folder: Path, **options: Any) -> None:
    convert(source, folder, **{"calibrate": None} | options)


def theirs(source: Path, folder: Path, method: str) -> None:
    """mlx-lm's quantization of a checkpoint, on 60 windows of the calibration texts."""
    from mlx.optimizers import Adam
    from mlx_lm.quant import dwq, dynamic_quant, gptq
    from mlx_lm.utils import load, quantize_model, save

    mx.random.seed(0)
    np.random.seed(0)
    model, tokenizer, config = load(str(source), return_config=True)
    model.set_dtype(mx.float32)
    ids = [id for passage in read_passages(CALIBRATION) for id in encode(passage, Tokenizer.from_pretrained(source))]
    data = mx.array(ids[: 60 * WINDOW]).reshape(60, WINDOW)
    if method == "gptq":
        model, config["quantization"] = gptq.gptq_quantize(model, data, 4, 64, 4, 64)
    elif method == "dynamic":
        found = dict(dynamic_quant.estimate_sensitivities(model, data[:16], 4, 64, 5, 64))
        threshold = dynamic_quant.estimate_threshold(model, found, 4.85 + 0.5, 4, 64, 5, 64)  # scales in float32 here
        high = {"bits": 5, "group_size": 64}
        chosen = lambda path, layer: hasattr(layer, "to_quantized") and (found[path] <= threshold or high)  # noqa: E731
        model, config = quantize_model(model, config, 64, 4, quant_predicate=lambda p, m, *_: chosen(p, m))
    else:
        targets = {"train": data[:56], "valid": data[56:]}
        original = load(str(source))[0]
        original.set_dtype(mx.float32)
        model, config = quantize_model(model, config, 64, 4)
        rows = {split: [(row, 0) for row in part.tolist()] for split, part in targets.items()}
        dwq.dwq_quantize(
            model, lambda batch, *_, **__: original(batch), Adam(DWQ_RATE, bias_correction=True), rows["train"] * 4,
            rows["valid"], 4, WINDOW, 0, dtype=mx.float32,
        )  # fmt: skip
    model.set_dtype(mx.bfloat16)
    save(folder, str(source), model, tokenizer, config)


METHODS: dict[str, Callable[[Path, Path], None]] = {
    "mlx-lm's plain 4 bits (`--no-search`: the same bytes)": partial(ours, search=False),
    "least error (`--no-calibrate`)": ours,
    "`--calibrate weighted`": partial(ours, calibrate="weighted"),
    "`--calibrate gptq --num-samples 48` (the default on a GPU)": partial(ours, calibrate="gptq", num_samples=48),
    "`--calibrate gptq`": partial(ours, calibrate="gptq"),
    "`--calibrate distill`": partial(ours, calibrate="distill"),
    "`--recipe 4bit-quality`": partial(ours, recipe="4bit-quality"),
    "`--recipe 4bit-quality --calibrate weighted`": partial(ours, recipe="4bit-quality", calibrate="weighted"),
    "`--recipe 4bit-quality --calibrate gptq --num-samples 48`": partial(
        ours, recipe="4bit-quality", calibrate="gptq", num_samples=48
    ),
    "`--recipe 4bit-quality --calibrate gptq`": partial(ours, recipe="4bit-quality", calibrate="gptq"),
    "`--recipe 4bit-quality --calibrate distill`": partial(ours, recipe="4bit-quality", calibrate="distill"),
    "mlx-lm's DWQ": partial(theirs, method="dwq"),
    "mlx-lm's GPTQ": partial(theirs, method="gptq"),
    "mlx-lm's dynamic quantization": partial(theirs, method="dynamic"),
}


def domain_chats(count: int, split: str = "test", seed: int = 0) -> list[dict[str, Any]]:
    """Dialogues of the demo's recipe as lines of a .jsonl file of texts. Every second one ends with a thought."""
    sys.path.insert(0, str(DEMO_FOLDER / "recipe"))
    import dialogues
    import render

    rng, lines = random.Random(seed), []
    for number in range(count):
        example = dialogues.dialogue(rng, split)
        messages = render.messages(example)
        if number % 2:
            messages[-1] = {**messages[-1], "reasoning_content": example.turns[-1]["reasoning_content"]}
        lines.append({"kind": example.task, "messages": messages, "tools": list(example.tools.values())})
    return lines


class HeldOut:
    """Both held-out parts, with the hidden states of the original."""

    def __init__(self, source: Path, chats: int, texts: int) -> None:
        tokenizer = Tokenizer.from_pretrained(source)
        read = [read_passage(line, "a chat") for line in domain_chats(chats)] + read_passages(HELD_OUT)[:texts]
        self.sequences: list[list[int]] = []
        self.reply_starts: list[int | None] = []  # None for a text
        for passage in read:
            ids, reply = encode_reply(passage, tokenizer)
            kept = ids[-4 * WINDOW :]  # a chat is read at once
            parts = windows(ids, WINDOW) if passage.messages is None else [kept]
            self.sequences += parts
            self.reply_starts += [None if passage.messages is None else reply - len(ids) + len(kept)] * len(parts)
        self.head, self.states = self._states(open_checkpoint(source, Exaone4ForCausalLM))

    def _states(self, opened: OpenCheckpoint) -> tuple[Callable[[mx.array], mx.array], list[mx.array]]:
        model = LayerwiseModel(opened.source, opened.config, unpacked=True)
        return model.head(), model.hidden_states(self.sequences)

    def losses(self, folder: Path) -> np.ndarray:
        """[chats, 4]: the KL of all tokens of a chat, their number, and both of its reply. Texts are one more row."""
        head, states = self._states(open_checkpoint(folder, Exaone4ForCausalLM))
        rows, text = [], np.zeros(4)
        for start, state, original in zip(self.reply_starts, states, self.states, strict=True):
            kl = np.array(divergence(head(state[:-1]), self.head(original[:-1])), np.float64)
            reply = kl[start - 1 :] if start is not None else kl[:0]
            row = np.array([kl.sum(), kl.size, reply.sum(), reply.size])
            if start is None:
                text += row
            else:
                rows.append(row)
        return np.array([*rows, text])


def gate(folder: Path, count: int) -> str:
    """The exact answers of the recipe's evaluation, without and with thoughts, in percent."""
    import evaluate
    from tokenizers import Tokenizer as PlainTokenizer

    with tempfile.TemporaryDirectory() as place:
        quantized = any(
            tensor.is_quantized for tensor in open_checkpoint(folder, Exaone4ForCausalLM).source.tensors.values()
        )
        if quantized:
            convert(folder, Path(place, "full"), dequantize=True)
        items = evaluate.make_items(PlainTokenizer.from_file(str(folder / "tokenizer.json")), ROWS, count, 5)
        tokenizer = PlainTokenizer.from_file(str(folder / "tokenizer.json"))
        evaluate.judge(evaluate.load_model(Path(place, "full") if quantized else folder), tokenizer, items)
    parts = [[item.right for item in items if item.think is think] for think in (False, True)]
    return " / ".join(f"{100 * sum(part) / len(part):.1f}" for part in parts)


def shares(losses: np.ndarray, plain: np.ndarray) -> list[str]:
    """Mean KL and its ratio to plain: of the texts, of the whole chats, and of the replies with its interval."""
    texts, chats, rng = losses[-1], losses[:-1], np.random.default_rng(0)
    ratio = lambda rows, column: losses[rows, column].sum() / plain[rows, column].sum()  # noqa: E731
    drawn = sorted(ratio(rng.integers(0, len(chats), len(chats)), 2) for _ in range(RESAMPLES))
    low, high = drawn[RESAMPLES // 40], drawn[-RESAMPLES // 40]
    everything, replies = chats[:, 0].sum() / chats[:, 1].sum(), chats[:, 2].sum() / chats[:, 3].sum()
    every = slice(0, len(chats))
    return [
        f"{texts[0] / texts[1]:.4f} | {texts[0] / plain[-1, 0]:.2f}",
        f"{everything:.4f} | {ratio(every, 0):.2f}",
        f"{replies:.5f} | {ratio(every, 2):.2f} ({low:.2f} to {high:.2f})",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEMO_FOLDER)
    parser.add_argument("--chats", type=int, default=160)
    parser.add_argument("--texts", type=int, default=96)
    parser.add_argument("--gate", type=int, default=0, metavar="N")
    parser.add_argument("--methods", type=int, nargs="+", default=range(len(METHODS)), help="their numbers; plain is 0")
    parser.add_argument("--output", type=Path, help="a folder for the conversions, which are kept and used again")
    options = parser.parse_args()
    held_out = HeldOut(options.model, options.chats, options.texts)
    replies = sum(
        len(ids) - start for ids, start in zip(held_out.sequences, held_out.reply_starts, strict=True) if start
    )
    print(f"{sum(map(len, held_out.sequences)):,} tokens, {replies:,} of them in replies; exact answers in percent of "
          f"the original: {gate(options.model, options.gate) if options.gate else '–'}\n")  # fmt: skip
    print(
        "| four bits | bits per weight | texts | of plain | chats | of plain | replies | of plain (95 %) | exact answers |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    plain = None
    with tempfile.TemporaryDirectory() as temporary:
        for number in dict.fromkeys([0, *options.methods]):
            name, folder = list(METHODS)[number], (options.output or Path(temporary)) / str(number)
            if not folder.exists():
                METHODS[name](options.model, folder)
            losses = held_out.losses(folder)
            np.save(folder.with_suffix(".npy"), losses)
            plain = losses if plain is None else plain
            bits = open_checkpoint(folder, Exaone4ForCausalLM).bits_per_weight
            answers = gate(folder, options.gate) if options.gate else "–"
            print(f"| {name} | {bits:.3f} | {' | '.join(shares(losses, plain))} | {answers} |", flush=True)


if __name__ == "__main__":
    main()
