"""The cases of the documented model, and its counterpart in transformers.

test_documented.py compares with transformers live, test_forward.py and test_heads.py with stored numbers.
"""

from __future__ import annotations

import inspect
import json
import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import LLAMA3, TINY, tiny_model, weights_of

import exaone4_mlx

TYPES = {"L": "sliding_attention", "G": "full_attention"}
HEADS = ("CausalLM", "SequenceClassification", "TokenClassification", "QuestionAnswering")
PADDINGS = ("none", "left", "right")
BATCH, LENGTH, PADDED = 2, 24, 9  # the first text has PADDED padding tokens


def types(letters: str) -> list[str]:
    return [TYPES[letter] for letter in letters]


#: Layers and windows. The types are explicit: transformers reads a pattern only as a number, and may end it with L.
SHAPES: dict[str, dict[str, Any]] = {
    "hybrid LLLG": {"layer_types": types("LLLG")},
    "pattern 4, ten layers": {
        "num_hidden_layers": 10, "sliding_window_pattern": 4, "layer_types": types("LLLGLLLGLG")},
    "all global": {"sliding_window": None, "sliding_window_pattern": None, "layer_types": types("GGGG")},
    "all local, a global last": {"sliding_window": 5, "layer_types": types("LLLG")},
}  # fmt: skip

FACTORS = {"short_factor": [1 + i / 10 for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}
#: type -> its keys, with an original length of 32 tokens (for dynamic, max_position_embeddings).
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 1.0, "beta_slow": 0.1},
    "longrope": {"original_max_position_embeddings": 32, **FACTORS},
    "llama3": {key: value for key, value in LLAMA3.items() if not key.startswith("rope_")},
}
ORIGINAL_LENGTH = 32
#: The number of tokens of each call of a conversation: inside the original length, or across it.
CALLS = {"inside": (20, 6, 1, 1), "across": (20, 10, 1, 1, 1, 1, 9, 1)}


def config_of(**changes: Any) -> dict[str, Any]:
    """A config.json of a tiny model with three labels, a padding token, and explicit layer types."""
    return TINY | SHAPES["hybrid LLLG"] | {"pad_token_id": 0, "id2label": {"0": "a", "1": "b", "2": "c"}} | changes


def rope_config(rope_type: str, **changes: Any) -> dict[str, Any]:
    """`config_of` with another RoPE."""
    keys = {"rope_type": rope_type, "rope_theta": 10_000.0} | ROPES[rope_type]
    longest = ORIGINAL_LENGTH if rope_type == "dynamic" else 128
    return config_of(rope_parameters=keys, max_position_embeddings=longest, **changes)


def token_ids(batch: int = BATCH, length: int = LENGTH, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, TINY["vocab_size"]) for _ in range(length)] for _ in range(batch)]


def texts(padding: str) -> dict[str, Any]:
    """`input_ids`, and an `attention_mask` if the first text is padded."""
    ids, mask = token_ids(), [[1] * LENGTH for _ in range(BATCH)]
    padded = {"none": range(0), "left": range(PADDED), "right": range(LENGTH - PADDED, LENGTH)}[padding]
    for position in padded:
        ids[0][position] = mask[0][position] = 0
    return {"input_ids": ids} if padding == "none" else {"input_ids": ids, "attention_mask": mask}


def labels_for(head: str, given: dict[str, Any]) -> dict[str, Any]:
    """The labels of `texts`. Padding and one other token are ignored."""
    ids = [list(row) for row in given["input_ids"]]
    if head == "SequenceClassification":
        return {"labels": [0, 2]}
    if head == "QuestionAnswering":
        return {"start_positions": [10, 3], "end_positions": [12, LENGTH + 4]}  # the last position is beyond the text
    classes = TINY["vocab_size"] if head == "CausalLM" else 3
    labels = [[-100 if token == 0 else token % classes for token in row] for row in ids]
    labels[1][5] = -100
    return {"labels": labels}


def outputs_of(head: str) -> tuple[str, ...]:
    return ("start_logits", "end_logits") if head == "QuestionAnswering" else ("logits",)


def arrays(values: dict[str, Any]) -> dict[str, Any]:
    return {key: mx.array(value) if isinstance(value, list) else value for key, value in values.items()}


# --- the stored numbers -------------------------------------------------------

GOLDENS = json.loads((Path(__file__).parent / "goldens" / "documented.json").read_text())
POSITION = GOLDENS["place"]  # the token of the first text whose numbers are stored


# --- transformers -------------------------------------------------------------


def ours(name: str, config: dict[str, Any]) -> Any:
    return tiny_model(kind=getattr(exaone4_mlx, name), **config)


def theirs(name: str, config: dict[str, Any], attention: str = "sdpa") -> Any:
    """The same network with the same weights in transformers."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    read = transformers.Exaone4Config(**{key: value for key, value in config.items() if key != "model_type"})
    model = getattr(transformers, name)._from_config(read, attn_implementation=attention).eval()
    state = model.state_dict()
    if read.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    weights = weights_of({key: tuple(tensor.shape) for key, tensor in state.items()}, seed=0)
    model.load_state_dict({key: torch.tensor(array.tolist()) for key, array in weights.items()}, strict=False)
    return model


def tensors(values: dict[str, Any]) -> dict[str, Any]:
    import torch

    return {key: torch.tensor(value) if isinstance(value, list) else value for key, value in values.items()}


def to_mlx(tensor: Any) -> mx.array:
    return mx.array(tensor.detach().numpy())


def continued(model: Any, asked: dict[str, Any], cache: Any) -> tuple[mx.array, Any]:
    """transformers' logits for the next tokens of a conversation, and its cache. The argument's name varies."""
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    output = model(**tensors(asked), **{name: cache}, use_cache=True)
    return to_mlx(output.logits), getattr(output, name)
