"""What a conversion is asked to do: one frozen value, checked before any file is read.

Notes:
- `ConversionRequest` is the only list of options. `convert` takes its fields as keyword arguments, typed by
  `ConversionOptions`; the command line derives its flags, defaults and help from the fields' metadata.
- This module imports MLX only when a request is made, so that `convert --help` is fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from pathlib import Path

    import mlx.core as mx

    from ..checkpoint.quantize import Quantization

BYTE_STAGES = ("converting", "verifying")  # whose progress counts bytes; that of others counts steps
CALIBRATION_METHODS = ("auto", "weighted", "gptq", "distill")


class ConversionOptions(TypedDict, total=False):
    """The fields of `ConversionRequest` as keyword arguments."""

    dtype: mx.Dtype | str | None
    quantize: bool
    dequantize: bool
    q_bits: int | None
    q_group_size: int | None
    q_mode: str | None
    recipe: str | None
    target_bpw: float | None
    search: bool
    calibrate: str | None
    calibration_data: str | Path | None
    num_samples: int | None
    verify: bool
    evaluate: bool
    evaluation_data: str | Path | None
    overwrite: bool
    upload_repo: str | None


def _option(default: Any, group: str, help: str, *flags: str, **argument: Any) -> Any:
    """A field with metadata: group, help and further flags, and keywords of argparse's `add_argument`."""
    return field(default=default, metadata={"group": group, "help": help, "names": flags, "argument": argument})


@dataclass(frozen=True, kw_only=True)
class ConversionRequest:
    """How a checkpoint is converted. Raises ValueError for options that contradict each other."""

    dtype: mx.Dtype | str | None = _option(
        None, "", "cast the weights (default: keep theirs)", choices=("bfloat16", "float16", "float32")
    )
    quantize: bool = _option(True, "whether", "default: yes", "-q")
    dequantize: bool = _option(False, "whether", "convert a quantized checkpoint to full precision", "-d")
    q_bits: int | None = _option(None, "bits", "bits per weight (default: 4; 8 for mxfp8)", type=int, metavar="N")
    q_group_size: int | None = _option(
        None, "bits", "weights per scale (default: 64 for affine)", type=int, metavar="N"
    )
    q_mode: str | None = _option(None, "bits", "default: affine", choices=("affine", "mxfp4", "nvfp4", "mxfp8"))
    recipe: str | None = _option(
        None, "bits",
        "4bit, 4bit-quality, 8bit, mxfp4, nvfp4, mxfp8, or mlx-lm's mixed_2_6, mixed_3_4, mixed_3_6, mixed_4_6",
        "--quant-predicate", metavar="NAME",
    )  # fmt: skip
    target_bpw: float | None = _option(
        None, "bits", "bits per weight of 4bit-quality (default: 4.85)", type=float, metavar="X"
    )
    search: bool = _option(
        True, "quality",
        "search for scales and biases of least error; --no-search takes them from minimum and maximum, as mlx-lm does "
        "(default: yes)",
    )  # fmt: skip
    calibrate: str | None = _option(
        "auto", "calibrate",
        "by texts, in rising cost: weighted, gptq, distill (default: auto, on a GPU gptq on 48 texts)",
        choices=CALIBRATION_METHODS,
    )  # fmt: skip
    calibration_data: str | Path | None = _option(
        None, "quality", "texts to calibrate on: .txt, .md or .jsonl (default: the package's)", metavar="FILE"
    )
    num_samples: int | None = _option(
        None, "quality", "the first N texts, without chats (default: all; 48 of the package's for auto and weighted)",
        type=int, metavar="N",
    )  # fmt: skip
    verify: bool = _option(False, "trust", "compare every written tensor with its source")
    evaluate: bool = _option(False, "trust", "measure the quality loss for the model card; implies --verify")
    evaluation_data: str | Path | None = _option(
        None, "trust", "texts to evaluate on: .txt, .md or .jsonl (default: the package's)", metavar="FILE"
    )
    overwrite: bool = _option(False, "rerun", "replace the folder, and the files of an interrupted run")
    upload_repo: str | None = _option(
        None, "output", "publish the result on the hub; the name of an EXAONE model must begin with EXAONE",
        metavar="REPO",
    )  # fmt: skip

    def __post_init__(self) -> None:
        from ..checkpoint.quantize import DEFAULTS
        from ..files.safetensors import read_dtype
        from .recipe import RECIPES

        read_dtype(self.dtype)
        if self.dequantize or not self.quantize:
            names = ["q_bits", "q_group_size", "q_mode", "recipe", "target_bpw"]
            names += ["calibrate", "calibration_data", "num_samples"]
            if given := [name for name in names if getattr(self, name) not in (None, "auto")]:
                raise ValueError(f"nothing is quantized here, so leave out {', '.join(given)}")
        if self.dequantize and not self.quantize:
            raise ValueError("dequantize and quantize=False exclude each other: give one of them")
        if self.recipe is not None:
            if self.recipe not in RECIPES:
                raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, not {self.recipe!r}")
            if self.q_bits is not None or self.q_mode is not None:
                raise ValueError(f"the recipe {self.recipe} sets the bits: leave out q_bits and q_mode")
        if self.target_bpw is not None and self.recipe != "4bit-quality":
            raise ValueError("target_bpw needs the recipe 4bit-quality")
        if self.recipe is None:
            try:
                _ = self.quantization
            except ValueError as error:
                raise ValueError(f"q_bits and q_group_size: {error}") from error
        if self.calibrate is not None and self.calibrate not in CALIBRATION_METHODS:
            raise ValueError(f"calibrate must be one of {', '.join(CALIBRATION_METHODS)}, not {self.calibrate!r}")
        if self.calibrate not in (None, "auto") and (self.q_mode or self.recipe) in {*DEFAULTS} - {"affine"}:
            raise ValueError(
                f"q_mode or recipe must be affine to calibrate, not {self.q_mode or self.recipe}: calibration "
                "fits scales and biases"
            )
        if self.calibrate not in (None, "auto") and not self.search:
            raise ValueError(f"calibrate {self.calibrate} searches for scales: leave out --no-search (search=False)")
        for name in ("calibration_data", "num_samples"):
            if getattr(self, name) is not None and self.calibrate is None:
                raise ValueError(f"{name} has no effect without calibration: leave one of them out")
        if self.num_samples is not None and not (isinstance(self.num_samples, int) and self.num_samples > 0):
            raise ValueError(f"num_samples must be a whole number from 1 on, not {self.num_samples!r}")
        if self.evaluation_data is not None and not self.evaluate:
            raise ValueError("evaluation_data needs evaluate")

    @property
    def quantization(self) -> Quantization:
        """The quantization of all weights where there is no recipe. Raises ValueError for bits that MLX lacks."""
        from ..checkpoint.quantize import DEFAULTS, Quantization

        mode = self.q_mode or "affine"
        bits, group_size = DEFAULTS.get(mode, (0, 0))
        return Quantization(
            bits if self.q_bits is None else self.q_bits,
            group_size if self.q_group_size is None else self.q_group_size,
            mode,
        )

    @property
    def names_quantization(self) -> bool:
        """Whether the caller chose a quantization, in place of the default."""
        given = (self.q_bits, self.q_group_size, self.q_mode, self.recipe, self.calibrate)
        return any(value not in (None, "auto") for value in given)
