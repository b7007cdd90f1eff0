"""Downloads and conversions of models: paused, resumed, kept over a kill of the app, refused with reasons."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from fake_hub import FileServer

pytest.importorskip("gradio", reason="the app needs the extra `app`")


from app.engine import ChatEngine, LoadedModel
from app.i18n import Words
from app.model_actions import CAUSES, ModelActions, _job_row
from app.models import Choice
from app.state import AppState
from exaone4_mlx import ConversationStore, convert, fit
from exaone4_mlx.files.hub_errors import CAUSES as HUB_CAUSES
from exaone4_mlx.measure import library
from exaone4_mlx.measure.model_jobs import ModelJob, ModelJobs

REPO = "LGAI-EXAONE/EXAONE-4.0-1.2B"
SECONDS = 30.0


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[[], ModelJobs]]:
    """begin() is the jobs of an app that starts; all apps end with the test."""
    made: list[ModelJobs] = []

    def one() -> ModelJobs:
        made.append(ModelJobs(tmp_path / "models"))
        return made[-1]

    yield one
    for jobs in made:
        jobs.close()


@pytest.fixture
def do(begin: Any, unread: Any, tmp_path: Path) -> ModelActions:
    jobs = begin()
    loaded = LoadedModel(Choice("demo", "demo"), *unread, fit("demo"))
    engine = ChatEngine(loaded, folders=[jobs.folder])
    return ModelActions(AppState(engine, ConversationStore(tmp_path / "conversations"), jobs=jobs))


def only(jobs: ModelJobs) -> ModelJob:
    [job] = jobs.jobs
    return job


@pytest.mark.heavy
def test_a_download_is_paused_survives_a_kill_and_is_resumed(
    exaone: FileServer, begin: Callable[[], ModelJobs], tmp_path: Path
) -> None:
    exaone.stall_after = 5_000_000
    jobs = begin()
    with pytest.raises(PermissionError, match=f"the licence of {REPO} was not accepted"):
        jobs.download(REPO)
    jobs.accept(REPO)
    jobs.download(REPO)
    with pytest.raises(ValueError, match="is being made already"):
        jobs.download(REPO)
    until(lambda: only(jobs).done > 4_000_000, SECONDS)
    jobs.pause(only(jobs).id)
    assert (only(jobs).state, only(jobs).process) == ("paused", None)
    again = begin()
    assert only(again).state == "paused" and again.accepted(REPO), "a paused job does not begin by itself"
    again.resume(only(again).id)
    assert exaone.stalled.wait(SECONDS)
    before = only(again)
    assert before.process is not None
    written = (tmp_path / "models" / "jobs.json").read_text()
    before.process.kill()  # as if the app had been killed, too
    until(lambda: only(again).state == "failed", SECONDS)
    (tmp_path / "models" / "jobs.json").write_text(written)
    exaone.stall_after = None
    last = begin()
    until(lambda: not last.jobs, SECONDS)
    assert [model.repo for model in library.find_models("demo")] == ["", REPO] and last.ended == 1
    assert exaone.ranges and all(int(asked[len("bytes=") : -1]) > 4_000_000 for asked in exaone.ranges)


def test_jobs_of_one_kind_wait_for_each_other(exaone: FileServer, begin: Callable[[], ModelJobs]) -> None:
    exaone.stall_after = 1000
    jobs = begin()
    for repo in ("a/b", "c/d"):
        jobs.accept(repo)
        jobs.download(repo)
    first, second = jobs.jobs
    assert (first.state, second.state) == ("running", "waiting")
    jobs.discard(first.id)
    assert jobs.jobs == [second] and second.state == "running"


@pytest.mark.parametrize("repo", ["", "x", "../x/y", "x/y/z", "--x/y", "x/-y/..", "x/y\n"])
def test_only_names_of_repositories_are_downloaded(begin: Callable[[], ModelJobs], repo: str) -> None:
    jobs = begin()
    jobs.accept(repo)
    with pytest.raises(ValueError, match="is not the name of a repository"):
        jobs.download(repo)


def test_damaged_jobs_do_not_stop_the_app(begin: Callable[[], ModelJobs], tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    for text in (
        "{",
        "[]",
        json.dumps({"accepted": [], "jobs": [{"kind": "erase", "name": "/", "arguments": ["/"], "state": "running"}]}),
    ):
        (tmp_path / "models" / "jobs.json").write_text(text)
        assert begin().jobs == []


@pytest.mark.heavy
def test_a_conversion_is_made_listed_and_removed(do: ModelActions, tmp_path: Path) -> None:
    source = tmp_path / "models" / "EXAONE-x"
    library_of = do.state.engine.local_models
    do.state.jobs.convert("demo", "EXAONE-x", 16 // 2)
    until(lambda: not do.state.jobs.jobs, SECONDS)
    [row] = [row for row in do.models({})["state"]["here"] if row["name"] == "EXAONE-x"]
    assert (row["bits"], row["removable"], row["convertible"], row["fits"]) == (8, True, [], "fits")
    assert do.models({"what": "remove", "path": str(source), "language": "ko"})["notice"].startswith(
        "EXAONE-x을(를) 삭제"
    )
    assert not source.exists() and [model.name for model in library_of()] == ["demo"]


def test_refusals_say_why(do: ModelActions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def error(what: str, **given: Any) -> str:
        return str(do.models({"what": what, "language": "en", **given})["error"])

    assert error("download", path=REPO) == ("Not started: accept the EXAONE AI Model License Agreement 1.2 - NC first.")
    assert error("remove", path="demo") == "Not done: there is no model demo"
    assert error("remove", path="/etc") == "Not done: there is no model /etc"
    path = str(tmp_path / "models" / "EXAONE-x")
    convert("demo", path, search=False)
    monkeypatch.setattr(do.state.jobs, "uses", lambda *paths: path in paths)
    assert "a download or conversion needs it" in error("remove", path=path)
    monkeypatch.undo()
    do.state.engine._used = (path, do.state.engine._used[1])
    assert "it is in use" in error("remove", path=path)
    with do.state.engine.without_switch():
        assert error("remove", path=path) == error("use", path="demo") == "Another model is being loaded."
    assert Path(path).is_dir() and not do.state.jobs.accepted(REPO)


def test_errors_of_the_hub_come_in_the_language_of_the_page() -> None:
    for cause in HUB_CAUSES:
        details = {"disk": "5000000000 1000000000", "token": "HF_TOKEN"}
        job = ModelJob(
            "download", REPO, [REPO], "failed", error="x", cause=cause, detail=details.get(cause, "no route")
        )
        texts = {code: _job_row(job, Words(code))["text"] for code in ("en", "ko", "es")}
        assert len(set(texts.values())) == 3 and all(REPO in text for text in texts.values())
        assert "5.00 GB" in texts["ko"] or cause != "disk"
        assert ("HF_TOKEN" in texts["ko"]) or cause != "token"
    assert set(CAUSES) < set(HUB_CAUSES)
    steps = ModelJob("convert", "x", [], "running", done=3, total=30, in_bytes=False)
    assert _job_row(steps, Words("en"))["progress"] == "3 of 30", "a calibration counts steps"


def test_a_search_without_a_network_is_one_line(do: ModelActions, exaone: FileServer) -> None:
    exaone.listed = [{"id": "mina/EXAONE-4.0-1.2B-8bit", "tags": ["exaone4"]}]
    [row] = do.models({"what": "search", "text": "mina", "language": "en"})["found"]
    assert (row["path"], row["bits"], row["size"], row["accepted"]) == ("mina/EXAONE-4.0-1.2B-8bit", 8, "", False)
    exaone.answer = (200, "text/html", b"<html>log in</html>")
    error = do.models({"what": "search", "text": "", "language": "en"})["error"]
    assert error.startswith("The answer is not the hub's.") and "\n" not in error
