"""The cases of the documented model: what is run through transformers and through ours, as plain numbers.

Live against transformers in test_documented.py; against stored figures in test_forward.py and test_heads.py.
"""

from __future__ import annotations

import random
from typing import Any

from conftest import LLAMA3, TINY

TYPES = {"L": "sliding_attention", "G": "full_attention"}
HEADS = ("CausalLM", "SequenceClassification", "TokenClassification", "QuestionAnswering")
PADDINGS = ("none", "left", "right")
BATCH, LENGTH, PADDED = 2, 24, 9  # of the first text, so many tokens are padding

#: Layers and windows, with explicit types: transformers reads a pattern only as a number, and without the last rule.
SHAPES: dict[str, dict[str, Any]] = {
    "hybrid LLLG": {"layer_types": [TYPES[letter] for letter in "LLLG"]},
    "pattern 4, ten layers": {
        "num_hidden_layers": 10,
        "sliding_window_pattern": 4,
        "layer_types": [TYPES[letter] for letter in "LLLGLLLGLG"],
    },
    "all global": {"sliding_window": None, "sliding_window_pattern": None, "layer_types": [TYPES["G"]] * 4},
    "all local, a global last": {"sliding_window": 5, "layer_types": [TYPES[letter] for letter in "LLLG"]},
}

FACTORS = {
    "short_factor": [1 + i / 10 for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
}
#: type -> its keys, with an original length of 32 tokens (which for dynamic is max_position_embeddings).
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 1.0, "beta_slow": 0.1},
    "longrope": {"original_max_position_embeddings": 32, **FACTORS},
    "llama3": {key: value for key, value in LLAMA3.items() if not key.startswith("rope_")},
}
ORIGINAL_LENGTH = 32
#: How many tokens each call of a conversation brings: all inside the original length, or across it.
CALLS = {"inside": (20, 6, 1, 1), "across": (20, 10, 1, 1, 1, 1, 9, 1)}


def config_of(**changes: Any) -> dict[str, Any]:
    """A config.json of a tiny model with three labels, a padding token, and explicit layer types."""
    return TINY | SHAPES["hybrid LLLG"] | {"pad_token_id": 0, "id2label": {"0": "a", "1": "b", "2": "c"}} | changes


def rope_config(rope_type: str, **changes: Any) -> dict[str, Any]:
    """The same with another RoPE."""
    keys = {"rope_type": rope_type, "rope_theta": 10_000.0} | ROPES[rope_type]
    longest = ORIGINAL_LENGTH if rope_type == "dynamic" else 128
    return config_of(rope_parameters=keys, max_position_embeddings=longest, **changes)


def token_ids(batch: int = BATCH, length: int = LENGTH, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, TINY["vocab_size"]) for _ in range(length)] for _ in range(batch)]


def texts(padding: str) -> dict[str, Any]:
    """`input_ids`, and an `attention_mask` where the first text is padded."""
    ids, mask = token_ids(), [[1] * LENGTH for _ in range(BATCH)]
    padded = {"none": range(0), "left": range(PADDED), "right": range(LENGTH - PADDED, LENGTH)}[padding]
    for place in padded:
        ids[0][place] = mask[0][place] = 0
    return {"input_ids": ids} if padding == "none" else {"input_ids": ids, "attention_mask": mask}


def labels_for(head: str, given: dict[str, Any]) -> dict[str, Any]:
    """The labels of `texts`: padding does not count, and neither does one token more."""
    ids = [list(row) for row in given["input_ids"]]
    if head == "CausalLM":
        labels = [[-100 if token == 0 else token for token in row] for row in ids]
        labels[1][5] = -100
        return {"labels": labels}
    if head == "TokenClassification":
        labels = [[-100 if token == 0 else token % 3 for token in row] for row in ids]
        labels[1][5] = -100
        return {"labels": labels}
    if head == "SequenceClassification":
        return {"labels": [0, 2]}
    return {"start_positions": [10, 3], "end_positions": [12, LENGTH + 4]}  # the last one lies beyond the text


def outputs_of(head: str) -> tuple[str, ...]:
    return ("start_logits", "end_logits") if head == "QuestionAnswering" else ("logits",)
