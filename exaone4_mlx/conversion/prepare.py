"""A request and a checkpoint -> a `Conversion`: checked, planned, with its memory and disk needs, not yet begun.

Notes:
- Only headers, small files and the calibration texts are read, and nothing is written. For 4bit-quality with texts the
  weights are read too, since their errors decide the bits.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..checkpoint.quantize import Quantization
from ..files.folders import find_folder
from ..files.safetensors import read_dtype
from ..model.adapter import Adapter, WeightedAdapter
from ..model.network import Exaone4ForCausalLM
from ..model.pretrained import OpenCheckpoint, Progress, open_checkpoint
from ..text.tokenizer import Tokenizer
from .adapted_source import adapters_digest, with_adapters
from .calibrate import StageProgress
from .chats import CHATS_TOKENS, answering_bytes, can_answer
from .distill import POSITIONS
from .licence import is_exaone, public_origin, source_card
from .plan import ConversionPlan, PlannedTensor, make_plan
from .recipe import QUALITY
from .request import ConversionRequest
from .search import SLICE_WEIGHTS
from .sensitivity import block_errors
from .settings import (
    calibration_bytes,
    choose_quantization,
    digest_options,
    note_on_calibration,
    notes_on,
    read_texts,
    texts_wanted,
    uses_search,
    with_method,
)
from .staging import check_target, staging_path
from .upload import check_upload_name

#: Disk space for the tokenizer, the card and the report.
DISK_MARGIN = 50_000_000
#: Bytes of memory per weight of a chunk (source, cast, packed) and per weight of a search slice. Measured.
CHUNK_BYTES, SEARCH_BYTES = 12, 48


@dataclass(frozen=True)
class Conversion:
    """A conversion that is checked and planned, and not yet begun.

    `disk_bytes` is the free space that the target's disk must have. `sequences` are the windows of the calibration
    texts, as token ids; with `has_chats` chats that the original answers join them. `is_done` says that an earlier run
    made the folder and only its upload failed. `adapters` are added to the weights.
    """

    origin: str
    target: Path
    request: ConversionRequest
    opened: OpenCheckpoint
    plan: ConversionPlan
    notes: tuple[str, ...]
    disk_bytes: int
    free_bytes: int
    is_done: bool
    sequences: Sequence[list[int]]
    adapters: Sequence[WeightedAdapter] = ()
    has_chats: bool = False

    @property
    def peak_bytes(self) -> int:
        """An estimate of MLX's peak memory."""
        sources = self.opened.source.tensors
        chunk = max(t.rows_at_a_time * math.prod(t.shape[1:]) for t in self.plan.tensors)
        # Codes that are packed along the rows can only be unpacked as a whole.
        across = [t for t in self.plan.tensors if any(part.endswith(".qweight") for part in sources[t.name].stored)]
        whole = [math.prod(t.shape) * 6 for t in across]
        whole += [3 * t.nbytes for t in self.plan.tensors if t.work in ("copy", "repack") and t.quantization]
        return max([CHUNK_BYTES * chunk + SEARCH_BYTES * SLICE_WEIGHTS, *whole]) + self._calibration_bytes

    @property
    def _calibration_bytes(self) -> int:
        """Those of the method; the student; before that, for the chats, the whole model."""
        if self.request.calibrate is None:
            return 0
        config = self.opened.config
        needed = calibration_bytes(self.opened, sum(map(len, self.sequences)) + self.has_chats * CHATS_TOKENS)
        if self.request.calibrate == "distill":
            needed += self.plan.nbytes + 12 * config.vocab_size * (config.hidden_size + 2 * POSITIONS)
        return max(needed, self.has_chats * answering_bytes(self.opened))

    def describe(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "exaone4_mlx": __version__,
            "origin": public_origin(self.origin),
            "format": self.opened.source.format,
            "recipe": self.plan.options["recipe"],
            "search": uses_search(self.request, self.plan),
            "calibrate": self.request.calibrate,
            "chats": self.has_chats,
            "num_samples": self.request.num_samples,
            "given_texts": self.request.calibration_data is not None,
            "bits_per_weight": self.plan.bits_per_weight,
            "bytes": self.plan.nbytes,
            "source_bytes": self.plan.source_bytes,
            "parameters": self.plan.parameters,
            "adapters": [describe_adapter(adapter, scale) for adapter, scale in self.adapters],
            "notes": list(self.notes),
            "shards": list(self.plan.shards),
            "tensors": [_describe_tensor(tensor) for tensor in self.plan.tensors],
        }


def prepare(
    hf_path: str | Path,
    mlx_path: str | Path,
    request: ConversionRequest,
    revision: str | None = None,
    dry_run: bool = False,
    adapters: Sequence[WeightedAdapter] = (),
    progress: StageProgress | None = None,
) -> Conversion:
    """Checks and plans a conversion of a checkpoint, with `adapters` added to its weights.

    With `dry_run` the target may exist, since nothing will be written. `progress(done, total, stage)` counts the layers
    whose errors are measured.
    """
    target = Path(os.path.abspath(Path(mlx_path).expanduser()))
    source = find_folder(hf_path, revision)
    if request.upload_repo:
        check_upload_name(request.upload_repo, str(hf_path), source_card(source))
    opened = with_adapters(open_checkpoint(source, Exaone4ForCausalLM), adapters)
    tokenizer = Tokenizer.from_pretrained(source)  # without it the result could not be loaded
    settings, keep_packed, recipe = choose_quantization(opened, request)
    is_auto, request = request.calibrate == "auto", texts_wanted(request, settings, keep_packed)
    request, sequences = read_texts(request, tokenizer, opened.config.max_position_embeddings)
    request = with_method(request, opened, sum(map(len, sequences)))
    if recipe == QUALITY and sequences:
        if not dry_run and not request.upload_repo:
            check_target(target, source, request.overwrite)  # before the weights are read
        counter: Progress | None = (lambda done, of: progress(done, of, "measuring errors")) if progress else None
        errors = block_errors(opened, sequences, Quantization(4, request.q_group_size or 64), counter)
        settings, keep_packed, recipe = choose_quantization(opened, request, errors)
    own_texts = request.calibrate in ("gptq", "distill") and not (request.calibration_data or request.num_samples)
    has_chats = own_texts and can_answer(opened)
    options = digest_options(request, opened, recipe, sequences, has_chats)
    if adapters:
        options["adapters"] = adapters_digest(adapters)
    plan = make_plan(opened, settings, keep_packed, read_dtype(request.dtype), options)
    is_done = bool(request.upload_repo) and not request.overwrite and _is_result(target, plan, request)
    if not is_done and not dry_run:
        check_target(target, source, request.overwrite)
    existing = next(folder for folder in (target, *target.parents) if folder.is_dir())
    staging = staging_path(target)
    held = sum(file.stat().st_blocks * 512 for file in staging.glob("*.safetensors")) if staging.is_dir() else 0
    return Conversion(
        origin=str(hf_path),
        target=target,
        request=request,
        opened=opened,
        plan=plan,
        notes=(
            *notes_on(opened, plan, request),
            *naming_notes(target, str(hf_path), source, adapters),
            *(note_on_calibration(request, settings, keep_packed) if is_auto else ()),
        ),
        disk_bytes=plan.nbytes + DISK_MARGIN,
        free_bytes=shutil.disk_usage(existing).free + held,
        is_done=is_done,
        sequences=sequences,
        adapters=tuple(adapters),
        has_chats=has_chats,
    )


def naming_notes(target: Path, origin: str, source: Path, adapters: Sequence[WeightedAdapter]) -> tuple[str, ...]:
    """The rule of EXAONE's licence for the name of a derivative, where a fused folder has another name."""
    if not adapters or target.name.startswith("EXAONE") or not is_exaone(origin, source_card(source)):
        return ()
    return (f'the licence asks that the name of a derivative begins with "EXAONE": rename {target.name} to publish it',)


def describe_adapter(adapter: Adapter, scale: float) -> dict[str, Any]:
    config = adapter.config
    about: dict[str, Any] = {"name": public_origin(adapter.name), "type": config.fine_tune_type, "scale": scale}
    return about if config.fine_tune_type == "full" else about | {"rank": config.rank}


def _describe_tensor(tensor: PlannedTensor) -> dict[str, Any]:
    quantization = tensor.quantization
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "work": tensor.work,
        "bits": quantization.bits if quantization else 8 * tensor.outputs[0].dtype.size,
        "group_size": quantization.group_size if quantization else None,
        "mode": quantization.mode if quantization else None,
        "dtype": str(tensor.outputs[-1].dtype).removeprefix("mlx.core."),
        "bytes": tensor.nbytes,
    }


def _is_result(folder: Path, plan: ConversionPlan, request: ConversionRequest) -> bool:
    """Whether a finished folder is the result of this plan, with the measurements that the request asks for."""
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        verified = "relative_error" in report["conversion"]["tensors"][0]
        same = report["conversion"]["plan"] == plan.digest
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return same and verified >= request.verify and ("evaluation" in report) >= request.evaluate
