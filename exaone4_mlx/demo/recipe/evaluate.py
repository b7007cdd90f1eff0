"""Checkpoint -> score table: greedy replies to held-out dialogues, whole answers compared exactly.

- every value asked about (numbers, names, cities, wordings) was kept out of training by its hash
- a reply is right when everything after its thought equals the expected answer; the thought itself
  is free, but it must end
- greedy replies are mostly not generated: where the most likely token is the expected one at every
  place of the expected reply, that reply *is* the greedy one. Where it is not, a plain reply is
  wrong; one with a thought is generated, because another thought may lead to the right answer
- runs on transformers in float32, apart from this project's own code; with `--bits`, on the weights
  that `mlx_lm.convert` would store (affine, groups of 64)

Example: python evaluate.py --checkpoint .. --count 40 --json scores.json
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import dialogues
import facts
import network
import numpy as np
import phrases
import render
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from train import padded
from transformers import Exaone4ForCausalLM

ROWS = (
    "greet",
    "unknown",
    "compare",
    "add",
    "follow",
    "capital",
    "recall",
    "recall_long",
    "not_told",
    "tool_call",
    "tool_answer",
    "no_tool",
)
FAR = 1000  # tokens between telling and asking, at least, in recall_long
TOLD = 160  # tokens that telling the facts may take
BATCH_TOKENS = 8192
THOUGHT_ROOM = 90  # tokens


@dataclass
class Item:
    """A prompt, the reply that is expected after it, the answer in that reply, and what came."""

    row: str
    lang: str
    think: bool
    prompt: list
    reply: list
    answer: str
    output: str = ""
    right: bool = False


def make_item(tokenizer, rng, row, lang, think):
    """One held-out question of a row of the table."""
    task = {"recall_long": "recall", "not_told": "recall", "tool_call": "tool", "tool_answer": "tool"}.get(row, row)
    while True:
        exchanges = rng.randrange(28, 44) if row == "recall_long" else None
        example = dialogues.dialogue(rng, "test", task, lang, exchanges)
        last = len(example.turns) - 1
        if row == "tool_call":
            last = max(index for index, turn in enumerate(example.turns) if turn.get("tool_calls"))
        answer = render.spoken(example.turns[last])
        if (answer == phrases.NEVER_TOLD[lang]) != (row == "not_told"):
            continue
        *before, (reply, _), _ = render.pieces(example, last, think)
        prompt = tokenizer.encode(render.text(before)).ids
        if row != "recall_long" or len(prompt) > FAR + TOLD:
            return Item(row, lang, think, prompt, tokenizer.encode(reply).ids, answer)


def make_items(tokenizer, rows, count, seed):
    """`count` items for every row, language and mode."""
    items = []
    for row in rows:
        rng = Random(f"{seed} {row}")
        items += [
            make_item(tokenizer, rng, row, lang, think)
            for lang in facts.LANGUAGES
            for think in (False, True)
            for _ in range(count)
        ]
    return items


def load_model(folder, bits=None):
    """The checkpoint in float32, its matrices rounded to `bits` if given."""
    model = Exaone4ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if bits:
        with torch.no_grad():
            for _name, weight in model.named_parameters():
                if weight.dim() == 2:
                    weight.copy_(rounded(weight, bits))
    return model


def rounded(weight, bits):
    """The weights after MLX's affine quantization in groups of 64, from bfloat16 as stored."""
    import mlx.core as mx

    stored = mx.array(weight.detach().numpy()).astype(mx.bfloat16)
    restored = mx.dequantize(*mx.quantize(stored, group_size=64, bits=bits), group_size=64, bits=bits)
    return torch.from_numpy(np.array(restored.astype(mx.float32)))


def in_batches(items):
    """Items of alike length together, as many as BATCH_TOKENS hold."""
    items = sorted(items, key=lambda item: len(item.prompt) + len(item.reply))
    batch = []
    for item in items:
        if batch and padded(len(item.prompt) + len(item.reply)) * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


@torch.no_grad()
def judge(model, tokenizer, items):
    """Fill in what every item's greedy reply is, as far as it matters, and whether it is right."""
    for batch in in_batches(items):
        length = padded(max(len(item.prompt) + len(item.reply) for item in batch))
        tokens = torch.zeros(len(batch), length, dtype=torch.long)
        for row, item in enumerate(batch):
            tokens[row, : len(item.prompt) + len(item.reply)] = torch.tensor(item.prompt + item.reply)
        hidden = network.hidden_states(model, tokens, torch.float32)
        for row, item in enumerate(batch):
            start = len(item.prompt) - 1
            likeliest = F.linear(hidden[row, start : start + len(item.reply)], model.lm_head.weight).argmax(-1).tolist()
            item.right = likeliest == item.reply
            if not item.right:
                agreed = next(
                    place for place, (one, other) in enumerate(zip(likeliest, item.reply, strict=False)) if one != other
                )
                item.output = tokenizer.decode(likeliest[: agreed + 1], skip_special_tokens=False) + " ..."
    for batch in in_batches([item for item in items if item.think and not item.right]):
        for start in range(0, len(batch), 32):
            generate(model, tokenizer, batch[start : start + 32])


def generate(model, tokenizer, items):
    """Greedy replies with a thought."""
    length = max(len(item.prompt) for item in items)
    tokens = torch.zeros(len(items), length, dtype=torch.long)  # padded on the left
    mask = torch.zeros_like(tokens)
    for row, item in enumerate(items):
        tokens[row, length - len(item.prompt) :] = torch.tensor(item.prompt)
        mask[row, length - len(item.prompt) :] = 1
    room = THOUGHT_ROOM + max(len(item.reply) for item in items)
    end = model.config.eos_token_id
    produced = model.generate(
        input_ids=tokens, attention_mask=mask, max_new_tokens=room, do_sample=False, eos_token_id=end, pad_token_id=0
    )
    for item, ids in zip(items, produced[:, length:].tolist(), strict=False):
        ended = ids.index(end) if end in ids else len(ids)
        item.output = tokenizer.decode(ids[:ended], skip_special_tokens=False)
        item.right = (
            "</think>" in item.output and end in ids and item.output.rpartition("</think>")[2].strip() == item.answer
        )


def tabulate(items):
    """{row: {lang: {mode: [right, asked]}}}"""
    table = {}
    for item in items:
        cell = (
            table.setdefault(item.row, {})
            .setdefault(item.lang, {})
            .setdefault("thinking" if item.think else "plain", [0, 0])
        )
        cell[0] += item.right
        cell[1] += 1
    return table


def as_markdown(table):
    """The table for the card: percent right, without / with a thought."""
    lines = ["| task | English | Korean | Spanish | items per figure |", "|---|---|---|---|---|"]
    for row, by_language in table.items():
        cells = [
            " / ".join(f"{100 * right / asked:.0f}" for right, asked in by_language[lang].values())
            for lang in facts.LANGUAGES
        ]
        asked = by_language["en"]["plain"][1]
        lines.append(f"| {row} | {' | '.join(cells)} | {asked} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).parent.parent
    parser.add_argument("--checkpoint", type=Path, default=here)
    parser.add_argument(
        "--tokenizer", type=Path, default=Path(__file__).parent.parent, help="folder with tokenizer.json"
    )
    parser.add_argument("--bits", type=int, choices=(4, 8), help="round the weights to so many bits first")
    parser.add_argument("--count", type=int, default=40, help="items per task, language and mode")
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--misses", type=int, default=0, help="show so many wrong answers of each row")
    parser.add_argument("--json", type=Path, help="write the table there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    begin = time.monotonic()
    tokenizer = Tokenizer.from_file(str(options.tokenizer / "tokenizer.json"))
    items = make_items(tokenizer, options.rows, options.count, options.seed)
    judge(load_model(options.checkpoint, options.bits), tokenizer, items)
    table = tabulate(items)
    print(as_markdown(table))
    print(f"{sum(item.right for item in items)} of {len(items)} right, in {time.monotonic() - begin:.0f} s")
    if options.json:
        content = {"bits": options.bits or 16, "count": options.count, "seed": options.seed, "scores": table}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    for row in options.rows:
        wrong = [item for item in items if item.row == row and not item.right]
        for item in wrong[: options.misses]:
            mode = "thinking" if item.think else "plain"
            print(f"{row} {item.lang} {mode}: {tokenizer.decode(item.prompt[-60:])!r}")
            print(f"   -> {item.output!r}\n   want {item.answer!r}")


if __name__ == "__main__":
    main()
