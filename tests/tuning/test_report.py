"""The card and the picture of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from exaone4_mlx import TuningResult
from exaone4_mlx.conversion.texts import HELD_OUT, read_passages
from exaone4_mlx.model.adapter import Adapter, AdapterConfig
from exaone4_mlx.tuning.drift import STEP, TEXTS
from exaone4_mlx.tuning.examples import Example, Examples
from exaone4_mlx.tuning.report import training_card, write_loss_plot

EXAMPLES = Examples((Example("here", (1, 2, 3), (False, True, True)),), (), ())


def result(base: str | None) -> TuningResult:
    adapter = Adapter(AdapterConfig(base=base), {"model.layers.0.mlp.up_proj.lora_a": mx.zeros((2, 8))})
    losses = tuple((step, 4.0 / step) for step in range(1, 21))
    valid = ((0, 5.0), (10, 0.5), (20, 0.7))
    return TuningResult(adapter, Path("x"), 20, 10, losses, valid, None, 0.01, 16, 1600, 900, 3.0, 10**8)


def test_the_card_has_the_figures_and_the_command() -> None:
    card = training_card("mine", result("demo"), EXAMPLES)
    assert card.startswith('---\nlibrary_name: "mlx"\ntags:\n- "lora"\n- "exaone4"\n')
    assert (
        "# mine\n\nAn adapter of the demo model of exaone4_mlx" in card and "It was trained with exaone4_mlx " in card
    )
    assert "exaone4-mlx generate --model demo --adapter-path mine --prompt Hello" in card
    assert "| steps | 20; the adapter is that of step 10 |" in card
    assert "| trained numbers | 16, 1 % of the model's 1,600 |" in card
    assert "| training loss | 0.2053 nats per learned token" in card, "the mean of the last two of twenty steps"
    assert "| validation loss | 0.5, and 5 before |" in card
    assert "- train: 1 example of 3 to 3 tokens (median 3), 3 in all, 2 of them learned" in card
    assert "EXAONE AI Model License" not in card, "the demo is not EXAONE"


def test_the_card_has_the_licence_of_exaone_and_no_path(tmp_path: Path) -> None:
    card = training_card("mine", result("LGAI-EXAONE/EXAONE-4.0-1.2B"), EXAMPLES)
    assert "An adapter of [LGAI-EXAONE/EXAONE-4.0-1.2B]" in card
    assert 'A derivative\'s name begins with "EXAONE"' in card
    card = training_card("mine", result(str(tmp_path / "secret" / "model")), EXAMPLES)
    assert "secret" not in card and "An adapter of model," in card
    card = training_card("x", result(None), EXAMPLES)
    assert "An adapter of a model that is not named," in card and "generate --model MODEL --adapter-path x" in card
    assert "The licence of the original weights applies to these too." in card


def test_the_picture_has_both_losses(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = replace(result(None), train_losses=((1, 2.0), (2, 0.0)))  # zero has no place on a logarithmic axis
    write_loss_plot(tmp_path / "loss.svg", done.train_losses, done.valid_losses)
    picture = (tmp_path / "loss.svg").read_text()
    assert 'id="training"' in picture and 'id="validation"' in picture
    write_loss_plot(tmp_path / "again.svg", done.train_losses, done.valid_losses)
    assert (tmp_path / "again.svg").read_text() == picture
    write_loss_plot(tmp_path / "one.svg", done.train_losses, ())
    assert "validation" not in (tmp_path / "one.svg").read_text()


def test_the_result_shows_what_matters(capsys: Any) -> None:
    shown = repr(result("demo"))
    assert shown == (
        "TuningResult(20 steps, best 10, training loss 0.2053, validation loss 0.5, drift 0.01, 16 trained numbers)"
    )


def test_the_drift_is_measured_on_all_kinds_of_texts() -> None:
    kinds = Counter(passage.kind for passage in read_passages(HELD_OUT)[::STEP][:TEXTS])
    assert set(kinds) == {"ko", "en", "es", "code", "math", "chat"} and set(kinds.values()) == {2}
