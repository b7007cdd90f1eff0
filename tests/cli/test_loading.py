"""The model of a command: memory checks, draft models, downloads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from commands import GENERATE, errors

from exaone4_mlx.cli.main import main


@pytest.mark.usefixtures("demo_tokenizer", "no_weights")
def test_a_model_that_does_not_fit_gets_a_warning_with_remedies(
    machine: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights take 11 MB, and the caches of 8,192 tokens 10 MB."""
    machine(15, 100)

    def warnings(*flags: str) -> list[str]:
        *lines, error = errors(capsys, "generate", "--model", "demo", "-p", "Hello", *flags).splitlines()
        assert error == "error: the weights are being read"
        return lines

    warning, remedies = warnings()
    assert re.fullmatch(
        r"warning: this may take 22 MB \(11 MB of weights, 10 MB of caches at 8,192 tokens, \d+ kB to read the prompt\), "
        "and a model may have 15 MB here",
        warning,
    )
    [fitting] = map(int, re.findall(r"--max-kv-size (\d+) fits", remedies))
    assert "18 MB with --kv-bits 8; 14 MB with --q-bits 4; --ignore-memory hides this warning" in remedies
    for flags in (["--ignore-memory"], ["--max-kv-size", str(fitting)], ["--q-bits", "4"], ["-m", "20"]):
        assert warnings(*flags) == [], flags
    assert warnings("--max-kv-size", str(fitting + 1)), "one token more"
    warning, remedies = warnings("-m", "20", "--draft-model", "demo")
    assert "12 MB of draft model" in warning and "without --draft-model" in remedies
    machine(100, 200)
    assert warnings() == []
    err = errors(capsys, "chat", "--model", "demo")
    assert "at 8,192 tokens, 252 MB to read the prompt" in err or mx.metal.is_available(), "prompts fill the context"


@pytest.mark.usefixtures("demo_tokenizer", "no_weights")
def test_weights_that_exceed_the_memory_are_refused_before_they_are_read(
    machine: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(5, 8)
    for command in (["generate", "-p", "Hello"], ["chat"]):
        assert errors(capsys, *command, "--model", "demo") == (
            "error: the weights have 11 MB, and this machine has 8 MB of memory; --q-bits 4 reduces them to 3 MB; "
            "--ignore-memory loads them anyway\n"
        )
        err = errors(capsys, *command, "--model", "demo", "--ignore-memory")
        assert err == "error: the weights are being read\n"


@pytest.mark.usefixtures("demo_tokenizer", "no_weights")
def test_weights_that_exceed_the_memory_are_not_downloaded(
    machine: Any, hf_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[Any] = []

    def download(repo: str, revision: str | None, allow_patterns: list[str], **more: Any) -> str:
        requested.append(allow_patterns)
        return str(hf_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    (hf_folder / "model.safetensors").unlink()
    command = ["generate", "--model", "somebody/something-large", "-p", "Hello"]
    machine(5, 8)
    assert "error: the weights have 11 MB, and this machine has 8 MB" in errors(capsys, *command)
    assert requested == [["config.json"]]
    for extra in (["--ignore-memory"], ["--q-bits", "4", "-m", "2"]):
        main([*command, *extra])
        assert "*.json" in requested[-1], "everything is downloaded"


@pytest.mark.usefixtures("no_weights")
def test_a_draft_model_with_another_tokenizer_is_refused_before_the_weights_are_read(
    hf_folder: Path, edit_json: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = [*GENERATE, "-p", "Hello", "--draft-model", str(hf_folder)]
    (hf_folder / "chat_template.jinja").write_text("other")  # a different chat template is allowed
    assert errors(capsys, *ask) == "error: the weights are being read\n"
    tokenizer = json.loads((hf_folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, other = sorted(vocabulary, key=vocabulary.__getitem__)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (hf_folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    for command in ([*GENERATE, "-p", "Hello"], ["chat", "--model", "demo"], ["fit", "--model", "demo"]):
        err = errors(capsys, *command, "--draft-model", str(hf_folder))
        assert f"the draft model {hf_folder} has another tokenizer than " in err, command
    edit_json(hf_folder / "config.json", vocab_size=4000)
    (hf_folder / "model.safetensors").unlink()  # whose embedding has another size
    assert "has a vocabulary of 4000 tokens" in errors(capsys, *ask)


def test_a_model_that_cannot_be_downloaded_names_the_demo(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*args: Any, **options: Any) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    err = errors(capsys, "generate", "-p", "x")
    assert "there is no folder LGAI-EXAONE/EXAONE-4.0-1.2B, and it cannot be downloaded: " in err
    assert "--model demo needs no download" in err


def test_a_tokenizer_larger_than_the_model_is_a_warning(
    hf_folder: Path, edit_json: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = mx.load(str(hf_folder / "model.safetensors"))
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:3000]
    mx.save_safetensors(str(hf_folder / "model.safetensors"), dict(tensors))
    edit_json(hf_folder / "config.json", vocab_size=3000)
    assert main(["generate", "--model", str(hf_folder), "-p", "Hello", "-m", "3"]) == 0
    assert "warning: the tokenizer knows 3072 tokens, the model 3000" in capsys.readouterr().err


def test_quantizing_while_loading_names_the_command_that_stores_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*GENERATE, "-p", "Hello", "--q-bits", "4", "-m", "3"]) == 0
    command = "exaone4-mlx convert --hf-path demo --mlx-path FOLDER --q-bits 4 --q-group-size 64 --dtype float32"
    assert f"stores the model with a smaller error: {command}\n" in capsys.readouterr().err
