"""A request and a checkpoint -> the quantization of each weight, the texts, and notes for the user.

Notes:
- A checkpoint that is stored in a format of MLX (MLX's own, AWQ) keeps its codes unless the request names a
  quantization. To quantize it again would lose accuracy a second time.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__
from ..checkpoint.quantize import Quantization
from ..checkpoint.share import EMBEDDING
from ..files.safetensors import read_dtype
from ..files.svg import INSTALL_MATPLOTLIB, has_matplotlib
from ..model.pretrained import OpenCheckpoint, has_gpu, memory_of_this_machine
from ..text.tokenizer import Tokenizer
from .calibrate import MAX_TOKENS
from .chats import chats_digest
from .plan import ConversionPlan
from .recipe import settings_of, uniform
from .request import ConversionRequest
from .texts import CALIBRATION, HELD_OUT, encode, overlap, read_passages, windows

PASSAGES, PASSAGE_TOKENS = 240, 350  # of the package's calibration texts, about
SAMPLES = 48  # of them, where little is to be read: the first ones are a fair sample
LEAST_TOKENS = 2048  # of texts for GPTQ: it fits fewer too closely, and loses more on others
LOW_BITS = 5  # more bits lose little without calibration
QUICK_PARAMETERS = 1 << 32  # of a model that "auto" calibrates by GPTQ: a larger one takes long
GPTQ_READINGS = 5  # how often the texts pass the network: the head's inputs, both sides of each block, and its outputs


def choose_quantization(
    opened: OpenCheckpoint, request: ConversionRequest, errors: Mapping[str, float] | None = None
) -> tuple[dict[str, Quantization], bool, str]:
    """The quantization by weight name, whether packed weights keep their codes, and the recipe's name for reports.

    `errors` are the measured ones of the weights, for the recipe 4bit-quality.
    """
    quantized = [tensor for tensor in opened.source.tensors.values() if tensor.is_quantized]
    if request.dequantize:
        if not quantized:
            raise ValueError(f"{opened.folder} is in full precision: there is nothing to dequantize")
        return {}, False, "full precision"
    if not request.quantize:
        if quantized:
            raise ValueError(
                f"{opened.folder} is stored as {opened.source.format}; use dequantize (-d) to get full precision"
            )
        return {}, False, "full precision"
    changed = opened.source.changed  # keep their bits, but not their codes
    exact = {tensor.name: kept for tensor in quantized if (kept := tensor.exact or changed.get(tensor.name))}
    if changed and not quantized and not request.names_quantization:
        return {}, False, "full precision"
    if exact and not request.names_quantization:
        shapes = {tensor.name: tensor.shape for tensor in quantized}
        name = "as stored" if len(exact) == len(shapes) else "4bit"
        return uniform(request.quantization, shapes) | exact, True, name
    if request.recipe is not None:
        dtype = read_dtype(request.dtype) or opened.source.tensors[EMBEDDING].dtype
        settings = settings_of(
            request.recipe,
            opened.shapes,
            group_size=request.q_group_size,
            target_bpw=request.target_bpw,
            float_bits=8 * dtype.size,
            errors=errors,
        )
        return settings, False, request.recipe
    quantization = request.quantization
    name = f"{quantization.bits}bit" if quantization.mode == "affine" else quantization.mode
    return uniform(quantization, opened.shapes), False, name


def texts_wanted(request: ConversionRequest, settings: Mapping[str, Quantization], kept: bool) -> ConversionRequest:
    """The request with the default number of texts, and no method where "auto" reads none.

    "auto" reads texts for low bits on a GPU, and where texts are given.
    """
    given = [name for name in ("calibration_data", "num_samples") if getattr(request, name) is not None]
    if request.calibrate == "auto":
        bits = _searched_bits(request, settings, kept)
        if given and bits is None:
            why = "the weights keep their codes; give q_bits" if kept else "there is no search for scales and biases"
            raise ValueError(f"{given[0]} has no effect: {why}")
        if not given and not (has_gpu() and bits is not None and bits <= LOW_BITS):
            return replace(request, calibrate=None)
    return replace(request, num_samples=SAMPLES) if request.calibrate in ("auto", "weighted") and not given else request


def _searched_bits(request: ConversionRequest, settings: Mapping[str, Quantization], kept: bool) -> int | None:
    """The fewest bits of a weight that error search quantizes. None where none is, or where packed weights are kept."""
    searched = [how.bits for how in settings.values() if how.mode == "affine"] if request.search and not kept else []
    return min(searched, default=None)


def with_method(request: ConversionRequest, opened: OpenCheckpoint, tokens: int) -> ConversionRequest:
    """The request with the method of "auto" for so many tokens: GPTQ, or weighted search.

    That is for a model that is large or short of memory, and for few tokens, which GPTQ would fit too closely.
    """
    if request.calibrate != "auto":
        return request
    is_quick = sum(map(math.prod, opened.shapes.values())) <= QUICK_PARAMETERS
    has_room = calibration_bytes(opened, tokens) <= memory_of_this_machine()
    return replace(request, calibrate="gptq" if tokens >= LEAST_TOKENS and is_quick and has_room else "weighted")


def calibration_bytes(opened: OpenCheckpoint, tokens: int) -> int:
    """The memory of a calibration: hidden states, twice; a block in float32; the statistics of its widest input."""
    config = opened.config
    widest = max(config.intermediate_size, config.num_attention_heads * config.head_dim, config.hidden_size)
    block = sum(math.prod(shape) for name, shape in opened.shapes.items() if name.startswith("model.layers.0."))
    return 4 * (7 * tokens * config.hidden_size + 3 * block + 7 * widest * widest)


def digest_options(
    request: ConversionRequest, opened: OpenCheckpoint, recipe: str, sequences: Sequence[list[int]], has_chats: bool
) -> dict[str, Any]:
    """What determines the bytes of the result besides the tensors, as JSON values."""
    options: dict[str, Any] = {
        "exaone4_mlx": __version__,
        "mlx": metadata.version("mlx"),
        "config": _digest(opened.config.to_dict()),
        "recipe": recipe,
        "search": request.search,
        "calibrate": request.calibrate,
    }
    if request.calibrate:
        options["texts"] = _digest(sequences)
    if has_chats:
        options["chats"] = chats_digest()
    return options


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def uses_search(request: ConversionRequest, plan: ConversionPlan) -> bool:
    """Whether error search chooses the scales and biases of any tensor."""
    quantized = [tensor.quantization for tensor in plan.tensors if tensor.work in ("quantize", "requantize")]
    return request.search and any(quantization and quantization.mode == "affine" for quantization in quantized)


def notes_on(opened: OpenCheckpoint, plan: ConversionPlan, request: ConversionRequest) -> tuple[str, ...]:
    """What the user of this request should know."""
    notes = []
    requantized = [tensor for tensor in plan.tensors if tensor.work == "requantize"]
    packed = [tensor for tensor in plan.tensors if tensor.work in ("copy", "repack") and tensor.quantization]
    if packed:
        notes.append(f"{len(packed)} tensors keep their codes ({opened.source.format}); --q-bits quantizes them again")
    if requantized:
        notes.append(
            f"{len(requantized)} tensors are {opened.source.format} and are quantized a second time; "
            "a conversion of the original checkpoint would be more accurate"
        )
    left = [t.name for t in plan.tensors if t.quantization is None and len(t.shape) == 2]
    if left and (request.names_quantization or not packed) and plan.options["recipe"] != "full precision":
        notes.append(
            f"{len(left)} matrices stay in full precision, {left[0]} for example: their rows do not divide into groups"
        )
    if not request.search and not any(tensor.work in ("quantize", "requantize") for tensor in plan.tensors):
        notes.append("nothing is quantized here, so --no-search changes nothing")
    if (request.verify or request.evaluate) and not has_matplotlib():
        notes.append(f"errors.svg is not drawn, because matplotlib is missing: {INSTALL_MATPLOTLIB}")
    return tuple(notes)


def note_on_calibration(request: ConversionRequest, settings: Mapping[str, Quantization], kept: bool) -> list[str]:
    """What "auto" stands for, and what the next better method takes. `request` is the resolved one."""
    given, fastest = request.calibration_data is not None, "; --no-calibrate is the fastest"
    few = GPTQ_READINGS * SAMPLES * PASSAGE_TOKENS
    quick = f"; --calibrate gptq --num-samples {SAMPLES} loses less; it reads about {few:,} tokens"
    texts = f"{request.num_samples or 'all'} of the texts" + (f" of {calibration_file(request).name}" if given else "")
    if request.calibrate == "weighted":
        why = "GPTQ needs more of them, or takes long or much memory here"
        return [f"error search weighted by {texts}: {why}{'' if given else quick}{fastest}"]
    if request.calibrate == "gptq":
        better = f"; --calibrate gptq reads all, about {few * PASSAGES // SAMPLES:,} tokens, and loses less"
        return [f"GPTQ on {texts}{better if request.num_samples and not given else ''}{fastest}"]
    bits = _searched_bits(request, settings, kept)
    if has_gpu() or bits is None or bits > LOW_BITS:
        return []
    return [f"error search without texts, because MLX has no GPU here{quick}"]


def read_texts(
    request: ConversionRequest, tokenizer: Tokenizer, context: int
) -> tuple[ConversionRequest, list[list[int]]]:
    """The windows of the calibration texts, as token ids, and the request, without a number of texts that is all.

    Reads the evaluation texts too. `context` limits the windows. Raises ValueError for texts that the template refuses,
    for a sentence in both files, and for a single window, because distillation holds one out.
    """
    calibration = read_passages(calibration_file(request)) if request.calibrate else []
    if request.num_samples is not None and request.num_samples >= len(calibration):
        request = replace(request, num_samples=None)
    calibration = calibration[: request.num_samples]
    evaluation = read_passages(evaluation_file(request)) if request.evaluate else []
    for passage in evaluation:
        encode(passage, tokenizer)  # raises where the template refuses it
    if shared := overlap(calibration, evaluation):
        raise ValueError(
            f"the calibration and the evaluation texts share {shared[0][:80]!r}: the measured loss would be too small"
        )
    size = min(MAX_TOKENS, context)
    parts = [window for passage in calibration for window in windows(encode(passage, tokenizer), size)]
    if request.calibrate == "distill" and len(parts) < 2:
        raise ValueError(
            f"distill needs two texts, or one of more than {size} tokens; this run reads {len(calibration)} short text "
            f"of {calibration_file(request)}"
        )
    return request, parts


def calibration_file(request: ConversionRequest) -> Path:
    return CALIBRATION if request.calibration_data is None else Path(request.calibration_data).expanduser()


def evaluation_file(request: ConversionRequest) -> Path:
    return HELD_OUT if request.evaluation_data is None else Path(request.evaluation_data).expanduser()
