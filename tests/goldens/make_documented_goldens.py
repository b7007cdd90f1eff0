"""Writes documented.json: the outputs of transformers' heads for the cases of tests/documented.py, on known weights.

    python tests/goldens/make_documented_goldens.py

Needs torch and transformers (`pip install '.[oracle,test]'`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from documented import (
    CALLS,
    HEADS,
    PADDINGS,
    ROPES,
    config_of,
    continued,
    labels_for,
    outputs_of,
    rope_config,
    tensors,
    texts,
    theirs,
    token_ids,
)

POSITION = 13  # the token of the first text whose numbers are stored; padding is before or after it


def rounded(tensor: Any) -> Any:
    return [round(value, 5) for value in tensor.flatten().tolist()]


def of_heads() -> dict[str, Any]:
    found = {}
    for head in HEADS:
        model = theirs(f"Exaone4For{head}", config_of())
        for padding in PADDINGS:
            given = texts(padding)
            output = model(**tensors(given | labels_for(head, given)))
            parts = {name: getattr(output, name)[0] for name in outputs_of(head)}
            if head != "SequenceClassification":
                parts = {name: part[POSITION] for name, part in parts.items()}
            found[f"{head}, {padding}"] = {"loss": round(output.loss.item(), 5)} | {
                name: rounded(part) for name, part in parts.items()
            }
    return found


def of_layers() -> dict[str, Any]:
    """Hidden states and attention weights of one token, layer by layer."""
    model = theirs("Exaone4Model", config_of(), "eager")
    output = model(**tensors(texts("left")), output_hidden_states=True, output_attentions=True)
    return {
        "hidden_states": [rounded(state[0, POSITION]) for state in output.hidden_states],
        "attentions": [rounded(weights[0, :, POSITION]) for weights in output.attentions],
    }


def of_ropes() -> dict[str, Any]:
    found = {}
    for rope in ROPES:
        for where, lengths in CALLS.items():
            model = theirs("Exaone4ForCausalLM", rope_config(rope))
            ids, start, cache = token_ids(batch=1, length=sum(lengths)), 0, None
            for length in lengths:
                logits, cache = continued(model, {"input_ids": [ids[0][start : start + length]]}, cache)
                start += length
            found[f"{rope}, {where}"] = [round(value, 5) for value in logits[0, -1].tolist()]
    return found


def of_positions() -> dict[str, Any]:
    """Explicit positions: every other one, and texts packed into one row."""
    found = {}
    for name, asked in {
        "every other": texts("left") | {"position_ids": [[2 * i for i in range(24)]]},
        "packed": texts("none") | {"position_ids": [[i % 10 for i in range(24)]] * 2, "use_cache": False},
    }.items():
        logits = theirs("Exaone4ForCausalLM", config_of())(**tensors(asked)).logits
        found[name] = {"asked": asked, "logits": rounded(logits[0, POSITION])}
    return found


if __name__ == "__main__":
    with torch.no_grad():
        goldens = {
            "place": POSITION,
            "heads": of_heads(),
            "ropes": of_ropes(),
            "positions": of_positions(),
        } | of_layers()
    file = Path(__file__).with_name("documented.json")
    file.write_text(json.dumps(goldens) + "\n")
    print(f"{file}: {file.stat().st_size / 1e3:.0f} kB")
