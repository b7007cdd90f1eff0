"""Layouts with integer codes and a scale for each group of columns: AWQ, GPTQ, and compressed-tensors.

Notes:
- GPTQ stores each zero minus one. With desc_act the columns of a group may be anywhere: only `g_idx` says where.
- MLX adds a bias after scaling; these formats subtract a zero before it. float16 rarely holds -zero * scale exactly,
  so scales and biases are float32 where needed. Rounded to float16, each weight would be off by up to 0.4% of a step.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

import mlx.core as mx

from ..files.safetensors import FLOATS, CheckpointError
from .layouts import Layout, StoredTensor
from .quantize import Quantization

#: A word of AWQ holds eight neighbouring rows in the order 0, 2, 4, 6, 1, 3, 5, 7: the position of each row.
AWQ_POSITIONS = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True)
class Codes:
    """Rows of a weight as (codes - zeros) * scales."""

    codes: mx.array  # [rows, in] uint8
    zeros: mx.array  # [rows, groups], or one for all
    scales: mx.array  # [rows, groups]
    groups: mx.array | None  # [in]: the group of each column; None for contiguous groups of equal size

    def rows(self, start: int, stop: int) -> Codes:
        codes, zeros, scales = (array[start:stop] for array in (self.codes, self.zeros, self.scales))
        return Codes(codes, zeros, scales, self.groups)

    def dequantized(self) -> mx.array:
        """[rows, in] in float32."""
        codes, scales = self.codes.astype(mx.float32), self.scales.astype(mx.float32)
        zeros = mx.broadcast_to(self.zeros.astype(mx.float32), scales.shape)
        if self.groups is None:  # avoids a second and third array of this size
            grouped = codes.reshape(*scales.shape, -1)
            return ((grouped - zeros[..., None]) * scales[..., None]).reshape(codes.shape)
        return (codes - mx.take(zeros, self.groups, axis=1)) * mx.take(scales, self.groups, axis=1)

    def packed(self, quantization: Quantization) -> list[mx.array]:
        """MLX's weight, scales and biases. The groups must be contiguous and whole numbers of MLX's groups."""
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
class IntegerLayout(Layout):
    """Weights as integers of 2, 4 or 8 bits with a scale for each group of columns of a row."""

    bits: int
    group_size: int  # -1 for one group in a row
    orders: dict[str, mx.array] = field(default_factory=dict)  # layer -> group of each column, if not contiguous

    @abstractmethod
    def codes(self, tensor: StoredTensor, start: int, stop: int) -> Codes:
        """Some rows."""

    def weight(self, tensor: StoredTensor, start: int, stop: int) -> mx.array:
        return self.codes(tensor, start, stop).dequantized()

    def parts(self, tensor: StoredTensor) -> list[mx.array]:
        assert tensor.exact is not None
        return self.codes(tensor, 0, tensor.shape[0]).packed(tensor.exact)

    def groups(self, columns: int) -> int:
        return -(-columns // self.group_size) if self.group_size > 0 else 1

    def words(self, count: int) -> int:
        """The number of 32-bit words for `count` codes."""
        return -(-count * self.bits // 32)

    def exact(self, layer: str, columns: int) -> Quantization | None:
        """An MLX quantization whose groups tile the groups of this layer. Several MLX groups may share a scale."""
        size = self.group_size if self.group_size > 0 else columns
        tiles = [group for group in (128, 64, 32) if size % group == 0 and columns % size == 0]
        return Quantization(self.bits, tiles[0]) if tiles and layer not in self.orders else None

    def read_order(self, layer: str, part: str, columns: int) -> list[str]:
        """The part with the group of each column, if the layer has it."""
        if f"{layer}.{part}" not in self.checkpoint.tensors:
            return []
        name = self.check(layer, part, ("I32",), (columns,))
        order, groups = self.checkpoint.read(name, 0, columns), self.groups(columns)
        if mx.any((order < 0) | (order >= groups)).item():
            file = self.checkpoint.tensors[name].file
            raise CheckpointError(f"{file}: {name} has a group outside 0 to {groups - 1}")
        if not mx.array_equal(order, self._contiguous(columns)).item():
            self.orders[layer] = order
        return [name]

    def order(self, tensor: StoredTensor) -> mx.array | None:
        """The group of each column, or None for contiguous groups of equal size."""
        layer, columns = tensor.stored[0].rpartition(".")[0], tensor.shape[1]
        if layer in self.orders or self.group_size == -1 or columns % self.group_size == 0:
            return self.orders.get(layer)
        return self._contiguous(columns)

    def _contiguous(self, columns: int) -> mx.array:
        return mx.arange(columns, dtype=mx.int32) // (self.group_size if self.group_size > 0 else columns)


@dataclass(kw_only=True)
class RowPackedLayout(IntegerLayout):
    """A word holds codes of several rows. A layer is unpacked once for all its rows, and kept until its last row."""

    last: tuple[str, Codes] | None = None

    @abstractmethod
    def unpacked(self, tensor: StoredTensor) -> Codes:
        """All rows."""

    def codes(self, tensor: StoredTensor, start: int, stop: int) -> Codes:
        if self.last is None or self.last[0] != tensor.name:
            self.last = None  # before the next layer is unpacked: both may be large
            whole = self.unpacked(tensor)
            mx.eval(whole.codes, whole.zeros, whole.scales)
            self.last = (tensor.name, whole)
        whole = self.last[1]
        if stop == tensor.shape[0]:
            self.last = None
        return whole.rows(start, stop)

    def close(self) -> None:
        self.last = None


@dataclass(kw_only=True)
class AWQLayout(RowPackedLayout):
    """AutoAWQ's GEMM version: `qweight` [in, out/8], `qzeros` [groups, out/8], `scales` [groups, out].

    Source of the layout: AutoAWQ 0.2.9, awq/utils/packing_utils.py.
    """

    marker = ("qweight", "I32")

    def describe(self, layer: str) -> StoredTensor:
        columns, words = self.part(layer, "qweight")
        rows, groups = words * 8, self.groups(columns)
        zeros = self.check(layer, "qzeros", ("I32",), (groups, words))
        scales = self.check(layer, "scales", FLOATS, (groups, rows))
        exact = self.exact(layer, columns)
        return self.stored(layer, (rows, columns), [f"{layer}.qweight", zeros, scales], scales, exact, has_zeros=True)

    def unpacked(self, tensor: StoredTensor) -> Codes:
        qweight, qzeros, scales = (self.checkpoint.read(name) for name in tensor.stored)
        codes, zeros = (_unpack(words, 4, tensor.shape[0], AWQ_POSITIONS) for words in (qweight, qzeros))
        return Codes(codes.T, zeros.T, scales.T, self.order(tensor))


@dataclass(kw_only=True)
class GPTQLayout(RowPackedLayout):
    """`qweight` [in * bits / 32, out], `qzeros` [groups, out * bits / 32], `scales` [groups, out], `g_idx` [in].

    Source of the layout: AutoGPTQ's QuantLinear. Version 1 stores zeros minus one, GPTQModel's gptq_v2 stores zeros.
    """

    marker = ("qweight", "I32")
    minus_one: bool
    desc_act: bool

    def describe(self, layer: str) -> StoredTensor:
        words, rows = self.part(layer, "qweight")
        columns = words * 32 // self.bits
        groups = self.groups(columns)
        zeros = self.check(layer, "qzeros", ("I32",), (groups, self.words(rows)))
        scales = self.check(layer, "scales", FLOATS, (groups, rows))
        if self.desc_act:
            self.part(layer, "g_idx")
        names = [f"{layer}.qweight", zeros, scales, *self.read_order(layer, "g_idx", columns)]
        return self.stored(layer, (rows, columns), names, scales, self.exact(layer, columns), has_zeros=True)

    def unpacked(self, tensor: StoredTensor) -> Codes:
        qweight, qzeros, scales = (self.checkpoint.read(name) for name in tensor.stored[:3])
        rows, columns = tensor.shape
        codes, zeros = _unpack(qweight.T, self.bits, columns), _unpack(qzeros, self.bits, rows)
        if self.minus_one:
            zeros = mx.bitwise_and(zeros + 1, 2**self.bits - 1)  # a zero of 0 is stored as all ones
        return Codes(codes, zeros.T, scales.T, self.order(tensor))


@dataclass(kw_only=True)
class PackedLayout(IntegerLayout):
    """compressed-tensors' pack-quantized: `weight_packed` [out, in * bits / 32], `weight_scale` [out, groups].

    `weight_shape` is (out, in). Asymmetric layers have `weight_zero_point` [out * bits / 32, groups]. Codes and
    zeros are signed, stored with 2^(bits-1) added. Source: compressed-tensors 0.20, compressors/pack_quantized.
    """

    marker = ("weight_packed", "I32")
    symmetric: bool

    def describe(self, layer: str) -> StoredTensor:
        shape = self.check(layer, "weight_shape", ("I64", "I32"), (2,))
        rows, columns = map(int, self.checkpoint.read(shape, 0, 2).tolist())  # type: ignore[arg-type]
        groups = self.groups(columns)
        packed = self.check(layer, "weight_packed", ("I32",), (rows, self.words(columns)))
        scales = self.check(layer, "weight_scale", FLOATS, (rows, groups))
        names = [packed, shape, scales]
        if not self.symmetric:
            names.append(self.check(layer, "weight_zero_point", ("I32",), (self.words(rows), groups)))
        names += self.read_order(layer, "weight_g_idx", columns)
        return self.stored(layer, (rows, columns), names, scales, self.exact(layer, columns), not self.symmetric)

    def codes(self, tensor: StoredTensor, start: int, stop: int) -> Codes:
        packed, scales = (self.checkpoint.read(tensor.stored[i], start, stop) for i in (0, 2))
        zeros = mx.array(2 ** (self.bits - 1))
        if not self.symmetric:
            in_word = 32 // self.bits
            first = start // in_word
            words = self.checkpoint.read(tensor.stored[3], first, self.words(stop))
            zeros = _unpack(words.T, self.bits, stop - first * in_word).T[start - first * in_word :]
        return Codes(_unpack(packed, self.bits, tensor.shape[1]), zeros, scales, self.order(tensor))


@dataclass(kw_only=True)
class Int8Layout(IntegerLayout):
    """compressed-tensors' int-quantized, symmetric: `weight` [out, in] as int8, `weight_scale` [out, groups]."""

    marker = ("weight", "I8")

    def describe(self, layer: str) -> StoredTensor:
        rows, columns = self.part(layer, "weight")
        scale = self.check(layer, "weight_scale", FLOATS, (rows, self.groups(columns)))
        return self.stored(layer, (rows, columns), [f"{layer}.weight", scale], scale, self.exact(layer, columns))

    def codes(self, tensor: StoredTensor, start: int, stop: int) -> Codes:
        weight, scales = (self.checkpoint.read(name, start, stop) for name in tensor.stored)
        codes = mx.bitwise_xor(weight.view(mx.uint8), 128)  # adds 128
        return Codes(codes, mx.array(128), scales, self.order(tensor))


def _unpack(words: mx.array, bits: int, count: int, positions: tuple[int, ...] | None = None) -> mx.array:
    """[…, words] of 32 bits -> […, count] codes as uint8, from the lowest bits up, or in the order of `positions`."""
    in_byte = mx.arange(0, 8, bits, dtype=mx.uint8)
    codes = mx.bitwise_and(mx.right_shift(words.view(mx.uint8)[..., None], in_byte), 2**bits - 1)
    if positions:
        codes = mx.take(codes.reshape(*words.shape, -1), mx.array(positions), axis=-1)
    return codes.reshape(*words.shape[:-1], -1)[..., :count]
