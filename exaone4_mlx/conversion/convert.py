"""A checkpoint in any format -> an MLX folder, quantized or not.

Notes:
- All checks come before the work: the treatment of each tensor, the sizes and the disk space are known in advance.
- A few rows of one tensor are in memory at a time; the calibrated methods hold one block.
- The folder gets its name only when it is complete and was read back. After a kill, the same request resumes the
  run, and the bytes are those of an uninterrupted run.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx

from ..files.folders import read_json
from ..files.safetensors import CheckpointError, check_finite, read_dtype
from ..generation.names import refuse_unknown
from ..model.network import Exaone4ForCausalLM
from ..model.pretrained import open_checkpoint
from ..text.format import size_text
from ..text.tokenizer import Tokenizer
from .calibrate import Calibration, StageProgress
from .evaluate import MAX_TOKENS, evaluate
from .evaluation import Evaluation
from .licence import public_origin
from .plan import PlannedTensor, source_identity
from .prepare import Conversion, prepare
from .request import ConversionOptions, ConversionRequest
from .search import quantize_mse
from .settings import evaluation_file
from .shards import Shards
from .sidecar import write_card, write_config_and_tokenizer, write_report
from .staging import StagingFolder, check_target, staging_folder
from .upload import upload
from .verify import TensorError, check_folder, check_written, tensor_errors

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class ConversionSummary:
    """The result of a conversion.

    `peak_bytes` is MLX's own peak; `bits_per_weight` counts scales and biases. `errors` is None unless the result was
    verified, `evaluation` unless it was evaluated, `page` unless it was uploaded. `notes` are for the user.
    """

    path: Path
    parameters: int
    source_bytes: int
    bytes: int
    bits_per_weight: float
    seconds: float
    peak_bytes: int
    notes: tuple[str, ...] = ()
    errors: tuple[TensorError, ...] | None = None
    evaluation: Evaluation | None = None
    page: str | None = None

    def __repr__(self) -> str:
        return (
            f"ConversionSummary({str(self.path)!r}: {size_text(self.bytes)} from {size_text(self.source_bytes)}, "
            f"{self.bits_per_weight:.3f} bits per weight, {self.seconds:.1f} s)"
        )


#: The errors, if verified; the evaluation, if evaluated; the peak memory in bytes.
_Measured = tuple[tuple[TensorError, ...] | None, Evaluation | None, int]


def convert(
    hf_path: str | Path,
    mlx_path: str | Path = "mlx_model",
    *,
    revision: str | None = None,
    progress: StageProgress | None = None,
    notice: Callable[[str], None] = warnings.warn,
    **options: Unpack[ConversionOptions],
) -> ConversionSummary:
    """Converts an EXAONE 4 checkpoint (a folder, a hub id or "demo") to an MLX folder in mlx-lm's layout.

    The source may be in full precision, AWQ, GPTQ, FP8, compressed-tensors or MLX format. `options` are the fields
    of `ConversionRequest`:

    - `dtype` casts the weights. Projections and embedding are quantized unless `quantize` is false: to `q_bits` in
      groups of `q_group_size` of `q_mode` (4, 64, affine), or by a `recipe`; `target_bpw` is the bits per weight of
      the recipe 4bit-quality. Quantized weights keep their codes unless one of these is given; `dequantize` converts
      them to full precision.
    - `search` finds the scales and biases of least error. `calibrate` is "weighted" (the error counts by the input of
      each column), "gptq", "distill" (GPTQ, then tuning), None, or "auto": None without a GPU, unless texts are given;
      else GPTQ on 48 texts (weighted for a model that is large or short of memory). The texts are the first
      `num_samples` of `calibration_data`; all of the package's are joined by chats of the original, where it fits.
    - `verify` compares each tensor with its source; `evaluate` measures the loss on the texts of `evaluation_data`.
      Both results go into report.json and the model card.
    - `overwrite` replaces an existing folder. `upload_repo` publishes the result; if that fails, the same call tries
      again. `notice(text)` is called before the upload with its terms, and after an error that keeps the weights.

    `progress(done, total, stage)` counts source bytes while it converts and verifies, else steps.

    Raises FileExistsError where `mlx_path` exists, FileNotFoundError and ValueError as `load` does, CheckpointError
    for NaN and infinity, and OSError when the disk is too small. An error leaves no partial result. After a kill,
    Ctrl-C, or an error once the weights are complete, the same call resumes from `MLX_PATH.partial`.
    """
    refuse_unknown(options, [field.name for field in fields(ConversionRequest)])
    conversion = prepare(hf_path, mlx_path, ConversionRequest(**options), revision, progress=progress)
    return run_conversion(conversion, progress, notice)


def run_conversion(
    conversion: Conversion, progress: StageProgress | None = None, notice: Callable[[str], None] = warnings.warn
) -> ConversionSummary:
    """Runs a prepared conversion, with the errors of `convert`."""
    started = time.perf_counter()
    mx.reset_peak_memory()
    plan, repo = conversion.plan, conversion.request.upload_repo
    errors, evaluation, peak_bytes = None, None, 0
    if not conversion.is_done:
        errors, evaluation, peak_bytes = _make_folder(conversion, progress, notice)
    if repo and conversion.is_done:
        check_folder(conversion.target)
        write_card(conversion.target, conversion, read_json(conversion.target / "report.json"))
    page = upload(conversion.target, repo, notice=notice) if repo else None
    return ConversionSummary(
        path=conversion.target,
        parameters=plan.parameters,
        source_bytes=plan.source_bytes,
        bytes=plan.nbytes,
        bits_per_weight=plan.bits_per_weight,
        seconds=time.perf_counter() - started,
        peak_bytes=max(peak_bytes, mx.get_peak_memory()),
        notes=conversion.notes,
        errors=errors,
        evaluation=evaluation,
        page=page,
    )


def _make_folder(conversion: Conversion, progress: StageProgress | None, notice: Callable[[str], None]) -> _Measured:
    """Makes the complete folder under its name, or raises."""
    request, plan, target = conversion.request, conversion.plan, conversion.target
    if conversion.disk_bytes > conversion.free_bytes:
        raise OSError(
            f"the disk of {target} has {conversion.free_bytes / 1e9:.2f} GB free, "
            f"and {conversion.disk_bytes / 1e9:.2f} GB are needed; free some space, or choose another disk"
        )
    check_target(target, conversion.opened.folder, request.overwrite)
    started, errors, evaluation = time.perf_counter(), None, None
    with (
        staging_folder(target, plan.digest, request.overwrite) as staging,
        _explained_errors(staging, notice),
        closing(Shards(staging.path, plan)) as shards,
    ):
        try:
            write_config_and_tokenizer(staging.path, conversion)
            _write_weights(conversion, shards, progress)
        finally:
            staging.keep = all(map(shards.is_done, plan.tensors))  # a later error does not discard complete weights
        if source_identity(conversion.opened) != plan.source:
            staging.keep = False
            raise CheckpointError(f"{conversion.opened.folder} changed during the conversion; start again")
        check_written(shards, plan)
        if request.verify or request.evaluate:
            errors = _verify(conversion, shards, progress)
        open_checkpoint(staging.path, Exaone4ForCausalLM)  # checks names and shapes, as a reader of the folder does
        Tokenizer.from_pretrained(staging.path)
        measured = {"seconds": time.perf_counter() - started, "peak_bytes": mx.get_peak_memory()}
        if request.evaluate:
            evaluation = _evaluate(conversion, staging.path, progress)
        write_report(staging.path, conversion, measured, errors, evaluation, shards.digests)
    return errors, evaluation, int(measured["peak_bytes"])


def _write_weights(conversion: Conversion, shards: Shards, progress: StageProgress | None) -> None:
    def write(tensor: PlannedTensor, importance: mx.array | None = None) -> None:
        if not shards.is_done(tensor):
            _write_tensor(conversion, shards, tensor, importance)

    opened, plan, method = conversion.opened, conversion.plan, conversion.request.calibrate
    if method is not None:
        tokenizer = Tokenizer.from_pretrained(opened.folder) if conversion.has_chats else None
        Calibration(method, conversion.sequences, tokenizer, opened, plan, shards, write, progress).run()
        return
    done = 0
    for tensor in plan.tensors:
        write(tensor)
        done += tensor.source_bytes
        if progress:
            progress(done, plan.source_bytes, "converting")


def _write_tensor(
    conversion: Conversion, shards: Shards, tensor: PlannedTensor, importance: mx.array | None = None
) -> None:
    """Writes some rows at a time, so that memory does not depend on the tensor's size."""
    opened = conversion.opened
    if tensor.work in ("copy", "repack") and tensor.quantization is not None:
        for output, (name, array) in zip(tensor.outputs, opened.parts(tensor.name), strict=True):
            array = array.astype(output.dtype)  # for scales and biases in another dtype
            check_finite(array, name)
            shards.write(name, array)
    else:
        ready: tuple[int, list[tuple[str, mx.array]]] = 0, []
        for start in range(0, tensor.shape[0], tensor.rows_at_a_time):
            converted = [
                (name, shards.bytes_of(name, array))
                for name, array in _convert_rows(conversion, tensor, start, importance)
            ]
            mx.async_eval([array for _, array in converted])  # while the rows before them are written
            _write_rows(shards, *ready)
            ready = start, converted
        _write_rows(shards, *ready)
    shards.done(tensor.outputs)


def _write_rows(shards: Shards, start: int, converted: list[tuple[str, mx.array]]) -> None:
    for name, array in converted:
        shards.write_bytes(name, array, start)
    converted.clear()
    mx.clear_cache()


def _convert_rows(
    conversion: Conversion, tensor: PlannedTensor, start: int, importance: mx.array | None
) -> list[tuple[str, mx.array]]:
    """The outputs of the rows from `start` on, not yet evaluated."""
    dtype, source = read_dtype(conversion.request.dtype), conversion.opened.source
    stop = start + tensor.rows_at_a_time
    rows = source.weight(tensor.name, start, stop, dtype if tensor.name in source.changed else None)  # rounded once
    weight = rows if dtype is None else rows.astype(dtype)
    check_finite(weight, tensor.name, lambda: [rows])
    quantization = tensor.quantization
    if quantization is None:
        return [(tensor.name, weight)]
    if conversion.request.search and quantization.mode == "affine":
        parts = quantize_mse(weight, quantization.bits, quantization.group_size, importance)
        return quantization.named(tensor.name, parts)
    return quantization.tensors(tensor.name, weight)


def _verify(conversion: Conversion, shards: Shards, progress: StageProgress | None) -> tuple[TensorError, ...]:
    errors, done = [], 0
    sizes = {tensor.name: tensor.source_bytes for tensor in conversion.plan.tensors}
    for error in tensor_errors(shards, conversion.opened, conversion.plan):
        errors.append(error)
        done += sizes[error.name]
        if progress:
            progress(done, conversion.plan.source_bytes, "verifying")
    return tuple(errors)


def _evaluate(conversion: Conversion, folder: Path, progress: StageProgress | None) -> Evaluation:
    evaluation = evaluate(
        folder,
        conversion.opened.folder,
        data=evaluation_file(conversion.request),
        reference_adapters=conversion.adapters,
        max_tokens=min(MAX_TOKENS, conversion.opened.config.max_position_embeddings),
        progress=(lambda done, total: progress(done, total, "evaluating")) if progress else None,
    )
    reference = " + ".join(
        public_origin(name) for name in (conversion.origin, *(a.name for a, _ in conversion.adapters))
    )
    return replace(evaluation, model=conversion.target.name, reference=reference)


@contextmanager
def _explained_errors(staging: StagingFolder, notice: Callable[[str], None]) -> Iterator[None]:
    """Says where complete weights are after an error, and adds the folder to disk errors that name no file."""
    try:
        yield
    except Exception as error:
        if staging.keep:
            notice(f"the weights are complete and stay in {staging.path}; the same conversion resumes there")
        if isinstance(error, OSError) and error.strerror is not None and error.filename is None:
            raise OSError(f"{staging.path} cannot be written: {error.strerror}") from error
        raise
