"""`--adapter-path` puts adapters onto the model of a command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from adapters import random_adapter
from commands import GENERATE, errors, output

from exaone4_mlx import Exaone4Config
from exaone4_mlx.cli.main import main
from exaone4_mlx.model.adapter import Adapter, AdapterConfig
from exaone4_mlx.model.adapter_file import write_adapter

PROMPT = ("-p", "What is the capital of France?", "-m", "12")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the demo that changes every reply."""
    adapter = random_adapter("lora", Exaone4Config.from_pretrained("demo"), scale=40.0)
    folder = tmp_path_factory.mktemp("adapter")
    write_adapter(folder, adapter)
    return folder


def test_a_reply_is_that_of_the_model_with_the_adapter(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    plain, adapted = output(capsys, *PROMPT), output(capsys, *PROMPT, "--adapter-path", str(folder))
    assert plain.strip() == "The capital of France is Paris." and adapted != plain
    assert output(capsys, *PROMPT, "--adapter-path", str(folder), "--adapter-scale", "0") == plain
    twice = ("--adapter-path", str(folder)) * 2
    assert output(capsys, *PROMPT, *twice, "--adapter-scale", "0.5", "--adapter-scale", "0.5") == adapted


def test_a_folder_of_an_adapter_is_no_model(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    found = errors(capsys, "generate", "--model", str(folder), *PROMPT)
    assert found.endswith("it is an adapter: give its base as the model, and this folder with --adapter-path\n")


def test_adapters_that_do_not_fit_are_refused_before_the_weights_are_read(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from exaone4_mlx.model import pretrained

    monkeypatch.setattr(pretrained, "load_network", lambda *given, **options: pytest.fail("weights were read"))
    assert "there is no folder nowhere" in errors(capsys, *GENERATE, *PROMPT, "--adapter-path", "nowhere")
    found = errors(
        capsys, *GENERATE, *PROMPT, "--adapter-path", str(folder), "--adapter-scale", "1", "--adapter-scale", "2"
    )
    assert found == "error: there are 1 adapters and 2 scales: give one scale, or one for each\n"
    assert errors(capsys, *GENERATE, *PROMPT, "--adapter-scale", "2") == "error: --adapter-scale needs --adapter-path\n"
    arrays = {"model.layers.99.mlp.up_proj.lora_a": mx.ones((256, 8))}
    write_adapter(tmp_path, Adapter(AdapterConfig(base="LGAI-EXAONE/EXAONE-4.0-32B"), arrays))
    found = errors(capsys, *GENERATE, *PROMPT, "--adapter-path", str(tmp_path))
    assert "has model.layers.99.mlp.up_proj.lora_a" in found and "trained on LGAI-EXAONE/EXAONE-4.0-32B" in found


def test_adapters_count_in_the_memory_that_is_needed(
    capsys: pytest.CaptureFixture[str], folder: Path, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from exaone4_mlx.model import pretrained

    assert main(["fit", "--model", "demo", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert main(["fit", "--model", "demo", "--json", "--adapter-path", str(folder)]) == 0
    counted = json.loads(capsys.readouterr().out)
    assert counted["adapter_bytes"] == counted["total_bytes"] - plain["total_bytes"] > 500_000
    assert main(["fit", "--model", "demo", "--adapter-path", str(folder)]) == 0
    assert "adapters   " in capsys.readouterr().out
    found = errors(capsys, "fit", "--model", "demo", "--ranks", "2", "--adapter-path", str(folder))
    assert "several ranks takes no adapters" in found
    machine(15, 100)
    monkeypatch.setattr(pretrained, "load_network", lambda *given, **options: 1 / 0)
    warning = errors(capsys, *GENERATE, *PROMPT, "--adapter-path", str(folder))
    assert "MB of adapters" in warning or "kB of adapters" in warning, warning


@pytest.mark.usefixtures("no_weights")
def test_named_adapters_of_a_server_are_found_and_count(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    pytest.importorskip("fastapi", reason="the server needs the extra `server`")
    found = errors(capsys, "serve", "--model", "demo", "--adapter-model", f"demo={folder}")
    assert found == "error: --adapter-model gives the name demo, which is that of the model\n"
    given = "serve", "--model", "demo", "--prompt-cache-bytes", "900GB", "--adapter-model", f"mine={folder}"
    assert "no room for a reply" in errors(capsys, *given)


@pytest.mark.heavy
def test_a_measurement_counts_the_nodes_of_the_adapter(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    flags = ["-p", "8", "-g", "4", "-d", "0", "--repeat", "1", "--adapter-path", str(folder)]
    assert main(["bench", "--model", "demo", *flags]) == 0
    found = capsys.readouterr().out
    assert f"demo + {folder}: 8 layers" in found
    assert any("RoPE layer" in line and "| 23 " in line for line in found.splitlines())
    assert "mlx-lm runs without the adapter" in errors(capsys, "bench", "--model", "demo", *flags, "--peer", "mlx-lm")
