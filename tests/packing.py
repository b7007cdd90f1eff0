"""Quantized layers, packed by each format's definition from known codes, zeros and scales."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

LAYER = "model.layers.0.mlp.up_proj"
ROWS, COLUMNS = 24, 256
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

Rows = Sequence[Sequence[Any]]
Files = tuple[dict[str, Any], dict[str, Any]]  # tensors by name, quantization_config


class Known(NamedTuple):
    """A weight as (code - zero) * scale."""

    codes: Rows  # [out][in], unsigned
    zeros: Rows  # [out][groups]
    scales: Rows  # [out][groups], exact in float16 and bfloat16
    group_of: Sequence[int]  # [in]

    @property
    def weight(self) -> mx.array:
        """Exact in float64, and in float32."""
        return mx.array(
            [
                [(code - zeros[g]) * scales[g] for code, g in zip(codes, self.group_of, strict=True)]
                for codes, zeros, scales in zip(self.codes, self.zeros, self.scales, strict=True)
            ]
        )


def known(
    bits: int = 4,
    group_size: int = 128,
    symmetric: bool = False,
    shuffled: bool = False,
    shape: tuple[int, int] = (ROWS, COLUMNS),
    seed: int = 0,
    scale_bits: int = 8,
) -> Known:
    rng = random.Random(seed)
    rows, columns = shape
    groups = math.ceil(columns / group_size)
    group_of = [i // group_size for i in range(columns)]
    if shuffled:
        rng.shuffle(group_of)
    return Known(
        [[rng.randrange(2**bits) for _ in range(columns)] for _ in range(rows)],
        [[2 ** (bits - 1) if symmetric else rng.randrange(2**bits) for _ in range(groups)] for _ in range(rows)],
        [[rng.randrange(2 ** (scale_bits - 1), 2**scale_bits) * 2.0**-15 for _ in range(groups)] for _ in range(rows)],
        group_of,
    )


def transposed(rows: Rows) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def words(codes: Sequence[int], bits: int = 4, order: Sequence[int] | None = None) -> list[int]:
    """Codes in words of 32 bits, as int32. `order` lists the codes of a word from its lowest bits up."""
    per_word, packed = 32 // bits, []
    for i in range(0, len(codes), per_word):
        chunk = [*codes[i : i + per_word], *[0] * (per_word - len(codes[i : i + per_word]))]
        word = sum(chunk[k] << (bits * place) for place, k in enumerate(order or range(per_word)))
        packed.append(word - 2**32 if word >= 2**31 else word)
    return packed


def tensor(dtype: str, values: Any) -> dict[str, Any]:
    """A tensor for a safetensors file. The values of F8_E4M3 are bytes."""
    shape, flat = [], [values]
    while isinstance(flat[0], list):
        flat = [value for part in flat for value in part]
        shape.append(len(flat) // math.prod(shape))
    if dtype == "BF16":  # the upper half of a float32
        return {"dtype": dtype, "shape": shape, "data": b"".join(struct.pack("<f", value)[2:] for value in flat)}
    code = {"I32": "i", "I64": "q", "I8": "b", "F16": "e", "F32": "f", "F8_E4M3": "B"}[dtype]
    return {"dtype": dtype, "shape": shape, "data": struct.pack(f"<{len(flat)}{code}", *flat)}


def awq(weight: Known, group_size: int = 128, order: Sequence[int] = AWQ_ORDER, layer: str = LAYER) -> Files:
    """Words along the rows: qweight [in, out/8], qzeros [groups, out/8], scales [groups, out]."""
    tensors = {
        f"{layer}.qweight": tensor("I32", [words(column, order=order) for column in transposed(weight.codes)]),
        f"{layer}.qzeros": tensor("I32", [words(zeros, order=order) for zeros in transposed(weight.zeros)]),
        f"{layer}.scales": tensor("F16", transposed(weight.scales)),
    }
    config = {"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True, "version": "gemm"}
    return tensors, config | {"modules_to_not_convert": None}


def gptq(weight: Known, bits: int = 4, group_size: int = 128, v2: bool = False, layer: str = LAYER) -> Files:
    """Words of codes along the columns, of zeros along the rows. Zeros are stored minus one, except in gptq_v2."""
    zeros = [[zero if v2 else (zero - 1) % 2**bits for zero in row] for row in transposed(weight.zeros)]
    tensors = {
        f"{layer}.qweight": tensor("I32", transposed([words(row, bits) for row in weight.codes])),
        f"{layer}.qzeros": tensor("I32", [words(row, bits) for row in zeros]),
        f"{layer}.scales": tensor("F16", transposed(weight.scales)),
        f"{layer}.g_idx": tensor("I32", weight.group_of),
    }
    shuffled = list(weight.group_of) != sorted(weight.group_of)
    config = {"quant_method": "gptq", "bits": bits, "group_size": group_size, "desc_act": shuffled, "sym": False}
    return tensors, config | ({"checkpoint_format": "gptq_v2"} if v2 else {})


def packed(
    weight: Known, bits: int = 4, group_size: int | None = 128, symmetric: bool = True, layer: str = LAYER
) -> Files:
    """Words of codes along the columns, of zeros along the rows; the scales are the model's bfloat16."""
    tensors = {
        f"{layer}.weight_packed": tensor("I32", [words(row, bits) for row in weight.codes]),
        f"{layer}.weight_scale": tensor("BF16", weight.scales),
        f"{layer}.weight_shape": tensor("I64", [len(weight.codes), len(weight.group_of)]),
    }
    if not symmetric:
        zeros = transposed([words(column, bits) for column in transposed(weight.zeros)])
        tensors[f"{layer}.weight_zero_point"] = tensor("I32", zeros)
    if list(weight.group_of) != sorted(weight.group_of):
        tensors[f"{layer}.weight_g_idx"] = tensor("I32", weight.group_of)
    strategy = "group" if group_size else "channel"
    scheme = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy, "group_size": group_size}
    return tensors, compressed("pack-quantized", scheme)


def int8(weight: Known) -> Files:
    tensors = {
        f"{LAYER}.weight": tensor("I8", [[code - 128 for code in row] for row in weight.codes]),
        f"{LAYER}.weight_scale": tensor("BF16", weight.scales),
    }
    scheme = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "group_size": None}
    return tensors, compressed("int-quantized", scheme)


def compressed(stored: str, scheme: dict[str, Any]) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": scheme, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": stored,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
    }


def write(folder: Path, files: Files, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    tensors, quantization = files
    header, data = {}, b""
    for name, entry in tensors.items():
        offsets = [len(data), len(data) + len(entry["data"])]
        header[name] = {"dtype": entry["dtype"], "shape": entry["shape"], "data_offsets": offsets}
        data += entry["data"]
    start = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(start)) + start + data)
    settings = {"dtype": "bfloat16"} | ({"quantization_config": quantization} if quantization else {}) | config
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def e4m3(byte: int) -> float:
    """A sign, four bits of exponent, three of mantissa; no infinities."""
    sign, exponent, mantissa = -1 if byte & 0x80 else 1, byte >> 3 & 15, byte & 7
    return sign * (2.0 ** (exponent - 7) * (1 + mantissa / 8) if exponent else 2.0**-6 * mantissa / 8)


SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "sliding_window_pattern": "LG"}
PACKERS: dict[str, Callable[[Known, str], Files]] = {
    "AWQ 4-bit": lambda weight, layer: awq(weight, 32, layer=layer),
    "GPTQ 4-bit": lambda weight, layer: gptq(weight, 4, 32, layer=layer),
    "compressed-tensors 4-bit": lambda weight, layer: packed(weight, 4, 32, False, layer=layer),
}
