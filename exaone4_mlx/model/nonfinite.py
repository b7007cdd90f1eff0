"""Which part of a network first computes NaN or infinity. It runs after a failure only.

Notes:
- `load` and `set_adapters` refuse weights that are not finite. Activations can still overflow: float16 ends at 65,504.
- A NaN spreads through attention to all later tokens, and the sampled token is always the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from ..files.safetensors import is_finite
from .adapter import adapter_names
from .fused import FusedModel

EXAMINED = 4096  # tokens at most
CHUNK = 512  # tokens that are examined at once


def explain(model: Any, ids: Sequence[int], fused: FusedModel) -> str:
    """An error message for a causal language model whose form `fused` has logits after `ids` that are not finite."""
    dtype = str(model.model.norm.weight.dtype).removeprefix("mlx.core.")
    parts = () if model.ranks else _first_parts(fused, model.make_cache(), list(ids)[:EXAMINED])
    where = next(filter(None, parts), "the logits")
    if dtype == "float16":
        meaning = "beyond the range of float16 (65,504): load the model in bfloat16 or float32 (--dtype)"
    elif fused.adapters:
        meaning = f"NaN or infinite in {dtype}: lower the scale of the adapter (--adapter-scale), or leave it out"
    else:
        meaning = f"NaN or infinite in {dtype}: the weights are damaged, or were changed after loading"
    if names := adapter_names(fused.adapters):
        where += f" with {names}"
    return f"the reply cannot be computed: {where} are {meaning}"


def _first_parts(fused: FusedModel, caches: Sequence[Any], ids: list[int]) -> Any:
    """The first part with a value that is not finite, or None, for each chunk of tokens."""
    for start in range(0, len(ids), CHUNK):
        yield _first_part(fused, mx.array(ids[start : start + CHUNK])[None], caches)


def _first_part(fused: FusedModel, ids: mx.array, caches: Sequence[Any]) -> str | None:
    x = fused.embed(ids)
    if not is_finite(x):
        return "the embeddings"
    for number, (layer, cache) in enumerate(zip(fused.layers, caches, strict=True)):
        mask = cache.mask(ids.shape[1])
        kind = "global" if layer.window is None else "local"
        x = layer.after_attention(x, layer.attention(x, mask, cache))
        if not is_finite(x):
            return f"the values after the attention of layer {number} ({kind})"
        x = layer.after_mlp(x)
        if not is_finite(x):
            return f"the values after the MLP of layer {number} ({kind})"
    return None
