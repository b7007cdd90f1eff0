"""The part of a checkpoint that one rank reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import tiny_model
from ranks import parts

from exaone4_mlx import Exaone4ForCausalLM, convert
from exaone4_mlx.checkpoint.quantize import Quantization
from exaone4_mlx.checkpoint.share import COLUMNS, ROWS, Share, fingerprint
from exaone4_mlx.files.folders import DEMO_FOLDER
from exaone4_mlx.files.safetensors import Checkpoint
from exaone4_mlx.model.pretrained import load_network, named_parameters


@pytest.mark.parametrize("options", [{}, {"q_bits": 4}], ids=str)
def test_parts_are_slices_of_the_whole(options: dict[str, Any]) -> None:
    whole, share = named_parameters(load_network(Exaone4ForCausalLM, DEMO_FOLDER, **options)), Share(0, 2)
    found = parts(DEMO_FOLDER, 2, **options)
    for name, array in whole.items():
        cut = share.cut(name)
        joined = found[0][name] if cut is None else mx.concatenate([part[name] for part in found], axis=cut.axis)
        assert mx.array_equal(joined, array), name
        assert cut is not None or mx.array_equal(found[1][name], array), name
    assert {cut.axis for cut in map(share.cut, whole) if cut} == {ROWS, COLUMNS}


def test_quantized_folders_are_cut_between_groups(tmp_path: Path) -> None:
    folder = convert("demo", tmp_path / "model", q_bits=4, search=False).path
    whole, found = named_parameters(load_network(Exaone4ForCausalLM, folder)), parts(folder, 2)
    for name in ("model.layers.0.self_attn.o_proj.scales", "model.layers.3.mlp.down_proj.weight"):
        assert mx.array_equal(mx.concatenate([part[name] for part in found], axis=1), whole[name]), name


def test_only_rank_0_has_an_output_head(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    first, second = parts(tmp_path, 2)
    assert "lm_head.weight" in first and "lm_head.weight" not in second


def test_what_cannot_be_divided_is_refused_with_the_arithmetic(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="num_attention_heads 4 is not a multiple of 3 ranks: use as many"):
        parts(tmp_path, 3)
    with pytest.raises(ValueError, match="num_key_value_heads 2 is not a multiple of 4 ranks"):
        parts(tmp_path, 4)
    name, shapes = "model.layers.0.mlp.down_proj.weight", {"model.layers.0.mlp.down_proj.weight": (5120, 27392)}
    for size in (2, 4):
        Share(0, size).check_groups({name: Quantization(4, 64)}, shapes)
    Share(0, 8).check_groups({name: Quantization(4, 32)}, shapes)
    with pytest.raises(ValueError, match=r"each of 8 ranks would have 3424, which are 53.5 groups of 64"):
        Share(0, 8).check_groups({name: Quantization(4, 64)}, shapes)


def test_the_fingerprint_tells_fine_tunes_apart(hf_folder: Path) -> None:
    before, file = fingerprint(Checkpoint(hf_folder)), hf_folder / "model.safetensors"
    assert fingerprint(Checkpoint(DEMO_FOLDER)) == before
    info = Checkpoint(hf_folder).tensors["model.layers.2.mlp.up_proj.weight"]
    data = bytearray(file.read_bytes())
    data[info.offset] ^= 1
    file.write_bytes(data)
    after = fingerprint(Checkpoint(hf_folder))
    assert after["config.json"] == before["config.json"] and after["weights"] != before["weights"]
