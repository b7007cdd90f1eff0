"""A checkpoint in any format -> an MLX folder, quantized or not.

What is peculiar here:
- Everything that can be known is known before work starts: what becomes of each tensor, the sizes, the disk.
- A few rows of one tensor are in memory at a time; the calibrated methods hold one block.
- The result appears under its name only when it is whole and was read back. A run that was killed is gone on with
  by the same request, and its bytes are those of a run that was not.
- Its config.json carries every spelling, so that mlx-lm and transformers of any age read it.
"""

from __future__ import annotations

import fnmatch
import json
import math
import os
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from .. import __version__
from ..files.folders import find_folder, read_json
from ..files.format import size_text
from ..files.safetensors import FLOAT_DTYPES, CheckpointError, check_finite, read_dtype
from ..model.network import Exaone4ForCausalLM
from ..model.source import OpenCheckpoint, open_checkpoint
from ..text.tokenizer import Tokenizer
from .calibrate import Calibration, Progress
from .card import model_card, public_origin
from .distill import POSITIONS
from .evaluate import MAX_TOKENS, Evaluation, evaluate
from .plan import Plan, Planned, make_plan, source_identity
from .plot import PLOT_NAME, error_plot
from .request import (
    Request,
    check_texts,
    chosen_settings,
    digested,
    evaluation_file,
    notes_on,
    searches,
)
from .search import SLICE, searched
from .shards import Shards
from .staging import check_target, partial_folder
from .upload import CARRIED_FILES, check_upload_name, upload
from .verify import TensorError, check_folder, check_written, tensor_errors

#: What a result takes on the disk beside its weights: tokenizer, card, report.
DISK_MARGIN = 50_000_000
#: Bytes of memory for a weight of a chunk (as read, cast, packed), and for one that the search works on. Measured.
CHUNK_BYTES, SEARCH_BYTES = 12, 48


@dataclass(frozen=True)
class Summary:
    """What a conversion made. `peak_bytes` is MLX's own peak, `bits_per_weight` counts scales and biases.

    `errors` are there if it was verified, `evaluation` if it was evaluated, `page` if it was uploaded; `notes` are
    what a user should know.
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
            f"Summary({str(self.path)!r}: {size_text(self.bytes)} from {size_text(self.source_bytes)}, "
            f"{self.bits_per_weight:.3f} bits per weight, {self.seconds:.1f} s)"
        )


@dataclass
class _Made:
    """What came of the making of a folder."""

    errors: tuple[TensorError, ...] | None = None
    evaluation: Evaluation | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    peak_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Conversion:
    """A conversion that is checked and planned, and not begun.

    `disk_bytes` is what the target's disk must have free; `peak_bytes` about what MLX will hold at the peak.
    """

    origin: str
    target: Path
    request: Request
    opened: OpenCheckpoint
    plan: Plan
    notes: tuple[str, ...]
    disk_bytes: int
    free_bytes: int
    is_done: bool  # before: only the upload is left, which failed then
    sequences: Sequence[Sequence[int]]  # ids of the texts to calibrate on

    @property
    def recipe(self) -> str:
        """The quantization in a word, for cards and reports."""
        return str(self.plan.options["recipe"])

    @property
    def peak_bytes(self) -> int:
        """About what MLX will hold at the peak."""
        sources = self.opened.source.tensors
        chunk = max(t.rows_at_a_time * math.prod(t.shape[1:]) for t in self.plan.tensors)
        across = [t for t in self.plan.tensors if any(part.endswith(".qweight") for part in sources[t.name].stored)]
        whole = [math.prod(t.shape) * 6 for t in across]  # packed along the rows, and so unpacked whole
        whole += [3 * t.nbytes for t in self.plan.tensors if t.work in ("copy", "repack") and t.quantization]
        return max([CHUNK_BYTES * chunk + SEARCH_BYTES * SLICE, *whole]) + self._calibration_bytes

    @property
    def _calibration_bytes(self) -> int:
        """Hidden states of all texts, a block in float32, the statistics of its widest input; the student."""
        if self.request.calibrate is None:
            return 0
        config = self.opened.config
        widest = max(config.intermediate_size, config.num_attention_heads * config.head_dim, config.hidden_size)
        block = sum(math.prod(t.shape) for t in self.plan.tensors if t.name.startswith("model.layers.0."))
        needed = 4 * (4 * sum(map(len, self.sequences)) * config.hidden_size + 2 * block + 5 * widest * widest)
        if self.request.calibrate == "distill":
            needed += self.plan.nbytes + 12 * config.vocab_size * (config.hidden_size + 2 * POSITIONS)
        return needed

    def run(self, progress: Progress | None = None, notice: Callable[[str], None] = warnings.warn) -> Summary:
        """Does it. Errors and what they leave are those of `convert`; `notice` is told what an upload means."""
        started = time.perf_counter()
        mx.reset_peak_memory()
        made = _Made() if self.is_done else self._make(progress)
        page = None
        if self.request.upload_repo:
            if self.is_done:
                check_folder(self.target)
                self._write_card(self.target, read_json(self.target / "report.json"))
            page = upload(self.target, self.request.upload_repo, notice=notice)
        return Summary(
            path=self.target,
            parameters=self.plan.parameters,
            source_bytes=self.plan.source_bytes,
            bytes=self.plan.nbytes,
            bits_per_weight=self.plan.bits_per_weight,
            seconds=time.perf_counter() - started,
            peak_bytes=max(made.peak_bytes, mx.get_peak_memory()),
            notes=self.notes,
            errors=made.errors,
            evaluation=made.evaluation,
            page=page,
        )

    def _make(self, progress: Progress | None) -> _Made:
        """The folder, whole or not at all."""
        if self.disk_bytes > self.free_bytes:
            raise OSError(
                f"the disk of {self.target} has {self.free_bytes / 1e9:.2f} GB free, "
                f"and {self.disk_bytes / 1e9:.2f} GB are needed; free some, or choose another place"
            )
        check_target(self.target, self.opened.folder, self.request.overwrite)
        made, started = _Made(), time.perf_counter()
        with partial_folder(self.target, self.plan.digest, self.request.overwrite) as partial, _disk(partial.path):
            shards = Shards(partial.path, self.plan)
            try:
                self._write_beside(partial.path)
                self._write_weights(shards, progress)
                if source_identity(self.opened) != self.plan.source:
                    raise CheckpointError(f"{self.opened.folder} was changed while it was being converted; begin again")
                check_written(shards, self.plan)
                if self.request.verify or self.request.evaluate:
                    made.errors = self._verify(shards, progress)
                made.digests = shards.digests
            finally:
                shards.close()
            open_checkpoint(
                partial.path, Exaone4ForCausalLM
            )  # accounts for every tensor once more, as a reader of the folder will
            Tokenizer.from_pretrained(partial.path)
            partial.keep = True  # from here on the weights are whole: what fails can be done again
            made.peak_bytes, made.seconds = mx.get_peak_memory(), time.perf_counter() - started
            if self.request.evaluate:
                made.evaluation = self._evaluate(partial.path, progress)
            self._write_report(partial.path, made)
        return made

    def _write_weights(self, shards: Shards, progress: Progress | None) -> None:
        def write(tensor: Planned) -> None:
            if not shards.is_done(tensor):
                self._write_tensor(shards, tensor)

        if self.request.calibrate is None:
            done = 0
            for tensor in self.plan.tensors:
                write(tensor)
                done += tensor.source_bytes
                if progress:
                    progress(done, self.plan.source_bytes, "converting")
            return
        Calibration(self.request.calibrate, self.sequences, self.opened, self.plan, shards, write, progress).run()

    def _write_tensor(self, shards: Shards, tensor: Planned) -> None:
        """Some rows at a time, so that memory does not depend on the tensor's size."""
        if tensor.work in ("copy", "repack") and tensor.quantization is not None:
            for output, (name, array) in zip(tensor.outputs, self.opened.parts(tensor.name), strict=True):
                array = array.astype(output.dtype)  # scales and biases, if another dtype is asked for
                check_finite(array, name)
                shards.write(name, array)
        else:
            for start in range(0, tensor.shape[0], tensor.rows_at_a_time):
                rows = self.opened.source.weight(tensor.name, start, start + tensor.rows_at_a_time)
                for name, array in self._made(tensor, rows):
                    shards.write(name, array, start)
                del rows, array
                mx.clear_cache()
        shards.done(tensor.outputs)

    def _made(self, tensor: Planned, rows: mx.array) -> list[tuple[str, mx.array]]:
        cast = read_dtype(self.request.dtype)
        weight = rows if cast is None else rows.astype(cast)
        check_finite(weight, tensor.name, rows)
        quantization = tensor.quantization
        if quantization is None:
            return [(tensor.name, weight)]
        if self.request.search and quantization.mode == "affine":
            return quantization.named(tensor.name, searched(weight, quantization.bits, quantization.group_size))
        return quantization.tensors(tensor.name, weight)

    def _verify(self, shards: Shards, progress: Progress | None) -> tuple[TensorError, ...]:
        errors = []
        sizes = {tensor.name: tensor.source_bytes for tensor in self.plan.tensors}
        done = 0
        for error in tensor_errors(shards, self.opened, self.plan):
            errors.append(error)
            done += sizes[error.name]
            if progress:
                progress(done, self.plan.source_bytes, "verifying")
        return tuple(errors)

    def _evaluate(self, folder: Path, progress: Progress | None) -> Evaluation:
        told = (lambda done, total: progress(done, total, "evaluating")) if progress else None
        longest = min(MAX_TOKENS, self.opened.config.max_position_embeddings)
        texts = evaluation_file(self.request)
        found = evaluate(folder, self.opened.folder, data=texts, max_tokens=longest, progress=told)
        return replace(found, model=self.target.name, reference=public_origin(self.origin))

    # --- what stands beside the weights ---

    def _write_beside(self, folder: Path) -> None:
        """The config and what is carried over: the same at every run, whatever a stopped one left of it."""
        for file in folder.iterdir():
            if any(fnmatch.fnmatchcase(file.name, pattern) for pattern in ("config.json", *CARRIED_FILES)):
                file.unlink()
        config = read_json(self.opened.folder / "config.json") | self.opened.config.to_dict()
        for key in ("_name_or_path", "quantization", "quantization_config"):
            config.pop(key, None)
        if self.request.dtype is not None:
            cast = read_dtype(self.request.dtype)
            name = next(name for name, known in FLOAT_DTYPES.items() if known == cast)
            config |= {"dtype": name, "torch_dtype": name}
        if told := _told_quantization(self.plan):
            config["quantization"] = config["quantization_config"] = told
        _write_text(folder / "config.json", json.dumps(dict(sorted(config.items())), indent=4))
        for pattern in CARRIED_FILES:
            for file in sorted(self.opened.folder.glob(pattern)):
                if file.is_file():
                    shutil.copyfile(file, folder / file.name)
        about = folder / "tokenizer_config.json"
        if about.is_file() and "name_or_path" in (told := read_json(about)):  # where it lay when it was saved
            _write_text(
                about, json.dumps({k: v for k, v in told.items() if k != "name_or_path"}, indent=2, ensure_ascii=False)
            )

    def _write_report(self, folder: Path, made: _Made) -> None:
        """report.json, the card, and a picture of the errors."""
        found = {error.name: error for error in made.errors or ()}
        measured = {"seconds": made.seconds, "peak_bytes": made.peak_bytes, "plan": self.plan.digest}
        report: dict[str, Any] = {"conversion": self.describe() | measured}
        for tensor in report["conversion"]["tensors"]:
            if error := found.get(tensor["name"]):
                sqnr = error.sqnr_db if math.isfinite(error.sqnr_db) else None  # JSON knows no infinity
                tensor |= {"relative_error": error.relative_error, "sqnr_db": sqnr}
        if made.evaluation is not None:
            report["evaluation"] = asdict(made.evaluation)
        report["sha256"] = made.digests
        _write_text(folder / "report.json", json.dumps(report, indent=2, ensure_ascii=False))
        if picture := error_plot(report["conversion"]["tensors"]):
            _write_text(folder / PLOT_NAME, picture)
        self._write_card(folder, report)

    def _write_card(self, folder: Path, report: Mapping[str, Any]) -> None:
        licences = sorted(file.name for pattern in ("LICENSE*", "NOTICE*") for file in folder.glob(pattern))
        name = self.request.upload_repo or self.target.name
        card = model_card(
            name=name,
            origin=self.origin,
            report=report,
            licence_files=licences,
            source_card=_card(self.opened.folder),
        )
        _write_text(folder / "README.md", card)

    def describe(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "exaone4_mlx": __version__,
            "origin": public_origin(self.origin),
            "format": self.opened.source.format,
            "recipe": self.recipe,
            "search": searches(self.request, self.plan),
            "calibrate": self.request.calibrate,
            "bits_per_weight": self.plan.bits_per_weight,
            "bytes": self.plan.nbytes,
            "source_bytes": self.plan.source_bytes,
            "parameters": self.plan.parameters,
            "notes": list(self.notes),
            "shards": list(self.plan.shards),
            "tensors": [
                {
                    "name": tensor.name,
                    "shape": list(tensor.shape),
                    "work": tensor.work,
                    "bits": tensor.quantization.bits if tensor.quantization else 8 * tensor.outputs[0].dtype.size,
                    "group_size": tensor.quantization.group_size if tensor.quantization else None,
                    "mode": tensor.quantization.mode if tensor.quantization else None,
                    "dtype": str(tensor.outputs[-1].dtype).removeprefix("mlx.core."),
                    "bytes": tensor.nbytes,
                }
                for tensor in self.plan.tensors
            ],
        }


def convert(
    hf_path: str | Path,
    mlx_path: str | Path = "mlx_model",
    *,
    quantize: bool = True,
    q_bits: int | None = None,
    q_group_size: int | None = None,
    q_mode: str | None = None,
    recipe: str | None = None,
    target_bpw: float | None = None,
    search: bool = True,
    calibrate: str | None = None,
    calibration_data: str | Path | None = None,
    dequantize: bool = False,
    dtype: mx.Dtype | str | None = None,
    verify: bool = False,
    evaluate: bool = False,
    evaluation_data: str | Path | None = None,
    overwrite: bool = False,
    upload_repo: str | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
    notice: Callable[[str], None] = warnings.warn,
) -> Summary:
    """Converts an EXAONE 4 checkpoint (a folder, a hub id or "demo") to a folder that MLX loads fast.

    It reads Hugging Face's full precision, AWQ, GPTQ, FP8 and compressed-tensors, and MLX folders. Weights are
    cast to `dtype` (None keeps theirs) and, unless `quantize` is false, projections and embedding are quantized:
    to `q_bits` in groups of `q_group_size` of `q_mode` (4, 64, affine), or by a `recipe`, for which `target_bpw`
    is what 4bit-quality may spend. What is quantized already stays as it is unless bits are asked for;
    `dequantize` brings it back to full precision. The layout is mlx-lm's.

    `search` finds the scales and biases of least error; `calibrate` is "gptq" or "distill" (which comes on top), on
    the texts of `calibration_data`. `verify` compares each tensor with its source, `evaluate` measures the cost on
    the texts of `evaluation_data`; both go into report.json and the model card. `upload_repo` publishes the result
    (the same call tries again, if that failed); `notice` is told before what that means.
    `progress(done, total, stage)` counts source bytes, or steps.

    Raises FileExistsError where `mlx_path` exists and is not to be overwritten, FileNotFoundError and ValueError as
    `load` does, CheckpointError for NaN and infinity, and OSError when the disk is too small. After an error nothing
    half done is left; after a kill, Ctrl-C, or an error once the weights were whole, the same call goes on in
    `MLX_PATH.partial`.
    """
    request = Request(
        quantize=quantize,
        q_bits=q_bits,
        q_group_size=q_group_size,
        q_mode=q_mode,
        recipe=recipe,
        target_bpw=target_bpw,
        search=search,
        calibrate=calibrate,
        calibration_data=calibration_data,
        dequantize=dequantize,
        dtype=dtype,
        verify=verify,
        evaluate=evaluate,
        evaluation_data=evaluation_data,
        overwrite=overwrite,
        upload_repo=upload_repo,
    )
    return prepare(hf_path, mlx_path, request, revision).run(progress, notice)


def prepare(
    hf_path: str | Path, mlx_path: str | Path, request: Request, revision: str | None = None, dry: bool = False
) -> Conversion:
    """Checks and plans a conversion; headers and small files are read, and nothing is written.

    `dry` is for a plan that is only to be shown: its target may exist.
    """
    target = Path(os.path.abspath(Path(mlx_path).expanduser()))
    source = find_folder(hf_path, revision)
    if request.upload_repo:
        check_upload_name(request.upload_repo, str(hf_path), _card(source))
    opened = open_checkpoint(source, Exaone4ForCausalLM)
    tokenizer = Tokenizer.from_pretrained(source)  # or the result could not be loaded
    sequences = check_texts(request, tokenizer)
    settings, keeps, recipe = chosen_settings(opened, request)
    plan = make_plan(opened, settings, keeps, read_dtype(request.dtype), digested(request, recipe))
    is_done = bool(request.upload_repo) and not request.overwrite and _has_made(target, plan, request)
    if not is_done and not dry:
        check_target(target, source, request.overwrite)
    existing = next(folder for folder in (target, *target.parents) if folder.is_dir())
    partial = target.with_name(target.name + ".partial")
    held = sum(file.stat().st_blocks * 512 for file in partial.glob("*.safetensors")) if partial.is_dir() else 0
    return Conversion(
        origin=str(hf_path),
        target=target,
        request=request,
        opened=opened,
        plan=plan,
        notes=notes_on(opened, plan, request),
        disk_bytes=plan.nbytes + DISK_MARGIN,
        free_bytes=shutil.disk_usage(existing).free + held,
        is_done=is_done,
        sequences=sequences,
    )


def _has_made(folder: Path, plan: Plan, request: Request) -> bool:
    """Whether a finished folder is what this plan makes, with what was asked for beside."""
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        verified = "relative_error" in report["conversion"]["tensors"][0]
        same = report["conversion"]["plan"] == plan.digest
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return same and verified >= request.verify and ("evaluation" in report) >= request.evaluate


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """Errors of the disk with what they are about."""
    try:
        yield
    except OSError as error:
        if error.strerror is None or error.filename is not None:
            raise
        raise OSError(f"{folder} cannot be written: {error.strerror}") from error


def _told_quantization(plan: Plan) -> dict[str, Any] | None:
    """For config.json: what most layers have, and under their names what others have."""
    layers = {t.name.removesuffix(".weight"): t.quantization for t in plan.tensors if t.quantization is not None}
    if not layers:
        return None
    default, _ = Counter(layers.values()).most_common(1)[0]
    return default.as_dict() | {name: own.as_dict() for name, own in layers.items() if own != default}


def _card(folder: Path) -> str | None:
    file = folder / "README.md"
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None


def _write_text(file: Path, text: str) -> None:
    file.write_text(text + ("" if text.endswith("\n") else "\n"), encoding="utf-8")
