"""GPTQ: what rounding one column of a weight did to the layer's outputs is made up for in the columns to come.

What is peculiar here:
- One block at a time, in the order in which data pass it, on the hidden states that quantized layers before it
  give. Projections that read the same input share one Hessian, and it is dropped as soon as they are done.
- Groups are those of the stored row, their scales and biases fixed beforehand by error search; columns are visited
  in descending order of their input's energy. So the result is a plain affine tensor, without a permutation.
- The Hessian is factored once, not inverted: H = (A + 1) D (A + 1)^T with A strictly upper triangular. Column k is
  rounded after the errors of those before it, times A, were added: the same numbers as GPTQ's, of QuIP's LDLQ.

Shapes: B batch, L tokens, E hidden size, R rows, C columns, N groups in a row, T columns worked on at a time.
Sources: GPTQ (arXiv 2210.17323), QuIP (arXiv 2307.13304) for the factorization.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mlx.core as mx
import mlx.nn as nn

from ..model.cache import causal_mask
from ..model.network import Block
from .quantize import Quantization
from .search import check, grid, packed

DAMPING = 0.01  # of the Hessian's mean diagonal
COLUMNS = 128  # that are rounded before the others are told


def gptq(
    weight: mx.array,
    hessian: mx.array,
    bits: int,
    group_size: int,
    *,
    dtype: mx.Dtype | None = None,
    damping: float = DAMPING,
    weighting: str = "D",
) -> tuple[mx.array, mx.array, mx.array]:
    check(weight, bits, group_size)
    C = weight.shape[1]
    order = mx.argsort(-mx.diag(hessian))
    factor, conditional = _factored(hessian, order, damping)
    importance = {"D": conditional[mx.argsort(order)], "H": mx.diag(hessian), "1": None}[weighting]
    _, scales, biases = grid(weight, bits, group_size, importance, dtype)
    mx.eval(scales, biases)
    columns = weight.astype(mx.float32).T[order]  # C R
    group = order // group_size
    steps, offsets = scales.astype(mx.float32).T, biases.astype(mx.float32).T  # N R
    wanted, codes = columns, []
    for start in range(0, C, COLUMNS):
        stop = min(start + COLUMNS, C)
        blockcodes, errors = _rounded(
            columns[start:stop], wanted[: stop - start], factor[start:stop, start:stop],
            steps[group[start:stop]], offsets[group[start:stop]], 2**bits - 1)
        codes.append(blockcodes)
        wanted = wanted[stop - start :] + factor[start:stop, stop:].T @ errors
        mx.eval(codes[-1], wanted)
    out = mx.concatenate(codes)[mx.argsort(order)].T
    parts = packed(out, bits), scales, biases
    mx.eval(parts)
    return parts


def _rounded(columns, wanted, factor, steps, offsets, levels):
    codes, errors = [], []
    for i in range(columns.shape[0]):
        step = mx.where(steps[i]==0, 1.0, steps[i])
        code = mx.clip(mx.round((wanted[0] - offsets[i]) / step), 0, levels)
        errors.append(columns[i] - (code * steps[i] + offsets[i]))
        codes.append(code.astype(mx.uint8))
        wanted = wanted[1:] + factor[i, i + 1 :, None] * errors[-1]
    return mx.stack(codes), mx.stack(errors)


def _factored(hessian: mx.array, order: mx.array, damping: float) -> tuple[mx.array, mx.array]:
    back = order[::-1]
    h = hessian[back][:, back]
    mean = mx.mean(mx.diag(h)).item()
    h = h + mx.eye(h.shape[0])*(damping * mean if mean>0 else 1.0)
    lower = mx.linalg.cholesky(h, stream=mx.cpu)
    upper = lower[::-1, ::-1]
    d = mx.diag(upper)
    a = upper / d
    mx.eval(a, d)
    return a, d*d


def quantized_block(block, inputs, settings, *, dtype, run=gptq, **kw):
    attn, mlp = block.self_attn, block.mlp
    window = attn.window
    _replace(block, "self_attn", ["q_proj", "k_proj", "v_proj"], inputs, settings, dtype, run)
    o, attn.o_proj = attn.o_proj, nn.Identity()
    heads = [_eval(attn(x, causal_mask(0, x.shape[1], window), None)) for x in inputs]
    attn.o_proj = o
    _replace(block, "self_attn", ["o_proj"], heads, settings, dtype, run)
    middle = [_eval(x + block.post_attention_layernorm(attn.o_proj(a))) for x, a in zip(inputs, heads)]
    _replace(block, "mlp", ["gate_proj", "up_proj"], middle, settings, dtype, run)
    d, mlp.down_proj = mlp.down_proj, nn.Identity()
    inner = [_eval(mlp(x)) for x in middle]
    mlp.down_proj = d
    _replace(block, "mlp", ["down_proj"], inner, settings, dtype, run)
    return [_eval(x + block.post_feedforward_layernorm(mlp.down_proj(a))) for x, a in zip(middle, inner)]

def _eval(x):
    mx.eval(x)
    return x

def _replace(block, part, names, inputs, settings, dtype, run):
    h = None
    for x in inputs:
        x = x.reshape(-1, x.shape[-1]).astype(mx.float32)
        h = x.T @ x if h is None else h + x.T @ x
        mx.eval(h)
    for name in names:
        q = settings.get(f"{part}.{name}")
        if q is None: continue
        module = getattr(block, part)
        w = getattr(module, name).weight
        parts = run(w, h, q.bits, q.group_size, dtype=dtype)
        lin = nn.Linear(w.shape[1], w.shape[0], bias=False)
        lin.weight = mx.dequantize(parts[0], parts[1].astype(mx.float32), parts[2].astype(mx.float32), q.group_size, q.bits)
        setattr(module, name, lin)
