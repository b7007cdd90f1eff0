"""Uploads: what may be published, and that it arrives. The hub is a fake one on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import TOKEN, FakeHub, Repo

from exaone4_mlx import convert
from exaone4_mlx.conversion.card import model_card
from exaone4_mlx.conversion.plot import write_error_plot
from exaone4_mlx.conversion.upload import NOTICE, UploadError, check_upload_name, upload

LG = "LGAI-EXAONE/EXAONE-4.0-1.2B"
NAME = "mina/EXAONE-4.0-1.2B-mlx-4bit"
LFS = "/lfs/"

# huggingface_hub's own, of how it hands a file to httpx.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The converted demo with the report of an EXAONE model. Tests must not change it."""
    folder = tmp_path_factory.mktemp("made") / "EXAONE-4.0-1.2B-mlx-4bit"
    convert("demo", folder, search=False)
    tensor = {"name": "model.embed_tokens.weight", "bits": 4, "group_size": 64, "mode": "affine", "bytes": 9}
    report = {"conversion": {"origin": LG, "tensors": [tensor | {"relative_error": 0.1, "sqnr_db": 20.0}]}}
    card = model_card(name=NAME, origin=LG, report=report, licence_files=["LICENSE"], source_card=None)
    (folder / "README.md").write_text(card)
    (folder / "report.json").write_text(json.dumps(report))
    write_error_plot(folder / "errors.svg", report["conversion"]["tensors"])
    (folder / "LICENSE").write_text("EXAONE AI Model License Agreement 1.2 - NC")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(made, tmp_path / made.name)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A hub for huggingface_hub, with the constants that it reads from the environment when it is imported."""
    import huggingface_hub
    from huggingface_hub import constants

    hub = FakeHub()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    huggingface_hub.close_session()
    yield hub
    huggingface_hub.close_session()
    hub.close()


def notice_list() -> tuple[list[str], Callable[[str], None]]:
    notices: list[str] = []
    return notices, notices.append


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_every_file_arrives_byte_for_byte_in_one_commit(made: Path, hub: FakeHub) -> None:
    notices: list[str] = []

    def notice(text: str) -> None:
        assert hub.requests == [], "something was sent before the notice was shown"
        notices.append(text)

    assert upload(made, NAME, notice=notice) == f"{hub.endpoint}/{NAME}"
    sent = hub.repos[NAME].files
    assert sent.pop(".gitattributes")
    assert sent == contents(made)
    assert len(hub.repos[NAME].commits) == 1, "weights must never be public without their licence"
    assert not hub.repos[NAME].private
    assert len(notices) == 1 and NOTICE in notices[0] and f"{len(sent)} files" in notices[0]


def test_endpoint_and_token_come_from_the_environment(made: Path, hub: FakeHub) -> None:
    """In a new process, because huggingface_hub reads its environment when it is imported."""
    code = (
        "import sys; from pathlib import Path; from exaone4_mlx.conversion.upload import upload;"
        "print(upload(Path(sys.argv[1]), 'EXAONE-mine', private=True, notice=lambda text: None))"
    )
    environment = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    run = subprocess.run(
        [sys.executable, "-c", code, str(made)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout == f"{hub.endpoint}/mina/EXAONE-mine\n", run.stderr
    assert hub.repos["mina/EXAONE-mine"].private
    assert contents(made).items() <= hub.repos["mina/EXAONE-mine"].files.items()


def test_other_files_of_the_folder_are_not_sent(folder: Path, hub: FakeHub) -> None:
    for name in (".env", "notes.txt", "old.safetensors", "model.safetensors.lock", "report.json~"):
        (folder / name).write_text("mine")
    (folder / "cache").mkdir()
    (folder / "cache" / "config.json").write_text("{}")
    upload(folder, NAME, notice=lambda text: None)
    assert b"mine" not in hub.repos[NAME].files.values()
    assert "cache/config.json" not in hub.repos[NAME].files


def test_weights_of_an_earlier_upload_are_removed(made: Path, hub: FakeHub) -> None:
    """mlx-lm loads every model*.safetensors."""
    files = {"model-00001-of-00002.safetensors": b"old", "eval.txt": b"kept", ".gitattributes": b""}
    hub.repos[NAME] = Repo(files=files)
    upload(made, NAME, notice=lambda text: None)
    assert "model-00001-of-00002.safetensors" not in hub.repos[NAME].files
    assert hub.repos[NAME].files["eval.txt"] == b"kept"


def test_a_broken_upload_gives_one_line_and_can_be_repeated(
    made: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(made)
    hub.break_off = LFS
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", lambda seconds: None)  # between huggingface_hub's own attempts
        with pytest.raises(UploadError, match=r"^the upload to mina/EXAONE.* failed: .*can be repeated$"):
            upload(made, NAME, notice=lambda text: None)
    assert contents(made) == before
    assert not hub.repos[NAME].commits
    hub.break_off = None
    upload(made, NAME, notice=lambda text: None)
    assert before.items() <= hub.repos[NAME].files.items()
    hub.requests.clear()
    upload(made, NAME, notice=lambda text: None)
    assert not [request for request in hub.requests if request.startswith("PUT")], (
        "files that arrived are not sent again"
    )


def test_an_unreachable_hub_gives_one_line(made: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UploadError, match=r"^the upload to mina/EXAONE.* failed: .*is unchanged"):
        upload(made, NAME, notice=lambda text: None)


@pytest.mark.parametrize(
    ("token", "repo", "answers", "message"),
    [
        ("hf_wrong", NAME, {}, "^the hub does not accept this token: run `hf auth login`, or set HF_TOKEN"),
        (
            TOKEN,
            "someone/EXAONE-x",
            {},
            "^this token has no write access to someone/EXAONE-x: it belongs to someone else",
        ),
        (TOKEN, "taken/EXAONE-x", {}, "^this token has no write access to taken/EXAONE-x: it belongs to someone else"),
        (TOKEN, NAME, {"/api/repos": 404}, "^the hub cannot find mina/EXAONE.*: its owner does not exist"),
        (TOKEN, NAME, {"/api/repos": 400}, "^the upload to mina/EXAONE.* failed: .*as the test wants it"),
        (TOKEN, NAME, {"/api/models": 403}, "^this token has no write access to"),
        ("", NAME, {}, "^the hub needs a token: run `hf auth login`, or set HF_TOKEN$"),
    ],
)
def test_an_error_of_the_hub_gives_one_line(
    token: str, repo: str, answers: dict[str, int], message: str, made: Path, hub: FakeHub, monkeypatch: Any
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    hub.answers = answers
    hub.repos["taken/EXAONE-x"] = Repo()
    with pytest.raises(UploadError, match=message) as raised:
        upload(made, repo, notice=lambda text: None)
    assert "\n" not in str(raised.value)
    assert not any(repo.commits for repo in hub.repos.values())
    assert not hub.objects


def test_private_weights_are_not_sent_to_a_public_repository(made: Path, hub: FakeHub) -> None:
    hub.repos[NAME] = Repo(private=False)
    with pytest.raises(UploadError, match="exists and is public; nothing was sent"):
        upload(made, NAME, private=True, notice=lambda text: None)
    assert not hub.repos[NAME].files
    hub.repos[NAME].private = True
    upload(made, NAME, private=True, notice=lambda text: None)
    assert hub.repos[NAME].files


# --- refused before anything is sent --------------------------------------------


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda folder: (folder / "LICENSE").unlink(), FileNotFoundError, "has no LICENSE: EXAONE's licence must be"),
        (lambda folder: (folder / "LICENSE").write_text(""), FileNotFoundError, "has no LICENSE"),
        (
            lambda folder: (folder / "README.md").unlink(),
            FileNotFoundError,
            "README.md: it is not a finished conversion",
        ),
        (lambda folder: (folder / "config.json").unlink(), FileNotFoundError, "config.json: it is not a finished"),
        (lambda folder: (folder / "model.safetensors.index.json").unlink(), FileNotFoundError, "it is not a finished"),
        (lambda folder: (folder / "model.safetensors").unlink(), FileNotFoundError, "lacks model.safetensors"),
        (lambda folder: os.truncate(folder / "model.safetensors", 100_000), ValueError, "model.safetensors"),
        (lambda folder: shutil.rmtree(folder), FileNotFoundError, "no folder"),
        (
            lambda folder: (folder / "report.json").write_text(json.dumps({"data": f"{Path.home()}/thesis/한글.txt"})),
            ValueError,
            "report.json contains a path of your home folder",
        ),
    ],
)
def test_a_folder_that_must_not_be_published_is_not_sent(
    damage: Callable[[Path], Any], error: type[Exception], message: str, folder: Path, hub: FakeHub
) -> None:
    damage(folder)
    notices, notice = notice_list()
    with pytest.raises(error, match=message):
        upload(folder, NAME, notice=notice)
    assert hub.requests == notices == []


def test_an_unfinished_conversion_and_a_wrong_name_are_not_uploaded(folder: Path, hub: FakeHub) -> None:
    notices, notice = notice_list()
    with pytest.raises(ValueError, match="the name of a derivative must begin with EXAONE"):
        upload(folder, "mina/my-model", notice=notice)
    with pytest.raises(ValueError, match="is an unfinished conversion"):
        upload(folder.rename(folder.with_name("out.partial")), NAME, notice=notice)
    assert hub.requests == notices == []


def test_an_exception_in_the_notice_sends_nothing(made: Path, hub: FakeHub) -> None:
    def refuse(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upload(made, NAME, notice=refuse)
    assert hub.requests == []


def test_the_demo_needs_no_licence_file_and_no_notice(folder: Path, hub: FakeHub) -> None:
    report = {"conversion": {"origin": "demo"}}
    (folder / "LICENSE").unlink()
    (folder / "report.json").write_text(json.dumps(report))
    card = model_card(name="d", origin="demo", report=report, licence_files=[], source_card=None)
    (folder / "README.md").write_text(card)
    notices, notice = notice_list()
    upload(folder, "mina/demo-of-mlx", notice=notice)
    assert len(notices) == 1 and "commercial" not in notices[0]
    assert hub.repos["mina/demo-of-mlx"].files["README.md"] == card.encode()


def test_names_that_may_be_published() -> None:
    for repo, origin, card in (
        ("mina/EXAONE-4.0-1.2B-4bit", LG, None),
        ("EXAONE-4.0", LG, None),
        ("mina_2/EXAONE.x", "/models/EXAONE-4.0-1.2B", None),
        ("mina/tiny", "demo", None),
        ("mina/not-exaone", "demo", None),
        ("mina/own", "mina/own-bf16", "---\nlicense: apache-2.0\n---\n"),
        ("mina/EXAONE-tuned", "mina/tuned", f"---\nlicense: mit\nbase_model: {LG}\n---\n"),
        ("mina/EXAONE-tuned", "mina/EXAONE-bf16", "---\nlicense: mit\n---\n"),
    ):
        check_upload_name(repo, origin, card)


@pytest.mark.parametrize(
    ("repo", "origin", "card", "message"),
    [
        ("mina/my-model", LG, None, "begin with EXAONE: not my-model, but for example EXAONE-my-model"),
        ("mina/exaone-4.0-4bit", LG, None, "not exaone-4.0-4bit, but for example EXAONE-4.0-4bit"),
        ("EXAONE/my-model", LG, None, "begin with EXAONE"),
        ("mina/tuned", "mina/tuned", None, "begin with EXAONE"),  # the licence is unknown
        ("mina/tuned", "mina/tuned", f"---\nlicense: mit\nbase_model: {LG}\n---\n", "begin with EXAONE"),
        ("mina/tuned", "mina/tuned", "---\nlicense: other\nlicense_name: exaone\n---\n", "begin with EXAONE"),
        ("mina/EXAONE-demo", "demo", None, "are not EXAONE, but the name EXAONE-demo says so"),
        ("mina/exaone4-demo", "demo", None, "are not EXAONE"),
        ("mina/EXAONE-own", "mina/own", "---\nlicense: apache-2.0\n---\n", "are not EXAONE"),
    ],
)
def test_names_that_may_not_be_published(repo: str, origin: str, card: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_upload_name(repo, origin, card)


def test_names_that_the_hub_does_not_take_are_refused() -> None:
    for repo in (
        "",
        "mina/",
        "/EXAONE",
        "a/b/EXAONE",
        "mina/EXAONE--4",
        "mina/EXAONE..4",
        "mina/EXAONE-",
        "mina/EXAONE 4",
        "mina/EXAONE-미나",
        "mina/EXAONE-4\n",
        "mina/EXAONE.git",
        "mina/EXAONE" + "x" * 90,
        "https://huggingface.co/mina/EXAONE",
    ):
        with pytest.raises(ValueError, match="is not a valid repository name"):
            check_upload_name(repo, LG)
