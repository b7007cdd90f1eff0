"""A network that runs block by block computes what the whole network computes."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from conftest import distance

from exaone4_mlx import Exaone4ForCausalLM, convert, load
from exaone4_mlx.conversion.layerwise import LayerwiseModel
from exaone4_mlx.files.folders import DEMO_FOLDER
from exaone4_mlx.model.pretrained import open_checkpoint


@pytest.mark.heavy
@pytest.mark.parametrize("which", ["full precision", "quantized"])
def test_the_layerwise_model_equals_the_whole_network(which: str, tmp_path: Path) -> None:
    """On texts that are longer than several windows."""
    folder = DEMO_FOLDER if which == "full precision" else convert("demo", tmp_path / "out", search=False).path
    opened = open_checkpoint(folder, Exaone4ForCausalLM)
    sequences = [[7 * i % 3000 + 30 for i in range(length)] for length in (90, 1, 33)]
    hidden = LayerwiseModel(opened.source, opened.config).hidden_states(sequences)
    logits = LayerwiseModel(opened.source, opened.config).head()
    model, _ = load(folder, dtype="float32")
    for ids, state in zip(sequences, hidden, strict=True):
        assert distance(logits(state), model(mx.array([ids]))[0]) < 1e-4
