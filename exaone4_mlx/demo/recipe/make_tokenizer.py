"""Dialogues -> tokenizer.json and tokenizer_config.json, in EXAONE 4.0's manner.

- byte-level BPE over 3,072 entries; EXAONE's names for the control tokens; runs of spaces and of
  tabs are tokens of their own; thought and tool marks are added tokens but not special ones, so
  that a decoder which skips special tokens keeps them
- digits are always single and there is no token of two newlines. Both hold because the merges are
  learned with digits and newlines set apart; the finished tokenizer needs no rule for it
"""

import argparse
import json
import re
import sys
from pathlib import Path
from random import Random

import dialogues
import render
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 3072
CONTEXT = 8192
SPACES = [" " * count for count in range(8, 1, -1)] + ["\t" * count for count in range(4, 1, -1)]
MARKS = ["</tool_call>", "<tool_call>", "</tool_result>", "<tool_result>", "</think>", "<think>"]
CONTROLS = [
    "[PAD]",
    "[BOS]",
    "[EOS]",
    "[UNK]",
    *SPACES,
    *MARKS,
    "[|system|]",
    "[|tool|]",
    "[|assistant|]",
    "[|user|]",
    "[|endofturn|]",
]
NOT_SPECIAL = {*SPACES, *MARKS}


def corpus(count, seed):
    """Rendered dialogues, control tokens cut out, most of them without the list of tools."""
    rng = Random(seed)
    cut = re.compile("|".join(re.escape(token) for token in CONTROLS if token not in SPACES))
    for index in range(count):
        example = dialogues.dialogue(rng)
        text = render.text(
            render.pieces(example, think=rng.random() < 0.45 and example.turns[-1]["role"] == "assistant")
        )
        if example.tools and index % 8:
            text = text[text.index("[|user|]") :]
        yield from (part for part in cut.split(text) if part.strip())


def learn(count, seed):
    """(vocabulary, merges) of a byte-level BPE learned on the dialogues."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=CONTROLS,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(corpus(count, seed), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    if len(model["vocab"]) != VOCABULARY:
        raise ValueError(f"the dialogues gave {len(model['vocab'])} tokens, not {VOCABULARY}: use more of them")
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def finished(vocabulary, merges):
    """The tokenizer as it is shipped: plain byte level, as EXAONE's."""
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    for token in CONTROLS:  # in order, so that ids and the list agree
        added = AddedToken(token, normalized=False, special=token not in NOT_SPECIAL)
        (tokenizer.add_tokens if token in NOT_SPECIAL else tokenizer.add_special_tokens)([added])
    return tokenizer


def settings():
    """tokenizer_config.json."""
    added = {
        str(index): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token not in NOT_SPECIAL,
        }
        for index, token in enumerate(CONTROLS)
    }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "bos_token": "[BOS]",
        "clean_up_tokenization_spaces": False,
        "eos_token": "[|endofturn|]",
        "errors": "replace",
        "model_max_length": CONTEXT,
        "pad_token": "[PAD]",
        "padding_side": "right",
        "split_special_tokens": False,
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": "[UNK]",
    }


def check(tokenizer, count=500, seed=3):
    """Raise unless pieces encode as the whole text does, text survives, and no token holds two digits or newlines."""
    rng = Random(seed)
    for token in range(len(CONTROLS), VOCABULARY):
        written = tokenizer.decode([token])
        if sum(letter.isdigit() for letter in written) > 1 or "\n\n" in written:
            raise ValueError(f"token {token} is {written!r}")
    for _ in range(count):
        parts = render.pieces(dialogues.dialogue(rng), think=True)
        whole = tokenizer.encode(render.text(parts)).ids
        if whole != [token for part, _ in parts for token in tokenizer.encode(part).ids]:
            raise ValueError(f"pieces encode otherwise than the whole: {render.text(parts)!r}")
        if tokenizer.decode(whole, skip_special_tokens=False) != render.text(parts):
            raise ValueError(f"the text does not survive: {render.text(parts)!r}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dialogues", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    tokenizer = finished(*learn(options.dialogues, options.seed))
    check(tokenizer)
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(options.out / "tokenizer.json"))
    (options.out / "tokenizer_config.json").write_text(
        json.dumps(settings(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
    )
    print(f"{VOCABULARY} tokens in {options.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
