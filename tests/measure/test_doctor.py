"""`doctor` says what is wrong with a machine, and nothing else is wrong with one where all is right."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from conftest import random_ids, tiny_model

from exaone4_mlx.cli.main import main
from exaone4_mlx.measure import doctor
from exaone4_mlx.measure.machine import describe_machine


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Any:
    """only(names…) leaves the checks of which the names contain one of these."""

    def leave(*parts: str) -> None:
        chosen = {name: check for name, check in doctor.CHECKS.items() if any(part in name for part in parts)}
        assert len(chosen) >= len(parts)
        monkeypatch.setattr(doctor, "CHECKS", chosen)

    return leave


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the demo's place a tiny model, which is quick."""
    monkeypatch.setattr(doctor.Demo, "model", tiny_model())
    monkeypatch.setattr(doctor.Demo, "ids", random_ids(115)[0].tolist())


def failed() -> set[str]:
    return {check.name for check in doctor.examine() if not check.ok}


@pytest.mark.heavy
def test_all_is_right_here() -> None:
    assert [check for check in doctor.examine() if not check.ok] == []


def test_all_is_right_with_a_tiny_model(only: Any, tiny: None) -> None:
    only("all at once", "rewound", "padded", "products")
    assert len(doctor.CHECKS) == 11
    assert failed() == set()


def test_each_check_is_a_line(only: Any, capsys: pytest.CaptureFixture[str]) -> None:
    only("stored ones", "in another thread")
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    lines = [line for line in out.splitlines() if line.startswith("ok ")]
    assert len(lines) == 2
    assert all(name in line for name, line in zip(doctor.CHECKS, lines, strict=True))
    assert "at most 0.01" in lines[0]
    assert "all 2 checks passed" in out
    assert out.startswith("exaone4_mlx ") and "mlx-lm" in out and "memory" in out
    assert "paste all of the above" in err


def test_rotation_in_other_pairs_is_noticed(only: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    real = mx.fast.rope
    monkeypatch.setattr(mx.fast, "rope", lambda *given, **named: real(*given, **named | {"traditional": True}))
    only("stored ones")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "FAILED  logits, beside the stored ones" in out
    assert "1 of 1 checks FAILED" in out


def test_rotation_that_does_not_go_on_is_noticed(only: Any, tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    real = mx.fast.rope
    monkeypatch.setattr(mx.fast, "rope", lambda *given, **named: real(*given, **named | {"offset": 0}))
    only("chunks")
    assert failed() == {"in chunks, beside all at once"}


def test_a_cache_that_does_not_go_back_is_noticed(only: Any, tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from exaone4_mlx.model.cache import RotatingKVCache

    def keeps_rows(self: RotatingKVCache, n: int) -> None:
        self.offset -= n

    monkeypatch.setattr(RotatingKVCache, "rewind", keeps_rows)
    only("rewound", "chunks")
    assert failed() == {"rewound past a window, beside never gone there"}


def test_padding_that_is_seen_is_noticed(only: Any, tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from exaone4_mlx import Exaone4ForCausalLM

    real = Exaone4ForCausalLM.forward
    monkeypatch.setattr(Exaone4ForCausalLM, "forward", lambda self, ids, mask: real(self, ids))
    only("padded")
    assert failed() == {"a padded batch, beside row by row"}


def test_wrong_kernels_are_noticed(only: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = mx.quantized_matmul
    monkeypatch.setattr(mx, "quantized_matmul", lambda *given, **named: real(*given, **named) * 1.2)
    only("-bit products")
    assert len(failed()) == 6


def test_rounded_products_widen_limits_and_wrong_ones_fail(only: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a GPU computes float32 products in TF32: what it did to logits passes, and a wrong product does not."""
    real, wrong = mx.matmul, 1e-3
    monkeypatch.setattr(mx, "matmul", lambda a, b, stream=None: real(a, b) * (1 if stream else 1 + wrong))
    demo = doctor.Demo()
    assert demo.compared(mx.array([1.0]), mx.array([1.04]))[0]
    assert not demo.compared(mx.array([1.0]), mx.array([1.06]))[0]
    only("float32 products")
    assert not failed()
    wrong = 1e-2
    assert failed() == {"float32 products, beside the CPU's"}


def test_another_reply_is_told_in_full(only: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(doctor, "_greedy_reply", lambda *_: SimpleNamespace(thinking="Hm.", text="3.12 is bigger."))
    only("a greedy reply", "another thread")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert f"'Hm. 3.12 is bigger.' instead of '{doctor.THOUGHT} {doctor.ANSWER}'" in out
    assert "2 of 2 checks FAILED" in out


def test_nan_has_failed() -> None:
    assert not doctor.within(doctor.distance(mx.array([1.0, float("nan")]), mx.array([1.0, 1.0])), 1e-2)[0]


def test_a_check_that_raises_has_failed_and_the_others_run(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def raises(demo: doctor.Demo) -> doctor.Finding:
        raise RuntimeError("[metal] no such kernel")

    def fine(demo: doctor.Demo) -> doctor.Finding:
        return True, "0", "1"

    monkeypatch.setattr(doctor, "CHECKS", {"first": raises, "second": fine})
    assert main(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [check["ok"] for check in report["checks"]] == [False, True]
    assert report["checks"][0]["error"] == "RuntimeError: [metal] no such kernel"
    assert report["ok"] is False
    assert report["machine"]["versions"]["mlx"]


def test_an_error_in_the_thread_is_told(only: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(model: Any, tokenizer: Any) -> str:
        raise RuntimeError("There is no Stream(gpu, 0) in current thread.")

    monkeypatch.setattr(doctor, "_greedy_reply", raises)
    only("another thread")
    (check,) = doctor.examine()
    assert check.error.startswith("RuntimeError: There is no Stream")


def test_a_missing_package_is_listed() -> None:
    assert describe_machine(["mlx", "no-such-package"]).versions["no-such-package"] == "not installed"


def logits_of_transformers() -> Iterator[tuple[int, list[float], int, float]]:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from exaone4_mlx.files.folders import DEMO_FOLDER

    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO_FOLDER, dtype="float32").eval()
    with torch.no_grad():
        logits = model(torch.tensor([doctor.Demo().ids])).logits[0]
    for row in doctor.STORED:
        best = int(logits[row[0]].argmax())
        yield (
            row[0],
            [float(logits[row[0], token]) for token in doctor.STORED_TOKENS],
            best,
            float(logits[row[0], best]),
        )


@pytest.mark.oracle
def test_stored_logits_are_those_of_transformers() -> None:
    for row, (position, logits, best, highest) in zip(doctor.STORED, logits_of_transformers(), strict=True):
        assert row[0] == position and row[5] == best
        assert [*row[1:5], row[6]] == pytest.approx([*logits, highest], abs=2e-4)
