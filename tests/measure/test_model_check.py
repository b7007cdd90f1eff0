"""`doctor --model` passes where a model computes right, and names the check that fails where it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from exaone4_mlx import Exaone4ForCausalLM
from exaone4_mlx.cli.main import main
from exaone4_mlx.files.folders import DEMO_FOLDER
from exaone4_mlx.measure import doctor, model_check
from exaone4_mlx.measure.model_check import BESIDE_TRANSFORMERS, CheckedModel, examine_model


def failed(reference: str | None = None) -> set[str]:
    return {check.name for check in examine_model(CheckedModel(DEMO_FOLDER, reference)) if not check.ok}


def leave(monkeypatch: pytest.MonkeyPatch, *parts: str) -> None:
    chosen = {name: check for name, check in model_check.CHECKS.items() if any(part in name for part in parts)}
    monkeypatch.setattr(model_check, "CHECKS", chosen)


def breaks(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Each loaded model is changed before its checks."""
    real = model_check.load

    def load(*given: Any, **named: Any) -> Any:
        loaded = real(*given, **named)
        change(loaded[0])
        return loaded

    monkeypatch.setattr(model_check, "load", load)


def swap_layers(model: Exaone4ForCausalLM) -> None:
    layers = model.model.layers
    layers[1], layers[2] = layers[2], layers[1]
    model.fused(refresh=True)


def rotate_global_layers(model: Exaone4ForCausalLM) -> None:
    rope = next(layer.self_attn.rope for layer in model.model.layers if layer.self_attn.rope is not None)
    for layer in model.model.layers:
        layer.self_attn.rope = rope
    model.fused(refresh=True)


@pytest.mark.heavy
def test_a_report_of_the_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setattr(doctor, "CHECKS", {"a padded batch": lambda demo: (True, "0", "1")})
    assert main(["doctor", "--model", str(DEMO_FOLDER), "--output", str(tmp_path / "report.json")]) == 0
    out = capsys.readouterr().out
    assert "KL 0." in out and "all 7 checks passed" in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["ok"] and len(report["checks"]) == 7
    assert report["model"].startswith("8 layers of 256, windows of 32")
    assert str(Path.home()) not in json.dumps(report) and str(DEMO_FOLDER) not in json.dumps(report)


@pytest.mark.oracle
@pytest.mark.parametrize("change", [swap_layers, rotate_global_layers])
def test_a_broken_network_is_noticed(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    leave(monkeypatch, "chunks")
    assert failed("transformers") == set()
    breaks(monkeypatch, change)
    assert BESIDE_TRANSFORMERS in failed("transformers")


@pytest.mark.heavy
def test_broken_caches_and_replies_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from exaone4_mlx.model.cache import RotatingKVCache

    leave(monkeypatch, "chunks", "rewound", "greedy", "guesses")
    with monkeypatch.context() as patch:
        patch.setattr(RotatingKVCache, "rewind", lambda self, n: setattr(self, "offset", self.offset - n))
        assert "rewound past a window, beside never gone there" in failed()
    real = mx.fast.rope
    with monkeypatch.context() as patch:
        patch.setattr(mx.fast, "rope", lambda *given, **named: real(*given, **named | {"offset": 0}))
        assert {"in chunks, beside all at once", "a greedy reply, beside all at once"} <= failed()


def test_wrong_calls_are_refused_before_work(tmp_path: Path, capsys: Any) -> None:
    for arguments, message in {
        ("--reference", "transformers"): "--reference needs --model",
        ("--model", "demo", "--output", str(tmp_path / "no" / "report.json")): "there is no folder",
        ("--model", str(tmp_path / "nothing")): "there is no folder",
    }.items():
        assert main(["doctor", *arguments]) == 1
        err = capsys.readouterr()
        assert message in err.err and not err.out, arguments
