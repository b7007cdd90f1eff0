"""Checkpoints of other formats give the known weights that tests/packing.py packs."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import pytest
from conftest import TINY, distance, tiny_model
from packing import (
    AWQ_ORDER,
    COLUMNS,
    LAYER,
    PACKERS,
    ROWS,
    SMALL,
    Files,
    Known,
    awq,
    compressed,
    e4m3,
    gptq,
    int8,
    known,
    packed,
    tensor,
    words,
    write,
)

from exaone4_mlx import CheckpointError, Exaone4Config, Exaone4ForCausalLM
from exaone4_mlx.checkpoint.formats import Source
from exaone4_mlx.checkpoint.quantize import Quantization
from exaone4_mlx.files.safetensors import Checkpoint
from exaone4_mlx.model.pretrained import named_parameters


def source_of(folder: Path) -> Source:
    return Source(Checkpoint(folder), json.loads((folder / "config.json").read_text()))


def equal(a: mx.array, b: mx.array) -> bool:
    return a.dtype == b.dtype and mx.array_equal(a, b).item() is True


# --- integer codes ------------------------------------------------------------


class Case(NamedTuple):
    title: str
    weight: Known
    files: Files
    exact: Quantization | None = None


CASES = {
    "AWQ": Case("AWQ 4-bit", known(), awq(known()), Quantization(4, 128)),
    "AWQ, groups of 32": Case("AWQ 4-bit", known(group_size=32), awq(known(group_size=32), 32), Quantization(4, 32)),
    "AWQ, groups of 16": Case("AWQ 4-bit", known(group_size=16), awq(known(group_size=16), 16)),
    "GPTQ": Case("GPTQ 4-bit", known(), gptq(known()), Quantization(4, 128)),
    "GPTQ, desc_act": Case("GPTQ 4-bit", known(shuffled=True), gptq(known(shuffled=True))),
    "GPTQ, version 2": Case("GPTQ 4-bit", known(shuffled=True), gptq(known(shuffled=True), v2=True)),
    "GPTQ, 8 bits": Case("GPTQ 8-bit", known(8, 64), gptq(known(8, 64), 8, 64), Quantization(8, 64)),
    "GPTQ, 2 bits": Case("GPTQ 2-bit", known(2, 32), gptq(known(2, 32), 2, 32), Quantization(2, 32)),
    "GPTQ, one group": Case("GPTQ 4-bit", known(group_size=256), gptq(known(group_size=256), 4, -1), Quantization(4, 128)),
    "GPTQ, last group shorter": Case("GPTQ 4-bit", known(group_size=160), gptq(known(group_size=160), 4, 160)),
    "packed": Case("compressed-tensors 4-bit", known(symmetric=True), packed(known(symmetric=True)), Quantization(4, 128)),
    "packed, asymmetric": Case("compressed-tensors 4-bit", known(), packed(known(), symmetric=False), Quantization(4, 128)),
    "packed, desc_act": Case("compressed-tensors 4-bit", known(shuffled=True), packed(known(shuffled=True), symmetric=False)),
    "packed, 8 bits a row": Case(
        "compressed-tensors 8-bit", known(8, 256, True), packed(known(8, 256, True), 8, None), Quantization(8, 128)),
    "packed, odd width": Case(
        "compressed-tensors 4-bit", known(4, 250, False, shape=(21, 250)),
        packed(known(4, 250, False, shape=(21, 250)), 4, None, False)),
    "int8": Case("compressed-tensors 8-bit", known(8, 256, True), int8(known(8, 256, True)), Quantization(8, 128)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_codes_give_the_known_weight(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole and by rows, at once and in slabs; and MLX's tensors hold the same values."""
    case = CASES[name]
    whole, source = case.weight.weight, source_of(write(tmp_path, case.files, dtype="float32"))
    stored = source.tensors[f"{LAYER}.weight"]
    assert (source.format, stored.exact) == (case.title, case.exact)
    assert (stored.shape, stored.dtype) == (whole.shape, mx.float32)
    assert set(stored.stored) == set(case.files[0])
    assert stored.nbytes == sum(len(entry["data"]) for entry in case.files[0].values())
    for slab in (2**24, 7 * 256):
        monkeypatch.setattr("exaone4_mlx.checkpoint.formats.SLAB", slab)
        for start, stop in ((0, None), (0, 8), (8, 13), (13, 21), (5, 6), (3, 3), (20, 99), (0, None)):
            assert equal(source.weight(stored.name, start, stop), whole[start:stop]), f"rows {start} to {stop}"
    if case.exact:
        names, (quantized, scales, biases) = zip(*source.parts(stored.name), strict=True)
        assert names == (f"{LAYER}.weight", f"{LAYER}.scales", f"{LAYER}.biases")
        assert quantized.dtype == mx.uint32 and scales.dtype == biases.dtype
        exact = case.exact.dequantized([quantized, scales.astype(mx.float32), biases.astype(mx.float32)])
        assert equal(exact, whole)


def test_awq_and_gptq_layers_are_unpacked_once_for_all_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are packed along the rows. The unpacked layer is kept until the last row, another layer or `close`."""
    other, read = "model.layers.1.mlp.up_proj", []
    tensors, config = awq(known())
    source = source_of(write(tmp_path, (tensors | awq(known(seed=1), layer=other)[0], config), dtype="float32"))
    whole = Checkpoint.read
    monkeypatch.setattr(Checkpoint, "read", lambda self, name, *rows: read.append(name) or whole(self, name, *rows))

    def rows(layer: str, start: int, stop: int) -> int:
        """The number of reads of the layer's codes after these rows, which must be correct."""
        expected = known(seed=0 if layer == LAYER else 1).weight[start:stop]
        assert equal(source.weight(f"{layer}.weight", start, stop), expected)
        return read.count(f"{layer}.qweight")

    assert [rows(LAYER, start, start + 8) for start in (0, 8, 16)] == [1, 1, 1]
    assert rows(LAYER, 0, 8) == 2, "freed after the last row"
    assert rows(other, 0, 8) == 1 and rows(LAYER, 8, 16) == 3, "one layer is kept at a time"
    source.close()
    assert rows(LAYER, 0, 8) == 4


def test_weights_have_the_dtype_of_the_config(tmp_path: Path) -> None:
    for names, dtype in (
        ({"dtype": "float16"}, mx.float16),
        ({"dtype": None, "torch_dtype": "float32"}, mx.float32),
        ({"dtype": None}, mx.bfloat16),
    ):
        source = source_of(write(tmp_path, gptq(known()), **names))
        assert source.tensors[f"{LAYER}.weight"].dtype == dtype
        assert equal(source.weight(f"{LAYER}.weight"), known().weight.astype(dtype)), "rounded once"


def test_scales_are_float32_only_if_a_bias_needs_it(tmp_path: Path) -> None:
    """Eleven bits of a scale times four bits of a zero do not fit into float16."""
    short, long = known(scale_bits=7), known(scale_bits=11)
    for weight, dtype in ((short, mx.float16), (long, mx.float32)):
        (_, quantized), (_, scales), (_, biases) = source_of(write(tmp_path, awq(weight))).parts(f"{LAYER}.weight")
        assert (scales.dtype, biases.dtype) == (dtype, dtype)
        read = mx.dequantize(quantized, scales.astype(mx.float32), biases.astype(mx.float32), 128, 4)
        assert equal(read, weight.weight)


@pytest.mark.heavy
def test_awq_is_read_as_mlx_lm_reads_it(tmp_path: Path) -> None:
    """An independent check of the order of the nibbles. mlx-lm rounds biases to float16."""
    transform = getattr(pytest.importorskip("mlx_lm.utils"), "_transform_awq_weights", None)
    if transform is None:
        pytest.skip("this mlx-lm reads no AWQ")
    folder = write(tmp_path, awq(known(scale_bits=11)))
    theirs, settings = transform(mx.load(str(folder / "model.safetensors")), {"bits": 4, "group_size": 128})
    assert settings == {"group_size": 128, "bits": 4}
    for name, ours in source_of(folder).parts(f"{LAYER}.weight"):
        assert equal(ours.astype(theirs[name].dtype), theirs[name]), name


def test_settings_in_a_separate_file_are_found(tmp_path: Path) -> None:
    """Older releases have no quantization_config. A stale file beside full precision is ignored."""
    tensors, config = awq(known())
    write(tmp_path, (tensors, {}))
    own = {"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}
    (tmp_path / "quant_config.json").write_text(json.dumps(own))
    assert equal(source_of(tmp_path).weight(f"{LAYER}.weight"), known().weight.astype(mx.bfloat16))
    tensors, config = gptq(known(shuffled=True))
    write(tmp_path, (tensors, {}))
    (tmp_path / "quantize_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "quant_method"}))
    assert source_of(tmp_path).format == "GPTQ 4-bit"
    (tmp_path / "quantize_config.json").write_text(json.dumps({"bits": 3}))
    write(tmp_path, ({f"{LAYER}.weight": tensor("F16", [[1.0, 2.0]])}, {}))
    assert source_of(tmp_path).format == "full precision"


# --- FP8 ----------------------------------------------------------------------


def fp8(block: tuple[int, int], scale: str = "weight_scale_inv") -> tuple[mx.array, dict[str, Any]]:
    """(weight, its stored tensors) with a scale for each block of [rows, columns]."""
    rng = random.Random(1)
    numbers = [code for code in range(256) if code & 0x7F != 0x7F]
    codes = [[rng.choice(numbers) for _ in range(COLUMNS)] for _ in range(ROWS)]
    blocks = math.ceil(ROWS / block[0]), math.ceil(COLUMNS / block[1])
    scales = [[rng.randrange(128, 256) * 2.0**-18 for _ in range(blocks[1])] for _ in range(blocks[0])]
    weight = [[e4m3(codes[i][j]) * scales[i // block[0]][j // block[1]] for j in range(COLUMNS)] for i in range(ROWS)]
    tensors = {f"{LAYER}.weight": tensor("F8_E4M3", codes), f"{LAYER}.{scale}": tensor("F32", scales)}
    return mx.array(weight), tensors


def fp8_tensor(scale: str, shape: list[int]) -> tuple[mx.array, dict[str, Any]]:
    weight, tensors = fp8((ROWS, COLUMNS), scale)
    tensors[f"{LAYER}.{scale}"]["shape"] = shape
    return weight, tensors


def float_scheme(strategy: str, block: list[int] | None = None) -> dict[str, Any]:
    scheme = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy, "block_structure": block}
    return compressed("float-quantized", scheme)


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
FP8_CASES: dict[str, tuple[str, tuple[mx.array, dict[str, Any]], dict[str, Any]]] = {
    "blocks": ("FP8 128x128", fp8((128, 128)), FP8 | {"weight_block_size": [128, 128]}),
    "blocks, the last ones smaller": ("FP8 16x100", fp8((16, 100)), FP8 | {"weight_block_size": [16, 100]}),
    "one scale": ("FP8", fp8_tensor("weight_scale", []), FP8 | {"weight_block_size": None}),
    "one inverse scale": ("FP8", fp8_tensor("weight_scale_inv", [1]), FP8 | {"weight_block_size": None}),
    "compressed, rows": ("compressed-tensors FP8", fp8((1, COLUMNS), "weight_scale"), float_scheme("channel")),
    "compressed, one scale": ("compressed-tensors FP8", fp8_tensor("weight_scale", [1]), float_scheme("tensor")),
    "compressed, blocks": ("compressed-tensors FP8 16x100", fp8((16, 100), "weight_scale"), float_scheme("block", [16, 100])),
}  # fmt: skip


@pytest.mark.parametrize("name", FP8_CASES)
def test_fp8_is_a_small_float_times_a_scale(name: str, tmp_path: Path) -> None:
    title, (weight, tensors), config = FP8_CASES[name]
    source = source_of(write(tmp_path, (tensors, config)))
    stored = source.tensors[f"{LAYER}.weight"]
    assert (source.format, stored.exact, stored.shape) == (title, None, (ROWS, COLUMNS))
    weight = weight.astype(mx.bfloat16)
    assert equal(source.weight(stored.name), weight)
    for start, stop in ((0, 16), (15, 17), (23, 24), (0, 1)):
        assert equal(source.weight(stored.name, start, stop), weight[start:stop]), f"rows {start} to {stop}"
    with pytest.raises(ValueError, match="MLX has no quantization with the values of"):
        source.parts(stored.name)


def test_scales_of_activations_and_caches_are_ignored(tmp_path: Path) -> None:
    _, tensors = fp8((128, 128))
    extra = {f"{LAYER}.input_scale": tensor("F32", 1.0), "model.layers.0.self_attn.k_scale": tensor("F32", 1.0)}
    source = source_of(write(tmp_path, (tensors | extra, FP8)))
    assert list(source.tensors) == [f"{LAYER}.weight"]


@pytest.mark.oracle
def test_fp8_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

    _, tensors = fp8((16, 100))
    folder = write(tmp_path, (tensors, FP8 | {"weight_block_size": [16, 100]}), dtype="float32")
    stored = load_file(folder / "model.safetensors")
    scales = stored[f"{LAYER}.weight_scale_inv"]
    theirs = _dequantize_fp8_weight(stored[f"{LAYER}.weight"], scales, [16, 100], torch.float32)
    assert equal(source_of(folder).weight(f"{LAYER}.weight"), mx.array(theirs.numpy()))


# --- MLX and full precision ---------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "bits", "group_size", "dtype"),
    [
        ({"bits": 4, "group_size": 64}, 4, 64, mx.bfloat16),
        ({"bits": 4, "group_size": 64, LAYER: {"bits": 6, "group_size": 32}}, 6, 32, mx.float16),
    ],
)
def test_mlx_folder_gives_its_own_parts(
    settings: dict[str, Any], bits: int, group_size: int, dtype: mx.Dtype, tmp_path: Path
) -> None:
    weight = mx.random.normal((ROWS, COLUMNS), key=mx.random.key(0)).astype(dtype)
    parts = mx.quantize(weight, group_size, bits)
    names = [f"{LAYER}.{part}" for part in ("weight", "scales", "biases")]
    write(tmp_path, ({}, {}), quantization=settings, quantization_config=settings, dtype="float32")
    mx.save_safetensors(str(tmp_path / "model.safetensors"), dict(zip(names, parts, strict=True)))
    source = source_of(tmp_path)
    stored = source.tensors[f"{LAYER}.weight"]
    assert (source.format, stored.exact, stored.dtype) == ("MLX 4-bit", Quantization(bits, group_size), dtype)
    for (name, part), expected in zip(source.parts(stored.name), parts, strict=True):
        assert equal(part, expected), name
    quantized, scales, biases = parts
    exact = mx.dequantize(quantized, scales.astype(mx.float32), biases.astype(mx.float32), group_size, bits)
    assert equal(source.weight(stored.name), exact.astype(dtype)), "rounded once"
    assert equal(source.weight(stored.name, 5, 9), exact.astype(dtype)[5:9])


@pytest.mark.parametrize(("mode", "bits", "group_size"), [("mxfp4", 4, 32), ("nvfp4", 4, 16), ("mxfp8", 8, 32)])
def test_mlx_small_floats_have_no_biases(mode: str, bits: int, group_size: int, tmp_path: Path) -> None:
    weight = mx.random.normal((ROWS, COLUMNS), key=mx.random.key(0))
    quantized, scales = mx.quantize(weight, group_size, bits, mode)
    write(tmp_path, ({}, {}), quantization={"bits": bits, "group_size": group_size, "mode": mode})
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {f"{LAYER}.weight": quantized, f"{LAYER}.scales": scales})
    source = source_of(tmp_path)
    assert [name for name, _ in source.parts(f"{LAYER}.weight")] == [f"{LAYER}.weight", f"{LAYER}.scales"]
    read = source.weight(f"{LAYER}.weight", 3, 20)
    exact = mx.dequantize(quantized, scales, None, group_size, bits, mode, dtype=mx.float32)
    assert read.dtype == mx.bfloat16 and distance(read, exact[3:20]) == 0


def test_full_precision_keeps_its_own_dtype(tmp_path: Path) -> None:
    tensors = {
        f"{LAYER}.weight": tensor("F16", [[1.5, 2.0], [3.0, 4.0], [5.0, 6.0]]),
        "model.norm.weight": tensor("F32", [1.0, 2.0, 3.0]),
    }
    source = source_of(write(tmp_path, (tensors, {})))
    assert source.format == "full precision"
    assert source.tensors[f"{LAYER}.weight"].dtype == mx.float16
    assert equal(source.weight(f"{LAYER}.weight", 1, 3), mx.array([[3.0, 4.0], [5.0, 6.0]], mx.float16))
    assert equal(source.weight("model.norm.weight"), mx.array([1.0, 2.0, 3.0]))
    source.close()
    assert equal(source.weight("model.norm.weight", 0, 2), mx.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="has no rows 2 to 1; there are 3"):
        source.weight("model.norm.weight", 2, 1)


# --- a whole model ------------------------------------------------------------


@pytest.mark.parametrize("title", PACKERS)
def test_every_tensor_of_a_model_is_found(title: str, tmp_path: Path) -> None:
    """Projections are quantized; embedding, head and norms are not. All have the names of the model."""
    model = tiny_model(**SMALL)
    tensors: dict[str, Any] = {}
    expected: dict[str, mx.array] = {}
    config: dict[str, Any] = {}
    for i, (name, array) in enumerate(named_parameters(model).items()):
        if "_proj." in name:
            weight = known(4, 32, shuffled=title == "GPTQ 4-bit", shape=(array.shape[0], array.shape[1]), seed=i)
            files, config = PACKERS[title](weight, name.removesuffix(".weight"))
            tensors |= files
            expected[name] = weight.weight
        else:
            tensors[name] = tensor("F32", array.tolist())
            expected[name] = array
    source = source_of(write(tmp_path, (tensors, config), **TINY | SMALL | {"dtype": "float32"}))
    assert source.format == title
    assert set(source.tensors) == set(named_parameters(Exaone4ForCausalLM(Exaone4Config.from_dict(TINY | SMALL))))
    assert {name for stored in source.tensors.values() for name in stored.stored} == set(tensors)
    for name, weight in expected.items():
        assert equal(source.weight(name), weight), name


# --- wrong packing ------------------------------------------------------------


def mispacked() -> dict[str, tuple[Known, Files]]:
    """Each differs from the format in one point, so that the correct reader returns another weight."""
    shuffled = known(shuffled=True)
    contiguous = shuffled._replace(group_of=sorted(shuffled.group_of))
    return {
        "AWQ with nibbles in sequence": (known(), awq(known(), order=range(8))),
        "AWQ with zeros less one": (
            known(), awq(known()._replace(zeros=[[(z - 1) % 16 for z in row] for row in known().zeros]))),
        "GPTQ with zeros as they are": (known(), (gptq(known(), v2=True)[0], gptq(known())[1])),
        "GPTQ with zeros less one, said to be version 2": (known(), (gptq(known())[0], gptq(known(), v2=True)[1])),
        "GPTQ without its order of columns": (shuffled, gptq(contiguous)),
        "packed with AWQ's order": (
            known(symmetric=True),
            ({**packed(known(symmetric=True))[0], f"{LAYER}.weight_packed": tensor(
                "I32", [words(row, order=AWQ_ORDER) for row in known(symmetric=True).codes])},
             packed(known(symmetric=True))[1])),
    }  # fmt: skip


@pytest.mark.parametrize("case", mispacked())
def test_wrong_packing_gives_another_weight(case: str, tmp_path: Path) -> None:
    """Shows that the tests above can fail: a step is a scale of about 0.006, and an error moves weights by steps."""
    weight, files = mispacked()[case]
    read = source_of(write(tmp_path, files, dtype="float32")).weight(f"{LAYER}.weight")
    assert distance(read, weight.weight) > 0.003


# --- refused checkpoints ------------------------------------------------------


def without(files: Files, part: str) -> Files:
    tensors, config = files
    return {name: entry for name, entry in tensors.items() if name != f"{LAYER}.{part}"}, config


def with_part(files: Files, part: str, entry: dict[str, Any]) -> Files:
    return {**files[0], f"{LAYER}.{part}": entry}, files[1]


def with_config(files: Files, **changes: Any) -> Files:
    return files[0], files[1] | changes


def in_groups(*schemes: dict[str, Any]) -> dict[str, Any]:
    config = packed(known())[1]
    weights = config["config_groups"]["group_0"]["weights"]
    return {"config_groups": {f"group_{i}": {"weights": weights | scheme} for i, scheme in enumerate(schemes)}}


A, G, P, F = awq(known()), gptq(known(shuffled=True)), packed(known(), symmetric=False), (fp8((128, 128))[1], FP8)
HALF = {f"{LAYER}.weight": tensor("F16", [[1.0]])}
BAD: dict[str, tuple[Files, type[Exception], str]] = {
    "AWQ lacks zeros": (without(A, "qzeros"), CheckpointError, rf"model.safetensors: {LAYER} is quantized \(AWQ 4-bit\), but {LAYER}.qzeros is missing"),
    "AWQ lacks scales": (without(A, "scales"), CheckpointError, "up_proj.scales is missing"),
    "AWQ lacks its weight": (without(A, "qweight"), CheckpointError, r"up_proj.q?\w+ belongs to no quantized layer \(full precision\)"),
    "AWQ of other groups": (with_config(A, group_size=64), CheckpointError, r"up_proj.qzeros has shape \(2, 3\), not \(4, 3\)"),
    "AWQ scales misshapen": (with_part(A, "scales", tensor("F16", [[1.0] * 8] * 2)), CheckpointError, r"scales has shape \(2, 8\), not \(2, 24\)"),
    "AWQ scales of integers": (with_part(A, "scales", tensor("I32", [[1] * ROWS] * 2)), CheckpointError, "scales has dtype I32, not BF16 or F16 or F32"),
    "AWQ in one dimension": (with_part(A, "qweight", tensor("I32", [1, 2])), CheckpointError, r"qweight has shape \(2,\), not two dimensions"),
    "AWQ beside full precision": ((A[0] | HALF, A[1]), CheckpointError, "up_proj.weight and model.layers.0.mlp.up_proj.qweight store one weight"),
    "AWQ with g_idx": (with_part(A, "g_idx", tensor("I32", [0] * COLUMNS)), CheckpointError, "g_idx belongs to no quantized layer"),
    "AWQ without its settings": ((A[0], {}), CheckpointError, r"belongs to no quantized layer \(full precision\)"),
    "AWQ gemv": (with_config(A, version="gemv"), ValueError, r"AWQ with version 'gemv' is not supported \('gemm' is\); convert the checkpoint in full"),
    "AWQ in 3 bits": (with_config(A, bits=3), ValueError, "AWQ with bits 3 is not supported"),
    "AWQ without zeros": (with_config(A, zero_point=False), ValueError, "AWQ with zero_point False is not supported"),
    "AWQ without groups": (with_config(A, group_size=None), ValueError, "AWQ with group_size None is not supported"),
    "GPTQ lacks its order": (without(G, "g_idx"), CheckpointError, "up_proj.g_idx is missing"),
    "GPTQ of too many groups": (with_part(G, "g_idx", tensor("I32", [2] * COLUMNS)), CheckpointError, "g_idx has a group outside 0 to 1"),
    "GPTQ order of negatives": (with_part(G, "g_idx", tensor("I32", [-1] * COLUMNS)), CheckpointError, "g_idx has a group outside 0 to 1"),
    "GPTQ order misshapen": (with_part(G, "g_idx", tensor("I32", [0])), CheckpointError, r"g_idx has shape \(1,\), not \(256,\)"),
    "GPTQ zeros misshapen": (with_part(G, "qzeros", tensor("I32", [[1]])), CheckpointError, r"qzeros has shape \(1, 1\), not \(2, 3\)"),
    "GPTQ in 3 bits": (with_config(G, bits=3), ValueError, r"GPTQ with bits 3 is not supported \(2 or 4 or 8 is\)"),
    "GPTQ for marlin": (with_config(G, checkpoint_format="marlin"), ValueError, "GPTQ with checkpoint_format 'marlin' is not supported"),
    "GPTQ with bits by layer": (with_config(G, dynamic={"x": {"bits": 8}}), ValueError, "GPTQ with dynamic"),
    "packed lacks its shape": (without(P, "weight_shape"), CheckpointError, "up_proj.weight_shape is missing"),
    "packed lacks zeros": (without(P, "weight_zero_point"), CheckpointError, "up_proj.weight_zero_point is missing"),
    "packed of another shape": (with_part(P, "weight_shape", tensor("I64", [ROWS, 99])), CheckpointError, r"weight_packed has shape \(24, 32\), not \(24, 13\)"),
    "packed, but symmetric": (with_config(P, **in_groups({"symmetric": True})), CheckpointError, "weight_zero_point belongs to no quantized layer"),
    "packed in 3 bits": (with_config(P, **in_groups({"num_bits": 3})), ValueError, "compressed-tensors with num_bits 3"),
    "packed small floats": (with_config(P, **in_groups({"type": "float"})), ValueError, "compressed-tensors with type 'float'"),
    "packed by tensor": (with_config(P, **in_groups({"strategy": "tensor"})), ValueError, "compressed-tensors with strategy 'tensor'"),
    "packed in two ways": (with_config(P, **in_groups({}, {"num_bits": 8})), ValueError, "compressed-tensors with 2 different config_groups"),
    "packed in no way": (with_config(P, config_groups={}), ValueError, "compressed-tensors with 0 different config_groups"),
    "compressed otherwise": (with_config(P, format="nvfp4-pack-quantized"), ValueError, "compressed-tensors with format 'nvfp4-pack-quantized'"),
    "compressed and sparse": (with_config(P, sparsity_config={"format": "sparse-24-bitmask"}), ValueError, "with sparsity_config 'sparse-24-bitmask'"),
    "compressed and rotated": (with_config(P, transform_config={"config_groups": {"R1": {}}}), ValueError, "compressed-tensors with transform_config"),
    "FP8 lacks scales": (without(F, "weight_scale_inv"), CheckpointError, "up_proj.weight_scale is missing"),
    "FP8 scales misshapen": (with_part(F, "weight_scale_inv", tensor("F32", [[1.0]])), CheckpointError, r"weight_scale_inv has shape \(1, 1\), not \(1, 2\)"),
    "FP8 with one scale for many blocks": (with_part(F, "weight_scale_inv", tensor("F32", [1.0])), CheckpointError, r"weight_scale_inv has shape \(1,\), not \(1, 2\)"),
    "FP8 of strange blocks": (with_config(F, weight_block_size=[128]), ValueError, r"FP8: weight_block_size \[128\] is not \[rows, columns\]"),
    "FP8 without its settings": ((F[0], {}), CheckpointError, r"up_proj.weight has dtype F8_E4M3, not a weight's \(full precision\)"),
    "scales of what is not FP8": ((HALF | {f"{LAYER}.weight_scale_inv": tensor("F32", [[1.0]])}, FP8), CheckpointError, "weight_scale_inv belongs to no quantized layer"),
    "MLX lacks scales": (({f"{LAYER}.weight": tensor("I32", [[1]])}, {"bits": 4, "group_size": 64}), CheckpointError, "up_proj.weight has dtype I32, not a weight's"),
    "MLX scales of nothing": (({f"{LAYER}.scales": tensor("F16", [[1.0]])}, {"bits": 4, "group_size": 64}), CheckpointError, "up_proj.scales belongs to no quantized layer"),
    "bitsandbytes": ((HALF, {"quant_method": "bitsandbytes"}), ValueError, "method 'bitsandbytes' is not supported .awq, gptq, fp8, compressed-tensors are.; convert the checkpoint in full"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_cause(case: str, tmp_path: Path) -> None:
    files, error, message = BAD[case]
    with pytest.raises(error, match=message):
        source_of(write(tmp_path, files))


def test_incomplete_or_misshapen_mlx_layers_are_refused(tmp_path: Path) -> None:
    arrays = dict(zip(("weight", "scales", "biases"), mx.quantize(mx.ones((ROWS, COLUMNS))), strict=True))
    for group_size, parts, message in (
        (64, ("weight", "scales"), "up_proj.biases is missing"),
        (64, ("weight", "biases"), "up_proj.scales is missing"),
        (64, ("scales", "biases"), "belongs to no quantized layer"),
        (128, ("weight", "scales", "biases"), r"up_proj.scales has shape \(24, 4\), not \(24, 2\)"),
    ):
        write(tmp_path, ({}, {}), quantization={"bits": 4, "group_size": group_size})
        mx.save_safetensors(str(tmp_path / "model.safetensors"), {f"{LAYER}.{part}": arrays[part] for part in parts})
        with pytest.raises(CheckpointError, match=message):
            source_of(tmp_path)


def test_unknown_dtype_in_the_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config.json has dtype 'float64', not one of bfloat16, float16, float32"):
        source_of(write(tmp_path, A, dtype="float64"))
