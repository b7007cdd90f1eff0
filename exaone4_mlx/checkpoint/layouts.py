"""How a format stores one quantized layer: the base, MLX's own layout, and FP8. `integer_layouts.py` has the others.

Notes:
- A layout checks the parts of a layer against the headers. It returns the weight, in full or some rows, in float32.
- If no information is lost, a layout also returns the same codes as MLX packs them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import mlx.core as mx

from ..files.safetensors import DTYPES, FLOATS, Checkpoint, CheckpointError
from .quantize import Quantization, stored_settings
from .share import Cut


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the model, and the tensors in the files that store it."""

    name: str  # as in Hugging Face's model
    shape: tuple[int, ...]  # of the unpacked weight
    dtype: mx.Dtype  # of the unpacked weight
    stored: tuple[str, ...]  # the tensors in the files
    nbytes: int  # of the tensors in the files
    exact: Quantization | None = None  # the MLX quantization that stores the same values, if one exists
    scale_dtype: mx.Dtype = mx.float32  # of the scales and biases in the model, if it is quantized

    @property
    def is_quantized(self) -> bool:
        return len(self.stored) > 1


@dataclass(kw_only=True)
class Layout(ABC):
    """How a format stores a layer."""

    marker: ClassVar[tuple[str, str]]  # the part and the dtype that identify a quantized layer

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
        """The weight of a layer. Its parts are checked."""

    @abstractmethod
    def weight(self, tensor: StoredTensor, start: int, stop: int) -> mx.array:
        """Rows of a weight [rows, in]. The caller rounds them to the weight's dtype."""

    def parts(self, tensor: StoredTensor) -> list[mx.array]:
        """MLX's packed weight, scales and biases. Only a tensor with `exact` has them."""
        raise NotImplementedError

    def parts_of(self, tensor: StoredTensor, cut: Cut) -> list[mx.array]:
        """The part of them that one rank has."""
        return [cut.of(array) for array in self.parts(tensor)]

    def close(self) -> None:  # noqa: B027 (most layouts keep nothing)
        """Frees what the layout keeps between calls."""

    def part(self, layer: str, part: str) -> tuple[int, ...]:
        """The shape of a part that a layer must have."""
        name = f"{layer}.{part}"
        if name not in self.checkpoint.tensors:
            file = self.checkpoint.tensors[f"{layer}.{self.marker[0]}"].file
            raise CheckpointError(f"{file}: {layer} is quantized ({self.title}), but {name} is missing")
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
        self,
        layer: str,
        shape: tuple[int, ...],
        parts: list[str],
        scales: str,
        exact: Quantization | None = None,
        has_zeros: bool = False,
    ) -> StoredTensor:
        """The weight of a layer. `scales` is one of its parts.

        The model's scales have the dtype of the stored scales. MLX's bias is a zero times a scale, rounded to that
        dtype. In float16 the error is at most 0.4 % of a step. In bfloat16 it would be too large, so both are float32.
        """
        infos = self.checkpoint.tensors
        nbytes, dtype = sum(infos[name].nbytes for name in parts), infos[scales].dtype
        scale_dtype = mx.float32 if has_zeros and dtype == "BF16" else DTYPES[dtype][0]
        return StoredTensor(f"{layer}.weight", shape, self.dtype, tuple(parts), nbytes, exact, scale_dtype)


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
        # The products of small floats with powers of two or with E4M3 values are exact in bfloat16.
        tensor = self.stored(layer, (rows, columns), [f"{layer}.weight", *others], others[0], quantization)
        return replace(tensor, dtype=tensor.scale_dtype if affine else mx.bfloat16)

    def weight(self, tensor: StoredTensor, start: int, stop: int) -> mx.array:
        assert tensor.exact is not None
        packed, *others = (self.checkpoint.read(name, start, stop) for name in tensor.stored)
        if tensor.exact.mode == "affine":
            # As in a matrix product, which multiplies and adds in float32. mx.dequantize would round twice.
            others = [array.astype(mx.float32) for array in others]
        return tensor.exact.dequantized([packed, *others])

    def parts(self, tensor: StoredTensor) -> list[mx.array]:
        return [self.checkpoint.read(name) for name in tensor.stored]

    def parts_of(self, tensor: StoredTensor, cut: Cut) -> list[mx.array]:
        return [cut.read(self.checkpoint, name) for name in tensor.stored]


@dataclass(kw_only=True)
class Float8Layout(Layout):
    """`weight` [out, in] as E4M3, and a scale for each block, `weight_scale_inv` [out blocks, in blocks] (float32).

    In spite of its name, the scale is a factor. A single scale for the whole weight is called `weight_scale` or
    `weight_scale_inv`. compressed-tensors calls it `weight_scale`, for each row, each block or the whole weight.
    Source of the layout: transformers 5, integrations/finegrained_fp8.py; DeepSeek-V3's release.
    """

    marker = ("weight", "F8_E4M3")
    block: tuple[int, int]  # [rows, columns]; 0 means all

    def describe(self, layer: str) -> StoredTensor:
        shape = self.part(layer, "weight")
        blocks = [-(-size // block) if block else 1 for size, block in zip(shape, self.block, strict=True)]
        shapes = [tuple(blocks), *([(), (1,)] if self.block == (0, 0) else [])]
        inverse = f"{layer}.weight_scale_inv" in self.checkpoint.tensors
        scale = self.check(layer, "weight_scale_inv" if inverse else "weight_scale", FLOATS, *shapes)
        return self.stored(layer, shape, [f"{layer}.weight", scale], scale)

    def weight(self, tensor: StoredTensor, start: int, stop: int) -> mx.array:
        columns = tensor.shape[1]
        height, width = (block or size for block, size in zip(self.block, tensor.shape, strict=True))
        scales = self.checkpoint.read(tensor.stored[1]).astype(mx.float32).reshape(-1, -(-columns // width))
        by_row = mx.take(scales, mx.arange(start, stop) // height, axis=0)  # [rows, in blocks]
        scales = mx.take(by_row, mx.arange(columns) // width, axis=1)
        return mx.from_fp8(self.checkpoint.read(tensor.stored[0], start, stop), mx.float32) * scales
