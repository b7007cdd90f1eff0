"""The actions on models: the picker at the top of the page, and the list of models to get.

Notes:
- The script of the picker (page/models.js) calls `models`, which does what is asked and answers with the whole state.
  Every tab asks now and then, so that all see the same downloads, conversions and switches.
- Nothing here waits for a model or a download. Only a search and the needs of a model of the hub wait for the network.
"""

from __future__ import annotations

import re
import time
from typing import Any

from exaone4_mlx.measure.library import (
    DownloadError,
    HubModel,
    LocalModel,
    can_remove,
    known_models,
    memory_of_this_machine,
    remove_model,
    search_hub,
)
from exaone4_mlx.measure.model_jobs import DOWNLOAD, ModelJob
from exaone4_mlx.text.format import size_text

from .common import Shared
from .i18n import Words
from .record import Busy
from .status import notes

Row = dict[str, Any]

LIST_SECONDS = 15.0  # until the folders are looked into again
LICENCE = "EXAONE AI Model License Agreement 1.2 - NC"
LICENCE_LINK = "https://huggingface.co/LGAI-EXAONE/EXAONE-4.0-1.2B/blob/main/LICENSE"
CONVERSIONS = (4, 8)  # bits
#: The cause of a DownloadError -> its text
CAUSES = {
    "token": "hub_token",
    "login": "hub_login",
    "gated": "hub_gated",
    "missing": "hub_missing",
    "offline": "hub_offline",
    "stranger": "hub_stranger",
    "disk": "hub_disk",
}


class ModelActions(Shared):
    """The actions of the picker of models."""

    _local: tuple[float, int, list[Row]] = (0.0, 0, [])  # when it was made, after how many jobs, the models at hand

    def models(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """The state of the picker after what `wanted` asks for. A refusal is in `error`."""
        words = Words(str(wanted.get("language")))
        answer: dict[str, Any] = {}
        try:
            answer = self._do(str(wanted.get("what") or ""), wanted, words)
        except Busy:
            answer = {"error": words("loading_already")}
        except DownloadError as error:
            answer = {"error": _download_text(words, error.cause, error.detail, f"{error}")}
        except Exception as error:  # a damaged checkpoint can fail in many ways
            answer = {"error": words("model_refused", error=f"{error}" or type(error).__name__)}
        if wanted.get("what") not in (None, "", "needs"):
            self._local = (0.0, 0, [])
        return {**answer, "state": self._state(words, looks=bool(wanted.get("looks")))}

    def _do(self, what: str, wanted: dict[str, Any], words: Words) -> dict[str, Any]:
        jobs, path = self.state.jobs, str(wanted.get("path") or "").strip()
        if what == "use":
            self.state.engine.begin(path, int(wanted["context"]) if wanted.get("context") else None)
        elif what == "needs":
            return {"needs": self._needs(words, path, int(wanted["context"]) if wanted.get("context") else None)}
        elif what == "search":
            return {"found": [self._hub_row(model) for model in search_hub(str(wanted["text"]))]}
        elif what == "download":
            if wanted.get("accepted") is True:
                jobs.accept(path)
            if not jobs.accepted(path):
                return {"error": words("licence_missing", licence=LICENCE)}
            jobs.download(path)
        elif what == "convert":
            model, bits = self._model(path), int(wanted["bits"])
            jobs.convert(str(model.folder), f"{model.name.rpartition('/')[2]}-{bits}bit", bits)
        elif what == "remove":
            name, freed = self._remove(path, words)
            return {"notice": words("freed", name=name, size=size_text(freed))}
        elif what in ("pause", "resume"):
            getattr(jobs, what)(str(wanted["id"]))
        elif what == "discard":
            jobs.discard(str(wanted["id"]))
        return {}

    # --- inside ---------------------------------------------------------------

    def _model(self, path: str) -> LocalModel:
        """The model at hand of this path: no other is converted or removed."""
        for model in self.state.engine.local_models():
            if model.path == path and model.folder is not None:
                return model
        raise FileNotFoundError(f"there is no model {path}")

    def _remove(self, path: str, words: Words) -> tuple[str, int]:
        """The name of the model, and the bytes freed."""
        with self.state.engine.without_switch():
            model = self._model(path)
            if self.state.engine.uses(model):
                raise ValueError(words("model_in_use"))
            if self.state.jobs.uses(path, str(model.folder)):
                raise ValueError(words("model_in_work"))
            return model.name, remove_model(model, self.state.jobs.folder)

    def _state(self, words: Words, looks: bool) -> dict[str, Any]:
        """The state of the picker. The folders are looked into again only for a user who `looks` at the list."""
        engine, jobs = self.state.engine, self.state.jobs
        made, ended, rows = self._local
        if (looks and time.monotonic() - made > LIST_SECONDS) or ended != jobs.ended or not rows:
            rows, ended = [self._local_row(model) for model in engine.local_models()], jobs.ended
            self._local = (time.monotonic(), ended, rows)
        done, total = engine.progress
        failure = ""
        if engine.failure:
            key = "not_loaded" if engine.label else "lost"
            failure = words(key, error=engine.failure, name=engine.label)
        here = {row["repo"] for row in rows}
        return {
            "label": engine.label,
            "path": engine.path,
            "context": engine.context,
            "coming": engine.coming,
            "progress": [done, total, words("of", done=size_text(done), total=size_text(total))],
            "failure": failure,
            "notes": notes(engine.warnings, words),
            "here": rows,
            "known": [self._hub_row(model) for model in known_models() if model.repo not in here],
            "jobs": [_job_row(job, words) for job in jobs.jobs],
        }

    def _local_row(self, model: LocalModel) -> Row:
        fits, longest, largest = "", 0, 0
        try:
            needs = self.state.engine.needs(model.path)
            longest, largest = needs.max_kv_size, needs.largest_context
            fits = _fits(needs.total_bytes if largest >= longest else needs.weights_bytes, largest, longest)
        except Exception:  # of a damaged folder; the use of it says why
            pass
        jobs = self.state.jobs
        return {
            "path": model.path,
            "name": model.name,
            "repo": model.repo,
            "size": size_text(model.weights_bytes) if model.weights_bytes else "",
            "bits": model.bits or (0 if model.is_quantized or not model.weights_bytes else 16),
            "fits": fits,
            "longest": longest,
            "largest": largest,
            "removable": can_remove(model, jobs.folder),
            "convertible": list(CONVERSIONS) if model.folder and not model.is_quantized else [],
        }

    def _hub_row(self, model: HubModel) -> Row:
        weights, memory = model.weights_bytes, memory_of_this_machine()
        return {
            "path": model.repo,
            "parameters": f"{model.parameters / 1e9:.3g}B" if model.parameters else "",
            "bits": model.bits,
            "size": size_text(model.bytes) if model.bytes else "",
            "fits": _fits(weights, memory - weights, 0) if weights else "",
            "accepted": self.state.jobs.accepted(model.repo),
        }

    def _needs(self, words: Words, path: str, context: int | None) -> str:
        needs = self.state.engine.needs(path, context)
        text = words(
            "needs",
            total=size_text(needs.total_bytes),
            weights=size_text(needs.weights_bytes),
            cache=size_text(needs.total_bytes - needs.weights_bytes),  # and what a prompt is read with
            context=f"{needs.max_kv_size:,}",
            memory=size_text(needs.memory_bytes),
        )
        if needs.fits:
            return text
        if not needs.largest_context:
            return f"{text} {words('too_large_anyway')}"
        return f"{text} {words('too_large', context=f'{needs.largest_context:,}')}"


def _fits(weights_bytes: int, room: int, longest: int) -> str:
    """The key of a text: whether a model fits, with less context, or not. `room` is a context or bytes."""
    if not weights_bytes:
        return ""
    return "fits_not" if room <= 0 else "fits" if room >= longest else "fits_less"


def _job_row(job: ModelJob, words: Words) -> Row:
    key = {"failed": "job_failed", "paused": "job_paused", "waiting": "job_waiting"}.get(job.state)
    key = key or ("job_download" if job.kind == DOWNLOAD else "job_convert")
    error = _download_text(words, job.cause, job.detail, job.error)
    done, total = (size_text(count) if job.in_bytes else f"{count:,}" for count in (job.done, job.total))
    return {
        "id": job.id,
        "state": job.state,
        "text": words(key, name=job.name, error=error) if key == "job_failed" else words(key, name=job.name),
        "done": job.done,
        "total": job.total,
        "progress": words("of", done=done, total=total) if job.total else "",
    }


def _download_text(words: Words, cause: str, detail: str, error: str) -> str:
    """Why a download fails, and what to do. An error without a cause stays as it is."""
    if not cause:
        return error
    if cause == "disk":
        missing, free = (size_text(int(number)) for number in re.findall(r"\d+", detail))
        return words("hub_disk", missing=missing, free=free)
    said = words(CAUSES.get(cause, "hub_network"), detail=detail)
    is_told = cause in CAUSES or (detail.startswith("[Errno") and "proxy" not in detail)  # that says no more
    return said if is_told else f"{said} ({words.error(detail)})"
