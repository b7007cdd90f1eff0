"""What is asked of a conversion, checked, and what follows from it for a checkpoint.

What is peculiar here:
- A request that contradicts itself is refused before anything is read.
- A checkpoint that MLX has a format for (its own, AWQ) stays as it is stored unless bits are asked for: packing
  it anew would lose a second time.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx

from .. import __version__
from ..checkpoint.quantize import DEFAULTS, Quantization
from ..files.safetensors import read_dtype
from ..model.source import EMBEDDING, OpenCheckpoint
from ..text.tokenizer import Tokenizer
from .calibrate import MAX_TOKENS
from .plan import Plan
from .recipe import RECIPES, settings_of, uniform
from .texts import CALIBRATION, HELD_OUT, encode, overlap, read_passages

METHODS = ("gptq", "distill")


@dataclass(frozen=True)
class Request:
    """How a checkpoint is converted; see `convert`."""

    quantize: bool = True
    q_bits: int | None = None
    q_group_size: int | None = None
    q_mode: str | None = None
    recipe: str | None = None
    target_bpw: float | None = None
    search: bool = True
    calibrate: str | None = None
    calibration_data: str | Path | None = None
    dequantize: bool = False
    dtype: mx.Dtype | str | None = None
    verify: bool = False
    evaluate: bool = False
    evaluation_data: str | Path | None = None
    overwrite: bool = False
    upload_repo: str | None = None

    def __post_init__(self) -> None:
        chosen = {"q_bits": self.q_bits, "q_group_size": self.q_group_size, "q_mode": self.q_mode}
        given = [name for name, value in (chosen | {"recipe": self.recipe}).items() if value is not None]
        if self.dequantize or not self.quantize:
            given += [name for name in ("calibrate", "target_bpw") if getattr(self, name) is not None]
            if given:
                raise ValueError(f"{' and '.join(given)} have no meaning where nothing is quantized")
        if self.dequantize and not self.quantize:
            raise ValueError("dequantize and quantize=False say the same about different sources: give one of them")
        if self.recipe is not None:
            if self.recipe not in RECIPES:
                raise ValueError(f"recipe {self.recipe!r} is unknown; there are {', '.join(RECIPES)}")
            if self.q_bits is not None or self.q_mode is not None:
                raise ValueError(f"the recipe {self.recipe} says how many bits: leave q_bits and q_mode out")
        if self.target_bpw is not None and self.recipe != "4bit-quality":
            raise ValueError("target_bpw is for the recipe 4bit-quality")
        if self.recipe is None:
            _quantization(self)
        if self.calibrate is not None and self.calibrate not in METHODS:
            raise ValueError(f"calibrate must be one of {', '.join(METHODS)}, not {self.calibrate!r}")
        if self.calibrate and (self.q_mode or self.recipe) in {*DEFAULTS} - {"affine"}:
            raise ValueError(f"calibration tunes affine scales and biases, and {self.q_mode or self.recipe} has none")
        if self.calibration_data is not None and self.calibrate is None:
            raise ValueError("calibration_data needs calibrate beside it")
        if self.evaluation_data is not None and not self.evaluate:
            raise ValueError("evaluation_data needs evaluate beside it")
        read_dtype(self.dtype)

    @property
    def says_how(self) -> bool:
        """Whether a quantization was asked for in so many words."""
        how = (self.q_bits, self.q_group_size, self.q_mode, self.recipe, self.calibrate)
        return any(value is not None for value in how)


def chosen_settings(opened: OpenCheckpoint, request: Request) -> tuple[dict[str, Quantization], bool, str]:
    """What is quantized and how, whether what is packed so already stays as it is, and a word for all of it."""
    quantized = [tensor for tensor in opened.source.tensors.values() if tensor.is_quantized]
    if request.dequantize:
        if not quantized:
            raise ValueError(f"{opened.folder} is in full precision: there is nothing to dequantize")
        return {}, False, "full precision"
    if not request.quantize:
        if quantized:
            raise ValueError(
                f"{opened.folder} is stored as {opened.source.format}; to have it in full precision, dequantize (-d)"
            )
        return {}, False, "full precision"
    exact = {tensor.name: tensor.exact for tensor in quantized if tensor.exact}
    if not request.says_how and exact:
        shapes = {tensor.name: tensor.shape for tensor in quantized}
        return (
            uniform(_quantization(request), shapes) | exact,
            True,
            "as stored" if len(exact) == len(shapes) else "4bit",
        )
    if request.recipe is not None:
        dtype = read_dtype(request.dtype) or opened.source.tensors[EMBEDDING].dtype
        chosen = settings_of(
            request.recipe,
            opened.shapes,
            group_size=request.q_group_size,
            target_bpw=request.target_bpw,
            float_bits=8 * dtype.size,
        )
        return chosen, False, request.recipe
    quantization = _quantization(request)
    name = f"{quantization.bits}bit" if quantization.mode == "affine" else quantization.mode
    return uniform(quantization, opened.shapes), False, name


def _quantization(request: Request) -> Quantization:
    mode = request.q_mode or "affine"
    bits, group_size = DEFAULTS.get(mode, (0, 0))
    return Quantization(
        bits if request.q_bits is None else request.q_bits,
        group_size if request.q_group_size is None else request.q_group_size,
        mode,
    )


def digested(request: Request, recipe: str) -> dict[str, Any]:
    """What beside tensors decides about the bytes of the result."""
    told: dict[str, Any] = {
        "exaone4_mlx": __version__,
        "mlx": metadata.version("mlx"),
        "recipe": recipe,
        "search": request.search,
        "calibrate": request.calibrate,
    }
    if request.calibrate:
        told["text"] = hashlib.sha256(calibration_file(request).read_bytes()).hexdigest()
    return told


def searches(request: Request, plan: Plan) -> bool:
    """Whether scales and biases are searched for in any tensor."""
    made = [tensor.quantization for tensor in plan.tensors if tensor.work in ("quantize", "requantize")]
    return request.search and any(quantization and quantization.mode == "affine" for quantization in made)


def notes_on(opened: OpenCheckpoint, plan: Plan, request: Request) -> tuple[str, ...]:
    """What a user should know who asked for this."""
    notes = []
    works = {
        work: [tensor for tensor in plan.tensors if tensor.work == work] for work in ("copy", "repack", "requantize")
    }
    packed = works["repack"] + [tensor for tensor in works["copy"] if tensor.quantization]
    if packed:
        notes.append(f"{len(packed)} tensors stay as they are packed ({opened.source.format}); --q-bits quantizes anew")
    if works["requantize"]:
        notes.append(
            f"{len(works['requantize'])} tensors are {opened.source.format} and are quantized a second time, from what "
            "the first time left of them; the original checkpoint would give better ones"
        )
    left = [t.name for t in plan.tensors if t.quantization is None and len(t.shape) == 2]
    if left and (request.says_how or not packed) and request.quantize and not request.dequantize:
        notes.append(
            f"{len(left)} matrices stay in full precision, {left[0]} among them: their rows do not divide into groups"
        )
    if not request.search and not any(tensor.work in ("quantize", "requantize") for tensor in plan.tensors):
        notes.append("nothing is quantized here, so --no-search changes nothing")
    return tuple(notes)


def check_texts(request: Request, tokenizer: Tokenizer) -> list[list[int]]:
    """Reads the texts that will be needed, and sees to it that nothing is measured on what was tuned on.

    Returns the ids of the texts to calibrate on.
    """
    tuned = read_passages(calibration_file(request)) if request.calibrate else []
    measured = read_passages(evaluation_file(request)) if request.evaluate else []
    for passage in measured:
        encode(passage, tokenizer, 2)  # raises where the template refuses it
    if shared := overlap(tuned, measured):
        raise ValueError(f"the texts to calibrate on and to evaluate on share {shared[0]!r}: the figures would flatter")
    return [encode(passage, tokenizer, MAX_TOKENS) for passage in tuned]


def calibration_file(request: Request) -> Path:
    return CALIBRATION if request.calibration_data is None else Path(request.calibration_data).expanduser()


def evaluation_file(request: Request) -> Path:
    return HELD_OUT if request.evaluation_data is None else Path(request.evaluation_data).expanduser()
