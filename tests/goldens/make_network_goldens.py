"""Writes network.json: logits of transformers' EXAONE 4 on tiny models with known weights.

    python tests/goldens/make_network_goldens.py

Needs torch and transformers (`pip install '.[oracle,test]'`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import Exaone4Config, Exaone4ForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import TINY, random_ids, weights_of

#: name -> changes to the tiny config. transformers needs a number as the pattern, or explicit layer types.
CASES = {
    "hybrid": {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
    "window 5, tied, wide heads": {
        "sliding_window": 5,
        "sliding_window_pattern": 2,
        "head_dim": 24,
        "tie_word_embeddings": True,
    },
    "all global": {"sliding_window": None, "sliding_window_pattern": None, "layer_types": ["full_attention"] * 4},
    "window 16, explicit types, default rope": {
        "sliding_window": 16,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    },
}
LENGTH, KEPT = 64, slice(3, None, 6)  # tokens; the positions of the stored logits


def logits_of(changes: dict) -> list[list[float]]:
    model = Exaone4ForCausalLM(Exaone4Config(**(TINY | changes))).eval()
    state = model.state_dict()
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    weights = weights_of({name: tuple(tensor.shape) for name, tensor in state.items()}, seed=0)
    model.load_state_dict({name: torch.tensor(array.tolist()) for name, array in weights.items()}, strict=False)
    with torch.no_grad():
        logits = model(torch.tensor(random_ids(LENGTH).tolist())).logits
    return [[round(value, 5) for value in row] for row in logits[0, KEPT].tolist()]


if __name__ == "__main__":
    goldens = {name: {"config": TINY | changes, "logits": logits_of(changes)} for name, changes in CASES.items()}
    file = Path(__file__).with_name("network.json")
    file.write_text(json.dumps({"length": LENGTH, "start": KEPT.start, "step": KEPT.step, "cases": goldens}) + "\n")
    print(f"{file}: {file.stat().st_size / 1e3:.0f} kB")
