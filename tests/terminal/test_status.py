"""Status lines of a chat."""

from __future__ import annotations

import dataclasses

from chat_terminals import DONE, ScriptedChat, talk

from exaone4_mlx.cli.output import reply_summary
from exaone4_mlx.model.kv import KVQuantization
from exaone4_mlx.terminal.status import Progress, extras_text, turn_text
from exaone4_mlx.text.events import Done
from exaone4_mlx.text.format import count_text


def test_the_summary_of_a_turn() -> None:
    text = turn_text(DONE, 0.5, "context 9 of 10")
    assert text == "[50 tokens, 25.0 tokens/s, first after 0.50 s | prompt 100 (40 cached) | context 9 of 10]"
    drafted = dataclasses.replace(DONE, drafted_tokens=1200, accepted_tokens=31)
    assert "first after 0.50 s, 31 of 1,200 draft tokens accepted | prompt" in turn_text(
        drafted, 0.5, "context 9 of 10"
    )


def test_the_banner_names_quantized_caches_and_drafts() -> None:
    assert extras_text(None, None, False) == ""
    text = extras_text(KVQuantization(8, 4, 64, "global"), "demo-draft", False)
    assert text == "; cache of global layers: keys 8 bits, values 4 bits, groups of 64; drafts by demo-draft"
    assert extras_text(None, None, True) == "; drafts by prompt lookup"


def test_progress_with_the_time_left() -> None:
    assert Progress(0.0, 0).text(1.0, 0, 10, "reading", "tokens") == "reading: 0 of 10 tokens"
    text = Progress(0.0, 0).text(25.0, 5 * 10**8, 2 * 10**9, "loading", "bytes")
    assert text == "loading: 0.50 of 2.00 GB, 1 min 15 s left"


def test_one_is_singular() -> None:
    assert [count_text(count, "turn") for count in (0, 1, 2, 1200)] == ["0 turns", "1 turn", "2 turns", "1,200 turns"]
    one = Done("stop", 1, 0, 0, 1, 0.1, 0.1, 0.0, 0)
    assert turn_text(
        one, None, ""
    ) == "[1 token | prompt 1 | ]" and "[prompt 1 token in 0.10 s | reply 1 token in" in reply_summary(one)
    _, _, notes = talk(ScriptedChat(), "Hello", "/stats")
    assert any(line.startswith("1 turn, 0 messages; ") for line in notes.lines), notes.lines
