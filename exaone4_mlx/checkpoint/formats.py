"""A checkpoint in any format -> the tensors of the model: in full precision, or as MLX has them where nothing is lost.

What is peculiar here:
- All is checked against the headers before a weight is read; only the orders of columns and stored shapes, a few
  bytes for each row, are read with them.
- Weights are computed in float32 and rounded once, to the dtype that config.json names, whatever their scales have.
- A setting that would change the weights and is not known is an error; how activations and caches were rounded is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import mlx.core as mx

from ..files.folders import read_json
from ..files.safetensors import DTYPES, FLOAT_DTYPES, FLOATS, Checkpoint, CheckpointError
from .layouts import (
    AWQLayout,
    Float8Layout,
    GPTQLayout,
    Int8Layout,
    Layout,
    MLXLayout,
    PackedAcrossLayout,
    PackedLayout,
    StoredTensor,
    rows_of,
)
from .quantize import read_quantization, read_settings

#: Where releases without a quantization_config say how they are quantized, and what by, if they do not say that.
SIDE_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
#: The spelling of AutoAWQ's own file.
AWQ_SPELLINGS = {"w_bit": "bits", "q_group_size": "group_size"}
#: What makes up quantized layers, in any format; a tensor called so is never one of the model's.
PARTS = {
    *("qweight", "qzeros", "scales", "biases", "g_idx", "weight_scale_inv"),
    *("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"),
}
#: How many weights are computed in float32 at once: several times the memory of a weight as it is returned.
SLAB = 2**24
#: How servers round activations and caches. Both stay in full precision here, which is what those approximate.
UNUSED_PARTS = {"input_scale", "input_zero_point", "output_scale", "activation_scale", "k_scale", "v_scale"}


class Source:
    """A checkpoint of any format that is read here, as the tensors of the model.

    Read are full precision, MLX, AWQ (GEMM), GPTQ, FP8, and pack-, int- and float-quantized compressed-tensors.
    `format` names what it is, for messages; `tensors` are the model's, by name; `unused` names the stored tensors
    that say how to round activations and caches.
    """

    def __init__(self, checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
        """`config` is the parsed config.json.

        Raises ValueError for a format that is not read, and CheckpointError, naming file and tensor, where a part
        of a layer is missing, misshapen or too much.
        """
        self.tensors: dict[str, StoredTensor] = {}
        self._checkpoint = checkpoint
        self._layout = _find_layout(checkpoint, config)
        if self._layout:
            described = map(self._layout.describe, self._layout.layers())
            self.tensors = {tensor.name: tensor for tensor in described}
        self.format = self._layout.title if self._layout and self.tensors else "full precision"
        self.unused = tuple(self._take_the_rest())

    def _take_the_rest(self) -> Iterator[str]:
        """Adds what is stored in full precision; yields what is of no use."""
        taken = {name for tensor in self.tensors.values() for name in tensor.stored}
        for name, info in self._checkpoint.tensors.items():
            if name in taken:
                continue
            part = name.rpartition(".")[2]
            if part in UNUSED_PARTS and self.format != "full precision":
                yield name
                continue
            if part in PARTS:
                raise CheckpointError(f"{info.file}: {name} is part of no quantized layer ({self.format})")
            if info.dtype not in FLOATS:
                raise CheckpointError(f"{info.file}: {name} has dtype {info.dtype}, which is no weight ({self.format})")
            if name in self.tensors:
                raise CheckpointError(f"{info.file}: {name} stands beside {self.tensors[name].stored[0]}")
            self.tensors[name] = StoredTensor(name, info.shape, DTYPES[info.dtype][0], (name,), info.nbytes)

    def rename(self, old: str, new: str) -> None:
        """Calls a tensor of the model by another name."""
        self.tensors[new] = replace(self.tensors.pop(old), name=new)

    def weight(self, name: str, start: int = 0, stop: int | None = None, dtype: mx.Dtype | None = None) -> mx.array:
        """Rows `start` to `stop` of a weight in full precision: [rows, in], or of a vector that many elements.

        Computed in float32 where it is stored quantized, and rounded once, to `dtype` or what `tensors` tells. AWQ and
        GPTQ pack along the rows: a layer is unpacked whole, and kept until its last row has been asked for.
        """
        tensor = self.tensors[name]
        rows = tensor.shape[0]
        dtype = tensor.dtype if dtype is None else dtype
        stop = rows if stop is None else min(stop, rows)
        if not 0 <= start <= stop:
            raise ValueError(f"{name} has no rows {start} to {stop}; there are {rows}")
        if self._layout is None or len(tensor.stored) == 1:
            return rows_of(self._checkpoint, tensor.stored[0], start, stop).astype(dtype)
        slabs = []
        for first in range(start, stop, step := max(1, SLAB // tensor.shape[1])):
            slabs.append(self._layout.weight(tensor, first, min(first + step, stop)).astype(dtype))
            mx.eval(slabs[-1])
        return slabs[0] if len(slabs) == 1 else mx.concatenate([mx.zeros((0, tensor.shape[1]), dtype), *slabs])

    def parts(self, name: str) -> list[tuple[str, mx.array]]:
        """The tensors of MLX that say the same as the stored ones: weight [out, packed] as uint32, scales, biases.

        Scales keep their dtype where the biases fit into it, and both are float32 where not: cast as you need.
        Raises ValueError where there are none (`exact` is None).
        """
        tensor = self.tensors[name]
        if self._layout is None or tensor.exact is None:
            raise ValueError(f"{name} of this checkpoint ({self.format}) has no equal among MLX's quantized weights")
        return tensor.exact.named(name, self._layout.parts(tensor, tensor.exact))

    def scale_dtype(self, name: str) -> mx.Dtype:
        """What scales and biases of a weight are given here that is stored quantized.

        The dtype of its scales. A zero times a scale, which is a bias of MLX's, is rounded to it: in float16 by at
        most 0.4 % of a step, and in bfloat16 by so much that float32 is taken instead.
        """
        tensors = {part.rpartition(".")[2]: self._checkpoint.tensors[part] for part in self.tensors[name].stored}
        scales = next((tensors[part] for part in ("scales", "weight_scale") if part in tensors), tensors.get("weight"))
        assert scales is not None, f"{name} has no scales"
        has_zeros = bool({"qzeros", "weight_zero_point"} & tensors.keys())
        return mx.float32 if has_zeros and scales.dtype == "BF16" else DTYPES[scales.dtype][0]

    def close(self) -> None:
        """Forgets the open file, and what was unpacked."""
        if isinstance(self._layout, PackedAcrossLayout):
            self._layout.last = None
        self._checkpoint.close()


def _find_layout(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Layout | None:
    """How a checkpoint is quantized, if it is. Raises ValueError for a format, or a variant, that is not read here."""
    dtype = _read_dtype(config)
    settings = config.get("quantization") or config.get("quantization_config") or _read_side_file(checkpoint)
    if not settings:
        return None
    if not isinstance(settings, Mapping) or "quant_method" not in settings:
        quantization = read_quantization({"quantization": settings})
        assert quantization is not None
        title = f"MLX {read_settings(quantization).bits}-bit"
        return MLXLayout(checkpoint=checkpoint, title=title, dtype=dtype, quantization=quantization)
    method = settings["quant_method"]
    if method not in LAYOUTS:
        raise ValueError(
            f"quantization_config of method {method!r} is not read here ({', '.join(LAYOUTS)} are); "
            "take the checkpoint in full precision and convert that"
        )
    return LAYOUTS[method](settings, {"checkpoint": checkpoint, "dtype": dtype})


def _read_dtype(config: Mapping[str, Any]) -> mx.Dtype:
    name = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    if name not in FLOAT_DTYPES:
        raise ValueError(f"config.json has dtype {name!r}, not one of {', '.join(FLOAT_DTYPES)}")
    return FLOAT_DTYPES[name]


def _read_side_file(checkpoint: Checkpoint) -> dict[str, Any] | None:
    if not any(name.endswith(".qweight") for name in checkpoint.tensors):
        return None  # such a file may be left over from what this was made of
    for name, method in SIDE_FILES.items():
        if (checkpoint.folder / name).is_file():
            return {"quant_method": method} | read_json(checkpoint.folder / name)
    return None


def _awq_layout(settings: Mapping[str, Any], common: dict[str, Any]) -> Layout:
    settings = {AWQ_SPELLINGS.get(key, key): value for key, value in settings.items()}
    version = settings.get("version") or settings.get("format") or "gemm"
    _expect("AWQ", "version", str(version).lower(), ("gemm",))
    _expect("AWQ", "bits", settings.get("bits"), (4,))
    _expect("AWQ", "zero_point", settings.get("zero_point", True), (True,))
    return AWQLayout(title="AWQ 4-bit", bits=4, group_size=_group_size("AWQ", settings), **common)


def _gptq_layout(settings: Mapping[str, Any], common: dict[str, Any]) -> Layout:
    bits = _expect("GPTQ", "bits", settings.get("bits"), (2, 4, 8))
    stored = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    _expect("GPTQ", "checkpoint_format", stored, ("gptq", "gptq_v2"))
    _expect("GPTQ", "dynamic", settings.get("dynamic") or None, (None,))  # bits of their own for some layers
    return GPTQLayout(
        title=f"GPTQ {bits}-bit",
        bits=bits,
        group_size=_group_size("GPTQ", settings),
        less_one=stored == "gptq",
        desc_act=bool(settings.get("desc_act")),
        **common,
    )


def _fp8_layout(settings: Mapping[str, Any], common: dict[str, Any]) -> Layout:
    block = settings.get("weight_block_size", (128, 128))
    return _float8("FP8", "weight_block_size", block, common)


def _compressed_layout(settings: Mapping[str, Any], common: dict[str, Any]) -> Layout:
    """Passes over kv_cache_scheme and the schemes of activations, as is done with their scales (UNUSED_PARTS)."""
    what = "compressed-tensors"
    _expect(what, "sparsity_config", (settings.get("sparsity_config") or {}).get("format", "dense"), ("dense",))
    # Rotations of the activations go with those weights.
    _expect(what, "transform_config", (settings.get("transform_config") or {}).get("config_groups") or None, (None,))
    groups = (settings.get("config_groups") or {}).values()
    schemes = [_scheme(group.get("weights") or {}, group.get("format") or settings.get("format")) for group in groups]
    different = [scheme for i, scheme in enumerate(schemes) if scheme not in schemes[:i]]
    if len(different) != 1:
        raise ValueError(
            f"{what} with {len(different)} different config_groups is not read here (1 is); "
            "take the checkpoint in full precision and convert that"
        )
    return _compressed_group(different[0], common)


def _scheme(weights: Mapping[str, Any], stored: str | None) -> dict[str, Any]:
    """What of a group's settings counts for the weights."""
    keys = ("num_bits", "type", "strategy", "group_size", "block_structure")
    return {"format": stored, "symmetric": weights.get("symmetric", True), **{key: weights.get(key) for key in keys}}


def _compressed_group(group: dict[str, Any], common: dict[str, Any]) -> Layout:
    what = "compressed-tensors"
    stored = _expect(what, "format", group["format"], ("pack-quantized", "int-quantized", "float-quantized"))
    strategy = group["strategy"]
    if stored == "float-quantized":
        _expect(what, "type", group["type"], ("float",))
        _expect(what, "num_bits", group["num_bits"], (8,))
        _expect(what, "strategy", strategy, ("tensor", "channel", "block"))
        block = {"tensor": None, "channel": (1, 0)}.get(strategy, group["block_structure"])
        return _float8(f"{what} FP8", "block_structure", block, common)
    _expect(what, "type", group["type"], ("int",))
    _expect(what, "strategy", strategy, ("group", "channel"))
    bits = _expect(what, "num_bits", group["num_bits"], (8,) if stored == "int-quantized" else (4, 8))
    size = _group_size(what, group) if strategy == "group" else -1
    common = common | {"title": f"{what} {bits}-bit", "bits": bits, "group_size": size}
    if stored == "int-quantized":
        _expect(what, "symmetric", group["symmetric"], (True,))
        return Int8Layout(**common)
    return PackedLayout(symmetric=bool(group["symmetric"]), **common)


#: quant_method -> what reads its settings
LAYOUTS = {
    "awq": _awq_layout,
    "gptq": _gptq_layout,
    "fp8": _fp8_layout,
    "compressed-tensors": _compressed_layout,
}


def _float8(title: str, key: str, block: Any, common: dict[str, Any]) -> Layout:
    """`block` is [rows, columns], or None for one scale in all."""
    if block is None:
        return Float8Layout(title=title, block=(0, 0), **common)
    if len(block) != 2 or not all(isinstance(size, int) for size in block):
        raise ValueError(f"{title}: {key} {block!r} is not [rows, columns]")
    named = title if 0 in block else f"{title} {block[0]}x{block[1]}"
    return Float8Layout(title=named, block=(block[0], block[1]), **common)


def _group_size(what: str, settings: Mapping[str, Any]) -> int:
    size = settings.get("group_size")
    if not isinstance(size, int) or (size <= 0 and size != -1):
        raise ValueError(f"{what} of group_size {size!r} is not read here; it is a number of columns, or -1 for all")
    return size


def _expect(what: str, key: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    if value not in allowed:
        raise ValueError(
            f"{what} of {key} {value!r} is not read here ({' or '.join(map(repr, allowed))} is); "
            "take the checkpoint in full precision and convert that"
        )
    return value
