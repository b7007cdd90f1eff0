"""How the formats that are read here store one quantized layer.

What is peculiar here:
- A layout checks the parts of a layer against the headers, and gives its weight, some rows or whole, in float32; and
  where the codes of a group lie side by side, the same codes as MLX packs them.
- GPTQ stores its zeros less one, and with desc_act the columns of a group lie anywhere: only `g_idx` says where.
- MLX adds a bias where others subtract a zero before they scale. -zero * scale seldom fits into float16, and then
  scales and biases are float32: rounded to float16, each weight would be off by up to 0.4% of a step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import mlx.core as mx

from ..files.safetensors import DTYPES, FLOATS, Checkpoint, CheckpointError
from .quantize import Quantization, stored_settings

#: A word of AWQ holds eight neighbouring rows in the order 0, 2, 4, 6, 1, 3, 5, 7: the place of each.
AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the model, and what stands for it in the files."""

    name: str  # as in Hugging Face's model
    shape: tuple[int, ...]  # of the weight that it stands for
    dtype: mx.Dtype  # that it has when read in full
    stored: tuple[str, ...]  # the tensors in the files that make it up
    nbytes: int  # of those
    exact: Quantization | None = None  # MLX's quantization that says the same, where there is one

    @property
    def is_quantized(self) -> bool:
        return len(self.stored) > 1

    @property
    def is_foreign(self) -> bool:
        """Whether it is quantized in a way that MLX has no kernels for."""
        return self.is_quantized and self.exact is None


@dataclass(kw_only=True)
class Layout(ABC):
    """How a format stores a layer."""

    marker: ClassVar[tuple[str, str]]  # the part, and its dtype, by which quantized layers are known

    checkpoint: Checkpoint
    title: str
    dtype: mx.Dtype

    def layers(self) -> Iterator[str]:
        part, dtype = self.marker
        for name, info in self.checkpoint.tensors.items():
            if name.endswith(f".{part}") and info.dtype == dtype:
                if len(info.shape) != 2:
                    raise CheckpointError(f"{info.file}: {name} has shape {info.shape}, not two dimensions")
                yield name.removesuffix(f".{part}")

    @abstractmethod
    def describe(self, layer: str) -> StoredTensor:
        """The weight of a layer, its parts checked."""

    @abstractmethod
    def weight(self, tensor: StoredTensor, start: int, stop: int) -> mx.array:
        """Rows of a weight [rows, in], to be rounded to its dtype."""

    def parts(self, tensor: StoredTensor, quantization: Quantization) -> list[mx.array]:
        """Packed weight, scales and biases of MLX, where `tensor.exact`."""
        raise NotImplementedError

    def part(self, layer: str, part: str) -> tuple[int, ...]:
        """The shape of a part that a layer must have."""
        name = f"{layer}.{part}"
        if name not in self.checkpoint.tensors:
            there = self.checkpoint.tensors[f"{layer}.{self.marker[0]}"].file
            raise CheckpointError(f"{there}: {layer} is quantized ({self.title}), but {name} is missing")
        return self.checkpoint.tensors[name].shape

    def check(self, layer: str, part: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...]) -> str:
        """The name of a part, which must have one of the dtypes and one of the shapes."""
        shape, name = self.part(layer, part), f"{layer}.{part}"
        info = self.checkpoint.tensors[name]
        if shape not in shapes:
            raise CheckpointError(f"{info.file}: {name} has shape {shape}, not {' or '.join(map(str, shapes))}")
        if info.dtype not in dtypes:
            raise CheckpointError(f"{info.file}: {name} has dtype {info.dtype}, not {' or '.join(dtypes)}")
        return name

    def stored(
        self, layer: str, shape: tuple[int, ...], parts: list[str], exact: Quantization | None = None
    ) -> StoredTensor:
        nbytes = sum(self.checkpoint.tensors[name].nbytes for name in parts)
        return StoredTensor(f"{layer}.weight", shape, self.dtype, tuple(parts), nbytes, exact)


@dataclass(kw_only=True)
class MLXLayout(Layout):
    """mlx-lm's folders: `weight` [out, in * bits / 32], `scales`, in affine mode `biases` [out, groups]."""

    marker = ("weight", "U32")
    quantization: Mapping[str, Any]  # of config.json

    def describe(self, layer: str) -> StoredTensor:
        quantization = stored_settings(self.quantization, [layer])[layer]
        rows, words = self.part(layer, "weight")
        columns = words * 32 // quantization.bits
        groups, affine = columns // quantization.group_size, quantization.mode == "affine"
        self.check(layer, "weight", ("U32",), (rows, groups * quantization.group_size * quantization.bits // 32))
        others = [
            self.check(layer, part, FLOATS if affine else ("U8",), (rows, groups))
            for part in (("scales", "biases") if affine else ("scales",))
        ]
        # Small floats times powers of two, or times E4M3: bfloat16 holds any of those products.
        dtype = DTYPES[self.checkpoint.tensors[others[0]].dtype][0] if affine else mx.bfloat16
        tensor = self.stored(layer, (rows, columns), [f"{layer}.weight", *others], quantization)
        return replace(tensor, dtype=dtype)

    def weight(self, tensor: StoredTensor, start: int, stop: int) -> mx.array:
        assert tensor.exact is not None
        packed, *others = (rows_of(self.checkpoint, name, start, stop) for name in tensor.stored)
        if tensor.exact.mode == "affine":
            # As in a matrix product, which multiplies and adds in float32: mx.dequantize would round twice.
            others = [array.astype(mx.float32) for array in others]
        return tensor.exact.dequantized([packed, *others])

    def parts(self, tensor: StoredTensor, quantization: Quantization) -> list[mx.array]:
        return [self.checkpoint.read(name) for name in tensor.stored]


@dataclass(frozen=True)
class _Integers:
    """Rows of a weight as (codes - zeros) * scales."""

    codes: mx.array  # [rows, in] uint8
    zeros: mx.array  # [rows, groups], or one for all
    scales: mx.array  # [rows, groups]
    groups: mx.array | None  # [in]: the group of each column; None where they lie side by side, all of a size

    def dequantized(self) -> mx.array:
        """[rows, in] in float32."""
        codes, scales = self.codes.astype(mx.float32), self.scales.astype(mx.float32)
        zeros = mx.broadcast_to(self.zeros.astype(mx.float32), scales.shape)
        if self.groups is None:  # without a second and third array of this size
            grouped = codes.reshape(*scales.shape, -1)
            return ((grouped - zeros[..., None]) * scales[..., None]).reshape(codes.shape)
        return (codes - mx.take(zeros, self.groups, axis=1)) * mx.take(scales, self.groups, axis=1)

    def packed(self, quantization: Quantization) -> list[mx.array]:
        """Weight, scales and biases of MLX. The groups are whole numbers of its groups, and lie side by side."""
        rows, columns = self.codes.shape
        bits, in_byte = quantization.bits, 8 // quantization.bits
        codes = self.codes.reshape(rows, -1, in_byte)
        shifted = mx.left_shift(codes, mx.arange(in_byte, dtype=mx.uint8) * bits)
        weight = mx.sum(shifted, axis=-1).astype(mx.uint8).view(mx.uint32)
        exact = -self.zeros.astype(mx.float32) * self.scales.astype(mx.float32)
        biases, scales = exact.astype(self.scales.dtype), self.scales
        if not mx.array_equal(biases.astype(mx.float32), exact).item():
            biases, scales = exact, scales.astype(mx.float32)
        count = columns // quantization.group_size // scales.shape[1]
        return [weight, mx.repeat(scales, count, axis=1), mx.repeat(biases, count, axis=1)]


@dataclass(kw_only=True)
class _IntegerLayout(Layout):
    """Weights as integers of 2, 4 or 8 bits with a scale for each group of columns of a row."""

    bits: int
    group_size: int  # -1 for one group in a row
    orders: dict[str, mx.array] = field(default_factory=dict)  # layer -> group of each column, where not side by side

    def groups(self, columns: int) -> int:
        return -(-columns // self.group_size) if self.group_size > 0 else 1

    def words(self, count: int) -> int:
        """How many words of 32 bits hold so many codes."""
        return -(-count * self.bits // 32)

    @abstractmethod
    def integers(self, tensor: StoredTensor, start: int, stop: int) -> _Integers:
        """Some rows, unpacked."""

    def weight(self, tensor: StoredTensor, start: int, stop: int) -> mx.array:
        return self.integers(tensor, start, stop).dequantized()

    def parts(self, tensor: StoredTensor, quantization: Quantization) -> list[mx.array]:
        return self.integers(tensor, 0, tensor.shape[0]).packed(quantization)

    def quantized(self, layer: str, shape: tuple[int, int], parts: list[str], order: str | None = None) -> StoredTensor:
        """The weight of a layer; `order` is the part with the group of each column."""
        if order is not None and f"{layer}.{order}" in self.checkpoint.tensors:
            parts = [*parts, self._read_order(layer, order, shape[1])]
        exact = None if layer in self.orders else self._exact(shape[1])
        return self.stored(layer, shape, parts, exact)

    def _exact(self, columns: int) -> Quantization | None:
        """MLX's quantization whose groups tile these; several of its groups may share a scale."""
        size = self.group_size if self.group_size > 0 else columns
        tiles = [group for group in (128, 64, 32) if size % group == 0 and columns % size == 0]
        return Quantization(self.bits, tiles[0]) if tiles else None

    def _read_order(self, layer: str, part: str, columns: int) -> str:
        name = self.check(layer, part, ("I32",), (columns,))
        order = self.checkpoint.read(name, 0, columns)
        if mx.any((order < 0) | (order >= self.groups(columns))).item():
            file = self.checkpoint.tensors[name].file
            raise CheckpointError(
                f"{file}: {name} names a group that is not among the {self.groups(columns)} there are"
            )
        if not mx.array_equal(order, self._side_by_side(columns)).item():
            self.orders[layer] = order
        return name

    def order(self, tensor: StoredTensor) -> mx.array | None:
        """The group of each column, or None where they lie side by side, all of a size."""
        layer, columns = tensor.stored[0].rpartition(".")[0], tensor.shape[1]
        if layer in self.orders or self.group_size == -1 or columns % self.group_size == 0:
            return self.orders.get(layer)
        return self._side_by_side(columns)

    def _side_by_side(self, columns: int) -> mx.array:
        return mx.arange(columns, dtype=mx.int32) // (self.group_size if self.group_size > 0 else columns)


@dataclass(kw_only=True)
class PackedAcrossLayout(_IntegerLayout):
    """Words hold codes of several rows, so that all rows are unpacked at once."""

    last: tuple[str, _Integers] | None = None

    @abstractmethod
    def unpacked(self, tensor: StoredTensor) -> _Integers:
        """All rows."""

    def integers(self, tensor: StoredTensor, start: int, stop: int) -> _Integers:
        if self.last is None or self.last[0] != tensor.name:
            self.last = None  # before the next one is made: they may be large
            whole = self.unpacked(tensor)
            mx.eval(whole.codes, whole.zeros, whole.scales)
            self.last = (tensor.name, whole)
        whole = self.last[1]
        if stop == tensor.shape[0]:
            self.last = None
        codes, zeros, scales = (array[start:stop] for array in (whole.codes, whole.zeros, whole.scales))
        return _Integers(codes, zeros, scales, whole.groups)


@dataclass(kw_only=True)
class AWQLayout(PackedAcrossLayout):
    """AutoAWQ's GEMM version: `qweight` [in, out/8], `qzeros` [groups, out/8], `scales` [groups, out].

    Source of the layout: AutoAWQ 0.2.9, awq/utils/packing_utils.py.
    """

    marker = ("qweight", "I32")

    def describe(self, layer: str) -> StoredTensor:
        columns, words = self.part(layer, "qweight")
        rows, groups = words * 8, self.groups(columns)
        names = [
            f"{layer}.qweight",
            self.check(layer, "qzeros", ("I32",), (groups, words)),
            self.check(layer, "scales", FLOATS, (groups, rows)),
        ]
        return self.quantized(layer, (rows, columns), names)

    def unpacked(self, tensor: StoredTensor) -> _Integers:
        qweight, qzeros, scales = (self.checkpoint.read(name) for name in tensor.stored)
        codes, zeros = (_unpacked(words, 4, tensor.shape[0], AWQ_PLACES) for words in (qweight, qzeros))
        return _Integers(codes.T, zeros.T, scales.T, self.order(tensor))


@dataclass(kw_only=True)
class GPTQLayout(PackedAcrossLayout):
    """`qweight` [in * bits / 32, out], `qzeros` [groups, out * bits / 32], `scales` [groups, out], `g_idx` [in].

    Source of the layout: AutoGPTQ's QuantLinear; version 1 stores zeros less one, GPTQModel's gptq_v2 as they are.
    """

    marker = ("qweight", "I32")
    less_one: bool
    desc_act: bool

    def describe(self, layer: str) -> StoredTensor:
        words, rows = self.part(layer, "qweight")
        columns = words * 32 // self.bits
        groups = self.groups(columns)
        names = [
            f"{layer}.qweight",
            self.check(layer, "qzeros", ("I32",), (groups, self.words(rows))),
            self.check(layer, "scales", FLOATS, (groups, rows)),
        ]
        if self.desc_act:
            self.part(layer, "g_idx")
        return self.quantized(layer, (rows, columns), names, "g_idx")

    def unpacked(self, tensor: StoredTensor) -> _Integers:
        qweight, qzeros, scales = (self.checkpoint.read(name) for name in tensor.stored[:3])
        rows, columns = tensor.shape
        codes, zeros = _unpacked(qweight.T, self.bits, columns), _unpacked(qzeros, self.bits, rows)
        if self.less_one:
            zeros = mx.bitwise_and(zeros + 1, 2**self.bits - 1)  # a zero of 0 is stored as all ones
        return _Integers(codes, zeros.T, scales.T, self.order(tensor))


@dataclass(kw_only=True)
class PackedLayout(_IntegerLayout):
    """compressed-tensors' pack-quantized: `weight_packed` [out, in * bits / 32], `weight_scale` [out, groups].

    Beside them `weight_shape` (out, in) and, if asymmetric, `weight_zero_point` [out * bits / 32, groups]; codes and
    zeros are signed, stored with 2^(bits-1) added. Source: compressed-tensors 0.20, compressors/pack_quantized.
    """

    marker = ("weight_packed", "I32")
    symmetric: bool

    def describe(self, layer: str) -> StoredTensor:
        names = [f"{layer}.weight_packed", self.check(layer, "weight_shape", ("I64", "I32"), (2,))]
        rows, columns = self._read_shape(names[1])
        groups = self.groups(columns)
        self.check(layer, "weight_packed", ("I32",), (rows, self.words(columns)))
        names.append(self.check(layer, "weight_scale", FLOATS, (rows, groups)))
        if not self.symmetric:
            names.append(self.check(layer, "weight_zero_point", ("I32",), (self.words(rows), groups)))
        return self.quantized(layer, (rows, columns), names, "weight_g_idx")

    def _read_shape(self, name: str) -> tuple[int, int]:
        shape = self.checkpoint.read(name, 0, 2)
        return int(shape[0]), int(shape[1])

    def integers(self, tensor: StoredTensor, start: int, stop: int) -> _Integers:
        packed, scales = (rows_of(self.checkpoint, tensor.stored[i], start, stop) for i in (0, 2))
        zeros = mx.array(2 ** (self.bits - 1))
        if not self.symmetric:
            in_word = 32 // self.bits
            first = start // in_word
            words = self.checkpoint.read(tensor.stored[3], first, self.words(stop))
            zeros = _unpacked(words.T, self.bits, stop - first * in_word).T[start - first * in_word :]
        return _Integers(_unpacked(packed, self.bits, tensor.shape[1]), zeros, scales, self.order(tensor))


@dataclass(kw_only=True)
class Int8Layout(_IntegerLayout):
    """compressed-tensors' int-quantized, symmetric: `weight` [out, in] as int8, `weight_scale` [out, groups]."""

    marker = ("weight", "I8")

    def describe(self, layer: str) -> StoredTensor:
        rows, columns = self.part(layer, "weight")
        scale = self.check(layer, "weight_scale", FLOATS, (rows, self.groups(columns)))
        return self.quantized(layer, (rows, columns), [f"{layer}.weight", scale])

    def integers(self, tensor: StoredTensor, start: int, stop: int) -> _Integers:
        weight, scales = (rows_of(self.checkpoint, name, start, stop) for name in tensor.stored)
        codes = mx.bitwise_xor(weight.view(mx.uint8), 128)  # adds 128
        return _Integers(codes, mx.array(128), scales, self.order(tensor))


@dataclass(kw_only=True)
class Float8Layout(Layout):
    """`weight` [out, in] as E4M3 and a scale for each block, `weight_scale_inv` [out blocks, in blocks] (float32).

    The scale multiplies, in spite of its name. Where one number serves for the whole weight, it is `weight_scale` or
    `weight_scale_inv`; compressed-tensors has `weight_scale` for a row, a block or the whole weight.
    Source of the layout: transformers 5, integrations/finegrained_fp8.py; DeepSeek-V3's release.
    """

    marker = ("weight", "F8_E4M3")
    block: tuple[int, int]  # [rows, columns]; 0 for all there are

    def describe(self, layer: str) -> StoredTensor:
        shape = self.part(layer, "weight")
        blocks = [-(-size // block) if block else 1 for size, block in zip(shape, self.block, strict=True)]
        shapes = [tuple(blocks), *([(), (1,)] if self.block == (0, 0) else [])]
        inverse = f"{layer}.weight_scale_inv" in self.checkpoint.tensors
        scale = self.check(layer, "weight_scale_inv" if inverse else "weight_scale", FLOATS, *shapes)
        return self.stored(layer, shape, [f"{layer}.weight", scale])

    def weight(self, tensor: StoredTensor, start: int, stop: int) -> mx.array:
        columns = tensor.shape[1]
        height, width = (block or size for block, size in zip(self.block, tensor.shape, strict=True))
        scales = self.checkpoint.read(tensor.stored[1]).astype(mx.float32).reshape(-1, -(-columns // width))
        by_row = mx.take(scales, mx.arange(start, stop) // height, axis=0)  # [rows, in blocks]
        scales = mx.take(by_row, mx.arange(columns) // width, axis=1)
        return mx.from_fp8(rows_of(self.checkpoint, tensor.stored[0], start, stop), mx.float32) * scales


def rows_of(checkpoint: Checkpoint, name: str, start: int, stop: int) -> mx.array:
    """Rows of a stored tensor. All of them are not read before they are evaluated."""
    return checkpoint.read(name, start, None if stop == checkpoint.tensors[name].shape[0] else stop)


def _unpacked(words: mx.array, bits: int, count: int, places: tuple[int, ...] | None = None) -> mx.array:
    """[…, words] of 32 bits -> […, count] codes as uint8. The first stands in the lowest bits, unless `places` tell."""
    in_byte = mx.arange(0, 8, bits, dtype=mx.uint8)
    codes = mx.bitwise_and(mx.right_shift(words.view(mx.uint8)[..., None], in_byte), 2**bits - 1)
    if places:
        codes = mx.take(codes.reshape(*words.shape, -1), mx.array(places), axis=-1)
    return codes.reshape(*words.shape[:-1], -1)[..., :count]
