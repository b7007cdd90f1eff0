"""Random adapters for tiny models."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from conftest import TINY

from exaone4_mlx import Exaone4Config
from exaone4_mlx.model.adapter import Adapter, AdapterConfig, projection_shapes

CONFIG = Exaone4Config.from_dict(TINY)


def random_adapter(kind: str = "lora", model: Exaone4Config = CONFIG, seed: int = 0, **changes: Any) -> Adapter:
    """An adapter that changes logits by about a tenth of their size."""
    config = AdapterConfig(**{"fine_tune_type": kind, "rank": 3, "scale": 2.0, "base": "me/tiny"} | changes)
    arrays, shapes = {}, projection_shapes(model)
    for number, name in enumerate(config.modules(model)):
        (outputs, inputs), keys = shapes[name], mx.random.split(mx.random.key(1000 * seed + number), 3)
        arrays[f"{name}.lora_a"] = mx.random.normal((inputs, config.rank), key=keys[0]) / inputs**0.5
        arrays[f"{name}.lora_b"] = mx.random.normal((config.rank, outputs), key=keys[1]) / 4
        if kind == "dora":
            arrays[f"{name}.m"] = mx.random.uniform(
                3, 5, (outputs,), key=keys[2]
            )  # rows of tiny models have lengths around 4
    return Adapter(config, arrays)
