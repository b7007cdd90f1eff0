"""A checkpoint in any format -> the tensors of the model: in full precision, or MLX's quantized tensors if exact.

Notes:
- Everything is checked against the headers before a weight is read. Only column orders and stored shapes, a few bytes
  for each row, are read with them.
- Weights are computed in float32 and rounded once, to the dtype that config.json names, whatever the scales' dtype.
- An unknown setting that would change the weights is an error. The rounding of activations and caches is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..files.folders import read_json, without_middle
from ..files.safetensors import DTYPES, FLOAT_DTYPES, FLOATS, Checkpoint, CheckpointError, check_finite
from .integer_layouts import AWQLayout, GPTQLayout, Int8Layout, PackedLayout
from .layouts import Float8Layout, Layout, MLXLayout, StoredTensor
from .quantize import Quantization, read_quantization, read_settings
from .share import ROWS, Cut

#: The files with the settings of releases without a quantization_config, and the default quant_method of each.
SIDE_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
#: The keys of AutoAWQ's own file.
AWQ_SPELLINGS = {"w_bit": "bits", "q_group_size": "group_size"}
#: The parts of quantized layers in any format. No tensor of the model has such a name.
PARTS = {
    *("qweight", "qzeros", "scales", "biases", "g_idx", "weight_scale_inv"),
    *("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"),
}
INSTEAD = "convert the checkpoint in full precision instead"
#: The number of weights that are computed in float32 at once, which takes several times the memory of the result.
SLAB = 2**24
#: How servers round activations and caches. Here both stay in full precision.
UNUSED_PARTS = {"input_scale", "input_zero_point", "output_scale", "activation_scale", "k_scale", "v_scale"}


class Source:
    """A checkpoint of any supported format as the tensors of the model.

    Supported are full precision, MLX, AWQ (GEMM), GPTQ, FP8, and pack-, int- and float-quantized compressed-tensors.
    `format` is the format's title for messages. `tensors` are the model's, by name. `changed` are those that adapters
    change, with the MLX quantization in which they are stored.
    """

    changed: Mapping[str, Quantization | None] = {}

    def __init__(self, checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
        """`config` is the parsed config.json.

        Raises ValueError for an unsupported format, and CheckpointError that names file and tensor for a missing,
        misshapen or unknown part of a layer.
        """
        self.tensors: dict[str, StoredTensor] = {}
        self._checkpoint = checkpoint
        try:
            self._layout = _find_layout(checkpoint, config)
            if self._layout:
                described = map(self._layout.describe, self._layout.layers())
                self.tensors = {tensor.name: tensor for tensor in described}
        except CheckpointError:
            raise
        except (ValueError, AttributeError, TypeError, KeyError, ArithmeticError) as error:  # most: of a wrong type
            what = "" if isinstance(error, ValueError) else "the quantization in config.json is malformed: "
            raise ValueError(without_middle(f"{what}{error}")) from error
        self.format = self._layout.title if self._layout and self.tensors else "full precision"
        self._add_full_precision()

    def _add_full_precision(self) -> None:
        parts = {name for tensor in self.tensors.values() for name in tensor.stored}
        for name, info in self._checkpoint.tensors.items():
            if name in parts:
                continue
            part = name.rpartition(".")[2]
            if part in UNUSED_PARTS and self.format != "full precision":
                continue
            if part in PARTS:
                raise CheckpointError(f"{info.file}: {name} belongs to no quantized layer ({self.format})")
            if info.dtype not in FLOATS:
                raise CheckpointError(f"{info.file}: {name} has dtype {info.dtype}, not a weight's ({self.format})")
            if name in self.tensors:
                raise CheckpointError(f"{info.file}: {name} and {self.tensors[name].stored[0]} store one weight")
            self.tensors[name] = StoredTensor(name, info.shape, DTYPES[info.dtype][0], (name,), info.nbytes)

    @property
    def is_foreign(self) -> bool:
        """Whether MLX has no kernels for some quantized weight."""
        return any(len(tensor.stored) > 1 and tensor.exact is None for tensor in self.tensors.values())

    def file(self, name: str) -> Path:
        """The file of a weight, or of its first part."""
        return self._checkpoint.tensors[self.tensors[name].stored[0]].file

    def rename(self, old: str, new: str) -> None:
        """Renames a tensor of the model."""
        self.tensors[new] = replace(self.tensors.pop(old), name=new)

    def weight(self, name: str, start: int = 0, stop: int | None = None, dtype: mx.Dtype | None = None) -> mx.array:
        """Rows `start` to `stop` of a weight in full precision [rows, in], or elements of a vector.

        A quantized weight is computed in float32 and rounded once, to `dtype` or the dtype in `tensors`. AWQ and GPTQ
        pack along the rows: a layer is unpacked whole, and kept until its last row is read.
        """
        tensor = self.tensors[name]
        rows = tensor.shape[0]
        dtype = tensor.dtype if dtype is None else dtype
        stop = rows if stop is None else min(stop, rows)
        if not 0 <= start <= stop:
            raise ValueError(f"{name} has no rows {start} to {stop}; there are {rows}")
        if self._layout is None or len(tensor.stored) == 1:
            return self._checkpoint.read(tensor.stored[0], start, stop).astype(dtype)
        slabs = []
        for first in range(start, stop, step := max(1, SLAB // tensor.shape[1])):
            slabs.append(self._layout.weight(tensor, first, min(first + step, stop)).astype(dtype))
            mx.eval(slabs[-1])
        return slabs[0] if len(slabs) == 1 else mx.concatenate([mx.zeros((0, tensor.shape[1]), dtype), *slabs])

    def part(self, name: str, cut: Cut) -> mx.array:
        """The part of a weight in full precision that one rank has."""
        tensor = self.tensors[name]
        if self._layout is None or len(tensor.stored) == 1:
            return cut.read(self._checkpoint, tensor.stored[0])
        return self.weight(name, *cut.span(tensor.shape)) if cut.axis == ROWS else cut.of(self.weight(name))

    def equal(self, name: str, other: str) -> bool:
        """Whether two weights are the same. Compares some rows at a time, because these may be the largest weights."""
        shape = self.tensors[name].shape
        return shape == self.tensors[other].shape and all(
            mx.array_equal(self.weight(name, start, start + 4096), self.weight(other, start, start + 4096)).item()
            for start in range(0, shape[0], 4096)
        )

    def parts(self, name: str, cut: Cut | None = None) -> list[tuple[str, mx.array]]:
        """MLX's tensors with the same values as the stored ones: weight [out, packed] as uint32, scales, biases.

        With `cut` the part of one rank; only MLX's own layout reads no other byte. Scales keep their dtype if it holds
        the biases exactly. Otherwise both are float32. Raises ValueError if the tensor's `exact` is None, and
        CheckpointError for scales of bytes that mean NaN or infinity.
        """
        tensor = self.tensors[name]
        if self._layout is None or tensor.exact is None:
            raise ValueError(f"MLX has no quantization with the values of {name} ({self.format})")
        parts = self._layout.parts(tensor) if cut is None else self._layout.parts_of(tensor, cut)
        if tensor.exact.mode != "affine":  # the scales are bytes, and some bytes mean NaN or infinity
            check_finite(tensor.exact.dequantized(parts), f"{self.file(name)}: {name}")
        return tensor.exact.named(name, parts)

    def close(self) -> None:
        """Closes the open file and releases the unpacked tensors."""
        if self._layout:
            self._layout.close()
        self._checkpoint.close()


def _find_layout(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Layout | None:
    """The layout of a quantized checkpoint, or None. Raises ValueError for an unsupported format or variant."""
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
            f"quantization_config of method {method!r} is not supported ({', '.join(LAYOUTS)} are); {INSTEAD}"
        )
    return LAYOUTS[method](settings, {"checkpoint": checkpoint, "dtype": dtype})


def _read_dtype(config: Mapping[str, Any]) -> mx.Dtype:
    name = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    if not isinstance(name, str) or name not in FLOAT_DTYPES:
        raise ValueError(f"config.json has dtype {name!r}, not one of {', '.join(FLOAT_DTYPES)}")
    return FLOAT_DTYPES[name]


def _read_side_file(checkpoint: Checkpoint) -> dict[str, Any] | None:
    if not any(name.endswith(".qweight") for name in checkpoint.tensors):
        return None  # the file may be left over from another checkpoint
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
    _expect("GPTQ", "dynamic", settings.get("dynamic") or None, (None,))  # other bits for some layers
    return GPTQLayout(
        title=f"GPTQ {bits}-bit",
        bits=bits,
        group_size=_group_size("GPTQ", settings),
        minus_one=stored == "gptq",
        desc_act=bool(settings.get("desc_act")),
        **common,
    )


def _fp8_layout(settings: Mapping[str, Any], common: dict[str, Any]) -> Layout:
    block = settings.get("weight_block_size", (128, 128))
    return _float8("FP8", "weight_block_size", block, common)


def _compressed_layout(settings: Mapping[str, Any], common: dict[str, Any]) -> Layout:
    """Ignores kv_cache_scheme and the schemes of activations, as UNUSED_PARTS does with their scales."""
    what = "compressed-tensors"
    _expect(what, "sparsity_config", (settings.get("sparsity_config") or {}).get("format", "dense"), ("dense",))
    # Such weights need rotated activations.
    _expect(what, "transform_config", (settings.get("transform_config") or {}).get("config_groups") or None, (None,))
    groups = (settings.get("config_groups") or {}).values()
    schemes = [_scheme(group.get("weights") or {}, group.get("format") or settings.get("format")) for group in groups]
    different = [scheme for i, scheme in enumerate(schemes) if scheme not in schemes[:i]]
    if len(different) != 1:
        raise ValueError(f"{what} with {len(different)} different config_groups is not supported (1 is); {INSTEAD}")
    return _compressed_group(different[0], common)


def _scheme(weights: Mapping[str, Any], stored: str | None) -> dict[str, Any]:
    """The settings of a group that concern its weights."""
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


#: quant_method -> function that reads its settings
LAYOUTS = {"awq": _awq_layout, "gptq": _gptq_layout, "fp8": _fp8_layout, "compressed-tensors": _compressed_layout}


def _float8(title: str, key: str, block: Any, common: dict[str, Any]) -> Layout:
    """`block` is [rows, columns], or None for a single scale."""
    if block is None:
        return Float8Layout(title=title, block=(0, 0), **common)
    if len(block) != 2 or not all(isinstance(size, int) for size in block):
        raise ValueError(f"{title}: {key} {block!r} is not [rows, columns]")
    named = title if 0 in block else f"{title} {block[0]}x{block[1]}"
    return Float8Layout(title=named, block=(block[0], block[1]), **common)


def _group_size(what: str, settings: Mapping[str, Any]) -> int:
    size = settings.get("group_size")
    if not isinstance(size, int) or (size <= 0 and size != -1):
        raise ValueError(f"{what} with group_size {size!r} is not supported; it is a number of columns, or -1 for all")
    return size


def _expect(what: str, key: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    if value not in allowed:
        raise ValueError(
            f"{what} with {key} {value!r} is not supported ({' or '.join(map(repr, allowed))} is); {INSTEAD}"
        )
    return value
